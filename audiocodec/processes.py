"""What someone waits for who types a command: whole processes with their start-up, for `nac bench`."""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from audiocodec import audio, launcher
from audiocodec.errors import NacError

_MOST_RUNS = 3


def time_commands(samples: np.ndarray, sample_rate: int, kbps: float, options: list[str], folder: Path, repeats: int,
                  progress: Callable[[str], None]) -> list[dict]:
    """Time nac's commands on samples float32 (C, N) and on their first second, in a folder for files.

    options: for encode and decode alike. Returns a row for each: command, the median, fastest and slowest of its
    seconds, the median of the seconds to its first sample (None where it has none to give), and peak memory in MB
    (None where the system does not tell).
    """
    short, long = folder / "short.wav", folder / "long.wav"
    audio.write(short, samples[:, :sample_rate], sample_rate)
    audio.write(long, samples, sample_rate)
    duration = f"{samples.shape[1] / sample_rate:g} s"
    raw = ["--raw", f"{sample_rate},{len(samples)},s16le"]  # no header, so the first byte is one of a sample
    encode, decode = ["encode", "-f", "-k", f"{kbps:g}", *options], ["decode", "-f", *options]
    short_nac, long_nac = short.with_suffix(".nac"), long.with_suffix(".nac")
    wav = ["-o", folder / "decoded.wav"]
    rows = [
        ("nac --version", False, [["--version"]]),
        ("nac --help", False, [["--help"]]),
        ("nac encode, 1 s", False, [[*encode, short]]),
        ("nac decode, 1 s", False, [[*decode, short_nac, *wav]]),
        (f"nac encode, {duration}", False, [[*encode, long]]),
        (f"nac decode, {duration}", False, [[*decode, long_nac, *wav]]),
        (f"nac decode to a pipe, {duration}", True, [[*decode, long_nac, "-o", "-", *raw]]),
        (f"nac encode, nac decode by pipes, {duration}", True,
         [[*encode, long, "-o", "-"], [*decode, "-", "-o", "-", *raw]]),
    ]
    found = []
    for name, has_output, commands in {row[0]: row for row in rows}.values():    # of a clip of 1 s, each but once
        progress(name)
        found.append({"command": name} | _time(name, has_output, commands, min(_MOST_RUNS, repeats)))
    return found


def _time(name: str, has_output: bool, commands: list[list], repeats: int) -> dict:
    runs = []
    for _ in range(repeats):
        try:
            runs.append(time_processes([[sys.executable, "-m", "audiocodec", *map(str, args)] for args in commands],
                                       2 * has_output))
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().splitlines() or [f"status {error.returncode}"]
            raise NacError(f"{name} failed: {said[-1]}") from None
    seconds, first, peaks = zip(*runs)
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds),
            "first_sample": _known(statistics.median(first)), "peak_mb": _known(max(peaks))}


def time_processes(commands: list[list[str]], first_bytes: int = 0) -> tuple[float, float, float]:
    """Seconds, seconds to the first bytes of output, and peak memory in MB; the last two may be nan.

    Of several commands each one's output goes into the next. Raises subprocess.CalledProcessError.
    """
    done = subprocess.run([sys.executable, "-I", "-S", launcher.__file__, str(first_bytes), json.dumps(commands)],
                          check=True, capture_output=True)
    seconds, first, peak = map(float, done.stdout.split())
    return seconds, first, peak / 1e6


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number
