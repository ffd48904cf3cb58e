import csv
import math
import shutil
import sys

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from audiocodec import bench, metrics
from audiocodec.bench import Clip, Codec
from audiocodec.errors import NacError

RATE = 24_000
NOISE = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)

has_opus = shutil.which("opusenc") and shutil.which("opusdec")
needs_opus = pytest.mark.skipif(not has_opus, reason="opus-tools are not installed")


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


def test_log_mel_distance_is_what_training_minimises_at_that_floor():
    torch = pytest.importorskip("torch")
    from audiocodec.training.losses import SpectralDistance

    decoded = (np.round(NOISE * 8) / 8).astype(np.float32)
    loss = SpectralDistance(RATE, floor=1e-5)
    mel, _ = loss(torch.from_numpy(decoded)[None], loss.spectra(torch.from_numpy(NOISE)[None]))
    assert metrics.log_mel_distance(NOISE, decoded, RATE) == pytest.approx(float(mel[0]), rel=0.01)


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


# Clips


@pytest.fixture
def corpus(tmp_path):
    """Short speech of two speakers, three pieces of music, one of them silent, and a text."""
    rng = np.random.default_rng(1)
    for speaker, seconds in (("anna", 3), ("bert", 5)):
        for number in range(6):
            path = tmp_path / "speech" / speaker / f"{number}.wav"
            write(path, rng.normal(0, 0.1, seconds * 16_000), 16_000)
    write(tmp_path / "music" / "album" / "long.flac", rng.normal(0, 0.1, (20 * RATE, 2)), RATE)
    write(tmp_path / "music" / "album" / "nine.flac", rng.normal(0, 0.1, (9 * RATE, 2)), RATE)
    write(tmp_path / "music" / "album" / "silent.flac", np.zeros(20 * RATE), RATE)
    (tmp_path / "music" / "readme.txt").write_text("not audio")
    return tmp_path


def write(path, samples, rate):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


def test_choose_clips(corpus):
    clips = bench.choose_clips(corpus, "speech", 20)
    assert [clip.name.split("/")[0] for clip in clips] == ["anna", "bert", "anna", "bert", "bert"]
    assert [len(clip.samples) / RATE for clip in clips] == [9, 10, 9, 10, 10]
    assert {clip.kind for clip in clips} == {"speech"}
    again = bench.choose_clips(corpus / "speech", "speech", 3)
    assert [clip.name for clip in again] == [clip.name for clip in clips[:3]]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(again, clips))


def test_long_files_give_their_middle(corpus):
    clips = bench.choose_clips(corpus, "music", 20)
    found = {clip.name: clip.samples for clip in clips}
    assert {name: len(found[name]) / RATE for name in found} == {"album/long": 10, "album/nine": 9}
    samples, _ = soundfile.read(corpus / "music" / "album" / "long.flac", dtype="float32")
    assert np.allclose(found["album/long"], samples[5 * RATE:15 * RATE].mean(axis=1))


def test_nothing_to_choose(corpus):
    assert bench.choose_clips(corpus, "sfx", 20) == []


# Codecs and scores


def encode_bytes(samples):
    return np.rint(samples * 127).astype(np.int8).tobytes()


def decode_bytes(data):
    return np.frombuffer(data, np.int8).astype(np.float32) / 127


EIGHT_BITS = Codec("8 bits", encode_bytes, decode_bytes)
TWO_MISSING = Codec("two missing", encode_bytes, lambda data: decode_bytes(data)[:-2])


def test_score_clips():
    clips = [Clip("a", "speech", NOISE), Clip("b", "music", NOISE)]
    rows = list(bench.score_clips(clips, [EIGHT_BITS, TWO_MISSING], ["mel", "si_sdr"]))
    assert [(row["clip"], row["kind"], row["codec"]) for row in rows] == [
        ("a", "speech", "8 bits"), ("a", "speech", "two missing"),
        ("b", "music", "8 bits"), ("b", "music", "two missing"),
    ]
    assert all(row["kbps"] == 192 for row in rows)
    assert all(row["si_sdr"] == pytest.approx(20 * np.log10(12.7 * 12**0.5), abs=0.5) for row in rows)


def test_scores_that_do_not_apply_are_left_empty(monkeypatch):
    monkeypatch.setitem(bench.METRICS, "pesq", bench.Metric("PESQ-wb", 2, {"speech": lambda *_: 3.0}))
    clips = [Clip("a", "speech", NOISE), Clip("b", "music", NOISE)]
    rows = list(bench.score_clips(clips, [EIGHT_BITS], ["pesq"]))
    assert rows[0]["pesq"] == 3 and math.isnan(rows[1]["pesq"])


def test_worker_processes_give_the_same_rows():
    clips = [Clip(str(number), "music", NOISE[number:]) for number in range(3)]
    alone = list(bench.score_clips(clips, [EIGHT_BITS], ["si_sdr"]))
    shared = list(bench.score_clips(clips, [EIGHT_BITS], ["si_sdr"], jobs=2))
    assert shared == [row | {"si_sdr": pytest.approx(row["si_sdr"])} for row in alone]     # threads round differently


@needs_opus
def test_opus():
    codec = bench.opus(32)
    tone = (0.3 * np.sin(np.arange(8 * RATE + 77) * 0.11)).astype(np.float32)
    (row,) = bench.score_clips([Clip("tone", "music", tone)], [codec], ["si_sdr"])
    assert 20 < row["kbps"] < 64  # VBR
    assert row["si_sdr"] > 15  # so it is aligned
    assert len(codec.decode(codec.encode(tone))) == len(tone)


def test_program_that_is_missing():
    with pytest.raises(NacError, match="no-such-opusenc: not installed"):
        bench._run("no-such-opusenc")


# Results


def test_summary_and_table():
    rows = [
        {"clip": "a", "kind": "speech", "codec": "x", "kbps": 6.0, "mel": 0.25, "pesq": 1.0},
        {"clip": "b", "kind": "speech", "codec": "x", "kbps": 5.0, "mel": 0.35, "pesq": 3.0},
        {"clip": "c", "kind": "music", "codec": "x", "kbps": 4.0, "mel": 0.5, "pesq": math.nan},
    ]
    speech, music = bench.summarise(rows)
    assert speech["clips"] == 2 and speech["kbps"] == 5.5 and speech["pesq"] == 2
    assert speech["pesq_interval"] == pytest.approx(1.96)  # deviation 2 ** 0.5, two clips
    assert music["mel"] == 0.5 and math.isnan(music["mel_interval"]) and math.isnan(music["pesq"])
    assert bench.markdown([speech, music]) == (
        "| kind | codec | clips | kbps | log-mel distance | PESQ-wb |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
        "| speech | x | 2 | 5.50 | 0.300 ± 0.098 | 2.00 ± 1.96 |\n"
        "| music | x | 1 | 4.00 | 0.500 |  |"
    )


@needs_opus
def test_command(corpus):
    target = corpus / "scores.csv"
    options = ["--kbps", "", "--peers", "opus:6,12", "--clips", "1", "--metrics", "mel", "--csv", str(target)]
    result = CliRunner().invoke(bench.main, [str(corpus), *options])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| speech", "opus 6"], ["| speech", "opus 12"], ["| music", "opus 6"], ["| music", "opus 12"],
    ]
    with open(target, newline="") as file:
        assert [row["codec"] for row in csv.DictReader(file)] == ["opus 6", "opus 12"] * 2


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--peers", "mp3:6"], 2, "'mp3:6'; expected opus:KBPS"),
        (["--kbps", "six"], 2, "'six'; expected numbers"),
        (["--metrics", "taste"], 2, "'taste'; expected some of mel"),
        (["--kinds", "sfx"], 1, "no audio of 8 s under folders named sfx"),
    ],
)
def test_command_errors(corpus, options, status, message):
    result = CliRunner().invoke(bench.main, [str(corpus), *options])
    assert result.exit_code == status
    assert message in result.output
