"""How many books to use: the largest counts whose file stays within a budget of bytes.

Two channels, mid and side, each have a count of their own; a rung of the ladder is one such pair.
"""
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from audiocodec.entropy import EntropyModel

_SAMPLE = 8          # segments whose cost is computed to estimate that of all
_SLACK = 0.97        # of an estimate: how far below it the truth may lie
_IN_MEMORY = 1 << 25     # bytes of rows; more than that go to a temporary file

Rung = tuple[int, ...]


def ladder(gains: np.ndarray) -> list[Rung]:
    """The counts of books to choose from, in order: each rung gives one more book to where it helps most.

    gains (C, K): the energy that each book adds to each channel. A channel's worth is what its next books would still
    add; silence gets no more than it must.
    """
    limit = gains.shape[1]
    left = np.concatenate([np.cumsum(gains[:, ::-1], 1)[:, ::-1], np.full((len(gains), 1), -1.0)], 1)
    counts = [1] + [0] * (len(gains) - 1)
    rungs = [tuple(counts)]
    while True:
        worth = [left[channel, count] for channel, count in enumerate(counts)]
        best = int(np.argmax(worth))
        if counts[best] == limit or worth[best] <= 0:
            return rungs
        counts[best] += 1
        rungs.append(tuple(counts))


class Spool:
    """A sequence of rows, uint16 (C, K, t), of segments; on disk when they are many. A context manager."""

    def __init__(self):
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)
        self._places: list[tuple[int, tuple[int, ...]]] = []     # where each segment begins, and its shape
        self._end = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._read(*place) for place in self._places)

    def __getitem__(self, at: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(at, slice):
            return [self._read(*place) for place in self._places[at]]
        return self._read(*self._places[at])

    def append(self, rows: np.ndarray) -> None:
        self._file.seek(self._end)
        self._file.write(rows.tobytes())
        self._places.append((self._end, rows.shape))
        self._end += rows.nbytes

    def _read(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        self._file.seek(start)
        return np.frombuffer(self._file.read(2 * int(np.prod(shape))), np.uint16).reshape(shape)


def costs(model: EntropyModel | None, segments: Sequence[np.ndarray], codes: Callable[[np.ndarray], np.ndarray],
          books: int) -> np.ndarray:
    """The bits that all segments' codes take, for each channel and book, (C, K); some are looked at, not all.

    model: None for codes that are not entropy-coded. codes: of a segment, (C, K, T). books: K.
    """
    channels = len(segments[0])
    if model is None:
        return np.full((channels, books), 10.0 * sum(segment.shape[2] for segment in segments))
    chosen = [segments[at] for at in np.unique(np.linspace(0, len(segments) - 1, _SAMPLE).astype(int))]
    bits = sum(model.cost(codes(segment).astype(np.int64)) for segment in chosen)
    return bits * sum(segment.shape[2] for segment in segments) / sum(segment.shape[2] for segment in chosen)


def largest(code: Callable[[Rung], bytes], rungs: Sequence[Rung], bits: np.ndarray, overhead: int,
            budget: float) -> tuple[Rung, bytes]:
    """The highest rung whose bytes stay within the budget, and those bytes; the lowest rung if none does.

    code: makes the file with the counts of a rung. bits (C, K): estimated by `costs`. overhead: bytes besides payloads.
    """
    up_to = np.pad(np.cumsum(bits, 1), ((0, 0), (1, 0))) / 8
    sizes = [overhead + sum(up_to[channel, count] for channel, count in enumerate(rung)) for rung in rungs]
    at = max(0, int(np.searchsorted(sizes, budget, "right")) - 1)
    data = code(rungs[at])
    correction = len(data) / sizes[at]
    while len(data) > budget and at > 0:
        at -= 1
        while at > 0 and sizes[at] * correction * _SLACK > budget:
            at -= 1
        data = code(rungs[at])
    while at + 1 < len(rungs) and len(data) <= budget and sizes[at + 1] * correction * _SLACK <= budget:
        more = code(rungs[at + 1])
        if len(more) > budget:
            break
        at, data = at + 1, more
    return rungs[at], data
