"""`nac bench`: the tracing of stages, and the form of what it says; no time is held to a limit."""

import json
import re
import shlex
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from audiocodec import bench, cli, container, entropy, options, scores


def test_stages_count_their_own_time():
    stages = bench.Stages()
    inner = stages._wrapped(lambda: time.sleep(0.02), "inner")

    def steps():
        for _ in range(2):
            time.sleep(0.01)
            inner()
            yield

    outer = stages._wrapped(steps, "outer")
    with stages.traced():
        for _ in outer():
            time.sleep(0.03)
    assert stages.seconds["outer"] >= 0.02 and stages.seconds["inner"] >= 0.04 and stages.seconds[bench.REST] >= 0.06
    assert sum(stages.seconds.values()) == pytest.approx(0.12, abs=0.5)     # nothing counts twice


def test_tracing_leaves_no_trace():
    before = [getattr(owner, name) for calls in bench._STAGES.values() for owner, names in calls for name in names]
    with pytest.raises(KeyError), bench.Stages().traced():
        assert entropy.EntropyModel.tables is not before[0] and hasattr(container.Writer.write, "__wrapped__")
        raise KeyError
    after = [getattr(owner, name) for calls in bench._STAGES.values() for owner, names in calls for name in names]
    assert before == after


def test_errors_pass_through_traced_calls():
    stages = bench.Stages()

    def fail():
        raise ValueError

    with stages.traced(), pytest.raises(ValueError):
        stages._wrapped(fail, "inner")()
    assert stages._running == []


def test_synthetic_audio_is_always_the_same():
    samples = bench.speech_like(2.5, 24_000)
    assert samples.shape == (1, 60_000) and samples.dtype == np.float32
    assert np.array_equal(samples, bench.speech_like(2.5, 24_000))
    assert 0.01 < np.sqrt(np.mean(np.square(samples))) < 0.5 and np.abs(samples).max() <= 1


def test_peak_memory_is_that_of_the_process_alone():
    held = np.ones(30_000_000)         # 240 MB here, which the other must not be blamed for
    found = bench._timed_process([sys.executable, "-S", "-c", "import time; time.sleep(0.1)"])
    assert found["seconds"] >= 0.1
    assert found["peak_mb"] is None or 1 < found["peak_mb"] < held.nbytes / 2e6


def test_command(monkeypatch):
    monkeypatch.setattr(bench, "_timed_process", lambda command: {"seconds": 0.5, "peak_mb": None})
    monkeypatch.setattr(bench, "_STREAM_SECONDS", 1)
    args = ["bench", "--seconds", "1", "--repeats", "1", "-k", "3,6"]
    result = CliRunner().invoke(cli.cli, [*args, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [file["kbps"] for file in found["files"]] == [3, 6]
    for file in found["files"]:
        assert file["true_kbps"] == pytest.approx(file["bytes"] * 8e-3)
        for way, stages in (("encode", {"read audio", "encoder network", "quantizer search", "entropy model",
                                        "range coder", "container"}),
                            ("decode", {"container", "entropy model", "range coder", "codebook look-up",
                                        "decoder network", "write audio"})):
            assert stages <= file[way]["shares"].keys()
            assert sum(file[way]["shares"].values()) == pytest.approx(1)
            assert file[way]["fastest"] <= file[way]["seconds"] <= file[way]["slowest"]
            assert file[way]["times_real_time"] == pytest.approx(1 / file[way]["seconds"])
    assert [(row["codebooks"], round(row["delay_ms"], 1)) for row in found["streaming"]] == [(4, 26.7), (8, 26.7)]
    row = found["streaming"][0]
    assert 0 < row["median_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["worst_ms"]
    assert [row["command"] for row in found["commands"]][:2] == ["nac --help", "nac encode, 1 s"]
    text = bench.markdown(found)
    assert text.startswith("nac ") and "| encoder network | " in text and "| nac --help | 0.50 |  |" in text


@pytest.mark.parametrize("text", ["", "0.5", "6,49", "six"])
def test_rates_that_nac_does_not_have(text):
    result = CliRunner().invoke(cli.cli, ["bench", "--kbps", text])
    assert result.exit_code == 2 and "expected numbers" in result.output


def test_rates_are_those_of_the_other_commands():
    assert (cli.KBPS.min, cli.KBPS.max) == (0.75, 48)
    assert options.rates(None, None, "0.75,48") == [0.75, 48]


# docs/benchmarks.md


@pytest.fixture(scope="module")
def document(request):
    return (request.config.rootpath / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def printed(document, command):
    """What a command printed, between its marks."""
    return re.search(rf"<!-- {command}: .*? -->\n\n(.*?)\n\n<!-- end -->", document, re.DOTALL)[1]


def test_document_has_the_tables_of_bench(document):
    times = {"seconds": 1.0, "fastest": 1.0, "slowest": 1.0, "times_real_time": 1.0, "shares": {bench.REST: 1.0}}
    names = "kbps", "codebooks", "frame_ms", "median_ms", "p95_ms", "p99_ms", "worst_ms", "delay_ms"
    result = dict.fromkeys(("nac", "model", "weights", "machine", "device", "audio"), "")
    result |= dict.fromkeys(("threads", "seconds", "sample_rate", "channels", "repeats"), 1)
    result["files"] = [{"kbps": 6.0, "true_kbps": 6.0, "encode": times, "decode": times}]
    result["streaming"] = [dict.fromkeys(names, 1)]
    result["commands"] = [{"command": "", "seconds": 1.0, "peak_mb": 1.0}]
    heads = [[re.sub(r"^ [\d.]+ kbps $", " kbps ", cell) for cell in head] for head in tables(bench.markdown(result))]
    found = [[re.sub(r"^ [\d.]+ kbps $", " kbps ", cell) for cell in head]
             for head in tables(printed(document, "nac bench"))]
    assert [list(dict.fromkeys(head)) for head in found] == [list(dict.fromkeys(head)) for head in heads]
    stages = re.findall(r"^\| ([a-z -]+?) \| [\d.]+% ", printed(document, "nac bench"), re.MULTILINE)
    assert set(stages) <= {*bench._STAGES, bench.REST}


def tables(text):
    """The cells of the first line of every table."""
    return [head.split("|")[1:-1] for head in re.findall(r"^(\|.*\|)\n\| --- \|", text, re.MULTILINE)]


def test_document_has_the_tables_of_eval(document):
    heads = tables(printed(document, "nac eval"))
    titles = [f" {metric.title} " for metric in scores.METRICS.values()]
    assert heads == [[" kind ", " codec ", " clips ", " kbps ", *titles], [" kind ", " difference ", *titles]]


@pytest.mark.parametrize("command", ["eval", "bench"])
def test_document_names_options_that_exist(command, document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recordings").mkdir()
    lines = re.findall(rf"^    nac {command}\b(.*)$", document, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        cli.cli.commands[command].make_context(command, shlex.split(line, comments=True))
