"""How fast nac is on this machine: encoding, decoding and streaming, the room behind `nac bench`."""

import contextlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audiocodec import __version__, audio, codec, limits, processes, stages
from audiocodec.encodec_speed import SAMPLE_RATE as ENCODEC_RATE
from audiocodec.encodec_speed import EncodecSpeed
from audiocodec.model import ModelConfig
from audiocodec.streaming import StreamDecoder, StreamEncoder
from audiocodec.tokens import Codec, choose_device

_STREAM_SECONDS = 10  # of audio, at most, frame by frame
_WARM_UP_FRAMES = 75

Progress = Callable[[str], None]  # hears of what is about to be timed


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


def run(*, model_name: str, device: str = "auto", lengths: list[float], rates: list[float], repeats: int = 5,
        source: Path | None = None, compare: bool = False, progress: Progress = lambda what: None) -> dict:
    """Time everything; return one dictionary that json can write.

    lengths: of clips, in seconds; rates: in kbps; every clip is timed at every rate. source: a recording to take,
    repeated to these lengths, in place of what `speech_like` makes. compare: with EnCodec's architecture besides.
    Raises NacError for a model, device or package that is not here, and for audio that cannot be read.
    """
    loaded = Codec.load(model_name, choose_device(device))
    rival = EncodecSpeed(loaded.device) if compare else None
    samples, sample_rate = _clip(source, max(lengths), loaded.config.sample_rate)
    if rival:
        samples = samples.mean(0, keepdims=True)  # all that EnCodec's model of this rate takes
    options = ["--model", model_name, "--device", device]
    with tempfile.TemporaryDirectory() as folder:
        timer = _Timer(model_name, device, Path(folder), repeats, rival, progress)
        files = [timer.time(samples[:, :round(length * sample_rate)], sample_rate, kbps)
                 for length in sorted(lengths) for kbps in sorted(rates)]
        streams = []
        for kbps in sorted(rates):
            progress(f"streaming at {kbps:g} kbps")
            streams.append(stream(loaded.config, samples, kbps, model_name, device))
        commands = processes.time_commands(
            samples, sample_rate, min(rates, key=lambda kbps: abs(kbps - limits.DEFAULT_KBPS)), options, Path(folder),
            repeats, progress)
    return {
        "nac": __version__, "model": model_name, "weights": loaded.weights.identity.hex(), "machine": _machine(),
        "device": str(loaded.device), "threads": torch.get_num_threads(), "sample_rate": sample_rate,
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
    """Times whole files by the calls that the commands make, EnCodec in turn with them."""

    model: str
    device: str
    folder: Path
    repeats: int
    rival: EncodecSpeed | None
    progress: Progress

    def time(self, samples: np.ndarray, sample_rate: int, kbps: float) -> dict:
        """Encode a WAV file and decode it: once to warm up, then `repeats` times, and once more for the stages."""
        wav, coded, packed, decoded = (
            self.folder / name for name in ("clip.wav", "clip.nac", "packed.nac", "decoded.wav"))
        audio.write(wav, samples, sample_rate)
        seconds = samples.shape[1] / sample_rate
        options = {"model": self.model, "device": self.device, "force": True}

        def ways(prefix: str, file: Path, entropy: bool) -> dict[str, Callable[[], object]]:
            return {
                f"{prefix}encode": lambda: codec.encode_file(wav, file, kbps=kbps, entropy=entropy, **options),
                f"{prefix}decode": lambda: codec.decode_file(file, decoded, **options)}

        calls, plain = ways("", coded, True), ways("plain ", packed, False)
        rival = _Rival(self.rival, samples, sample_rate, kbps) if self.rival else None
        self.progress(f"{seconds:g} s at {kbps:g} kbps")
        times = _time_in_turn(calls | (plain | rival.calls(entropy=False) if rival else {}), self.repeats)
        size = coded.stat().st_size
        result = {"length": seconds, "kbps": kbps, "bytes": size, "true_kbps": size * 8e-3 / seconds}
        for way, names in (("encode", stages.ENCODE), ("decode", stages.DECODE)):
            result[way] = _summary(times[way], seconds) | {"shares": _shares(calls[way], names)}
        if rival:
            self.progress(f"{seconds:g} s at {rival.kbps:g} kbps, EnCodec with entropy coding")
            slow = _time_in_turn(rival.calls(entropy=True), 1, warm_up=False)
            result["plain"] = {way: _summary(times[f"plain {way}"], seconds) for way in ("encode", "decode")}
            result["encodec"] = [
                {"entropy": entropy, "kbps": rival.kbps, "repeats": len(found["EnCodec encode"]),
                 **{way: _summary(found[f"EnCodec {way}"], seconds) for way in ("encode", "decode")}}
                for entropy, found in ((False, times), (True, slow))]
        return result


class _Rival:
    """EnCodec with one clip (1, N): its samples are in memory at its own rate before the clock starts."""

    def __init__(self, speed: EncodecSpeed, samples: np.ndarray, sample_rate: int, kbps: float):
        resampler = audio.Resampler(sample_rate, ENCODEC_RATE)
        self._samples = np.concatenate([resampler.push(samples), resampler.flush()], 1)
        self._speed, self.kbps, self._data = speed, speed.choose_rate(kbps), b""
        for entropy in (False, True):
            self._data = speed.encode(self._samples[:, :ENCODEC_RATE], entropy)    # to warm up, a second will do
            speed.decode(self._data)

    def calls(self, entropy: bool) -> dict[str, Callable[[], None]]:
        def encode():
            self._data = self._speed.encode(self._samples, entropy)

        return {"EnCodec encode": encode, "EnCodec decode": lambda: self._speed.decode(self._data)}


def _time_in_turn(calls: dict[str, Callable[[], None]], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each call. They take turns, so that what else the machine does meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + warm_up):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: found[warm_up:] for name, found in times.items()}


def _summary(times: list[float], seconds: float) -> dict:
    median = statistics.median(times)
    return {"seconds": median, "fastest": min(times), "slowest": max(times), "times_real_time": seconds / median}


def _shares(call: Callable[[], None], names: tuple[str, ...]) -> dict[str, float]:
    """The share of each stage in the time of one more call."""
    counted = stages.Stages(settle=torch.cuda.synchronize if torch.cuda.is_available() else lambda: None)
    with counted.traced():
        call()
    total = sum(counted.seconds.values())
    return {name: counted.seconds.get(name, 0.0) / total for name in (*names, *(counted.seconds.keys() - {*names}))}


def stream(config: ModelConfig, samples: np.ndarray, kbps: float, model_name: str, device: str) -> dict:
    """Encode and decode packets of one frame, entropy coding included: milliseconds for each frame, both ways together.

    samples float32 (C, n) count as the model's rate, mono; kbps gives the number of books before entropy coding.
    """
    num_books = max(1, min(config.num_books, round(kbps * 1000 / config.bits_per_book)))
    layout = {"sample_rate": config.sample_rate, "packet_frames": 1, "model": model_name, "device": device}
    encoder, decoder = StreamEncoder(codebooks=num_books, **layout), StreamDecoder(**layout)
    times, size = [], 0
    most = round(_STREAM_SECONDS * config.sample_rate) + _WARM_UP_FRAMES * config.hop
    mono = samples.mean(0, keepdims=True)[:, :most]
    for at in range(0, mono.shape[1] - config.hop + 1, config.hop):
        frame = np.ascontiguousarray(mono[:, at:at + config.hop])
        start = time.perf_counter()
        packet = encoder.push(frame)
        if packet:
            decoder.push(packet)
        times.append(1000 * (time.perf_counter() - start))
        size += len(packet)
    counted = times[min(_WARM_UP_FRAMES, len(times) // 2):] or [float("nan")]
    median, p95, p99 = np.percentile(counted, [50, 95, 99])
    frame_ms = 1000 * config.hop / config.sample_rate
    return {"kbps": kbps, "codebooks": num_books, "packet_kbps": size * 8 / (frame_ms * max(1, len(times))),
            "frames": len(counted), "frame_ms": frame_ms,
            "median_ms": float(median), "p95_ms": float(p95), "p99_ms": float(p99), "worst_ms": float(max(counted)),
            "delay_ms": 2 * frame_ms}


def _machine() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} core{'' if cores == 1 else 's'} in use, {platform.system()}"
