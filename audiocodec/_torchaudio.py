"""Import torchaudio, also beside a torch that its compiled extension does not fit.

The wheel of torchaudio links its extension to CUDA, so with a CPU-only torch `import torchaudio` fails,
although resampling and mel filter banks are plain Python. Other modules use
`from audiocodec._torchaudio import torchaudio`.
"""

import importlib
import sys
import types


def _without_extension() -> types.ModuleType:
    """Import torchaudio with an empty stand-in for its compiled extension, which nac never calls."""
    stand_in = types.ModuleType("torchaudio._extension")
    stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = False
    stand_in.fail_if_no_align = lambda function: function
    sys.modules[stand_in.__name__] = stand_in
    return importlib.import_module("torchaudio")


try:
    import torchaudio
except OSError:   # "Could not load this library"
    torchaudio = _without_extension()

__all__ = ["torchaudio"]
