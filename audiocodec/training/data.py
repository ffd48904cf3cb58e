"""Sources of audio -> batches of samples.

Crops draws from sources, loader does so in other processes. A batch depends only on the seed and its number, so the
number is all that a run needs to remember of where it stands in its data.
"""
import copy
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from audiocodec import audio
from audiocodec.errors import AudioError, NacError
from audiocodec.training.sources import WARNINGS, Source, Warnings

_GAIN_LIMITS = -20.0, 25.0         # dB
_SILENT_CROP = 1e-4                # highest peak
_REDRAWS = 4                       # of a crop that is silent by chance
_MAX_FAILURES = 100                # files in a row
_ONE_CHANNEL = 0.2                 # of the sounds, where there are several channels
_ROUND = 25, 75                    # Hz, of which test tones are multiples; by 75 all frames of a steady one are alike
_FILTER_MARGIN = 70                # samples of the lower rate; audio.Resampler's filter reaches 68
_FILTER_TAIL = 2048                # samples of silence, so that a filter's end does not wrap around to its start
_PREFETCH = 4                      # batches for each worker


class Crops:
    """Random crops of several sources, each source drawn in proportion to the square root of its duration.

    Files are drawn in proportion to theirs; a crop that is longer than its file goes on with another of the same
    source. A file that cannot be read is told and another drawn; `failures` counts.
    """

    def __init__(self, sources: list[Source], num_samples: int, sample_rate: int, seed: int):
        self.sources, self.num_samples, self.sample_rate, self.seed = sources, num_samples, sample_rate, seed
        weights = np.sqrt([source.seconds for source in sources])
        self.weights = weights / weights.sum()
        self.failures = 0
        self._warn = Warnings(WARNINGS * len(sources))

    def batch(self, number: int, size: int) -> np.ndarray:
        """Batch `number` of crops, float32 (size, num_samples), varied in level, polarity, colour and company.

        The same for the same seed, number and files. Raises AudioError when file after file cannot be read.
        """
        random = np.random.default_rng((self.seed, number))
        return np.stack([self._varied(random) for _ in range(size)])

    def _varied(self, random: np.random.Generator) -> np.ndarray:
        draw = random.random()
        if draw < 0.01:
            return np.zeros(self.num_samples, np.float32)
        if draw > 0.98:
            return _softened(self._noise(random))
        if draw > 0.94:
            return _softened(self._tones(random))
        crop = self._levelled(random)
        if draw > 0.92:                                     # noise under a sound
            crop = crop + self._noise(random) * np.float32(10 ** random.uniform(-1.5, 0))
        elif draw < 0.11:                                   # two sounds at once
            crop = crop + self._levelled(random) * np.float32(10 ** random.uniform(-1, 0))
        elif draw < 0.14:                                   # sound out of digital silence, or into it
            at = random.integers(self.num_samples)
            crop[slice(at) if draw < 0.125 else slice(at, None)] = 0
        return _softened(crop)

    def _noise(self, random: np.random.Generator) -> np.ndarray:
        """Noise from white to brown, as of wind, rain or tape, at a level of -24 +- 8 dB."""
        crop = self._filtered(random.standard_normal(self.num_samples, np.float32), _colour(random))
        if random.random() < 0.5:
            crop = self._filtered(crop, _low_pass(random) if random.random() < 0.5 else _equaliser(random))
        return crop * np.float32(_level(random) / np.sqrt(np.mean(crop ** 2)))

    def _tones(self, random: np.random.Generator) -> np.ndarray:
        """A steady sine, as often as one to six of them or a tone and its harmonics: test signals, flutes, organs."""
        count = 1 if random.random() < 0.5 else random.integers(1, 7)
        if random.random() < 0.5:
            frequencies = _log_uniform(random, 50, 2_000) * np.arange(1, count + 1)
        else:
            frequencies = _log_uniform(random, 50, 11_000, count)
        if random.random() < 0.5:
            step = random.choice(_ROUND)
            frequencies = step * np.maximum(1, np.rint(frequencies / step))
        decibels = random.uniform(-30, 0, count)
        phases = frequencies[:, None] * np.arange(self.num_samples) / self.sample_rate + random.random((count, 1))
        crop = 10 ** (decibels / 20) @ np.sin(2 * np.pi * phases)
        return (crop * _level(random) / np.sqrt(np.mean(crop ** 2))).astype(np.float32)

    def _levelled(self, random: np.random.Generator) -> np.ndarray:
        """A sound brought to a level of -24 +- 8 dB, as far as the limits of the gain allow."""
        source = self.draw(random)
        channel = random.random() if random.random() < _ONE_CHANNEL else None
        crop = self.sound(source, random, channel)
        draw = random.random()
        if draw < 0.05:
            crop = self._filtered(crop, _low_pass(random))
        elif draw < 0.1:
            crop = self._filtered(crop, _equaliser(random))
        level = 10 * np.log10(np.mean(crop ** 2) + 1e-10)
        gain = np.clip(random.normal(-24, 8) - level, *_GAIN_LIMITS)
        return crop * np.float32(random.choice((-1, 1)) * 10 ** (gain / 20))

    def _filtered(self, crop: np.ndarray, response: Callable) -> np.ndarray:
        length = len(crop) + _FILTER_TAIL
        gains = response(np.fft.rfftfreq(length, 1 / self.sample_rate))
        return np.fft.irfft(np.fft.rfft(crop, length) * gains, length)[:len(crop)].astype(np.float32)

    def draw(self, random: np.random.Generator) -> Source:
        """One of the sources, by their weights."""
        return self.sources[random.choice(len(self.sources), p=self.weights)]

    def sound(self, source: Source, random: np.random.Generator, channel: float | None = None) -> np.ndarray:
        """A crop as it is in the files, float32 (num_samples,): the mean of the channels, or one of them.

        channel: which, from 0, the first, to below 1, the last.
        """
        for _ in range(1 + _REDRAWS):
            pieces, missing = [], self.num_samples
            while missing:
                pieces.append(self._piece(source, random, missing, channel))
                missing -= len(pieces[-1])
            crop = np.concatenate(pieces)
            if np.abs(crop).max() > _SILENT_CROP:
                break
        return crop

    def _piece(self, source: Source, random: np.random.Generator, length: int, channel: float | None) -> np.ndarray:
        """A piece of one file, float32 (n,); n is less than `length` only in a file that is shorter."""
        for _ in range(_MAX_FAILURES):
            file = source.draw(random)
            try:
                return self._read(source, file, random, length, channel)
            except AudioError as error:
                self.failures += 1
                self._warn(f"skipped: {error}")
                last = error
        raise AudioError(f"{source.path}: {_MAX_FAILURES} files in a row could not be read; the last: {last}")

    def _read(self, source: Source, file: int, random: np.random.Generator, length: int,
              channel: float | None) -> np.ndarray:
        rate, target = int(source.rates[file]), self.sample_rate
        span = -(-length * rate // target)                  # frames of the file
        start = int(random.integers(max(1, source.frames[file] - span + 1)))
        margin = -(-_FILTER_MARGIN * rate // min(rate, target)) if rate != target else 0
        lead = min(start, margin)
        samples = source.read(file, start - lead, lead + span + margin)
        mono = samples.mean(0) if channel is None else samples[int(channel * len(samples))]
        resampler = copy.copy(_resampler(rate, target))
        piece = np.concatenate([resampler.push(mono[None]), resampler.flush()], axis=1)[0]
        piece = piece[lead * target // rate:][:length]
        if not len(piece):
            raise AudioError(f"{source.path}: file {file} ends early")
        return piece


@functools.lru_cache(maxsize=32)
def _resampler(rate: int, target: int) -> audio.Resampler:
    """A resampler at the start of its stream, to be copied: its filter takes longer to make than to use."""
    return audio.Resampler(rate, target)


def _softened(crop: np.ndarray) -> np.ndarray:
    """A crop that is softer where it would go beyond full scale."""
    return crop / max(1, np.abs(crop).max())


def _low_pass(random: np.random.Generator) -> Callable:
    """Gains by frequency (Hz), as of telephones, medium wave and old recordings."""
    cutoff = _log_uniform(random, 3_000, 10_000)
    return lambda frequencies: (1 + (frequencies / cutoff) ** 16) ** -0.5


def _equaliser(random: np.random.Generator) -> Callable:
    """Gains by frequency (Hz): some dB up or down in each octave, and nothing below a low limit."""
    limit = _log_uniform(random, 30, 300)
    octaves, decibels = np.arange(5, 15), random.normal(0, 3, 10)

    def gains(frequencies: np.ndarray) -> np.ndarray:
        frequencies = np.maximum(frequencies, 1)
        boost = 10 ** (np.interp(np.log2(frequencies), octaves, decibels) / 20)
        return boost * (1 + (limit / frequencies) ** 4) ** -0.5

    return gains


def _colour(random: np.random.Generator) -> Callable:
    """Gains by frequency (Hz) that make white noise white to brown."""
    slope = random.uniform(0, 1)
    return lambda frequencies: np.maximum(frequencies, 30) ** -slope


def _level(random: np.random.Generator) -> float:
    """A root mean square, of which 1 is full scale: -24 +- 8 dB."""
    return 10 ** (random.normal(-24, 8) / 20)


def _log_uniform(random: np.random.Generator, low: float, high: float, count: int | None = None) -> float | np.ndarray:
    return low * (high / low) ** random.random(count)


def clips(sources: list[Source], sample_rate: int, seconds: float, count: int) -> np.ndarray:
    """Clips to validate with, float32 (count, N): the same each time, from each source in turn, and as they are."""
    crops = Crops(sources, round(seconds * sample_rate), sample_rate, seed=0)
    return np.stack([crops.sound(sources[number % len(sources)], np.random.default_rng(number))
                     for number in range(count)])


@dataclass(frozen=True)
class Batches(Dataset):
    """Item n is batch n, a float32 tensor (size, num_samples)."""

    crops: Crops
    size: int

    def __getitem__(self, number: int) -> torch.Tensor | NacError:
        try:
            return torch.from_numpy(self.crops.batch(number, self.size))
        except NacError as error:      # returned, as a DataLoader would wrap what is raised in a traceback's text
            return error


class Waiting:
    """An iterator over batches that measures how long its caller waits for them; close() ends its workers.

    waited: seconds in all.
    """

    def __init__(self, batches: Iterator[torch.Tensor | NacError]):
        self._batches, self.waited = batches, 0.0
        self._last = time.perf_counter(), 0.0

    def __iter__(self) -> "Waiting":
        return self

    def __next__(self) -> torch.Tensor:
        began = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - began
        if isinstance(batch, NacError):
            raise batch
        return batch

    def share(self) -> float:
        """The share of the time since the last call (or since the start) that was spent waiting, 0 to 1."""
        (then, waited), now = self._last, time.perf_counter()
        self._last = now, self.waited
        return (self.waited - waited) / max(now - then, 1e-9)

    def close(self) -> None:
        self._batches = iter(())       # nothing else holds the old one, and what it holds ends with it


def loader(crops: Crops, size: int, first: int = 0, stride: int = 1, workers: int = 0, pin: bool = False) -> Waiting:
    """Batches number first, first + stride and so on, without end, whatever the number of worker processes.

    pin: put them in memory that a GPU can fetch from. Next raises AudioError as Crops.batch does.
    """
    options = {}
    if workers:
        options = {"multiprocessing_context": _context(), "worker_init_fn": _start_worker,
                   "prefetch_factor": _PREFETCH}
    batches = DataLoader(
        Batches(crops, size), batch_size=None, sampler=range(first, sys.maxsize, stride), num_workers=workers,
        pin_memory=pin, generator=torch.Generator(), **options)   # its own generator: torch's is the training's
    return Waiting(iter(batches))


def _context():
    """How workers start: as copies of a fresh process that has imported this module.

    Copies of this process could find a lock held by a thread that they do not have; fresh ones import torch each.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "audiocodec._torchaudio"])
    return context


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C is the main process's to answer
    threading.Thread(target=_end_with, args=[multiprocessing.parent_process()], daemon=True).start()


def _end_with(process) -> None:
    """End this process with another, even one that was killed: torch looks for the end of the fork server only."""
    process.join()
    os._exit(1)
