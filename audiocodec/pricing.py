"""The price of a codebook at which a file takes as many bytes as it may."""
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from audiocodec.depths import MAX_DEPTH, choose_depths
from audiocodec.paths import Codes, Paths

_LOWEST, _HIGHEST = 1e-3, 1e3     # price
_STEPS = 15                       # of the search for a price: to 0.05 %
_DEPTH_BITS = 2                   # at first: what telling a depth takes,
_BOOK_BITS = 9.75 - 3.75 * 0.7 ** np.arange(MAX_DEPTH)      # and each book
_MEMORY = 0.7                     # for the ratio of earlier segments, from one time to the next
_FRAMES = 1 << 15                 # that estimates rest upon, about
_AIM = 0.997                      # of the budget: what is tried next, ...
_CLOSE = 0.99                     # ... and what is near enough
_TRIALS = 6
_RISE = 1.2                       # of the price, when none of them fits

Made = TypeVar("Made")


class Pricing:
    """Guesses what segments take at a price before they are coded, and learns from what they took."""

    def __init__(self, form: Paths | Codes, segments: Sequence[np.ndarray], ratio: float = 1.0):
        """form: of the rows (C, R, t) of each segment. ratio: of true bits to the first guess."""
        self._form, self.ratio = form, ratio
        self._taken = np.zeros(2)    # in truth, and by the first guess
        self._stride = 1 + sum(rows.shape[2] for rows in segments) // _FRAMES
        norms = [form.norms(rows[:, :, ::self._stride]) for rows in segments]
        self._starts = np.cumsum([0] + [part.shape[2] for part in norms])
        self._limits = limits(np.concatenate(norms, 2))
        self._limits[0, 0] = np.inf      # mid and mono have a book even in silence

    def depths(self, rows: np.ndarray, price: float) -> np.ndarray:
        """Rows (C, R, t) -> the books that their frames use at a price, int64 (C, t)."""
        return _depths(torch.from_numpy(self._form.norms(rows)), price).numpy()

    def bits(self, price: float, first: int, end: int | None = None) -> float:
        """About what the segments from `first` to before `end` take."""
        part = self._limits[:, :, self._starts[first]:None if end is None else self._starts[end]]
        uses = np.count_nonzero(part > price, 2).sum(0)      # of each book
        bits = part.shape[0] * part.shape[2] * _DEPTH_BITS + uses @ _BOOK_BITS[:len(uses)]
        return float(bits) * self._stride * self.ratio

    def learn(self, price: float, first: int, end: int | None, bits: float) -> None:
        """Take note of what they took in truth. What came before counts on, the less the longer ago it was."""
        self._taken = _MEMORY * self._taken + [max(bits, 1.0), self.bits(price, first, end) / self.ratio]
        self.ratio = float(self._taken[0] / self._taken[1])

    def find(self, first: int, budget: float) -> float:
        """The price at which all segments from `first` on take so many bits, as near as prices go."""
        low, high = _LOWEST, _HIGHEST
        for _ in range(_STEPS):
            price = (low * high) ** 0.5
            low, high = (price, high) if self.bits(price, first) > budget else (low, price)
        return high

    def fit(self, code: Callable[[float], tuple[Made, int, float]], first: int, budget: float,
            overhead: float) -> tuple[Made, float]:
        """Code the segments from `first` on at the lowest price with which they stay within a budget of bytes.

        code: makes them at a price; what was made, its bytes, and the bits of payloads among them. overhead: bytes
        besides payloads, roughly. Returns what was made, and its price; that of the highest price if nothing fits.
        """
        best, best_size = None, -1
        price = self.find(first, 8 * (_AIM * budget - overhead))
        for _ in range(_TRIALS):
            made, size, bits = code(price)
            if best_size < size <= budget:
                best, best_size = (made, price), size
            if _CLOSE * budget <= size <= budget or size <= budget and price < 2 * _LOWEST:
                break
            self.ratio *= max(bits, 1.0) / self.bits(price, first)
            price = self.find(first, 8 * (_AIM * budget - size) + bits)
        while best is None:
            price = min(price * _RISE, _HIGHEST)
            made, size, _ = code(price)
            if size <= budget or price == _HIGHEST:
                best = made, price
        return best


def limits(norms: np.ndarray) -> np.ndarray:
    """Norms (C, K + 1, T) -> (C, K, T): the prices below which a frame uses more than 0, 1, ... books.

    What `choose_depths` decides by, up to rounding: once this is known, any price is quickly tried. A frame takes more
    than k books if some number of books beyond k brings more for each than the price, for all numbers up to k.
    """
    norms = norms[:, :MAX_DEPTH + 1]
    last = norms.shape[1] - 1
    counts = np.arange(1, last + 1, dtype=np.float32)[:, None]
    worth = [((norms[:, k:k + 1] - norms[:, k + 1:]) / counts[:last - k]).max(1) for k in range(last)]
    return np.minimum.accumulate(np.stack(worth, 1), 1)


def _depths(norms: torch.Tensor, price: float) -> torch.Tensor:
    """Norms (C, K + 1, T) -> depths (C, T). The side may go without books; mid and mono have one even in silence."""
    return torch.cat([choose_depths(norms[:1], price, 1), choose_depths(norms[1:], price, 0)])
