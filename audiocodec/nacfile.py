"""A .nac file to read from at any place, as soundfile reads others."""
import dataclasses
import functools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from audiocodec import container, decoding, info, loading, payloads
from audiocodec.errors import NacError

_BLOCK = 1 << 16     # samples per channel of a block, unless asked otherwise


class NacFile:
    """A .nac file that is open for reading; a context manager.

    Samples are float32 (channels, n), counted at the file's sample rate, and the same as those of the whole decode to
    the last bit. Only the segments that they take are read. What follows the last read is at hand: reading on is as
    quick as decoding, while a jump decodes up to two segments (of 6.8 s) more than are asked for.

    info: a dictionary of what `nac info --json` prints. sample_rate: Hz. channels. num_samples: per channel.
    """

    def __init__(self, path: str | os.PathLike, *, model: str | None = None, device: str = "auto"):
        """model: weights by name or path, where they are none of the released ones. device: "auto", "cpu" or "cuda".

        Raises NacError for a file that cannot be opened, FormatError for damage, ModelError.
        """
        try:
            self._file = open(path, "rb")
        except OSError as error:
            raise NacError(f"{path}: {(error.strerror or str(error)).lower()}") from None
        try:
            self._reader = container.Reader(self._file)
            self.info = info.describe(self._reader, os.fstat(self._file.fileno()).st_size, Path(path))
            self._codec = loading.load_for(self._reader.header, model, device)
        except BaseException:
            self._file.close()
            raise
        self.sample_rate, self.channels = self._reader.header.sample_rate, self._reader.header.channels
        self.num_samples: int = self.info["num_samples"]
        self._position = 0
        self._pieces: Iterator[np.ndarray] = iter(())     # decoded from the position on, after what is held
        self._held = np.zeros((self.channels, 0), np.float32)
        self._is_ready = False                            # whether these two are there

    def __enter__(self) -> "NacFile":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._pieces = iter(())
        self._file.close()

    def tell(self) -> int:
        """The sample that the next read begins with."""
        return self._position

    def seek(self, sample: int) -> None:
        """Let the next read begin with this sample; a negative number counts from the end. Raises NacError."""
        place = sample + self.num_samples if sample < 0 else sample
        if not 0 <= place <= self.num_samples:
            raise NacError(f"sample {sample} of {self.num_samples}")
        self._is_ready &= place == self._position
        self._position = place

    def read(self, start: int | None = None, frames: int | None = None) -> np.ndarray:
        """Return samples float32 (channels, n): `frames` of them, or as many as are left; None: all that are left.

        start: the first sample, as for `seek`; None: where the last read ended. Raises FormatError for damage.
        """
        if start is not None:
            self.seek(start)
        left = self.num_samples - self._position
        count = left if frames is None else min(left, frames)
        if count < 0:
            raise NacError(f"{frames} samples")
        if not count:
            return np.zeros((self.channels, 0), np.float32)
        if not self._is_ready:
            self._begin(count)
        pieces, self._is_ready = [self._held], False     # should reading fail
        missing = count - self._held.shape[1]
        while missing > 0:
            pieces.append(next(self._pieces))
            missing -= pieces[-1].shape[1]
        samples = np.concatenate(pieces, 1)
        self._held, self._is_ready = samples[:, count:].copy(), True
        self._position += count
        return samples[:, :count]

    def blocks(self, frames: int = _BLOCK) -> Iterator[np.ndarray]:
        """Yield what is left in blocks (channels, frames); the last one may be shorter."""
        while (block := self.read(frames=frames)).shape[1]:
            yield block

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.blocks()

    def _begin(self, count: int) -> None:
        """Decode from the position on: first the segments that `count` samples take, then what follows."""
        start, end = (Fraction(place, self.sample_rate) for place in (self._position, self._position + count))
        first = decoding.find_excerpt(self._reader, self._codec, start, end, True)
        group = functools.partial(payloads.foreseen, count=first.num_segments)
        endless = dataclasses.replace(first, end=None, num_segments=None)
        self._pieces = decoding.decode(self._reader, self._codec, [], endless, group=group)
        self._held = self._held[:, :0]
