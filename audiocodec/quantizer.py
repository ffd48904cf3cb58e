"""Residual vector quantization: latents <-> codes.

Each stage quantizes what the stages before it left over; a decoder may stop after any of them. Zeghidour et al.:
"SoundStream: An end-to-end neural audio codec", 2021. Entry 0 of every book is the zero vector, so digital silence
stays silent at every rate and no stage can make things worse.
"""
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from audiocodec.model import ModelConfig
from audiocodec.paths import Paths
from audiocodec.threads import mapped
from audiocodec.whole import LARGEST, byte_product, byte_product_of_few, prepared

BEAM, WIDE_BEAM = 4, 16  # sums that are followed at once, at most; and where time matters less
_SPARE = 2               # candidates beyond the beam, with which rounding may have swapped the last ones
_FAR = -1e30             # closeness of an entry that is not to be found
_LEAST = 1e-12           # taken for the largest number of a silent rest
_GROUP = 32              # entries that are looked at together at first
_TOGETHER = 2048         # sums followed: with fewer, books are read more often and threads wait for each other
_FEW = 8                 # up to so many are searched one by one in numpy: calls of torch would take longer


class ResidualQuantizer(nn.Module):
    """The codebooks, coarse first: (K, V, D). Each codes the first so many latents alone, those of `dims` (K,)."""

    def __init__(self, num_books: int, book_size: int, dim: int, dims: list[int] | None = None):
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(num_books, book_size, dim))
        self.dims = dims or [dim] * num_books
        self._books: list[_Book] | None = None

    @classmethod
    def fitting(cls, config: ModelConfig) -> "ResidualQuantizer":
        """One for the latents of a model."""
        return cls(config.num_books, config.book_size, config.latent_dim, config.book_dims)

    def freeze(self) -> "ResidualQuantizer":
        """Prepare the codebooks for many searches; from now on only `entries` has them, which saves memory."""
        self._books = [_Book(entries.clone()) for entries in self.entries()]
        self.codebooks = self.codebooks.new_zeros(0, *self.codebooks.shape[1:])
        return self

    def entries(self) -> list[Tensor]:
        """Of each book, (V, D), D the latents that it codes."""
        if self._books is not None:
            return [book.entries for book in self._books]
        return [book[:, :dim] for book, dim in zip(self.codebooks, self.dims)]

    def encode(self, latents: Tensor, num_books: int, beam: int = BEAM) -> Tensor:
        """Latents (B, D, T) -> codes (B, K, T): of each frame, a sum of entries that comes near.

        A beam search: the nearest entry of each book in turn would be the nearest sum only by luck. The first books
        of the codes are good codes themselves. Entries are compared in the precision of the latents.
        """
        batch, _, frames = latents.shape
        rows, plan = latents.transpose(1, 2).flatten(0, 1), self._plan([beam] * num_books)
        if _are_few(rows):
            codes = torch.from_numpy(np.array([_last_one(_search_one(row, plan)) for row in rows.numpy()]))
        else:
            codes = torch.cat(_in_parts(lambda part: _last(_search(part, plan)), rows, beam))
        return codes.reshape(batch, frames, num_books).transpose(1, 2)

    def follow(self, latents: Tensor, paths: Paths) -> np.ndarray:
        """Latents (B, D, T) -> all sums that a search with the beams of `paths` followed: uint16 (B, R, T)."""
        batch, _, frames = latents.shape
        rows, plan = latents.transpose(1, 2).flatten(0, 1), self._plan(paths.beams)

        def followed(part: Tensor) -> np.ndarray:
            steps = [[found.cpu().numpy() for found in step] for step in _search(part, plan)]
            return _packed(paths, part.cpu().numpy(), steps, self.dims)

        if _are_few(rows):
            found = [_packed(paths, row[None], [[found[None] for found in step] for step in _search_one(row, plan)],
                             self.dims) for row in rows.numpy()]
        else:
            found = _in_parts(followed, rows, max(paths.beams))
        empty = np.zeros((0, paths.num_rows), np.uint16)
        return np.concatenate([empty, *found]).reshape(batch, frames, paths.num_rows).swapaxes(1, 2)

    def _plan(self, widths: Sequence[int]) -> "Plan":
        books = (self._books or [_Book(entries) for entries in self.entries()[:len(widths)]])[:len(widths)]
        return list(zip(books, widths))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K, T) -> latents (B, D, T), the sum of the chosen entries."""
        if self._books is not None and codes.shape[2] <= _FEW and not codes.is_cuda:
            return torch.from_numpy(self._decode_few(codes.numpy())).transpose(1, 2)
        batch, _, frames = codes.shape
        total = self.codebooks.new_zeros(batch, frames, self.codebooks.shape[2])
        for entries, index in zip(self.entries(), codes.unbind(1)):
            total[..., :entries.shape[1]] += entries[index]
        return total.transpose(1, 2)

    def _decode_few(self, codes: np.ndarray) -> np.ndarray:
        """Codes (B, K, T) -> latents (B, T, D)."""
        batch, num_books, frames = codes.shape
        total = np.zeros((batch, frames, self.codebooks.shape[2]), self._books[0].array.dtype)
        for k, book in enumerate(self._books[:num_books]):
            total[..., :book.array.shape[1]] += book.array[codes[:, k]]
        return total


def nearest(vectors: Tensor, book: Tensor) -> Tensor:
    """The index of the entry of `book` (V, D) nearest to each vector (..., D); the first one on ties."""
    return (vectors @ book.T - book.square().sum(-1) / 2).argmax(-1)


class _Book:
    """One codebook, ready to be searched.

    Its entries are looked at in groups of about the same length: then the largest product of a rest and a group's
    entries, which is quickly found among whole numbers, tells well enough which groups the nearest ones are in.
    """

    def __init__(self, entries: Tensor):
        self.entries = entries.contiguous()                                     # (V, D)
        self.array = self.entries.cpu().numpy()
        minus_half = -(_power(self.entries) / 2).float()[:, 0]
        longest = minus_half.min()
        minus_half[minus_half.eq(0).nonzero()[1:]] = _FAR     # one zero will do; ties are left to chance
        self._order = minus_half.argsort(descending=True, stable=True)
        self._step = max(self.entries.abs().max().item(), _LEAST) / LARGEST
        self._numbers = prepared((self.entries[self._order] / self._step).round().to(torch.int8).T, torch.float32)
        self._minus_half = minus_half[self._order].view(-1, math.gcd(len(entries), _GROUP))     # (groups, of each)
        self._minus_mean = self._minus_half.clamp_min(longest).mean(1)
        self._order_array, self._minus_half_array, self._minus_mean_array = (
            x.cpu().numpy() for x in (self._order, self._minus_half, self._minus_mean))

    def candidates(self, rests: Tensor, power: Tensor, rows: int, count: int) -> Tensor:
        """Rests (rows M, D), M of each row -> the `count` nearest pairs of rest and entry, (rows, n), sorted.

        A pair is numbered rest * V + entry, from its row's first. Found with rests rounded to bytes, which is quick;
        whoever asks decides between the best ones in full precision. power: the rests' squared lengths (rows M, 1).
        """
        num_groups, each = self._minus_half.shape
        power = (power / 2).float()
        largest = rests.view(rows, -1).abs().amax(1).clamp_min_(_LEAST)
        unit = (largest / LARGEST).repeat_interleave(len(rests) // rows)[:, None]
        products = byte_product((rests / unit).round_(), self._numbers).view(-1, each)
        unit = (unit * self._step).float()
        nearest = products.amax(1).view(-1, num_groups).float()
        nearest.mul_(unit).add_(self._minus_mean).sub_(power)
        groups = _best(nearest.view(rows, -1), count + 1)           # where they should be, and one in case
        places = _flat(groups, nearest.numel() // rows)
        rest, group = places // num_groups, places % num_groups
        members = products.index_select(0, places).float().mul_(unit.index_select(0, rest))
        members.add_(self._minus_half.index_select(0, group)).sub_(power.index_select(0, rest))
        inside = _best(members.view(rows, -1), count)
        groups = groups.gather(1, inside // each)
        entries = self._order[groups % num_groups * each + inside % each]
        return (groups // num_groups * len(self._order) + entries).sort(1).values

    def candidates_of_one(self, rests: np.ndarray, count: int) -> np.ndarray:
        """The same of one row's rests (M, D or more), as arrays: (n,)."""
        num_groups, each = self._minus_half_array.shape
        coded = rests[:, :self.array.shape[1]]
        unit = max(np.abs(coded).max(), _LEAST) / LARGEST
        products = byte_product_of_few(np.rint(coded / unit), self._numbers).reshape(-1, num_groups, each)
        unit = np.float32(unit * self._step)
        power = np.float32(np.einsum("md,md->m", coded, coded) / 2)[:, None]
        nearest = products.max(2).astype(np.float32) * unit + self._minus_mean_array - power
        groups = _best_of_one(nearest.ravel(), count + 1)
        rest, group = np.divmod(groups, num_groups)
        members = products[rest, group].astype(np.float32) * unit + self._minus_half_array[group] - power[rest]
        inside = _best_of_one(members.ravel(), count)
        rest, group = rest[inside // each], group[inside // each]
        return np.sort(rest * len(self._order_array) + self._order_array[group * each + inside % each])


Plan = list[tuple[_Book, int]]     # each book, and how many sums are followed after it
Step = tuple[Tensor, Tensor, Tensor]    # the sums (N, M) after a book: which one before each began as, entry, error


def beams(num_books: int, likely: int, most: int = BEAM) -> list[int]:
    """How many sums to follow after each book: fewer after those that are likely to be used, one at the very end."""
    some = (num_books - likely) * 3 // 4
    return [most] * likely + [most // 2] * some + [1] * (num_books - likely - some)


def _are_few(rows: Tensor) -> bool:
    return len(rows) <= _FEW and not rows.is_cuda


def _in_parts(search: Callable, rows: Tensor, beam: int) -> list:
    """What a search finds for parts of vectors (N, D), one after another."""
    threads = 1 if rows.is_cuda else torch.get_num_threads()
    count = max(1, -(-len(rows) * beam // (threads * _TOGETHER)) * threads)         # equally many for each thread
    return mapped(search, rows.tensor_split(count), threads)


def _search(vectors: Tensor, plan: Plan) -> list[Step]:
    """Follow the sums that come nearest to vectors (N, D), the nearest ones first."""
    rows = len(vectors)
    rests, steps = vectors[:, :0], []   # what the sums that are followed leave over, (N M, D), D as coded yet
    power = vectors.new_zeros(rows, 1)  # their squared lengths
    for book, beam in plan:
        size, dim = book.entries.shape
        if dim > rests.shape[1]:
            others = vectors[:, rests.shape[1]:dim].repeat_interleave(len(rests) // rows, 0)
            rests, power = torch.cat([rests, others], 1), power + _power(others)
        before = len(rests) // rows
        pairs = _flat(book.candidates(rests, power, rows, beam + _SPARE), before * size)
        parents, entries = pairs // size, pairs % size
        left = rests.index_select(0, parents).sub_(book.entries.index_select(0, entries))
        errors = _power(left)
        order = errors.view(rows, -1).sort(dim=1, stable=True).indices
        best = _flat(order[:, :beam], order.shape[1])
        rests, power = left.index_select(0, best), errors.index_select(0, best)
        step = parents.index_select(0, best) % before, entries.index_select(0, best), power
        steps.append(tuple(found.view(rows, -1) for found in step))
    return steps


def _last(steps: list[Step]) -> Tensor:
    """The codes of the nearest sums, (N, K)."""
    at, codes = torch.zeros_like(steps[0][0][:, :1]), []
    for parents, entries, _ in reversed(steps):
        codes.append(entries.gather(1, at))
        at = parents.gather(1, at)
    return torch.cat(codes[::-1], 1)


def _search_one(vector: np.ndarray, plan: Plan) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What _search does, for one vector (D,): steps of (M,)."""
    rests, steps = vector[None], []
    for book, beam in plan:
        size, dim = book.array.shape
        parents, entries = np.divmod(book.candidates_of_one(rests, beam + _SPARE), size)
        left = rests[parents]
        coded = left[:, :dim]
        coded -= book.array[entries]
        errors = np.einsum("md,md->m", coded, coded)
        best = errors.argsort(kind="stable")[:beam]
        rests = left[best]
        steps.append((parents[best], entries[best], errors[best]))
    return steps


def _last_one(steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """What _last does, (K,)."""
    at, codes = 0, np.empty(len(steps), np.int64)
    for k in range(len(steps) - 1, -1, -1):
        parents, entries, _ = steps[k]
        codes[k], at = entries[at], parents[at]
    return codes


def _packed(paths: Paths, vectors: np.ndarray, steps: list, dims: list[int]) -> np.ndarray:
    """Vectors (N, D), steps for them, the latents that each book codes -> rows of `paths`, (N, R)."""
    beyond = {dim: np.square(vectors[:, dim:]).sum(1) for dim in {0, *dims}}
    energies = [beyond[0]] + [errors[:, 0] + beyond[dim] for (_, _, errors), dim in zip(steps, dims)]
    return paths.pack([step[:2] for step in steps], np.sqrt(np.stack(energies, 1)))


def _power(vectors: Tensor) -> Tensor:
    """Vectors (N, D) -> their squared lengths, (N, 1)."""
    return vectors.square().sum(-1, keepdim=True)


def _best(values: Tensor, count: int) -> Tensor:
    """The places of the highest values of each row (N, n), in no order; all, if there are no more. Values are used up.

    On a CPU by one maximum after another: topk takes three times as long.
    """
    count = min(count, values.shape[1])
    if values.is_cuda:
        return values.topk(count, sorted=False).indices
    left, rows, places = values.numpy(), np.arange(len(values)), np.empty((count, len(values)), np.int64)
    for place in places:
        left.argmax(1, out=place)
        left[rows, place] = -np.inf
    return torch.from_numpy(places.T)


def _best_of_one(values: np.ndarray, count: int) -> np.ndarray:
    """The same of one row (n,), which stays as it is."""
    count = min(count, len(values))
    return values.argpartition(-count)[-count:]


def _flat(index: Tensor, width: int) -> Tensor:
    """Places in rows of this width (N, n) -> places in all rows, flat (N n,)."""
    return (index + torch.arange(len(index), device=index.device)[:, None] * width).flatten()
