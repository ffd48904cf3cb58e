"""EnCodec's architecture, to be timed beside nac: the public package `encodec`, with random weights, from no network.

Défossez et al., "High fidelity neural audio compression", 2022. Speed does not depend on what weights there are.
"""

import importlib
import math
import warnings

import numpy as np
import torch

from audiocodec.errors import NacError

SAMPLE_RATE = 24_000  # Hz
_LM = {"num_layers": 5, "dim": 200}  # of its entropy model, which sees 3.5 s
_LM_SECONDS = 3.5
_NAME = "encodec_24khz"


class EncodecSpeed:
    """Both directions at one of its rates: samples float32 (1, N) at SAMPLE_RATE -> bytes, and back.

    Raises NacError where the package is missing.
    """

    def __init__(self, device: str = "cpu"):
        self.device = device
        self._compress = _module("compress")
        networks = _module("model")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it calls in torch is called differently today
            self._model = networks.EncodecModel.encodec_model_24khz(pretrained=False)
        self._model.name = _NAME  # or its file format would not know the model
        for layer in self._model.quantizer.vq.layers:
            torch.nn.init.normal_(layer._codebook.embed)  # they are zeros, and all codes would be 0
        window = int(_LM_SECONDS * self._model.frame_rate)
        entropy = networks.LMModel(self._model.quantizer.n_q, self._model.quantizer.bins, past_context=window, **_LM)
        self._model.to(device)
        entropy.eval().to(device)
        self._model.get_lm_model = lambda: entropy  # instead of a download

    def choose_rate(self, kbps: float) -> float:
        """Its rate that is nearest in ratio to kbps; it encodes at this one from now on."""
        nearest = min(self._model.target_bandwidths, key=lambda rate: abs(math.log(rate / kbps)))
        self._model.set_target_bandwidth(nearest)
        return float(nearest)

    def encode(self, samples: np.ndarray, entropy: bool) -> bytes:
        with torch.inference_mode():
            return self._compress.compress(self._model, torch.from_numpy(samples).to(self.device), use_lm=entropy)

    def decode(self, data: bytes) -> np.ndarray:
        known = self._compress.MODELS
        before = known[_NAME]
        known[_NAME] = lambda: self._model
        try:
            with torch.inference_mode():
                return self._compress.decompress(data, self.device)[0].cpu().numpy()
        finally:
            known[_NAME] = before


def _module(name: str):
    import audiocodec._torchaudio  # noqa: F401    # which it imports too, also where only this way works

    try:
        return importlib.import_module(f"encodec.{name}")
    except ImportError:
        raise NacError("--compare encodec needs a package: pip install encodec") from None
