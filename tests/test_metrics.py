import math
import sys

import numpy as np
import pytest
import soundfile

from audiocodec import metrics
from audiocodec.errors import NacError

RATE = 24_000
NOISE = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)


# Metrics


def test_si_sdr_of_known_ratios():
    signal = np.array([1, -1, 1, -1] * 100, np.float32)
    noise = np.array([1, 1, -1, -1] * 100, np.float32)  # orthogonal to the signal
    assert metrics.si_sdr(signal, signal + 0.1 * noise, RATE) == pytest.approx(20, abs=1e-4)
    assert metrics.si_sdr(signal, 3 * signal + 3 * noise, RATE) == pytest.approx(0, abs=1e-4)
    assert metrics.si_sdr(signal, signal, RATE) == math.inf
    assert metrics.si_sdr(signal, noise, RATE) == -math.inf
    assert math.isnan(metrics.si_sdr(0 * signal, signal, RATE))


def test_log_mel_distance_of_known_levels():
    assert metrics.log_mel_distance(NOISE, NOISE, RATE) == 0
    one = metrics.log_mel_distance(NOISE, 0.1 * NOISE, RATE)
    assert 0.95 < one <= 1  # 20 dB; triangles between two bins hold nothing, and count as 0
    assert metrics.log_mel_distance(0.1 * NOISE, NOISE, RATE) == pytest.approx(one)
    assert metrics.log_mel_distance(0 * NOISE, 0 * NOISE, RATE) == 0
    assert metrics.log_mel_distance(NOISE[:1], NOISE[1:2], RATE) >= 0


@pytest.mark.parametrize(
    ("package", "metric", "best"),
    [
        ("pesq", metrics.pesq_wb, 4.64),
        ("pystoi", metrics.stoi, 1.0),
        ("visqol", metrics.visqol_audio, 4.73),
    ],
)
def test_optional_metrics(package, metric, best):
    pytest.importorskip(package)
    speech = NOISE * np.sin(np.arange(len(NOISE)) * (2 * np.pi * 3 / RATE)).astype(np.float32) ** 2
    assert metric(speech, speech, RATE) == pytest.approx(best, abs=0.02)
    assert metric(speech, speech + NOISE[::-1], RATE) < best - 0.1


@pytest.mark.parametrize(("metric", "mode", "rate", "noise"), [(metrics.visqol_speech, "speech", 16_000, 0.05),
                                                               (metrics.visqol_audio, "audio", 48_000, 0.5)])
def test_visqol_is_that_of_its_own_files(metric, mode, rate, noise, tmp_path):
    """The package's own way, from WAV files at the rate of the mode, with nothing chosen but the mode."""
    visqol = pytest.importorskip("visqol")
    speech = NOISE * np.sin(np.arange(len(NOISE)) * (2 * np.pi * 3 / RATE)).astype(np.float32) ** 2
    pair = speech, speech + NOISE[::-1] * np.float32(noise)
    for name, samples in zip(("reference.wav", "decoded.wav"), pair):
        soundfile.write(tmp_path / name, metrics.resample(samples, RATE, rate), rate, subtype="DOUBLE")
    api = visqol.VisqolApi()
    api.create(mode=mode)
    found = api.measure(str(tmp_path / "reference.wav"), str(tmp_path / "decoded.wav")).moslqo
    assert metric(*pair, RATE) == pytest.approx(found, abs=1e-4) and 1.1 < found < 4.7


def test_pesq_of_silence_is_not_a_number():
    pytest.importorskip("pesq")
    assert math.isnan(metrics.pesq_wb(0 * NOISE, NOISE, RATE))


@pytest.mark.parametrize(
    ("package", "metric"),
    [("pesq", metrics.pesq_wb), ("pystoi", metrics.stoi), ("visqol", metrics.visqol_speech)],
)
def test_missing_package_is_named(package, metric, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    metrics._visqol_api.cache_clear()
    with pytest.raises(NacError, match=f"this score needs a package: pip install '{package}"):
        metric(NOISE, NOISE, RATE)
    assert metrics.missing_package({"pystoi": "stoi"}.get(package, package)).startswith(package)
    assert metrics.missing_package("mel") == ""
