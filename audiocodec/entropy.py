"""A small causal transformer: earlier codes -> integer tables for the range coder, the same on every machine.

Every number on the way is an integer held in floating point. Matrix products of int8 values stay below 2**24, where
float32 is exact in any order of summation; everything else is one exact or correctly rounded operation at a time. So
any BLAS, thread count, batch size and block of frames gives the same tables. training/entropy.py has the twin that is
trained, docs/design.md the reasons and the measurements.

Codes are looked up as class (32) and member (32): `order` renumbers each book's entries so that similar ones share a
class. Vaswani et al.: "Attention is all you need", 2017; Wang and Komatsuzaki: "GPT-J-6B", 2021 (attention and
feed-forward side by side); Press et al.: "Train short, test long", 2022 (a bias by distance instead of positions).
"""
import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache
from math import isqrt

import numpy as np

from audiocodec.errors import ModelError

CLASSES = MEMBERS = 32
BOOK_SIZE = CLASSES * MEMBERS
ABSENT = BOOK_SIZE                 # the embedding row of a code that is not there: before the start, or above the last book
MAX_FRAMES = 512
TOTAL = 1 << 24                    # what the frequencies of one table sum to, the coder's own one each included

ACTIVATION_BITS = 5                # an activation of 32 means 1.0
WEIGHT_BITS = 7
RESIDUAL_BITS = 8
ATTENTION_STEPS = 16               # of the attention table, to a nat
ATTENTION_SCALE = 1 / 8            # of the product of queries and keys
SCORE_STEPS = 32                   # of scores, to a nat
LIMIT = 127

_BLOCK = 64                        # frames evaluated together when all codes are known
_FEW_ROWS = 64
_MASKED = -(1 << 14)


@dataclass(frozen=True)
class EntropyConfig:
    """The sizes of the model, and the SHA-256 of the tables that it must give for fixed codes."""

    num_books: int = 32
    detailed_books: int = 16       # books whose members have tables of their own; later books' members count as equal
    context_books: int = 4         # books of the previous frame that the transformer sees
    layers: int = 2
    width: int = 192
    heads: int = 3
    feed_forward: int = 512
    window: int = 64               # frames that attention reaches back, the current one included
    head_width: int = 128
    head_hidden: int = 128
    answer: str = ""

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The type and shape of each tensor, by name."""
        books, width, head, hidden = self.num_books, self.width, self.head_width, self.head_hidden
        first, second = 3 * width + self.feed_forward, width + self.feed_forward
        shapes = {
            "order": ("int16", (books, BOOK_SIZE)),
            "attention_table": ("uint8", (256,)),
            "count_table": ("int32", (448,)),
            "input": ("int8", (self.context_books, BOOK_SIZE + 1, width)),
            "context": ("int8", (head, width)),
            "context_bias": ("int32", (head,)),
            "here": ("int8", (books, BOOK_SIZE, head)),
            "before": ("int8", (books, BOOK_SIZE + 1, head)),
            "hidden": ("int8", (books, hidden, head)),
            "hidden_bias": ("int32", (books, hidden)),
            "class": ("int8", (books, CLASSES, hidden)),
            "class_bias": ("int32", (books, CLASSES)),
            "member": ("int8", (self.detailed_books, CLASSES, MEMBERS, hidden)),
            "member_bias": ("int32", (self.detailed_books, CLASSES, MEMBERS)),
        }
        for i in range(self.layers):
            shapes |= {f"layers.{i}.first": ("int8", (first, width)), f"layers.{i}.first_bias": ("int32", (first,)),
                       f"layers.{i}.second": ("int8", (width, second)), f"layers.{i}.second_bias": ("int32", (width,)),
                       f"layers.{i}.distance": ("int16", (self.heads, self.window))}
        return shapes


class State:
    """What a group of sequences remembers between frames: the attention's keys and values, and the frame number."""

    def __init__(self, config: EntropyConfig, num_books: np.ndarray):
        shape = (config.layers, len(num_books), config.heads, MAX_FRAMES, config.width // config.heads)
        self.num_books = num_books
        self.frame = 0
        self.keys = np.zeros(shape, np.float32)
        self.values = np.zeros(shape, np.float32)


class EntropyModel:
    """Predicts codes from earlier codes.

    Frames in order, books in order within a frame. A table for book k depends on earlier frames and on the books before
    k, never on how many books follow, except that the transformer sees the first `context_books` that there are.
    """

    def __init__(self, config: EntropyConfig, tensors: dict[str, np.ndarray]):
        """Raises ModelError for tensors that do not fit `config`, or that give other tables than its `answer`."""
        _check(config, tensors)
        self.config = config
        self.order = tensors["order"].astype(np.int64)
        self._codes = np.argsort(self.order, axis=1)
        self._input = tensors["input"]
        self._here = tensors["here"]
        self._before = tensors["before"]
        self._count_table = tensors["count_table"].astype(np.float64)
        self._layers = [_Layer(config, tensors, i) for i in range(config.layers)]
        self._context, self._context_bias = _scaled(tensors, "context", WEIGHT_BITS)
        self._hidden, self._hidden_bias = _scaled(tensors, "hidden", WEIGHT_BITS)
        self._class, self._class_bias = _scaled(tensors, "class", WEIGHT_BITS)
        self._member, self._member_bias = _scaled(tensors, "member", WEIGHT_BITS)
        if config.answer and self.answer() != config.answer:
            raise ModelError("the entropy model gives other tables on this machine than where it was made")

    def answer(self) -> str:
        """The SHA-256 of the tables for fixed codes, little-endian int32."""
        frames = min(self.config.window + 8, MAX_FRAMES)
        numbers = np.arange(2 * self.config.num_books * frames, dtype=np.int64)
        codes = (numbers * 40_503 // 64 % BOOK_SIZE).reshape(2, self.config.num_books, frames)
        counts, _ = self.tables(codes, np.array([self.config.num_books, 1]))
        return hashlib.sha256(counts.astype("<i4").tobytes()).hexdigest()

    def split(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes (S, K, T) -> their classes and members, (S, K, T) each."""
        places = self.order[np.arange(codes.shape[1])[:, None], codes]
        return places >> 5, places & 31

    def join(self, book: int, classes: np.ndarray, members: np.ndarray) -> np.ndarray:
        """Classes and members of one book -> codes."""
        return self._codes[book, classes * MEMBERS + members]

    def tables(self, codes: np.ndarray, num_books: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All tables of S sequences whose codes are known.

        Codes int64 (S, K, T), of which sequence s has the first `num_books[s]` books -> counts float64 (S, T, K, 2, 32)
        for each code's class and member, and these (S, T, K, 2), int32. Rows of books that a sequence lacks mean nothing.
        """
        sequences, books, frames = codes.shape
        classes, members = self.split(codes)
        symbols = np.stack([classes, members], -1).transpose(0, 2, 1, 3).astype(np.int32)     # (S, T, K, 2)
        counts = np.empty((sequences, frames, books, 2, 32))
        previous = np.full_like(codes, ABSENT)
        previous[:, :, 1:] = codes[:, :, :-1]
        state = self.start(num_books)
        for start in range(0, frames, _BLOCK):
            block = slice(start, min(start + _BLOCK, frames))
            sums = self.contexts(state, previous[:, :, block]).reshape(-1, self.config.head_width)
            for k in range(books):
                hidden = self.hidden(k, sums, previous[:, k, block].ravel())
                shape = (sequences, -1, 32)
                counts[:, block, k, 0] = self.class_counts(k, hidden).reshape(shape)
                counts[:, block, k, 1] = self.member_counts(k, hidden, classes[:, k, block].ravel()).reshape(shape)
                self.add(k, sums, codes[:, k, block].ravel())
        return counts, symbols

    def cost(self, codes: np.ndarray) -> np.ndarray:
        """Estimate the bits that codes (S, K, T) take: float64 (S, K), per sequence and book.

        The first n books of a sequence take the sum of its first n entries, as long as n is at least `context_books`
        or K.
        """
        counts, symbols = self.tables(codes, np.full(len(codes), codes.shape[1]))
        chosen = np.take_along_axis(counts, symbols[..., None].astype(np.int64), -1)[..., 0]
        return np.log2(TOTAL / (chosen + 1)).sum((1, 3))

    def start(self, num_books: np.ndarray) -> State:
        """The state before the first frame of S sequences of so many books each (S,)."""
        return State(self.config, num_books)

    def contexts(self, state: State, previous: np.ndarray) -> np.ndarray:
        """Advance by n frames, given the codes before each, int64 (S, K, n) -> what the books start from, (S, n, E)."""
        x = np.zeros((previous.shape[0], previous.shape[2], self.config.width), np.float64)
        for k, table in enumerate(self._input):
            codes = previous[:, k] if k < previous.shape[1] else np.full_like(previous[:, 0], ABSENT)
            x += table.take(np.where(state.num_books[:, None] > k, codes, ABSENT), 0)
        x *= 1 << (RESIDUAL_BITS - ACTIVATION_BITS)
        end = state.frame + previous.shape[2]
        for layer, keys, values in zip(self._layers, state.keys, state.values):
            x += layer(x, keys, values, state.frame, end)
        state.frame = end
        return _rounded(_normalised(x) @ self._context + self._context_bias)

    def hidden(self, book: int, sums: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """The context plus all books before this one (N, E), and the codes of this book one frame ago (N,) -> (N, H)."""
        inputs = _clipped(sums + self._before[book].take(previous, 0), -LIMIT)
        return _clipped(_rounded(inputs @ self._hidden[book] + self._hidden_bias[book]), 0)

    def class_counts(self, book: int, hidden: np.ndarray) -> np.ndarray:
        """Hidden values (N, H) -> counts of the classes (N, 32)."""
        return counts(hidden @ self._class[book] + self._class_bias[book], self._count_table)

    def member_counts(self, book: int, hidden: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Hidden values (N, H) and classes (N,) -> counts of the members within each class (N, 32)."""
        if book >= self.config.detailed_books:
            return np.full((len(hidden), MEMBERS), (TOTAL - MEMBERS) // MEMBERS, np.float64)
        if len(hidden) <= _FEW_ROWS:
            scores = (hidden[:, None] @ self._member[book, classes])[:, 0]
        else:
            scores = np.empty((len(hidden), MEMBERS), np.float32)
            rows = np.argsort(classes, kind="stable")
            ends = np.cumsum(np.bincount(classes, minlength=CLASSES))
            for weights, group in zip(self._member[book], np.split(rows, ends[:-1])):
                scores[group] = hidden[group] @ weights
        scores += self._member_bias[book, classes]
        return counts(scores, self._count_table)

    def add(self, book: int, sums: np.ndarray, codes: np.ndarray) -> None:
        """Add the codes of this book (N,) to the sums (N, E) that the next book starts from."""
        sums += self._here[book].take(codes, 0)


class _Layer:
    """Attention and feed-forward side by side, as one product in and one product out."""

    def __init__(self, config: EntropyConfig, tensors: dict[str, np.ndarray], index: int):
        name = f"layers.{index}"
        self.width, self.heads, self.window = config.width, config.heads, config.window
        self.first, self.first_bias = _scaled(tensors, f"{name}.first", WEIGHT_BITS)
        self.second, self.second_bias = _scaled(tensors, f"{name}.second", ACTIVATION_BITS + WEIGHT_BITS - RESIDUAL_BITS)
        self.lowest = np.repeat(np.float32([-LIMIT, 0]), [3 * config.width, config.feed_forward])
        self.table = tensors["attention_table"].astype(np.float32)
        distance = tensors[f"{name}.distance"].astype(np.float32)
        self.distance = np.pad(distance, ((0, 0), (0, 1)), constant_values=_MASKED)
        self.distance_bias = lru_cache(8)(self.distance_bias)

    def __call__(self, x: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int, end: int) -> np.ndarray:
        """Residual values (S, n, D) of the frames from `start` to `end` -> what to add to them; fills keys and values."""
        sequences, frames, width = x.shape
        inner = _clipped(_rounded(_normalised(x) @ self.first + self.first_bias), self.lowest)
        by_head = inner[..., :3 * width].reshape(sequences, frames, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        queries, new_keys, values[:, :, start:end] = by_head
        np.multiply(new_keys, ATTENTION_SCALE * ATTENTION_STEPS / (1 << 2 * ACTIVATION_BITS), out=keys[:, :, start:end])
        reach = max(0, start + 1 - self.window)
        scores = queries @ keys[:, :, reach:end].swapaxes(2, 3)
        scores += self.distance_bias(frames, end - reach)
        weights = self.table.take((scores.max(-1, keepdims=True) - scores).astype(np.intp), mode="clip")
        attended = weights @ values[:, :, reach:end]
        attended /= weights.sum(-1, keepdims=True)
        inner[..., 2 * width:3 * width] = _rounded(attended).swapaxes(1, 2).reshape(sequences, frames, width)
        return _rounded(inner[..., 2 * width:] @ self.second + self.second_bias)

    def distance_bias(self, frames: int, reach: int) -> np.ndarray:
        """The bias (heads, frames, reach) of the last `frames` of `reach` frames, looking back at all of these."""
        distance = np.arange(reach - frames, reach)[:, None] - np.arange(reach)
        return self.distance[:, np.where((distance >= 0) & (distance < self.window), distance, self.window)]


def counts(scores: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Turn scores (N, V) into integer counts (N, V), float64, that sum to exactly 2**24 - V.

    Only the whole part of a score matters: it looks up a weight in the table, whose ends stand for all beyond them. The
    coder adds one to each count, so no symbol is impossible. What rounding down leaves over goes to the first.

    >>> counts(np.float32([[2.5, 2, -90]]), np.float64([1, 2, 3])).astype(int).tolist()
    [[7190235, 7190234, 2396744]]
    """
    weights = table.take(scores.astype(np.intp), mode="clip")
    spare = TOTAL - scores.shape[-1]
    total = weights.sum(-1, keepdims=True)
    weights *= spare
    weights /= total
    result = np.floor(weights, out=weights)
    result[:, 0] += spare - result.sum(-1)
    return result


def _normalised(x: np.ndarray) -> np.ndarray:
    """Integers (..., D), float64, scaled to a root mean square of one, as activations: float32 integers of at most 127."""
    squares = np.einsum("...d,...d->...", x, x)[..., None] + 1
    root = np.floor(np.sqrt(squares))
    root -= root * root > squares
    root += (root + 1) ** 2 <= squares
    x = x * _gain(x.shape[-1])
    x /= root
    return _clipped(_rounded(x).astype(np.float32), -LIMIT)


@cache
def _gain(width: int) -> int:
    """The square root of the width, as an activation."""
    return isqrt(width << 2 * ACTIVATION_BITS)


def _rounded(x: np.ndarray) -> np.ndarray:
    """Round to the nearest, in place; halves to even."""
    return np.rint(x, out=x)


def _clipped(x: np.ndarray, lowest: np.ndarray | int) -> np.ndarray:
    """Limit activations in place."""
    np.maximum(x, lowest, out=x)
    return np.minimum(x, LIMIT, out=x)


def _scaled(tensors: dict[str, np.ndarray], name: str, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (..., out, in) -> float32 (..., in, out), and their bias, both divided by a power of two.

    So a product comes out requantised but for the rounding, still exact: it is an integer below 2**24 times that power.
    """
    weights = tensors[name].swapaxes(-1, -2) * np.float32(2.0 ** -bits)
    return np.ascontiguousarray(weights), tensors[f"{name}_bias"] * np.float32(2.0 ** -bits)


def _check(config: EntropyConfig, tensors: dict[str, np.ndarray]) -> None:
    """Raise ModelError unless tensors have their types, shapes and limits, within which every step is exact."""
    shapes = config.shapes()
    if missing := shapes.keys() - tensors.keys():
        raise ModelError(f"the entropy model lacks its tensor {min(missing)}")
    for name, (dtype, shape) in shapes.items():
        found = tensors[name]
        if found.dtype != dtype or found.shape != shape:
            raise ModelError(f"entropy tensor {name} is {found.dtype} {found.shape}, expected {dtype} {shape}")
        if dtype == "int8" and found.min() < -LIMIT or dtype == "int32" and np.abs(found).max() >= 1 << 22:
            raise ModelError(f"entropy tensor {name} holds numbers beyond its limit")
    if not (np.sort(tensors["order"], axis=1) == np.arange(BOOK_SIZE)).all():
        raise ModelError("entropy tensor order is not a permutation of each book")
    if tensors["attention_table"][0] == 0 or tensors["attention_table"][-1] != 0 or tensors["count_table"].min() == 0:
        raise ModelError("an entropy table gives no weight where some is needed")
    inner = max(config.width + config.feed_forward, config.head_width, config.head_hidden)
    if inner > 768 or config.width % config.heads or not 1 <= config.window <= 256 or config.layers > 8:
        raise ModelError("the entropy model's sizes are beyond what is exact")
