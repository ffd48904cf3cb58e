"""`nac eval`: clips, codecs, rows of scores, the cache, means and comparisons, and the command."""

import base64
import csv
import io
import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from audiocodec import cli, evaluate, options, peers, report_html, scores
from audiocodec.clips import KINDS, Clip, choose_clips
from audiocodec.errors import NacError
from audiocodec.peers import Codec

RATE = 24_000
NOISE = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)

has_opus = shutil.which("opusenc") and shutil.which("opusdec")
needs_opus = pytest.mark.skipif(not has_opus, reason="opus-tools are not installed")


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
    clips = choose_clips(corpus, "speech", 20)
    assert [clip.name.split("/")[0] for clip in clips] == ["anna", "bert", "anna", "bert", "bert"]
    assert [len(clip.samples) / RATE for clip in clips] == [9, 10, 9, 10, 10]
    assert {clip.kind for clip in clips} == {"speech"}
    again = choose_clips(corpus / "speech", "speech", 3)
    assert [clip.name for clip in again] == [clip.name for clip in clips[:3]]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(again, clips))


def test_long_files_give_their_middle(corpus):
    clips = choose_clips(corpus, "music", 20)
    found = {clip.name: clip.samples for clip in clips}
    assert {name: len(found[name]) / RATE for name in found} == {"album/long": 10, "album/nine": 9}
    samples, _ = soundfile.read(corpus / "music" / "album" / "long.flac", dtype="float32")
    assert np.allclose(found["album/long"], samples[5 * RATE:15 * RATE].mean(axis=1))


def test_more_pieces_of_long_files_once_there_is_nothing_else(tmp_path):
    parts = [np.full(10 * 8000, level) for level in (0.1, 0.2, 0.3, 0.4, 0.5)]
    write(tmp_path / "sfx" / "steps.wav", np.concatenate(parts), 8000)
    write(tmp_path / "sfx" / "short.wav", parts[4], 8000)
    found = choose_clips(tmp_path, "sfx", 20)
    assert [clip.name for clip in found] == ["sfx/short", "sfx/steps", "sfx/steps, 25% in", "sfx/steps, 75% in"]
    middles = [float(np.median(clip.samples)) for clip in found]
    assert middles == pytest.approx([0.5, 0.3, 0.2, 0.4], abs=0.06)
    assert [clip.name for clip in choose_clips(tmp_path, "sfx", 2)] == ["sfx/short", "sfx/steps"]


def test_odd_files_are_named_and_passed_over(corpus, capsys):
    (corpus / "music" / "album" / "empty.mp3").write_bytes(b"")
    (corpus / "music" / "album" / "text.wav").write_text("not audio at all")
    (corpus / "music" / "folder.wav").mkdir()
    write(corpus / "music" / "out" / "audio" / "decoded.flac", np.full(9 * RATE, 0.1), RATE)
    found = choose_clips(corpus, "music", 20, but=corpus / "music" / "out")
    assert {clip.name for clip in found} == {"album/long", "album/nine"}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "empty.mp3: left out: " in said[0] and "text.wav: left out: " in said[1]


def test_a_damaged_file_takes_no_others_along(corpus, capsys):
    cut = corpus / "speech" / "anna" / "1.flac"
    write(cut, np.random.default_rng(2).normal(0, 0.1, 3 * 16_000), 16_000)
    cut.write_bytes(cut.read_bytes()[:20_000])       # 0.wav, 1.flac, 1.wav and so on: three to a clip
    (clip,) = (clip for clip in choose_clips(corpus, "speech", 20) if "anna" in clip.name)
    assert clip.name == "anna/2" and "1.flac: left out: " in capsys.readouterr().err


def test_nothing_to_choose(corpus):
    assert choose_clips(corpus, "sfx", 20) == []


# Codecs and scores


def encode_bytes(samples):
    return np.rint(samples * 127).astype(np.int8).tobytes()


def decode_bytes(data):
    return np.frombuffer(data, np.int8).astype(np.float32) / 127


EIGHT_BITS = Codec("8 bits", encode_bytes, decode_bytes)
TWO_MISSING = Codec("two missing", encode_bytes, lambda data: decode_bytes(data)[:-2])


def test_score_clips():
    clips = [Clip("a", "speech", NOISE), Clip("b", "music", NOISE)]
    rows = list(evaluate.score_clips(clips, [EIGHT_BITS, TWO_MISSING], ["mel", "si_sdr"]))
    assert [(row["clip"], row["kind"], row["codec"]) for row in rows] == [
        ("a", "speech", "8 bits"), ("a", "speech", "two missing"),
        ("b", "music", "8 bits"), ("b", "music", "two missing"),
    ]
    assert all(row["kbps"] == 192 for row in rows)
    assert all(row["si_sdr"] == pytest.approx(20 * np.log10(12.7 * 12**0.5), abs=0.5) for row in rows)


def test_scores_that_do_not_apply_are_left_empty(monkeypatch):
    monkeypatch.setitem(scores.METRICS, "pesq", scores.Metric("PESQ-wb", 2, {"speech": lambda *_: 3.0}))
    clips = [Clip("a", "speech", NOISE), Clip("b", "music", NOISE)]
    rows = list(evaluate.score_clips(clips, [EIGHT_BITS], ["pesq"]))
    assert rows[0]["pesq"] == 3 and math.isnan(rows[1]["pesq"])


def test_worker_processes_give_the_same_rows():
    clips = [Clip(str(number), "music", NOISE[number:]) for number in range(3)]
    alone = list(evaluate.score_clips(clips, [EIGHT_BITS], ["si_sdr"]))
    shared = list(evaluate.score_clips(clips, [EIGHT_BITS], ["si_sdr"], jobs=2))
    assert shared == [row | {"si_sdr": pytest.approx(row["si_sdr"])} for row in alone]     # threads round differently


@needs_opus
def test_opus():
    codec = peers.opus(32)
    tone = (0.3 * np.sin(np.arange(8 * RATE + 77) * 0.11)).astype(np.float32)
    (row,) = evaluate.score_clips([Clip("tone", "music", tone)], [codec], ["si_sdr"])
    assert 20 < row["kbps"] < 64  # VBR
    assert row["si_sdr"] > 15  # so it is aligned
    assert len(codec.decode(codec.encode(tone))) == len(tone)


@pytest.mark.skipif(not shutil.which("lame"), reason="lame is not installed")
@pytest.mark.parametrize("kbps", [16, 32, 48, 64])     # at 8, 16, 22.05 and 24 kHz, with and without lame's tag
def test_mp3_is_aligned(kbps):
    rng = np.random.default_rng(0)
    slow = np.interp(np.arange(8 * RATE + 77), np.arange(0, 8 * RATE + 100, 20), rng.normal(0, 0.1, 4 * RATE // 10 + 5))
    slow = slow.astype(np.float32)       # noise below 600 Hz or so, whose every place is another
    (row,) = evaluate.score_clips([Clip("slow", "music", slow)], [peers.mp3(kbps)], ["si_sdr"])
    assert kbps < row["kbps"] < 1.03 * kbps and row["si_sdr"] > 10


def test_rates_that_mp3_does_not_have():
    with pytest.raises(NacError, match="mp3 has no 33 kbps; it has 8, 16, "):
        peers.mp3(33)


def test_program_that_is_missing():
    with pytest.raises(NacError, match="no-such-opusenc: not installed"):
        peers._run("no-such-opusenc")


# Results


def test_summary_and_table():
    rows = [
        {"clip": "a", "kind": "speech", "codec": "x", "kbps": 6.0, "mel": 0.25, "pesq": 1.0},
        {"clip": "b", "kind": "speech", "codec": "x", "kbps": 5.0, "mel": 0.35, "pesq": 3.0},
        {"clip": "c", "kind": "music", "codec": "x", "kbps": 4.0, "mel": 0.5, "pesq": math.nan},
    ]
    speech, music = scores.summarise(rows)
    assert speech["clips"] == 2 and speech["kbps"] == 5.5 and speech["pesq"] == 2
    assert speech["pesq_interval"] == pytest.approx(1.96)  # deviation 2 ** 0.5, two clips
    assert music["mel"] == 0.5 and math.isnan(music["mel_interval"]) and math.isnan(music["pesq"])
    assert scores.markdown([speech, music]) == (
        "| kind | codec | clips | kbps | log-mel distance | PESQ-wb |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
        "| speech | x | 2 | 5.50 | 0.300 ± 0.098 | 2.00 ± 1.96 |\n"
        "| music | x | 1 | 4.00 | 0.500 |  |"
    )


def row_of(clip, codec, **numbers):
    return {"clip": clip, "kind": "music", "codec": codec, "clip_id": clip, "identity": "", "kbps": 6.0} | numbers


def test_paired_bootstrap():
    rng = np.random.default_rng(0)
    hard, gain = rng.normal(0, 10, 50), rng.normal(1, 0.1, 50)      # clips differ far more than codecs
    rows = [row_of(str(at), codec, si_sdr=score)
            for at in range(50) for codec, score in (("a", hard[at] + gain[at]), ("b", hard[at]))]
    (found,) = scores.compare(rows, [("a", "b")])
    assert found["clips"] == 50 and found["metric"] == "si_sdr"
    assert found["difference"] == pytest.approx(gain.mean())
    half = 1.96 * gain.std() / 50 ** 0.5
    assert found["low"] == pytest.approx(gain.mean() - half, abs=half / 5)
    assert found["high"] == pytest.approx(gain.mean() + half, abs=half / 5)
    assert scores.compare(rows, [("a", "b")]) == [found]
    table = scores.comparison_table([found]).splitlines()
    assert re.fullmatch(r"\| music \| a - b \| \+1\.0 \(\+1\.0 to \+1\.\d\) \|", table[2])


def test_codecs_are_chosen_in_order_and_nac_with_a_longer_search_is_another():
    chosen = evaluate.choose_codecs([3, 6], [8], [], "nac-24k", best=True)
    assert [codec.name for codec in chosen] == ["nac 3", "nac 6", "nac-best 3", "nac-best 6", "nac 8 books"]
    assert [codec.name for codec in evaluate.choose_codecs([3], [], [], "nac-24k")] == ["nac 3"]
    plain, _, best, *_ = chosen
    noise = np.random.default_rng(0).normal(0, 0.1, 12_000).astype(np.float32)
    assert plain.encode(noise) != best.encode(noise)
    assert len(best.decode(best.encode(noise))) == len(noise)


def test_pairs_are_the_nearest_in_rate():
    lines = [{"kind": "music", "codec": codec, "kbps": kbps}
             for codec, kbps in (("nac 3", 2.8), ("nac 12", 11.8), ("opus 6", 5.5), ("opus 12", 12.9), ("mp3 32", 32))]
    assert scores.nearest_pairs(lines) == [("nac 3", "opus 6"), ("nac 12", "opus 12"), ("nac 12", "mp3 32")]
    assert scores.nearest_pairs(lines[2:]) == []
    assert scores.nearest_pairs(lines[:2]) == [("nac 3", "nac 12")]


# Cache


def test_rows_are_not_computed_again(tmp_path):
    pytest.importorskip("matplotlib")                         # or its absence is hinted at
    clips = [Clip("a", "speech", NOISE), Clip("b", "music", NOISE)]
    first = evaluate.run(clips, [EIGHT_BITS], ["si_sdr"], out=tmp_path, hint=pytest.fail)
    assert len(list((tmp_path / "audio").iterdir())) == 1     # the same samples twice

    def fail(_):
        raise AssertionError("computed again")

    forbidden = Codec("8 bits", fail, fail)
    again = evaluate.run(clips, [forbidden], ["si_sdr"], out=tmp_path, hint=pytest.fail)
    assert again.rows == first.rows
    more = evaluate.run(clips, [EIGHT_BITS, TWO_MISSING], ["si_sdr", "mel"], out=tmp_path, hint=pytest.fail)
    assert [row["codec"] for row in more.rows] == ["8 bits", "two missing"] * 2
    for codec in (Codec("8 bits", fail, fail, "other weights"), Codec("9 bits", fail, fail)):
        with pytest.raises(AssertionError):
            evaluate.run(clips, [codec], ["si_sdr"], out=tmp_path, hint=pytest.fail)
    with open(tmp_path / "scores.csv", newline="") as file:
        kept = [(row["clip"], row["codec"]) for row in csv.DictReader(file)]
    assert kept == [("a", "8 bits"), ("b", "8 bits"), ("a", "two missing"), ("b", "two missing")]


def test_a_run_that_was_stopped_goes_on(tmp_path):
    clips = [Clip(str(at), "music", NOISE[at:]) for at in range(3)]
    cache = scores.Cache(tmp_path / "scores.csv")
    rows = evaluate.score_clips(clips, [EIGHT_BITS], ["si_sdr"], cache=cache)
    begun = [next(rows), next(rows)]
    rows.close()
    with open(tmp_path / "scores.csv", "a") as file:
        file.write("2,music,8 bits,192.0,,-")      # stopped while writing
    done = []
    last = Codec("8 bits", lambda samples: done.append(1) or encode_bytes(samples), decode_bytes)
    found = list(evaluate.score_clips(clips, [last], ["si_sdr"], cache=scores.Cache(tmp_path / "scores.csv")))
    assert found[:2] == begun and len(found) == 3 and done == [1]


# Report


def test_report_holds_everything(tmp_path):
    pytest.importorskip("matplotlib")
    clips = [Clip("a </script><b>", "speech", NOISE), Clip("b", "music", NOISE[1:])]
    evaluate.run(clips, [EIGHT_BITS, TWO_MISSING], ["si_sdr"], out=tmp_path, hint=pytest.fail)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://|@import|url\(""", page)
    assert page.count("</script>") == 2
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert [clip["name"] for clip in data["clips"]] == ["a </script><b>", "b"]
    assert [sound["name"] for sound in data["clips"][1]["sounds"]] == ["reference", "8 bits", "two missing"]
    reference, coded, _ = data["clips"][0]["sounds"]
    assert coded["scores"]["kbps"] == 192 and coded["picture"].startswith("data:image/png;base64,")
    flac = base64.b64decode(reference["audio"].removeprefix("data:audio/flac;base64,"))
    samples, sample_rate = soundfile.read(io.BytesIO(flac))
    assert sample_rate == RATE and np.allclose(samples, np.clip(NOISE, -1, 1), atol=1e-4)
    assert {(row["first"], row["second"]) for row in data["comparisons"]} == {("8 bits", "two missing")}


def test_report_stays_small(monkeypatch):
    monkeypatch.setattr(report_html, "_MOST_BYTES", 400_000)
    clips = [report_html.Played(f"{kind} {at}", kind, [report_html.Sound("reference", NOISE, None)])
             for kind in ("speech", "music") for at in range(3)]
    page = report_html.render([], [], clips, None)
    assert "speech 0" in page and "music 0" in page and "music 2" not in page
    assert len(page) < 600_000


def test_report_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    hints = []
    evaluate.run([Clip("a", "music", NOISE)], [EIGHT_BITS], ["si_sdr"], out=tmp_path, hint=hints.append)
    assert len(hints) == 1 and "pip install matplotlib" in hints[0]
    assert "audio/flac" in (tmp_path / "report.html").read_text(encoding="utf-8")


# Command


def test_options_repeat_what_the_modules_say():
    assert options.METRICS == tuple(scores.METRICS)
    assert options.PEERS == tuple(peers.PEERS)
    assert options.KINDS == (*KINDS, "other")


def run_eval(*args):
    return CliRunner().invoke(cli.cli, ["eval", *map(str, args)])


@needs_opus
def test_command(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    args = ["--peers", "opus:6", "opus:12", "--kbps", "", "--clips", "1", "--metrics", "mel", corpus, "--out", out]
    result = run_eval(*args)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.split("\n\n")[0].splitlines() if line.startswith("|")]
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| speech", "opus 6"], ["| speech", "opus 12"], ["| music", "opus 6"], ["| music", "opus 12"],
    ]
    with open(out / "scores.csv", newline="") as file:
        assert [row["codec"] for row in csv.DictReader(file)] == ["opus 6", "opus 12"] * 2
    assert (out / "summary.md").read_text() == result.stdout
    assert run_eval(*args).stdout == result.stdout


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--peers", "aac:6"], 2, "'aac:6'; expected opus:KBPS"),
        (["--kbps", "six"], 2, "'six'; expected numbers"),
        (["--kbps", "0.1"], 2, "'0.1'; expected numbers from 0.75 to 48"),
        (["--codebooks", "2.5"], 2, "whole numbers"),
        (["--codebooks", "33"], 2, "'33'; expected numbers from 1 to 32"),
        (["--kbps", ""], 2, "No codecs"),
        (["--metrics", "taste"], 2, "'taste'; expected some of mel"),
        (["--kinds", "sfx"], 1, "no audio of 8 s or more of sfx"),
    ],
)
def test_command_errors(corpus, args, status, message):
    result = run_eval(corpus, *args)
    assert result.exit_code == status
    assert message in result.output


def test_missing_programs_and_packages_are_named(corpus, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    peers._version.cache_clear()
    result = run_eval(corpus, "--peers", "mp3:32")
    assert (result.exit_code, result.stderr) == (
        1, "nac: lame: not installed; it comes with the package lame\n")
    monkeypatch.setattr("audiocodec.metrics.missing_package", lambda name: "pesq" if name == "pesq" else "")
    with pytest.raises(NacError, match="PESQ-wb needs a package: pip install 'pesq'"):
        evaluate.choose_metrics(["pesq"], {"speech"}, pytest.fail)
    hints = []
    assert evaluate.choose_metrics(None, {"speech"}, hints.append) == ["mel", "si_sdr", "stoi", "visqol"]
    assert hints == ["PESQ-wb is left out; it needs a package: pip install 'pesq'"]
    assert evaluate.choose_metrics(None, {"music", "other"}, hints.append) == ["mel", "si_sdr", "visqol"]
    assert hints[1].startswith("PESQ-wb is left out; it is for speech, which is told by a folder")
