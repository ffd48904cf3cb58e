"""A small causal transformer: earlier codes -> integer tables for the range coder, the same on every machine.

Every number on the way is an integer, or an integer over a power of two, held in floating point. Products of int8
matrices stay below 2**24, where float32 is exact in any order of summation; all else is one exact or correctly
rounded operation at a time. So any BLAS, thread count, batch and block of frames gives the same tables.
docs/design.md has the reasons and measurements, training/entropy.py the twin that is trained.

Inside, a code is its place in an `order` of its book that keeps similar entries together: 32 classes of 32 members.
Vaswani et al.: "Attention is all you need", 2017; Wang and Komatsuzaki: "GPT-J-6B", 2021 (attention and feed-forward
side by side); Press et al.: "Train short, test long", 2022 (a bias by distance instead of positions).
"""
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from math import isqrt

import numpy as np
import torch

from audiocodec.errors import ModelError
from audiocodec.whole import byte_product_of_few, prepared

CLASSES = MEMBERS = 32
BOOK_SIZE = CLASSES * MEMBERS
DEPTHS = 32                    # of a frame: how many books it uses, where frames differ in that
UNTOLD = DEPTHS                # the embedding row of a depth that is not coded, or that is not there yet
ABSENT = BOOK_SIZE             # the embedding row of a code that is not there: before the start, above the last book
MAX_FRAMES = 512
TOTAL = 1 << 24                # what the frequencies of one table sum to: the counts, and one more for each symbol

LIMIT = 127                    # of weights and activations
WEIGHT_BITS = 7                # a weight of 1 << 7 would mean 1.0,
ACTIVATION_BITS = 5            # an activation of 1 << 5 does,
RESIDUAL_BITS = 8              # and a residual value of 1 << 8
ATTENTION_SCALE = 1 / 8        # of products of queries and keys
ATTENTION_STEPS = 16           # of the attention table, to a nat
SCORE_STEPS = 32               # of the count table, to a nat

MAX_INNER = 768                # numbers in a sum that is exact: more might pass 2**24
MAX_WINDOW = 256
MAX_LAYERS = 8

_BLOCK = 64                    # frames that attention looks at together when all codes are known
_TOGETHER = 8                  # sequences whose tables are in memory at once
_FEW_ROWS = 64                 # up to so many, gathering each one's matrix is quicker than grouping them
_MASKED = -(1 << 14)
_LOWEST, _ZERO, _HIGHEST = (np.array(limit, np.float32) for limit in (-LIMIT, 0, LIMIT))   # numpy is quickest at arrays


@dataclass(frozen=True)
class EntropyConfig:
    """The sizes of the model, and the SHA-256 of the tables that it must give for fixed codes."""

    num_books: int = 32
    detailed_books: int = 16       # later books' members are taken as equally likely, and tell nothing of others
    context_books: int = 4         # books of the previous frame that the transformer sees
    layers: int = 2
    width: int = 128
    heads: int = 2
    feed_forward: int = 384
    window: int = 64               # frames that attention reaches back, the current one included
    head_width: int = 88
    head_hidden: int = 88
    turns: tuple[int, ...] = (1,)  # how many books are predicted side by side, turn after turn; the last one goes on
    answer: str = ""

    def __post_init__(self):
        object.__setattr__(self, "turns", tuple(self.turns))       # files have lists

    def books(self, num_books: int) -> list[range]:
        """The books of each turn, of the first so many."""
        sizes = itertools.chain(self.turns, itertools.repeat(self.turns[-1]))
        starts = itertools.takewhile(num_books.__gt__, itertools.accumulate(sizes, initial=0))
        return list(itertools.starmap(range, itertools.pairwise([*starts, num_books])))

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The type and shape of each tensor, by name."""
        books, detailed, width = self.num_books, self.detailed_books, self.width
        head, hidden = self.head_width, self.head_hidden
        first, second = 3 * width + self.feed_forward, width + self.feed_forward
        shapes = {
            "order": ("int16", (books, BOOK_SIZE)),
            "attention_table": ("uint8", (256,)),
            "count_table": ("int32", (448,)),
            "input": ("int8", (self.context_books, BOOK_SIZE + 1, width)),
            "depth.input": ("int8", (DEPTHS + 1, width)),
            "depth.before": ("int8", (DEPTHS + 1, head)),
            "depth.here": ("int8", (DEPTHS + 1, head)),
            "depth.hidden": ("int8", (hidden, head)),
            "depth.hidden_bias": ("int32", (hidden,)),
            "depth.class": ("int8", (DEPTHS, hidden)),
            "depth.class_bias": ("int32", (DEPTHS,)),
            "context": ("int8", (head, width)),
            "context_bias": ("int32", (head,)),
            "here": ("int8", (detailed, BOOK_SIZE, head)),
            "before": ("int8", (detailed, BOOK_SIZE + 1, head)),
            "hidden": ("int8", (books, hidden, head)),
            "hidden_bias": ("int32", (books, hidden)),
            "class": ("int8", (books, CLASSES, hidden)),
            "class_bias": ("int32", (books, CLASSES)),
            "member": ("int8", (detailed, CLASSES, MEMBERS, hidden)),
            "member_bias": ("int32", (detailed, CLASSES, MEMBERS)),
        }
        for i in range(self.layers):
            shapes |= {
                f"layers.{i}.first": ("int8", (first, width)),
                f"layers.{i}.first_bias": ("int32", (first,)),
                f"layers.{i}.second": ("int8", (width, second)),
                f"layers.{i}.second_bias": ("int32", (width,)),
                f"layers.{i}.distance": ("int16", (self.heads, self.window)),
            }
        return shapes


class State:
    """What a group of sequences remembers between frames: the attention's keys and values."""

    def __init__(self, config: EntropyConfig, sequences: int):
        shape = (config.layers, sequences, config.heads, MAX_FRAMES, config.width // config.heads)
        self.frame = 0
        self.keys = np.zeros(shape, np.float32)
        self.values = np.zeros(shape, np.float32)


class EntropyModel:
    """Predicts codes from earlier codes: frames in order, within a frame the books in turns.

    Where frames differ in their depth, the number of their books, it comes before the codes of its frame. Else the
    tables of a book depend on earlier frames and on the books of turns before, never on how many follow; except that
    the transformer sees as many of the first `context_books` as there are.

    A turn is a `range` of books, from the first of one of the configured turns on; what is computed of several books
    has them as its first axis, (G, ...).
    """

    def __init__(self, config: EntropyConfig, tensors: dict[str, np.ndarray]):
        """Raises ModelError for tensors that do not fit `config`, or give other tables than its `answer`."""
        _check(config, tensors)
        self.config = config
        self._places = tensors["order"].astype(np.int64)
        self._codes = np.argsort(self._places, axis=1)
        self._input = tensors["input"].reshape(-1, config.width) * np.float32(1 << RESIDUAL_BITS - ACTIVATION_BITS)
        self._input_starts = np.arange(config.context_books)[:, None] * (BOOK_SIZE + 1)
        self._depth_input = tensors["depth.input"] * np.float32(1 << RESIDUAL_BITS - ACTIVATION_BITS)
        self._layers = [_Layer(config, tensors, f"layers.{i}") for i in range(config.layers)]
        # Sums and hidden values end in a 1, by which weights take their bias along: one call less for each.
        self._context = _with_bias(tensors, "context", one=True)[:-1], _with_bias(tensors, "context", one=True)[-1]
        self._here, self._before = (
            np.pad(tensors[name].astype(np.float32).reshape(-1, config.head_width), ((0, 0), (0, 1)))
            for name in ("here", "before"))
        books = np.arange(config.detailed_books)[:, None]
        self._here_starts, self._before_starts = books * BOOK_SIZE, books * (BOOK_SIZE + 1)
        self._depth_here, self._depth_before = (np.pad(tensors[name].astype(np.float32), ((0, 0), (0, 1)))
                                                for name in ("depth.here", "depth.before"))
        self._depth_hidden = _with_bias(tensors, "depth.hidden", one=True)
        self._depth_class = _with_bias(tensors, "depth.class")
        self._hidden = _with_bias(tensors, "hidden", one=True)
        self._class = _with_bias(tensors, "class")
        self._member = _with_bias(tensors, "member")
        self._count_table = tensors["count_table"].astype(np.float64)
        if config.answer and self.answer() != config.answer:
            raise ModelError("the entropy model gives other tables on this machine than where it was made")

    def answer(self) -> str:
        """The SHA-256 of the tables for fixed codes, as little-endian int32."""
        books, frames = self.config.num_books, self.config.window + 8
        numbers = np.arange(2 * books * frames, dtype=np.int64)
        codes = (numbers * 40_503 // 64 % BOOK_SIZE).reshape(2, books, frames)
        depths = np.stack([np.full(frames, books), np.arange(frames) * 5 % min(DEPTHS, books + 1)])
        digest = hashlib.sha256()
        for tables, _ in self.tables(codes, depths, np.array([False, True])):
            digest.update(tables.astype("<i4").tobytes())
        return digest.hexdigest()

    def places(self, codes: np.ndarray) -> np.ndarray:
        """Codes (S, K, T) -> their places in the order of their book, (S, K, T)."""
        return self._places[np.arange(codes.shape[1])[:, None], codes]

    def codes(self, places: np.ndarray) -> np.ndarray:
        """Places (S, K, T) -> codes (S, K, T)."""
        return self._codes[np.arange(places.shape[1])[:, None], places]

    def tables(self, codes: np.ndarray, depths: np.ndarray, is_told: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """All tables of sequences whose codes are known, and which entry of each was taken.

        Codes int64 (S, K, T), of which each frame uses the first depths (S, T), -1 where a sequence has no more frames;
        is_told (S,): whether the depths are coded too. For each sequence, in the order of coding: frame by frame, the
        depth if it is told, then turn by turn the classes of all codes and the members of all codes -> counts
        float64 (n, 32) and symbols int32 (n,).
        """
        sequences, books, frames = codes.shape
        is_coded = np.array(self._order(books), np.int64) < depths[..., None]
        is_coded = np.concatenate([(is_told[:, None] & (depths >= 0))[..., None], is_coded], 2)     # (S, T, 1 + 2 K)
        places = np.cumsum(is_coded).reshape(-1, is_coded.shape[2]) - 1                             # (S T, 1 + 2 K)
        total = is_coded.sum()
        tables, symbols = np.empty((total, CLASSES)), np.empty(total, np.int32)
        for at, rows, counted, chosen in self._walk(codes, depths, is_told):
            tables[places[rows, at]], symbols[places[rows, at]] = counted, chosen
        ends = np.cumsum(is_coded.sum((1, 2)))[:-1]
        return list(zip(np.split(tables, ends), np.split(symbols, ends)))

    def cost(self, codes: np.ndarray) -> np.ndarray:
        """Estimate the bits of sequences' codes (S, K, T) where all frames have K books: float64 (S, K).

        The first n books of a sequence take the sum of the first n, whatever K is, if n is `context_books` or more.
        """
        sequences, books, frames = codes.shape
        bits = np.zeros((sequences * frames, books))
        order = [0, *self._order(books)]
        for i in range(0, sequences, _TOGETHER):
            group = codes[i:i + _TOGETHER]
            depths = np.full((len(group), frames), books)
            for at, rows, counted, chosen in self._walk(group, depths, np.zeros(len(group), bool)):
                found = np.take_along_axis(counted, chosen[:, None], 1)[:, 0]
                bits[i * frames + rows, order[at]] += np.log2(TOTAL / (found + 1))
        return bits.reshape(sequences, frames, books).sum(1)

    def _order(self, num_books: int) -> list[int]:
        """The books whose classes and members come one after another in a frame."""
        return [book for turn in self.config.books(num_books) for book in [*turn, *turn]]

    def _walk(self, codes: np.ndarray, depths: np.ndarray,
              is_told: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """For depths, and then for the classes and the members of each book: its place in the order of coding.

        With it the frames that have it (n,), of S T, their counts (n, 32), and what was taken (n,).
        """
        places = self.places(codes)
        told = np.where(is_told[:, None] & (depths >= 0), depths, UNTOLD)
        last, last_told = np.full_like(places, ABSENT), np.full_like(told, UNTOLD)
        last[:, :, 1:] = np.where(np.arange(codes.shape[1])[:, None] < depths[:, None], places, ABSENT)[:, :, :-1]
        last_told[:, 1:] = told[:, :-1]
        state = self.start(len(codes))
        sums = np.empty((len(codes), codes.shape[2], self.config.head_width + 1), np.float32)
        for first in range(0, codes.shape[2], _BLOCK):
            block = slice(first, first + _BLOCK)
            sums[:, block] = self.contexts(state, last[:, :, block], last_told[:, block])
        sums, told, depths = sums.reshape(-1, sums.shape[2]), told.ravel(), depths.ravel()
        rows = np.flatnonzero(told != UNTOLD)
        yield 0, rows, self.depth_counts(sums[rows], last_told.ravel()[rows]), told[rows]
        self.add_depth(sums, told)
        by_book, last = (np.ascontiguousarray(found.swapaxes(0, 1)).reshape(codes.shape[1], len(sums))
                         for found in (places, last))                                               # (K, S T)
        for turn in self.config.books(codes.shape[1]):
            used = [np.flatnonzero(depths > book) for book in turn]
            for i, (book, rows) in enumerate(zip(turn, used)):
                alone, at = range(book, book + 1), 1 + 2 * turn.start + i
                hidden = self.hidden(alone, sums[rows], last[book, rows][None])
                classes, members = np.divmod(by_book[book, rows], MEMBERS)
                yield at, rows, self.class_counts(alone, hidden)[0], classes
                yield at + len(turn), rows, self.member_counts(alone, hidden, classes[None])[0], members
            for book, rows in zip(turn, used):
                if book in self._detailed(turn):
                    sums[rows] += self._here.take(by_book[book, rows] + self._here_starts[book], 0)

    def start(self, sequences: int) -> State:
        """The state before the first frame of so many sequences."""
        return State(self.config, sequences)

    def contexts(self, state: State, last: np.ndarray, last_told: np.ndarray) -> np.ndarray:
        """Go on by n frames, given the places (S, K, n) and the depth (S, n) before each, or ABSENT and UNTOLD.

        Returns what their books start from, float32 (S, n, E). E is `head_width` and one more; what lies in there is
        the business of `hidden`, `add` and their like.
        """
        sequences, _, frames = last.shape
        rows = np.full((sequences, len(self._input_starts), frames), ABSENT)
        seen = last[:, :rows.shape[1]]
        rows[:, :seen.shape[1]] = seen
        rows += self._input_starts
        x = np.add.reduce(self._input.take(rows, 0), 1, np.float64)
        x += self._depth_input.take(last_told, 0)
        x = x.reshape(sequences * frames, -1)
        end = state.frame + frames
        for layer, keys, values in zip(self._layers, state.keys, state.values):
            x += layer(x, keys[:, :, :end], values[:, :, :end], state.frame)
        state.frame = end
        weights, bias = self._context
        return _rounded(_normalised(x) @ weights + bias).reshape(sequences, frames, -1)

    def depth_counts(self, sums: np.ndarray, last_told: np.ndarray) -> np.ndarray:
        """Context (N, E), and depths a frame ago or UNTOLD (N,) -> counts of the depths (N, 32)."""
        inputs = _limited(sums + self._depth_before.take(last_told, 0), _LOWEST)
        return counts(_limited(_rounded(inputs @ self._depth_hidden), _ZERO) @ self._depth_class, self._count_table)

    def add_depth(self, sums: np.ndarray, told: np.ndarray) -> None:
        """Add the frames' depths, or UNTOLD, (N,) to the sums (N, E) that books start from."""
        sums += self._depth_here.take(told, 0)

    def hidden(self, turn: range, sums: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """Context plus earlier books (N, E), and the places of this turn's books a frame ago (G, N) -> (G, N, H)."""
        detailed = len(self._detailed(turn))
        if detailed:
            inputs = self._before.take(previous[:detailed] + self._before_starts[turn.start:turn.start + detailed], 0)
            inputs += sums
        if detailed < len(turn):
            others = np.repeat(sums[None], len(turn) - detailed, 0)
            inputs = np.concatenate([inputs, others]) if detailed else others
        return _limited(_rounded(_limited(inputs, _LOWEST) @ self._hidden[turn.start:turn.stop]), _ZERO)

    def class_counts(self, turn: range, hidden: np.ndarray) -> np.ndarray:
        """Hidden values (G, N, H) -> counts of the classes (G, N, 32)."""
        return self._counts(hidden @ self._class[turn.start:turn.stop])

    def member_counts(self, turn: range, hidden: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Hidden values (G, N, H) and classes (G, N) -> counts of the members of each one's class (G, N, 32)."""
        detailed = len(self._detailed(turn))
        if detailed == len(turn):
            return self._counts(self._member_scores(turn, hidden, classes))
        found = np.full((*classes.shape, MEMBERS), TOTAL // MEMBERS - 1, np.float64)
        if detailed:
            found[:detailed] = self._counts(self._member_scores(turn, hidden[:detailed], classes[:detailed]))
        return found

    def _member_scores(self, turn: range, hidden: np.ndarray, classes: np.ndarray) -> np.ndarray:
        if classes.shape[1] <= _FEW_ROWS:
            weights = self._member[np.arange(turn.start, turn.start + len(classes))[:, None], classes]
            return (hidden[:, :, None] @ weights)[:, :, 0]
        scores = np.empty((*classes.shape, MEMBERS), np.float32)
        for found, rows, taken, weights in zip(scores, hidden, classes, self._member[turn.start:]):
            order = np.argsort(taken.astype(np.uint8), kind="stable")
            ends = np.cumsum(np.bincount(taken, minlength=CLASSES))[:-1]
            found[order] = np.concatenate([part @ matrix for part, matrix in zip(np.split(rows[order], ends), weights)])
        return scores

    def _counts(self, scores: np.ndarray) -> np.ndarray:
        """Scores (G, N, 32) -> counts (G, N, 32)."""
        return counts(scores.reshape(-1, scores.shape[2]), self._count_table).reshape(scores.shape)

    def _detailed(self, turn: range) -> range:
        """The books of a turn whose members are predicted, and which tell of others."""
        return range(turn.start, min(turn.stop, max(turn.start, self.config.detailed_books)))

    def add(self, turn: range, sums: np.ndarray, places: np.ndarray) -> None:
        """Add the places of this turn's books (G, N) to the sums (N, E) that later turns start from."""
        books = self._detailed(turn)
        if books:
            here = places[:len(books)] + self._here_starts[books.start:books.stop]
            sums += np.add.reduce(self._here.take(here, 0), 0)


class _Layer:
    """Attention and feed-forward side by side: one product in, one product out."""

    def __init__(self, config: EntropyConfig, tensors: dict[str, np.ndarray], name: str):
        self.width, self.heads, self.window = config.width, config.heads, config.window
        self.first = _Product(tensors, f"{name}.first", WEIGHT_BITS)
        self.second = _Product(tensors, f"{name}.second", ACTIVATION_BITS + WEIGHT_BITS - RESIDUAL_BITS)
        self.lowest = np.repeat(np.float32([-LIMIT, 0]), [3 * config.width, config.feed_forward])
        self.table = tensors["attention_table"].astype(np.float32)
        distances = tensors[f"{name}.distance"].astype(np.float32)
        self.distances = np.pad(distances, ((0, 0), (0, 1)), constant_values=_MASKED)
        self.biases = lru_cache(8)(self._biases)

    def __call__(self, x: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int) -> np.ndarray:
        """Residual values (S n, D) of the frames from `start` on -> what to add to them.

        Keys and values (S, heads, start + n, D / heads) are known up to `start`, and filled in from there.
        """
        sequences, heads, end, _ = keys.shape
        inner = _limited(self.first(_normalised(x)), self.lowest)
        by_head = inner[:, :3 * self.width].reshape(sequences, end - start, 3, heads, -1)
        queries, new_keys, values[:, :, start:] = by_head.transpose(2, 0, 3, 1, 4)
        np.multiply(new_keys, ATTENTION_STEPS * ATTENTION_SCALE / 4 ** ACTIVATION_BITS, out=keys[:, :, start:])
        reach = max(0, start + 1 - self.window)
        scores = queries @ keys[:, :, reach:].swapaxes(2, 3) + self.biases(end - start, end - reach)
        distance = np.maximum.reduce(scores, -1, keepdims=True) - scores
        weights = self.table.take(distance.astype(np.intp), mode="clip")
        attended = _rounded(weights @ values[:, :, reach:] / np.add.reduce(weights, -1, keepdims=True))
        inner[:, 2 * self.width:3 * self.width] = attended.swapaxes(1, 2).reshape(len(x), -1)
        return self.second(inner[:, 2 * self.width:])

    def _biases(self, frames: int, reach: int) -> np.ndarray:
        """What the last `frames` of `reach` frames add to their scores of all of these: (heads, frames, reach)."""
        distance = np.arange(reach - frames, reach)[:, None] - np.arange(reach)
        return self.distances[:, np.where((distance >= 0) & (distance < self.window), distance, self.window)]


class _Product:
    """The product with a matrix, its bias, and the rounding to the type of number that comes after it.

    The largest ones of the model: bytes where a CPU is quick at these, which gives the same.
    """

    def __init__(self, tensors: dict[str, np.ndarray], name: str, bits: int):
        self._weights = prepared(torch.from_numpy(tensors[name]).T, torch.float32)
        self._unit = np.array(2.0 ** -bits, np.float32)
        self._bias = tensors[f"{name}_bias"].astype(np.float32) * self._unit

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Activations (N, in) -> whole numbers float32 (N, out)."""
        sums = byte_product_of_few(x, self._weights).astype(np.float32, copy=False)
        sums *= self._unit
        sums += self._bias
        return _rounded(sums)


def counts(scores: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Turn scores (N, V) into integer counts (N, V), float64, that sum to exactly 2**24 - V.

    The whole part of a score looks up its weight in the table, whose ends stand for all beyond them. The coder adds
    one to each count, so no symbol is impossible. What rounding down leaves over goes to the first.

    >>> counts(np.float32([[2.5, 2, -90]]), np.float64([1, 2, 3])).astype(int).tolist()
    [[7190235, 7190234, 2396744]]
    """
    weights = table.take(scores.astype(np.intp), mode="clip")
    total = np.add.reduce(weights, 1, keepdims=True)
    to_share = TOTAL - scores.shape[1]
    weights *= to_share
    weights /= total
    result = np.floor(weights, out=weights)
    result[:, 0] += to_share - np.add.reduce(result, 1)
    return result


def _normalised(x: np.ndarray) -> np.ndarray:
    """Integers (N, D), float64, scaled to a root mean square of 1.0, as activations in float32."""
    squares = np.einsum("nd,nd->n", x, x)[:, None] + 1
    root = np.floor(np.sqrt(squares))
    root -= root * root > squares
    root += (root + 1) ** 2 <= squares
    x = x * _gain(x.shape[-1])
    x /= root
    return _limited(_rounded(x).astype(np.float32), _LOWEST)


@cache
def _gain(width: int) -> int:
    """The square root of the width, as an activation."""
    return isqrt(width * 4 ** ACTIVATION_BITS)


def _rounded(x: np.ndarray) -> np.ndarray:
    """Round to the nearest integer, in place; halves to even."""
    return np.rint(x, out=x)


def _limited(x: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """Keep activations within their limits, in place."""
    np.maximum(x, lowest, out=x)
    return np.minimum(x, _HIGHEST, out=x)


def _with_bias(tensors: dict[str, np.ndarray], name: str, one: bool = False) -> np.ndarray:
    """Weights (..., out, in) -> (..., in + 1, out), of which the last row is the bias: for inputs that end in a 1.

    In float32, over a power of two, so that a product comes out requantised but for the rounding, and as exact: an
    integer below 2**24 over that power. one: let the outputs end in a 1 as well.
    """
    weights = np.concatenate([tensors[name].swapaxes(-1, -2), tensors[f"{name}_bias"][..., None, :]], -2)
    weights = np.ascontiguousarray(weights, np.float32) * np.float32(2.0 ** -WEIGHT_BITS)
    if not one:
        return weights
    weights = np.pad(weights, (*[(0, 0)] * (weights.ndim - 1), (0, 1)))
    weights[..., -1, -1] = 1
    return weights


def _check(config: EntropyConfig, tensors: dict[str, np.ndarray]) -> None:
    """Raise ModelError unless tensors have the types, shapes and limits within which every step is exact."""
    inner = max(config.width + config.feed_forward, config.head_width, config.head_hidden)
    is_exact = inner <= MAX_INNER and 1 <= config.window <= MAX_WINDOW and config.layers <= MAX_LAYERS
    if not is_exact or config.width % config.heads:
        raise ModelError("the entropy model's sizes are beyond what is exact")
    if not config.turns or min(config.turns) < 1:
        raise ModelError(f"the entropy model's turns are of {config.turns} books; expected one or more each")
    for name, (dtype, shape) in config.shapes().items():
        if name not in tensors:
            raise ModelError(f"the entropy model lacks its tensor {name}")
        found = tensors[name]
        if found.dtype != dtype or found.shape != shape:
            raise ModelError(f"entropy tensor {name} is {found.dtype} {found.shape}; expected {dtype} {shape}")
        if dtype == "int8" and (found < -LIMIT).any() or dtype == "int32" and (abs(found) >= 1 << 22).any():
            raise ModelError(f"entropy tensor {name} holds numbers beyond its limit")
    if not (np.sort(tensors["order"], axis=1) == np.arange(BOOK_SIZE)).all():
        raise ModelError("entropy tensor order is not a permutation of each book")
    attention = tensors["attention_table"]
    if attention[0] == 0 or attention[-1] != 0 or tensors["count_table"].min() < 1:
        raise ModelError("an entropy table begins or ends with the wrong weight")
