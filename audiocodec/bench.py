"""How fast nac is on this machine: encoding, decoding and streaming, the room behind `nac bench`."""

import contextlib
import functools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from inspect import isgenerator
from pathlib import Path

import numpy as np
import torch

from audiocodec import __version__, audio, codec, container, entropy, model, quantizer, rangecoder
from audiocodec.errors import NacError
from audiocodec.tokens import Codec, StreamDecoder, StreamEncoder, choose_device

_STREAM_SECONDS = 10  # of audio, at most, frame by frame
_WARM_UP_FRAMES = 75
# A small process starts each command: it would inherit the peak memory of a large one.
_LAUNCHER = """
import os, sys, time
null = os.open(os.devnull, os.O_WRONLY)
start = time.perf_counter()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[
    (os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)])
_, status, usage = os.wait4(process, 0)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
REST = "rest"  # the stage of all time that no other has

_MODEL_CALLS = ("cost", "tables", "contexts", "hidden", "class_counts", "member_counts", "add")
_STAGES = {  # of each stage, the calls in which it happens
    "read audio": [(audio.AudioReader, ("blocks",))],
    "resample": [(audio.Resampler, ("push", "flush"))],
    "encoder network": [(model.Encoder, ("forward",))],
    "quantizer search": [(quantizer.ResidualQuantizer, ("encode",))],
    "entropy model": [(entropy.EntropyModel, _MODEL_CALLS)],
    "range coder": [(rangecoder.RangeCoder, ("encode", "decode")), (rangecoder.PackedCoder, ("encode", "decode"))],
    "container": [(container.Writer, ("write", "close")), (container.Reader, ("__init__", "__iter__"))],
    "codebook look-up": [(quantizer.ResidualQuantizer, ("decode",))],
    "decoder network": [(model.Decoder, ("forward",))],
    "write audio": [(audio.AudioWriter, ("write", "__exit__"))],
}


@dataclass
class Stages:
    """The time that each stage takes for itself, without those that it calls, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)
    settle: Callable[[], None] = lambda: None  # waits until a device has done what it was told
    _since: float = 0.0
    _running: list[str] = field(default_factory=list)

    def enter(self, stage: str) -> None:
        self._switch()
        self._running.append(stage)

    def leave(self) -> None:
        self._switch()
        self._running.pop()

    def _switch(self) -> None:
        self.settle()
        now = time.perf_counter()
        if self._running:
            stage = self._running[-1]
            self.seconds[stage] = self.seconds.get(stage, 0) + now - self._since
        self._since = now

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Wrap the calls of _STAGES; outside nothing is slowed."""
        plain = [(owner, name, getattr(owner, name), stage)
                 for stage, calls in _STAGES.items() for owner, names in calls for name in names]
        for owner, name, call, stage in plain:
            setattr(owner, name, self._wrapped(call, stage))
        self.enter(REST)
        try:
            yield
        finally:
            self.leave()
            for owner, name, call, _ in plain:
                setattr(owner, name, call)

    def _wrapped(self, call: Callable, stage: str) -> Callable:
        @functools.wraps(call)
        def timed(*args, **options):
            self.enter(stage)
            try:
                result = call(*args, **options)
            finally:
                self.leave()
            return self._steps(result, stage) if isgenerator(result) else result

        return timed

    def _steps(self, steps: Iterator, stage: str) -> Iterator:
        while True:
            self.enter(stage)
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            finally:
                self.leave()
            yield step


def speech_like(seconds: float, sample_rate: int) -> np.ndarray:
    """Samples float32 (1, N) that sound a little like speech: voiced syllables, hisses and pauses. Always the same."""
    rng = np.random.default_rng(0)
    num_samples = round(seconds * sample_rate)
    parts, length = [], 0
    while length < num_samples:
        t = np.arange(round(rng.uniform(0.08, 0.3) * sample_rate)) / sample_rate
        kind = rng.choice(["voice", "hiss", "pause"], p=[0.65, 0.2, 0.15])
        phase = 2 * np.pi * np.cumsum(rng.uniform(90, 220) * (1 + 0.1 * np.sin(12 * t))) / sample_rate
        formants = rng.uniform((300, 900, 2200), (800, 2000, 3000))
        voice = sum(np.exp(-np.abs(formants - 150 * n).min() / 400) * np.sin(n * phase) for n in range(1, 25))
        sound = {"voice": 0.2 * voice, "hiss": rng.normal(0, 0.03, len(t)), "pause": np.zeros(len(t))}[kind]
        parts.append(sound * np.hanning(len(t)) + rng.normal(0, 1e-3, len(t)))
        length += len(t)
    whole = np.concatenate([*parts, np.zeros(0)])[:num_samples]
    return np.clip(whole, -1, 1).astype(np.float32)[None]


def run(*, model_name: str, device: str = "auto", seconds: float = 60, rates: list[float], repeats: int = 5,
        source: Path | None = None, progress: Callable[[str], None] = lambda what: None) -> dict:
    """Time everything; return one dictionary that json can write. progress(what) hears what is about to be timed.

    source: a recording to take, repeated to the length in seconds, in place of what `speech_like` makes.
    Raises NacError for a model or device that is not here, and for audio that cannot be read.
    """
    loaded = Codec.load(model_name, choose_device(device))
    samples, sample_rate = _clip(source, seconds, loaded.config.sample_rate)
    with tempfile.TemporaryDirectory() as folder:
        timer = _Timer(model_name, device, Path(folder), repeats, progress)
        files = [timer.files(samples, sample_rate, kbps) for kbps in rates]
        streams = []
        for kbps in rates:
            progress(f"streaming at {kbps:g} kbps")
            streams.append({"kbps": kbps} | stream(loaded, samples, kbps))
        commands = timer.commands(samples, sample_rate, rates[0])
    return {
        "nac": __version__, "model": model_name, "weights": loaded.weights.identity.hex(), "machine": _machine(),
        "device": loaded.device if isinstance(loaded.device, str) else str(loaded.device),
        "threads": torch.get_num_threads(), "seconds": samples.shape[1] / sample_rate, "sample_rate": sample_rate,
        "channels": len(samples), "audio": source.name if source else "synthetic", "repeats": repeats,
        "files": files, "streaming": streams, "commands": commands}


def _clip(source: Path | None, seconds: float, sample_rate: int) -> tuple[np.ndarray, int]:
    if source is None:
        return speech_like(seconds, sample_rate), sample_rate
    samples, sample_rate = audio.read(source)
    num_samples = round(seconds * sample_rate)
    return np.tile(samples, -(-num_samples // max(1, samples.shape[1])))[:, :num_samples], sample_rate


@dataclass
class _Timer:
    """Times whole files, by the calls that the commands make and by the commands themselves."""

    model: str
    device: str
    folder: Path
    repeats: int
    progress: Callable[[str], None]

    def files(self, samples: np.ndarray, sample_rate: int, kbps: float) -> dict:
        """Encode a WAV file and decode it: once to warm up, then `repeats` times, and once more for the stages."""
        wav, coded, decoded = (self.folder / name for name in ("clip.wav", "clip.nac", "decoded.wav"))
        audio.write(wav, samples, sample_rate)

        def encode():
            codec.encode_file(wav, coded, kbps=kbps, model=self.model, device=self.device, force=True)

        def decode():
            codec.decode_file(coded, decoded, model=self.model, device=self.device, force=True)

        seconds = samples.shape[1] / sample_rate
        result = {"kbps": kbps, "encode": self._measure(f"encoding at {kbps:g} kbps", encode, seconds)}
        result["bytes"] = coded.stat().st_size
        result["true_kbps"] = result["bytes"] * 8e-3 / seconds
        result["decode"] = self._measure(f"decoding at {kbps:g} kbps", decode, seconds)
        return result

    def _measure(self, what: str, call: Callable[[], None], seconds: float) -> dict:
        self.progress(what)
        call()
        times = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        stages = Stages(settle=torch.cuda.synchronize if torch.cuda.is_available() else lambda: None)
        with stages.traced():
            call()
        total = sum(stages.seconds.values())
        shares = {stage: stages.seconds[stage] / total for stage in (*_STAGES, REST) if stage in stages.seconds}
        median = statistics.median(times)
        return {"seconds": median, "fastest": min(times), "slowest": max(times), "times_real_time": seconds / median,
                "shares": shares}

    def commands(self, samples: np.ndarray, sample_rate: int, kbps: float) -> list[dict]:
        """Whole commands as processes of their own: wall time and peak memory, start-up included."""
        short, long = self.folder / "short.wav", self.folder / "clip.wav"
        audio.write(short, samples[:, :sample_rate], sample_rate)
        rate = ["-k", f"{kbps:g}", "--model", self.model, "--device", self.device, "-f"]
        back = ["--model", self.model, "--device", self.device, "-f"]
        seconds = samples.shape[1] / sample_rate
        return [
            self._command("nac --help", "--help"),
            self._command("nac encode, 1 s", "encode", short, *rate),
            self._command("nac decode, 1 s", "decode", short.with_suffix(".nac"), "-o", self.folder / "a.wav", *back),
            self._command(f"nac encode, {seconds:g} s", "encode", long, *rate),
            self._command(f"nac decode, {seconds:g} s", "decode", long.with_suffix(".nac"), "-o",
                          self.folder / "b.wav", *back)]

    def _command(self, name: str, *args: str | Path) -> dict:
        """The quicker of two runs."""
        self.progress(name)
        try:
            runs = [_timed_process([sys.executable, "-m", "audiocodec", *map(str, args)]) for _ in range(2)]
        except subprocess.CalledProcessError as error:
            raise NacError(f"{name} failed with status {error.returncode}") from None
        return {"command": name} | min(runs, key=lambda run: run["seconds"])


def _timed_process(command: list[str]) -> dict:
    """Wall time in seconds and peak memory in MB, or None where the system does not tell."""
    start = time.perf_counter()
    if not hasattr(os, "wait4"):
        subprocess.run(command, check=True, capture_output=True)
        return {"seconds": time.perf_counter() - start, "peak_mb": None}
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _LAUNCHER, *command], check=True, capture_output=True)
    seconds, peak = map(float, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return {"seconds": seconds, "peak_mb": peak * unit / 1e6}


def stream(loaded: Codec, samples: np.ndarray, kbps: float) -> dict:
    """Encode and decode frame by frame, without entropy coding: milliseconds for each frame, both ways together.

    samples float32 (C, n) count as the model's rate; kbps gives the number of books before entropy coding.
    """
    config = loaded.config
    num_books = max(1, min(config.num_books, round(kbps * 1000 / config.bits_per_book)))
    encoder, decoder = StreamEncoder(loaded, 1, num_books), StreamDecoder(loaded, 1)
    books = np.array([num_books])
    times = []
    most = _STREAM_SECONDS * config.sample_rate + _WARM_UP_FRAMES * config.hop
    mono = samples.mean(0, keepdims=True)[:, :most]
    for at in range(0, mono.shape[1] - config.hop + 1, config.hop):
        frame = np.ascontiguousarray(mono[:, at:at + config.hop])
        start = time.perf_counter()
        decoder.push(encoder.push(frame), books)
        times.append(1000 * (time.perf_counter() - start))
    counted = times[min(_WARM_UP_FRAMES, len(times) // 2):] or [float("nan")]
    median, p95, p99 = np.percentile(counted, [50, 95, 99])
    return {"codebooks": num_books, "frames": len(counted), "frame_ms": 1000 * config.hop / config.sample_rate,
            "median_ms": float(median), "p95_ms": float(p95), "p99_ms": float(p99), "worst_ms": float(max(counted)),
            "delay_ms": 2000 * config.hop / config.sample_rate}


def _machine() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {_counted(cores, 'core')} in use, {platform.system()}"


# Tables


def markdown(result: dict) -> str:
    """What `run` returned, as tables in Markdown."""
    layout = f"{result['channels']} x {result['sample_rate']} Hz" if result["channels"] > 1 \
        else f"{result['sample_rate']} Hz"
    lines = [
        f"nac {result['nac']}, model {result['model']} ({result['weights']}), {result['machine']}; "
        f"{result['device']}, {_counted(result['threads'], 'thread')}; "
        f"{result['seconds']:g} s of {result['audio']} audio, {layout}; {_counted(result['repeats'], 'repeat')} "
        "after a warm-up", "",
        *_table(["kbps", "true kbps", "direction", "seconds (fastest to slowest)", "x real time"],
                [[f"{file['kbps']:g}", f"{file['true_kbps']:.2f}", way, _spread(file[way]),
                  f"{file[way]['times_real_time']:.1f}"] for file in result["files"] for way in ("encode", "decode")])]
    for way in ("encode", "decode"):
        stages = list(dict.fromkeys(stage for file in result["files"] for stage in file[way]["shares"]))
        lines += ["", *_table([f"share of {way} time", *(f"{file['kbps']:g} kbps" for file in result["files"])],
                              [[stage, *(f"{file[way]['shares'].get(stage, 0):.1%}" for file in result["files"])]
                               for stage in stages])]
    lines += ["", *_table(
        ["streaming", "codebooks", "frame, ms", "median, ms", "p95", "p99", "worst", "delay, ms"],
        [[f"{row['kbps']:g} kbps", str(row["codebooks"]), f"{row['frame_ms']:.1f}",
          *(f"{row[name]:.2f}" for name in ("median_ms", "p95_ms", "p99_ms", "worst_ms")), f"{row['delay_ms']:.1f}"]
         for row in result["streaming"]])]
    lines += ["", *_table(["command", "seconds", "peak memory, MB"],
                          [[row["command"], f"{row['seconds']:.2f}",
                            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"] for row in result["commands"]])]
    return "\n".join(lines)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _spread(times: dict) -> str:
    return f"{times['seconds']:.2f} ({times['fastest']:.2f} to {times['slowest']:.2f})"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    aligned = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, aligned, *rows)]
