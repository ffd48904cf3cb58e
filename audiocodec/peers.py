"""The codecs that `nac eval` sets beside each other: nac itself, Opus and MP3, each as two plain functions."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import soundfile

from audiocodec import __version__, metrics, weights
from audiocodec.errors import NacError

SAMPLE_RATE = 24_000  # Hz, of all clips

_MP3_RATES = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # for audio of 16 to 24 kHz
_MP3_DELAY = 576  # samples by which lame's encoder is late
_BROUGHT_BY = {"opusenc": "opus-tools", "opusdec": "opus-tools", "lame": "lame"}  # package of each program


@dataclass(frozen=True)
class Codec:
    """A codec at one rate: both directions as plain functions, which worker processes can be sent."""

    name: str
    encode: Callable[[np.ndarray], bytes]  # samples float32 (N,) at SAMPLE_RATE
    decode: Callable[[bytes], np.ndarray]  # samples float32 (N,) again, of the same length
    identity: str = ""  # weights, or version of the program: what scores remain valid for


def nac(kbps: float, model: str, best: bool = False) -> Codec:
    """nac itself, at a ceiling in kbps, with weights given by name or path. Raises ModelError."""
    return Codec(f"nac{'-best' * best} {kbps:g}", partial(_nac_encode, model, kbps=kbps, best=best),
                 partial(_nac_decode, model), _nac_identity(model))


def nac_books(codebooks: int, model: str) -> Codec:
    """nac with a fixed count of codebooks."""
    return Codec(f"nac {codebooks} books", partial(_nac_encode, model, codebooks=codebooks),
                 partial(_nac_decode, model), _nac_identity(model))


def opus(kbps: float) -> Codec:
    """Opus by the programs opusenc and opusdec, at a target in kbps; its bytes are those of the Ogg file.

    Raises NacError where a program is missing, as do the other peers.
    """
    _version("opusdec", "--version")
    return Codec(f"opus {kbps:g}", partial(_opus_encode, kbps), _opus_decode, _version("opusenc", "--version"))


def mp3(kbps: float) -> Codec:
    """MP3 by the program lame, at a constant rate in kbps; NacError for one that the format does not have."""
    if kbps not in _MP3_RATES:
        raise NacError(f"mp3 has no {kbps:g} kbps; it has {', '.join(map(str, _MP3_RATES))}")
    return Codec(f"mp3 {kbps:g}", partial(_mp3_encode, kbps), _mp3_decode, _version("lame", "--version"))


PEERS = {"opus": opus, "mp3": mp3}


def _nac_identity(model: str) -> str:
    return f"nac {__version__} {weights.identity(weights.find(model)).hex()}"


def _nac_encode(model: str, samples: np.ndarray, **rate) -> bytes:
    from audiocodec import codec

    return codec.encode(samples[None], SAMPLE_RATE, model=model, **rate)


def _nac_decode(model: str, data: bytes) -> np.ndarray:
    from audiocodec import codec

    samples, _ = codec.decode(data, model=model)
    return samples[0]


def _opus_encode(kbps: float, samples: np.ndarray) -> bytes:
    options = ["--comp", "10", "--bitrate", f"{kbps:g}", "--padding", "0"]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.wav"), Path(folder, "target.opus")
        soundfile.write(source, samples, SAMPLE_RATE, subtype="FLOAT")
        _run("opusenc", "--quiet", *options, str(source), str(target))
        return target.read_bytes()


def _opus_decode(data: bytes) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.opus"), Path(folder, "target.wav")
        source.write_bytes(data)
        _run("opusdec", "--quiet", "--float", "--rate", str(SAMPLE_RATE), str(source), str(target))
        return soundfile.read(target, dtype="float32")[0]


def _mp3_encode(kbps: float, samples: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.wav"), Path(folder, "target.mp3")
        soundfile.write(source, samples, SAMPLE_RATE, subtype="PCM_24")
        _run("lame", "--quiet", "-m", "m", "-q", "0", "--cbr", "-b", f"{kbps:g}", str(source), str(target))
        return target.read_bytes()


def _mp3_decode(data: bytes) -> np.ndarray:
    """lame chooses a lower sample rate for low bit rates. It takes its own delay away if the file tells of it.

    At low bit rates the tag that does so has no room in the first frame.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.mp3"), Path(folder, "target.wav")
        source.write_bytes(data)
        _run("lame", "--quiet", "--decode", str(source), str(target))
        samples, sample_rate = soundfile.read(target, dtype="float32")
        is_tagged = b"Info" in data[:64]
        return metrics.resample(samples[0 if is_tagged else _MP3_DELAY:], sample_rate, SAMPLE_RATE)


@cache
def _version(program: str, option: str) -> str:
    """The first line that a program says of itself."""
    said = _run(program, option)
    return re.sub(r"\s+", " ", said.strip().splitlines()[0])


def _run(*command: str) -> str:
    if not shutil.which(command[0]):
        package = _BROUGHT_BY.get(command[0], command[0])
        raise NacError(f"{command[0]}: not installed; it comes with the package {package}")
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise NacError(f"{command[0]}: {(error.stderr.strip() or str(error)).splitlines()[-1]}") from None
    return done.stdout or done.stderr
