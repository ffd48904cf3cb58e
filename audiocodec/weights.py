"""Find and load one weights file: tensors and configuration in safetensors, so nothing in it is ever executed."""
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save as to_bytes

from audiocodec.errors import ModelError

IDENTITY_SIZE = 6
_IN_BYTES = tuple(f".{name}" for name in (       # ends of names of tensors with a byte a number
    "codebooks", "enter.weight", "expand.weight", "project.weight", "leave.weight"))
_STEPS = ".steps"                # added to such a name: what 1 means in each row
_PACKAGE = Path(__file__).parent
_FOLDERS = (_PACKAGE / "models", _PACKAGE.parent / "weights")    # in an installed package, in a checkout


@dataclass(frozen=True)
class Weights:
    """A weights file: `tensors` named "codec.…" and "entropy.…", and the configuration they fit."""

    path: Path
    identity: bytes                  # the first six bytes of the file's SHA-256
    config: dict                     # "codec", "entropy" and "about": origin, licence, training
    tensors: dict[str, np.ndarray]

    def part(self, name: str) -> dict[str, np.ndarray]:
        """The tensors of one part, without its prefix."""
        return {key.removeprefix(f"{name}."): value
                for key, value in self.tensors.items() if key.startswith(f"{name}.")}

    def codec(self) -> dict[str, np.ndarray]:
        """The tensors of the codec as its networks and quantizer have them, float32."""
        return _restored(self.part("codec"))


def released() -> list[Path]:
    """The weights files that came with this program."""
    return sorted({path.name: path for folder in reversed(_FOLDERS) for path in folder.glob("*.safetensors")}.values())


def find(name: str) -> Path:
    """The path of a released model's weights by name, or of a weights file by its path. Raises ModelError."""
    for path in released():
        if path.stem == name:
            return path
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(path.stem for path in released()) or "none"
    raise ModelError(f"{name}: no such model; released ones: {known}; or give the path of a .safetensors file")


def identity(path: Path) -> bytes:
    """The first bytes of a file's SHA-256, by which a .nac file names the weights it was made with."""
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)[:IDENTITY_SIZE]


@lru_cache(maxsize=16)
def _digest(path: Path, _changed: int, _size: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load(name: str) -> Weights:
    """Load weights by name or path. Raises ModelError for what is not a nac weights file."""
    path = find(name)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            config = json.loads((file.metadata() or {}).get("nac", "null"))
            if not isinstance(config, dict) or not {"codec", "entropy"} <= config.keys():
                raise ModelError(f"{path}: a safetensors file, but not of a nac model")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: not a readable weights file ({error})") from None
    return Weights(path, identity(path), config, tensors)


def codec_tensors(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `Weights.codec` gives -> the tensors of a file: float16, but codebooks and layers of the networks int8.

    These count steps of a 127th of their row's largest number, which is an error of some 40 dB under the row.
    """
    return {f"codec.{name}": tensor for name, tensor in _stored(state).items()}


def rounded(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a codec, or of parts of one, as they come back from a file."""
    return _restored(_stored(state))


def _stored(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    stored = {}
    for name, tensor in state.items():
        if name.endswith(_IN_BYTES):
            stored[name], stored[name + _STEPS] = _in_steps(tensor)
        else:
            stored[name] = tensor.astype(np.float16)
    return stored


def _restored(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: _scaled(tensor, tensors[name + _STEPS]) if tensor.dtype == np.int8 else tensor.astype(np.float32)
            for name, tensor in tensors.items() if not name.endswith(_STEPS)}


def _in_steps(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (..., n) -> int8 (..., n), and the float16 steps (...) that they count."""
    steps = (np.abs(rows).max(-1) / 127).astype(np.float16)
    whole = np.rint(rows / np.maximum(steps, np.float16(6e-8)).astype(np.float32)[..., None])
    return whole.clip(-127, 127).astype(np.int8), steps


def _scaled(whole: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The inverse, float32."""
    return whole * steps.astype(np.float32)[..., None]


def pack(config: dict, tensors: dict[str, np.ndarray]) -> bytes:
    """The bytes of a weights file."""
    return to_bytes(tensors, {"nac": json.dumps(config, sort_keys=True)})
