"""Models by name, or by what a .nac file says of its weights; each is loaded once."""
from functools import lru_cache
from pathlib import Path

from audiocodec import container, weights
from audiocodec.errors import FormatError, ModelError
from audiocodec.tokens import Codec, choose_device


def load(model: str, device: str) -> Codec:
    """The codec with these weights, by name or path. Raises ModelError."""
    return _load(weights.find(model), choose_device(device))


def load_for(header: container.Header, model: str | None, device: str) -> Codec:
    """The codec whose weights a file was made with: one of the released, or `model`. Raises ModelError."""
    candidates = [weights.find(model)] if model else weights.released()
    for path in candidates:
        if weights.identity(path) == header.weights_id:
            codec = _load(path, choose_device(device))
            if header.codebooks > codec.config.num_books:
                raise FormatError(f"{header.codebooks} codebooks; the model has {codec.config.num_books}")
            return codec
    known = ", ".join(f"{path.stem} {weights.identity(path).hex()}" for path in candidates) or "none"
    raise ModelError(f"made with the weights {header.weights_id.hex()}; here are: {known}; --model FILE names others")


@lru_cache(maxsize=4)
def _load(path: Path, device: str) -> Codec:
    return Codec(weights.load(str(path)), device)
