"""Scores of what a codec brought back, one function each.

All take the reference and the decoded samples, float32 (N,) of equal length, and their sample rate in Hz.
Some need an optional package, and raise NacError where it is missing.
"""

import contextlib
import functools
import math
import os
import sys
from collections.abc import Iterator

import numpy as np

from audiocodec.errors import NacError

_WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples
_LOG_FLOOR = 1e-5  # of a mel magnitude: 100 dB under full scale
_PACKAGES = {  # module and package of the scores that need one
    "pesq": ("pesq", "pesq"),
    "stoi": ("pystoi", "pystoi"),
    "visqol": ("visqol", "visqol-python[lattice]"),
}


def log_mel_distance(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float:
    """Mean absolute difference of log10 mel magnitudes, averaged over six resolutions; 0.1 is 2 dB.

    For each window (Hann, hop a quarter of it, edges padded with zeros): magnitudes, scaled so that a
    full-scale sine is about 0.5, are summed under triangles (5 for every 32 samples of window, 10 to 80) and
    floored at 1e-5. After Kumar et al., "High-fidelity audio compression with improved RVQGAN", 2023.
    """
    distances = []
    for window in _WINDOWS:
        bank = _mel_bank(window, sample_rate)
        difference = _log_mel(reference, window, bank) - _log_mel(decoded, window, bank)
        distances.append(np.abs(difference).mean())
    return float(np.mean(distances))


def si_sdr(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float:
    """Scale-invariant signal-to-distortion ratio in dB; nan for a silent reference, inf for a perfect copy.

    Le Roux et al., "SDR: half-baked or well done?", 2019; means are removed first.
    """
    reference = reference.astype(np.float64) - reference.mean(dtype=np.float64)
    decoded = decoded.astype(np.float64) - decoded.mean(dtype=np.float64)
    energy = reference @ reference
    if energy == 0:
        return math.nan
    target = reference * (decoded @ reference / energy)
    noise = decoded - target
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.divide(target @ target, noise @ noise)))


def pesq_wb(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float:
    """Wide-band PESQ of speech, a MOS of 1.04 to 4.64 (ITU-T P.862.2); nan where it finds no utterance.

    Both are resampled to 16 kHz. Needs the package pesq.
    """
    pesq = _optional("pesq")
    if not (reference.any() and decoded.any()):
        return math.nan
    try:
        return float(pesq.pesq(16_000, resample(reference, sample_rate, 16_000),
                               resample(decoded, sample_rate, 16_000), "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return math.nan


def stoi(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float:
    """Short-time objective intelligibility of speech, at most 1.

    Taal et al., "A short-time objective intelligibility measure for time-frequency weighted noisy speech",
    2010. Needs the package pystoi.
    """
    return float(_optional("pystoi").stoi(reference, decoded, sample_rate))


def visqol_speech(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float:
    """ViSQOL's MOS of speech, 1 to 5, at 16 kHz with the lattice model; what lies over 8 kHz is not heard.

    Chinen et al., "ViSQOL v3: an open source production ready objective speech and audio metric", 2020.
    Needs the package visqol-python[lattice]; with [accel] too it is ten times faster.
    """
    return _visqol("speech", 16_000, reference, decoded, sample_rate)


def visqol_audio(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float:
    """ViSQOL's MOS of any audio, 1 to about 4.73, at 48 kHz; see visqol_speech."""
    return _visqol("audio", 48_000, reference, decoded, sample_rate)


def resample(samples: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Samples float32 (N,) at another rate, in Hz."""
    from audiocodec.audio import Resampler

    resampler = Resampler(source_rate, target_rate)
    return np.concatenate([resampler.push(samples[None]), resampler.flush()], axis=1)[0]


def missing_package(metric: str) -> str:
    """What `pip install` needs to be given before a metric, such as "pesq", can be computed here; "" for nothing."""
    module, package = _PACKAGES.get(metric, ("", ""))
    if not module:
        return ""
    try:
        __import__(module)
        if metric == "visqol":
            _visqol_api("speech")
    except (ImportError, NacError):
        return package
    return ""


def _optional(name: str, package: str = ""):
    """Import a module that is needed for one score alone."""
    try:
        return __import__(name)
    except ImportError:
        raise NacError(f"this score needs a package: pip install '{package or name}'") from None


def _visqol(mode: str, rate: int, reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float:
    pair = [resample(samples, sample_rate, rate).astype(np.float64) for samples in (reference, decoded)]
    return float(_visqol_api(mode).measure_from_arrays(*pair, rate).moslqo)


@functools.cache
def _visqol_api(mode: str):
    api = _optional("visqol", "visqol-python[lattice]").VisqolApi()
    try:
        with _quiet_libraries():
            api.create(mode=mode, use_lattice_model=mode == "speech")
    except ImportError:
        raise NacError("this score needs a package: pip install 'visqol-python[lattice]'") from None
    return api


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep from standard error what libraries say there themselves: the lattice model's tells of its delegate."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@functools.cache
def _mel_bank(window: int, sample_rate: int) -> np.ndarray:
    """Triangles (window // 2 + 1, M) of height 1, evenly spaced in mel = 2595 log10(1 + f / 700)."""
    num_mels = min(80, window * 5 // 32)
    bins = np.linspace(0, sample_rate / 2, window // 2 + 1)
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, num_mels + 2) / 2595) - 1)
    low, peak, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - low) / (peak - low)
    falling = (high - bins[:, None]) / (high - peak)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _log_mel(samples: np.ndarray, window: int, bank: np.ndarray) -> np.ndarray:
    """Samples (N,) -> (frames, M)."""
    padded = np.pad(samples.astype(np.float32), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::window // 4]
    hann = np.sin(np.pi * np.arange(window) / window).astype(np.float32) ** 2
    sizes = np.abs(np.fft.rfft(frames * hann)).astype(np.float32) * (2 / window)
    return np.log10(np.maximum(sizes @ bank, _LOG_FLOOR))
