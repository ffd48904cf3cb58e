"""Folders of audio -> batches of samples.

Audio is decoded, mixed down and resampled once, into a shard: all files one after another as int16 in NAME.npy, read
through a memory map, and NAME.json with [start, end, file] of each. Shards cost no memory; a crop is one short read.
"""
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audiocodec import audio
from audiocodec.errors import AudioError, NacError

_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"}
_BLOCK = 1 << 20             # frames read at a time
_GAIN_LIMITS = -20.0, 25.0   # dB


@dataclass(frozen=True)
class Shard:
    """Packed audio: samples int16 (N,), and where each file begins and ends (F, 2)."""

    samples: np.ndarray
    spans: np.ndarray

    @classmethod
    def open(cls, path: Path) -> "Shard":
        """Open a shard by the path of its .npy. Raises AudioError for files that are not one."""
        try:
            spans = json.loads(path.with_suffix(".json").read_text())
            samples = np.load(path, mmap_mode="r")
            shard = cls(samples, np.array([span[:2] for span in spans], np.int64))
        except (OSError, ValueError, TypeError) as error:
            raise AudioError(f"{path}: not a shard of audio ({error})") from None
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise AudioError(f"{path}: {samples.dtype} {samples.shape}; expected int16 samples, mono")
        return shard


def pack(folder: Path, shards: Path, sample_rate: int) -> Path:
    """Pack every audio file under `folder` into a shard in the folder `shards`, unless it is there; returns its path.

    Files that cannot be read are skipped with a warning. Raises AudioError when nothing is left.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    names = "\n".join([str(folder.resolve()), *map(str, paths)])
    target = shards / f"{folder.name}-{hashlib.sha256(names.encode()).hexdigest()[:8]}.npy"
    if target.exists():
        return target
    shards.mkdir(parents=True, exist_ok=True)
    raw, spans, position = target.with_suffix(".part"), [], 0
    with open(raw, "wb") as file:
        for path in tqdm(paths, desc=f"reading {folder}", unit="file", disable=None):
            start = position
            try:
                for samples in _mono_blocks(path, sample_rate):
                    file.write(samples.tobytes())
                    position += len(samples)
            except NacError as error:
                print(f"skipped: {error}", file=sys.stderr)
                file.seek(2 * start)
                file.truncate()
                position = start
            if position > start:
                spans.append([start, position, str(path.relative_to(folder))])
    if not spans:
        raw.unlink()
        raise AudioError(f"{folder}: no audio found")
    packed = np.lib.format.open_memmap(target.with_suffix(".tmp"), "w+", np.int16, (position,))
    packed[:] = np.memmap(raw, np.int16, "r")
    packed.flush()
    raw.unlink()
    target.with_suffix(".json").write_text(json.dumps(spans))
    os.replace(target.with_suffix(".tmp"), target)
    return target


def _mono_blocks(path: Path, sample_rate: int):
    with audio.AudioReader(path) as reader:
        resampler = audio.Resampler(reader.sample_rate, sample_rate)
        for block in reader.blocks(_BLOCK):
            yield _to_int16(resampler.push(block.mean(0, keepdims=True))[0])
        yield _to_int16(resampler.flush()[0])


def _to_int16(samples: np.ndarray) -> np.ndarray:
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16)


class Crops:
    """Random crops of several shards, each shard drawn in proportion to the square root of its length.

    A crop that runs over the end of a short file goes on with the next one, which is of the same folder.
    """

    def __init__(self, shards: list[Shard], num_samples: int, seed: int):
        self.shards, self.num_samples = shards, num_samples
        self.random = np.random.default_rng(seed)
        lengths = np.sqrt([len(shard.samples) for shard in shards])
        self.weights = lengths / lengths.sum()

    def batch(self, size: int) -> np.ndarray:
        """A batch of crops, float32 (size, num_samples), varied in level, polarity and company."""
        return np.stack([self._varied() for _ in range(size)])

    def _varied(self) -> np.ndarray:
        draw = self.random.random()
        if draw < 0.01:
            return np.zeros(self.num_samples, np.float32)
        crop = self._levelled()
        if draw < 0.11:                                     # two sounds at once
            crop = crop + self._levelled() * 10 ** self.random.uniform(-1, 0)
        elif draw < 0.14:                                   # sound out of digital silence, or into it
            at = self.random.integers(self.num_samples)
            crop[slice(at) if draw < 0.125 else slice(at, None)] = 0
        return crop / max(1.0, np.abs(crop).max())

    def _levelled(self) -> np.ndarray:
        """A crop brought to a level of -24 +- 8 dB, as far as the limits of the gain allow."""
        crop = self._crop()
        level = 10 * np.log10(np.mean(crop ** 2) + 1e-10)
        gain = np.clip(self.random.normal(-24, 8) - level, *_GAIN_LIMITS)
        return crop * np.float32(self.random.choice((-1, 1)) * 10 ** (gain / 20))

    def _crop(self) -> np.ndarray:
        shard = self.shards[self.random.choice(len(self.shards), p=self.weights)]
        start = self.random.integers(max(1, len(shard.samples) - self.num_samples + 1))
        crop = shard.samples[start:start + self.num_samples].astype(np.float32) / 32768
        return np.pad(crop, (0, self.num_samples - len(crop)))
