"""Levels of bands <-> symbols for the range coder, by tables that training counts.

Of a segment's groups of frames the first is coded, then the one in the middle of what is left, and so on: from coarse
to fine, every group but the first between two that are known, as far as the segment goes. What is coded is how far a
level is from the mean of these two, by a table for how far the two are apart, how near in time, and what the band below
did.
"""
from collections.abc import Callable, Iterator

import numpy as np

from audiocodec.entropy import TOTAL
from audiocodec.errors import FormatError, ModelError
from audiocodec.model import NUM_LEVELS

NUM_SYMBOLS = 2 * NUM_LEVELS - 1         # what a level may differ by, from -39 to 39
_STRIDES, _SPREADS, _CHANGES = 4, 6, 6   # how many of each a table is for; the last ones: no right one, no band below
_MOST_CHANGE = 2                         # of the band below, that is told apart
_NONE = -1                               # the place of a group that is not there
GROUPS = 2, 4                            # that a group may have; each has its tables

Step = tuple[int, np.ndarray, np.ndarray, np.ndarray]    # a stride's number; places, and those left and right of them


class LevelModel:
    """The tables, and levels by them."""

    def __init__(self, num_bands: int, tables: np.ndarray):
        """tables: uint16 (contexts, symbols), none of them 0. Raises ModelError for others."""
        if tables.shape != (num_contexts(num_bands), NUM_SYMBOLS) or not tables.all():
            raise ModelError(f"tables of levels of shape {tables.shape}; expected none empty, and "
                             f"{num_contexts(num_bands), NUM_SYMBOLS}")
        self.num_bands = num_bands
        tables = tables.astype(np.int64)
        counts = tables * (TOTAL - NUM_SYMBOLS) // tables.sum(1, keepdims=True)
        counts[:, NUM_LEVELS - 1] += TOTAL - NUM_SYMBOLS - counts.sum(1)
        self._counts = counts.astype(np.float32)     # the coder adds one to each and takes them as they are

    def tables(self, levels: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Levels (L, P) of groups of so many frames -> counts float32 (n, symbols), symbols int32 (n,), as coded."""
        contexts, symbols = coded(levels, frames)
        return self._counts[contexts], symbols.astype(np.int32)

    def bits(self, levels: np.ndarray, frames: int) -> float:
        """What levels (L, P) of groups of so many frames take."""
        contexts, symbols = coded(levels, frames)
        return float(np.log2(TOTAL / (self._counts[contexts, symbols] + 1)).sum())

    def decode(self, sequences: int, num_groups: int, frames: int,
               take: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Levels int64 (S, L, P) of sequences of equally many groups of so many frames. Raises FormatError.

        take: counts float32 (S, n, symbols) -> the next n symbols of each sequence (S, n).
        """
        counts = self._counts[_of_frames(frames, self.num_bands):]
        levels = np.zeros((sequences, self.num_bands, num_groups), np.int64)
        first = counts[_first_contexts(self.num_bands)]
        levels[:, :, 0] = np.cumsum(take(np.repeat(first[None], sequences, 0)) - (NUM_LEVELS - 1), 1)
        for step in _steps(num_groups):
            contexts, expected = _expectations(levels, step)
            below = None
            for band in range(self.num_bands):
                below = take(counts[contexts[:, band] + _change(below)]) - (NUM_LEVELS - 1)
                levels[:, band, step[1]] = expected[:, band] + below
        if levels.min() < 0 or levels.max() >= NUM_LEVELS:
            raise FormatError("a damaged payload (a level that does not exist)")
        return levels


def num_contexts(num_bands: int) -> int:
    """How many tables there are."""
    return _of_frames(GROUPS[1], num_bands) * len(GROUPS)


def _of_frames(frames: int, num_bands: int) -> int:
    """The first table for groups of so many frames."""
    return (2 * _STRIDES * _SPREADS * _CHANGES + num_bands) * GROUPS.index(frames)


def coded(levels: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels (L, P) of groups of so many frames -> contexts and symbols (n,), in the order of coding."""
    levels = levels.astype(np.int64)
    contexts = [_first_contexts(len(levels))]
    symbols = [np.diff(levels[:, 0], prepend=0)]
    for step in _steps(levels.shape[1]):
        context, expected = _expectations(levels, step)
        differences = levels[:, step[1]] - expected
        context[:1] += _change(None)
        context[1:] += _change(differences[:-1])
        contexts.append(context.ravel())
        symbols.append(differences.ravel())
    return np.concatenate(contexts) + _of_frames(frames, len(levels)), np.concatenate(symbols) + NUM_LEVELS - 1


def to_tables(counts: np.ndarray) -> np.ndarray:
    """How often each symbol came in each context (contexts, symbols) -> tables, uint16."""
    likely = 0.6 ** np.abs(np.arange(NUM_SYMBOLS) - (NUM_LEVELS - 1))     # where nothing is known
    shares = counts + 4 * likely / likely.sum() + 0.01
    shares = shares / shares.sum(1, keepdims=True)
    return np.maximum(1, np.rint(shares * 60_000)).astype(np.uint16)


def _steps(num_groups: int) -> Iterator[Step]:
    for k in range((num_groups - 1).bit_length() - 1, -1, -1):
        stride = 1 << k
        places = np.arange(stride, num_groups, 2 * stride)
        right = places + stride
        yield min(k, _STRIDES - 1), places, places - stride, np.where(right < num_groups, right, _NONE)


def _first_contexts(num_bands: int) -> np.ndarray:
    """Of the first group's bands."""
    return 2 * _STRIDES * _SPREADS * _CHANGES + np.arange(num_bands)


def _expectations(levels: np.ndarray, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """The contexts of a step's levels but for what the band below did, and what these levels are expected to be.

    levels: (..., P), of which those left and right are known.
    """
    stride, _, left, right = step
    left, has_right = levels[..., left], right != _NONE
    right = np.where(has_right, levels[..., right], left)
    spread = np.where(has_right, np.minimum(np.abs(right - left), _SPREADS - 2), _SPREADS - 1)
    return (stride * _SPREADS + spread) * _CHANGES * 2 + (left + right) % 2, (left + right) // 2


def _change(below: np.ndarray | None) -> np.ndarray | int:
    """What is to be added to the contexts of levels for how much the band below differed, if there is one."""
    return 2 * (_CHANGES - 1 if below is None else below.clip(-_MOST_CHANGE, _MOST_CHANGE) + _MOST_CHANGE)
