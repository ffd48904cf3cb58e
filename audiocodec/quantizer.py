"""Residual vector quantization: latents <-> codes.

Each stage quantizes what the stages before it left over; a decoder may stop after any of them. Zeghidour et al.:
"SoundStream: An end-to-end neural audio codec", 2021. Entry 0 of every book is the zero vector, so digital silence
stays silent at every rate and no stage can make things worse.
"""
import math

import torch
from torch import Tensor, nn

_BEAM = 4                # partial codes that are followed at once
_SPARE = 2               # candidates beyond the beam, among which rounding may have erred
_GROUP = 32              # entries of which the best one stands for all in a first look
_FRAMES = 128            # searched together: what they need stays in a core's cache


class ResidualQuantizer(nn.Module):
    """The codebooks, coarse first: (K, V, D)."""

    def __init__(self, num_books: int, book_size: int, dim: int):
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(num_books, book_size, dim))

    def encode(self, latents: Tensor, num_books: int) -> Tensor:
        """Latents (B, D, T) -> codes (B, K, T): of each frame, a sum of entries that comes near.

        A beam search: the nearest entry of each book in turn would be the nearest sum only by luck. The first books
        of the codes are good codes themselves. Entries are compared in the precision of the latents.
        """
        batch, _, frames = latents.shape
        rows = latents.transpose(1, 2).flatten(0, 1)
        codes = torch.cat([_search(part, self.codebooks[:num_books]) for part in rows.split(_FRAMES)])
        return codes.reshape(batch, frames, num_books).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K, T) -> latents (B, D, T), the sum of the chosen entries."""
        total = sum(book[index] for book, index in zip(self.codebooks, codes.unbind(1)))
        return total.transpose(1, 2)


def nearest(vectors: Tensor, book: Tensor) -> Tensor:
    """The index of the entry of `book` (V, D) nearest to each vector (..., D); the first one on ties."""
    return (vectors @ book.T - book.square().sum(-1) / 2).argmax(-1)


def _search(vectors: Tensor, books: Tensor) -> Tensor:
    """Vectors (N, D), books (K, V, D) -> codes (N, K)."""
    residuals = vectors[:, None]                                            # (N, beam, D)
    codes = vectors.new_zeros((len(vectors), 1, 0), dtype=torch.long)       # (N, beam, books so far)
    for book in books:
        parents, entries = _candidates(residuals.float(), book.float())     # (N, beam + spare)
        left = _rows(residuals, parents) - book[entries]
        best = left.square().sum(-1).sort(dim=1, stable=True).indices[:, :_BEAM]
        residuals, parents, entries = _rows(left, best), parents.gather(1, best), entries.gather(1, best)
        codes = torch.cat([_rows(codes, parents), entries[..., None]], 2)
    return codes[:, 0]


def _candidates(residuals: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """Which residuals (N, M, D) and entries of the book (V, D) come nearest: places of both (N, n), in rising order.

    In float32, which is quick; whoever asks decides between the best ones in full precision.
    """
    group = math.gcd(len(book), _GROUP)
    norms = book.square().sum(-1) / -2
    closeness = torch.addmm(norms, residuals.flatten(0, 1), book.T).view(len(residuals), -1, group)
    own = (residuals.square().sum(-1) / 2).repeat_interleave(len(book) // group, 1)         # (N, M V / group)
    groups = _best(closeness.amax(2) - own)                                                 # where they must be
    inside = _best((_rows(closeness, groups) - own.gather(1, groups)[..., None]).flatten(1))
    places = (groups.gather(1, inside // group) * group + inside % group).sort(1).values
    return places // len(book), places % len(book)


def _best(values: Tensor) -> Tensor:
    """The places of the highest values of each row (N, n), in no order."""
    return values.topk(min(_BEAM + _SPARE, values.shape[1]), sorted=False).indices


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values (N, M, ...) at the places (N, n) of their second dimension -> (N, n, ...)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
