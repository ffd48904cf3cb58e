"""`nac bench`: the tracing of stages, and the form of what it says; no time is held to a limit."""

import contextlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import threading
import time
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from audiocodec import bench, bench_report, cli, encodec_speed, entropy, options, processes, scores, stages, threads
from audiocodec.errors import NacError


def test_stages_count_their_own_time():
    found = stages.Stages()
    inner = found.wrapped(lambda: time.sleep(0.02), "inner")

    def steps():
        for _ in range(2):
            time.sleep(0.01)
            inner()
            yield

    outer = found.wrapped(steps, "outer")
    with found.traced():
        for _ in outer():
            time.sleep(0.03)
    seconds = found.seconds
    assert seconds["outer"] >= 0.02 and seconds["inner"] >= 0.04 and seconds[stages.REST] >= 0.06
    assert sum(seconds.values()) == pytest.approx(0.12, abs=0.5)     # nothing counts twice


def test_threads_count_side_by_side():
    found = stages.Stages()
    nap = found.wrapped(lambda: time.sleep(0.05), "nap")
    with found.traced():
        threads = [threading.Thread(target=nap) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found.seconds["nap"] >= 0.15


@pytest.mark.parametrize("num_threads", [1, 2])
def test_what_threads_do_counts_for_the_stage_that_waits_for_them(num_threads, monkeypatch):
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: num_threads)
    found = stages.Stages()
    inner = found.wrapped(lambda: time.sleep(0.05), "inner")

    def part(_):
        time.sleep(0.1)
        inner()

    with found.traced():
        found.wrapped(lambda: threads.mapped(part, range(2), 2), "outer")()
    assert found.seconds["inner"] == pytest.approx(0.1, abs=0.08)
    assert found.seconds["outer"] == pytest.approx(0.2, abs=0.08)     # 0.35 if the wait counted too
    assert threads.around is contextlib.nullcontext


def test_tracing_leaves_no_trace():
    calls = stages._calls()
    before = [getattr(owner, name) for owner, name, _ in calls]
    assert {stage for _, _, stage in calls} == {*stages.ENCODE, *stages.DECODE} - {stages.REST}
    with pytest.raises(KeyError), stages.Stages().traced():
        assert hasattr(entropy.EntropyModel.tables, "__wrapped__")
        raise KeyError
    assert before == [getattr(owner, name) for owner, name, _ in calls]


def test_errors_pass_through_traced_calls():
    found = stages.Stages()

    def fail():
        raise ValueError

    with found.traced(), pytest.raises(ValueError):
        found.wrapped(fail, "inner")()
    assert found._thread.running == []


def test_synthetic_audio_is_always_the_same():
    samples = bench.speech_like(2.5, 24_000)
    assert samples.shape == (1, 60_000) and samples.dtype == np.float32
    assert np.array_equal(samples, bench.speech_like(2.5, 24_000))
    assert 0.01 < np.sqrt(np.mean(np.square(samples))) < 0.5 and np.abs(samples).max() <= 1


# Processes


def test_peak_memory_is_that_of_the_process_alone():
    held = np.ones(30_000_000)         # 240 MB here, which the other must not be blamed for
    seconds, first, peak = processes.time_processes([[sys.executable, "-S", "-c", "import time; time.sleep(0.1)"]])
    assert seconds >= 0.1 and np.isnan(first)
    assert np.isnan(peak) or 1 < peak < held.nbytes / 2e6


def test_first_bytes_of_a_pipe():
    says = "import sys, time; print('ab', flush=True); time.sleep(0.3); print(sys.stdin.read())"
    copies = "import sys; sys.stdout.write(sys.stdin.readline()); sys.stdout.flush(); sys.stdin.read()"
    commands = [[sys.executable, "-S", "-c", script] for script in (says, copies)]
    seconds, first, _ = processes.time_processes(commands, first_bytes=2)
    assert 0 < first < seconds - 0.2
    _, first, _ = processes.time_processes(commands, first_bytes=4)
    assert np.isnan(first)
    with pytest.raises(subprocess.CalledProcessError):
        processes.time_processes([[sys.executable, "-c", "raise SystemExit(3)"], *commands])


def test_failing_commands_say_why(tmp_path):
    with pytest.raises(NacError, match=r"nac encode, 1 s failed: nac: .*nowhere"):
        processes._time("nac encode, 1 s", False, [["encode", tmp_path / "nowhere.wav"]], 1)


def test_a_clip_of_a_second_is_timed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "time_processes", lambda *_: (1.0, 1.0, 1.0))
    rows = processes.time_commands(bench.speech_like(1, 24_000), 24_000, 6, [], tmp_path, 1, lambda what: None)
    assert [row["command"] for row in rows].count("nac encode, 1 s") == 1 and len(rows) == 6


# EnCodec


def test_encodec_codes_and_decodes():
    if not importlib.util.find_spec("encodec"):
        pytest.skip("encodec is not installed")
    speed = encodec_speed.EncodecSpeed()
    assert [speed.choose_rate(kbps) for kbps in (0.75, 4, 7, 48)] == [1.5, 3, 6, 24]
    speed.choose_rate(1.5)
    samples = np.random.default_rng(0).normal(0, 0.1, (1, 4800)).astype(np.float32)
    plain, coded = speed.encode(samples, entropy=False), speed.encode(samples, entropy=True)
    assert 15 * 20 / 8 < len(plain) < 15 * 20 / 8 + 100 and plain != coded      # 15 frames, two books, and a header
    for data in (plain, coded):
        assert speed.decode(data).shape == samples.shape


def test_missing_encodec_is_named(monkeypatch):
    for name in ("encodec", "encodec.compress", "encodec.model"):
        monkeypatch.setitem(sys.modules, name, None)
    result = CliRunner().invoke(cli.cli, ["bench", "--compare", "encodec"])
    assert result.exit_code == 1 and result.output.endswith("needs a package: pip install encodec\n")


# Command


def test_command(monkeypatch, tmp_path):
    class Rival:
        """Takes EnCodec's place, which takes seconds."""

        def __init__(self, device):
            pass

        def choose_rate(self, kbps):
            return 3.0

        def encode(self, samples, entropy):
            assert samples.shape[0] == 1
            return bytes(entropy)

        def decode(self, data):
            pass

    monkeypatch.setattr(bench, "EncodecSpeed", Rival)
    monkeypatch.setattr(processes, "time_processes", lambda commands, first_bytes: (0.5, 0.25 / first_bytes, 90.0)
                        if first_bytes else (0.5, float("nan"), float("nan")))
    monkeypatch.setattr(bench, "_STREAM_SECONDS", 0.2)
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    args = ["bench", "--seconds", "2,1", "--repeats", "1", "-k", "3", "--compare", "encodec"]
    args += ["--plot", str(tmp_path / "speed.png")] if has_matplotlib else []
    result = CliRunner().invoke(cli.cli, [*args, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(file["length"], file["kbps"]) for file in found["files"]] == [(1, 3), (2, 3)]
    for file in found["files"]:
        assert file["true_kbps"] == pytest.approx(file["bytes"] * 8e-3 / file["length"])
        for way, names in (("encode", stages.ENCODE), ("decode", stages.DECODE)):
            shares = file[way]["shares"]
            assert tuple(shares) == names and sum(shares.values()) == pytest.approx(1)
            assert all(share > 0 or stage == "resample" for stage, share in shares.items())
            assert file[way]["fastest"] <= file[way]["seconds"] <= file[way]["slowest"]
            assert file[way]["times_real_time"] == pytest.approx(file["length"] / file[way]["seconds"])
        assert [(rival["kbps"], rival["entropy"], rival["repeats"]) for rival in file["encodec"]] == [
            (3, False, 1), (3, True, 1)]
        assert set(file["plain"]) == {"encode", "decode"}
    assert [(row["codebooks"], round(row["delay_ms"], 1)) for row in found["streaming"]] == [(4, 26.7)]
    row = found["streaming"][0]
    assert 0 < row["median_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["worst_ms"]
    assert 2 < row["packet_kbps"] < 9      # 3 as they are; no audio that the model has learnt to predict
    assert [row["command"] for row in found["commands"]][:3] == ["nac --version", "nac --help", "nac encode, 1 s"]
    assert [row["first_sample"] for row in found["commands"]] == 6 * [None] + 2 * [0.125]
    text = bench_report.markdown(found)
    assert text.startswith("nac ") and "| encoder network | " in text
    assert "| nac --help |  | 0.50 (0.50 to 0.50) |  |" in text
    assert re.search(r"\| 2 \| 3 \| EnCodec \| decode \| .* \| [\d.]+ \| [\d.]+ \|\n", text)
    assert re.search(r"\| 2 \| 3 \| EnCodec, entropy coding \| decode \| .* \| [\d.]+ \|  \|\n", text)
    assert not has_matplotlib or (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("args", "message"), [
    (["--seconds", "0.5"], "'0.5'; expected numbers from 1 to 3600"),
    (["--seconds", "ten"], "'ten'; expected numbers"),
    (["--plot", "speed.jpg"], "ends in .png"),
    (["--plot", "no/such/folder/speed.png"], "in a folder that exists"),
    (["--compare", "opus"], "'opus' is not 'encodec'"),
])
def test_usage(args, message):
    result = CliRunner().invoke(cli.cli, ["bench", *args])
    assert result.exit_code == 2 and message in result.output


def test_a_picture_needs_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(cli.cli, ["bench", "--plot", str(tmp_path / "speed.png")])
    assert result.exit_code == 2 and "pip install matplotlib" in result.output


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
    times = {"seconds": 1.0, "fastest": 1.0, "slowest": 1.0, "times_real_time": 1.0}
    names = "kbps", "codebooks", "packet_kbps", "frame_ms", "median_ms", "p95_ms", "p99_ms", "worst_ms", "delay_ms"
    result = dict.fromkeys(("nac", "model", "weights", "machine", "device", "audio"), "")
    result |= dict.fromkeys(("threads", "sample_rate", "channels", "repeats"), 1)
    rival = {"kbps": 6.0, "entropy": True, "encode": times, "decode": times}
    result["files"] = [{"length": 60.0, "kbps": 6.0, "true_kbps": 6.0, "encodec": [rival],
                        "plain": {"encode": times, "decode": times},
                        "encode": times | {"shares": dict.fromkeys(stages.ENCODE, 0.1)},
                        "decode": times | {"shares": dict.fromkeys(stages.DECODE, 0.1)}}]
    result["streaming"] = [dict.fromkeys(names, 1)]
    result["commands"] = [{"command": "", "first_sample": 1.0, "peak_mb": 1.0} | times]

    def form(text):
        """Heads, whatever lengths and rates they are of."""
        plain = [[re.sub(r"[\d.]+ (s|kbps) $", r"\1", cell) for cell in head] for head in tables(text)]
        return [list(dict.fromkeys(head)) for head in plain]

    text = bench_report.markdown(result)
    assert form(printed(document, "nac bench")) == form(text)

    def stages_of(text):
        return re.findall(r"^\| ([a-z .-]+?) \| [\d.]+% ", text, re.MULTILINE)

    assert stages_of(printed(document, "nac bench")) == stages_of(text)


def tables(text):
    """The cells of the first line of every table."""
    return [head.split("|")[1:-1] for head in re.findall(r"^(\|.*\|)\n\| --- \|", text, re.MULTILINE)]


def test_document_has_the_tables_of_eval(document):
    heads = tables(printed(document, "nac eval"))
    titles = [f" {metric.title} " for metric in scores.METRICS.values()]
    assert heads == [[" kind ", " codec ", " clips ", " kbps ", *titles], [" kind ", " difference ", *titles]]


@pytest.mark.parametrize("command", ["eval", "bench"])
def test_document_names_options_that_exist(command, document, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))  # --plot asks whether it is there
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recordings").mkdir()
    lines = re.findall(rf"^    nac {command}\b(.*)$", document, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        cli.cli.commands[command].make_context(command, shlex.split(line, comments=True))


@pytest.fixture(scope="module")
def script(request):
    """docs/benchmarks.py, which writes the page."""
    spec = importlib.util.spec_from_file_location("benchmarks", request.config.rootpath / "docs" / "benchmarks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_filled_between_its_marks(script, document):
    page = script.fill(document, "nac bench", "--new", "| a \\1 | b |")
    assert printed(page, "nac bench") == "| a \\1 | b |" and "<!-- nac bench: --new -->" in page
    assert printed(page, "nac eval") == printed(document, "nac eval")
    assert script.fill(page, "nac bench", "--new", "| a \\1 | b |") == page
    with pytest.raises(SystemExit, match="marks of nac bench are not there"):
        script.fill("# A page", "nac bench", "", "")


def test_the_script_gives_options_that_exist(script, tmp_path):
    cli.cli.commands["bench"].make_context("bench", shlex.split(script.BENCH))
    made = cli.cli.commands["eval"].make_context("eval", [str(tmp_path), *shlex.split(script.EVAL)])
    assert len(made.params["kbps"]) * (1 + made.params["best"]) + len(made.params["peers"]) == script.CODECS


def test_the_script_goes_on_where_it_was(script, tmp_path, monkeypatch):
    kept = tmp_path / "bench.json"
    identity = script.weights.identity(script.weights.find("nac-24k")).hex()
    kept.write_text(json.dumps({"weights": identity}))
    monkeypatch.setattr(script.bench_report, "markdown", lambda result: result["weights"])
    monkeypatch.setattr(script.subprocess, "run", pytest.fail)
    assert script.time_all(kept, tmp_path / "speed.png") == identity
