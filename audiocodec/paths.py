"""What the search for codes followed, kept until it is known how many books a frame uses.

The best sum of n entries seldom begins as the best sum of more does. A beam search comes by all of them, so their codes
are read off when a frame's depth is chosen, and that is chosen by what they leave over.
"""
from collections.abc import Sequence

import numpy as np

from audiocodec.depths import norms_left

_ENTRY_BITS = 10
_ENTRY = (1 << _ENTRY_BITS) - 1
_REST = 0.7              # of the energy that all books leave: no choice of a depth would take it away


class Paths:
    """The layout of rows (R, t), uint16, that hold a search with so many sums followed after each of K books.

    First, for each book, these sums, the nearest one first: its entry, and in the bits above which of the sums before
    it began as. Then what the nearest sum of 0, 1, ... K entries leaves, its length as float16. Rows may go on.
    """

    def __init__(self, beams: Sequence[int]):
        self.beams = tuple(beams)
        self._starts = np.cumsum([0, *beams]).tolist()
        self.num_rows = self._starts[-1] + len(self.beams) + 1

    def pack(self, steps: Sequence[tuple[np.ndarray, np.ndarray]], lengths: np.ndarray) -> np.ndarray:
        """For each book where its sums began and their entries (N, M), and lengths (N, K + 1) -> (N, R)."""
        followed = [parents << _ENTRY_BITS | entries for parents, entries in steps]
        lengths = np.minimum(lengths, np.finfo(np.float16).max).astype(np.float16)
        return np.concatenate([np.concatenate(followed, 1).astype(np.uint16), lengths.view(np.uint16)], 1)

    def norms(self, rows: np.ndarray) -> np.ndarray:
        """Rows (C, R and more, t) -> what is left after 0, 1, ... K books, float32 (C, K + 1, t).

        Less most of what is left after all: depths chosen so score 0.03 more by PESQ (docs/design.md).
        """
        energy = np.square(rows[:, self._starts[-1]:self.num_rows].view(np.float16), dtype=np.float32)
        return np.sqrt(np.maximum(energy - _REST * energy[:, -1:], 0))

    def plain(self, rows: np.ndarray, depths: np.ndarray) -> np.ndarray:
        """Rows (C, R and more, t) and the books that frames use, (C, t) or (C, 1) -> (C, K and more, t).

        The codes of the nearest sum of so many entries, 0 after these, and the rows that come after.
        """
        codes = np.zeros((len(rows), len(self.beams), rows.shape[2]), np.uint16)
        at = np.zeros((len(rows), 1, rows.shape[2]), np.int64)
        for k in reversed(range(len(self.beams))):
            steps = np.take_along_axis(rows[:, self._starts[k]:self._starts[k + 1]], at, 1)
            steps *= depths[:, None] > k                    # a sum of fewer entries is the nearest one after the last
            codes[:, k], at = steps[:, 0] & _ENTRY, (steps >> _ENTRY_BITS).astype(np.int64)
        return np.concatenate([codes, rows[:, self.num_rows:]], 1)


class Codes:
    """Rows that begin with the codes of K books, of which nothing else is known; used as Paths is."""

    def __init__(self, codebooks: Sequence[np.ndarray]):
        """codebooks: (V, D) of each of the K books."""
        self._codebooks = codebooks

    def norms(self, rows: np.ndarray) -> np.ndarray:
        """Rows (C, K and more, t) -> about what is left after 0, 1, ... K books, float32 (C, K + 1, t)."""
        return norms_left(rows, self._codebooks)

    def plain(self, rows: np.ndarray, depths: np.ndarray) -> np.ndarray:
        """The rows as they are."""
        return rows
