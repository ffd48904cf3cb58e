"""How codebooks are learnt: residual k-means to begin with, then moving averages, with dead entries restarted.

van den Oord et al.: "Neural discrete representation learning", 2017, appendix A (moving averages); Dhariwal et al.:
"Jukebox", 2020 (restarts). Entry 0 stays the zero vector.
"""
import torch
from torch import Tensor

from audiocodec.depths import choose_depths
from audiocodec.quantizer import ResidualQuantizer, nearest
from audiocodec.training.distributed import Team

_LEAST_USE = 0.05            # an entry is dead that is chosen less often than so much of the average


@torch.no_grad()
def kmeans_start(quantizer: ResidualQuantizer, latents: Tensor, rounds: int = 8) -> None:
    """Fit the books in turn to latents (N, D), each to what the books before it left over."""
    residual = latents.clone()
    size = quantizer.codebooks.shape[1]
    for k in range(len(quantizer.codebooks)):
        quantizer.codebooks[k] = residual[torch.randperm(len(residual), device=residual.device)[:size]]
        residual = _fit_book(quantizer.codebooks[k], residual, quantizer.dims[k], rounds)


@torch.no_grad()
def refit(quantizer: ResidualQuantizer, latents: Tensor, rounds: int = 6) -> None:
    """Fit the books anew to latents (N, D), from where they are: averages over small batches lag, and are noisy."""
    residual = latents.clone()
    for book, dim in zip(quantizer.codebooks, quantizer.dims):
        residual = _fit_book(book, residual, dim, rounds)


def _fit_book(book: Tensor, residual: Tensor, dim: int, rounds: int) -> Tensor:
    """Lloyd's algorithm on `book` in place, dead entries restarted in all rounds but the last two; what is left.

    dim: the book codes the first so many latents, and leaves the others alone.
    """
    book[:, dim:] = 0
    for i in range(rounds):
        index = nearest(residual, book)
        counts = torch.bincount(index, minlength=len(book))
        sums = torch.zeros_like(book).index_add_(0, index, residual)
        if i < rounds - 2:
            dead = counts < _LEAST_USE * len(residual) / len(book)
            fresh = _farthest(residual, residual - book[index], int(dead.sum()))
        book.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), book))
        if i < rounds - 2:
            book[dead] = fresh
        book[0] = 0
        book[:, dim:] = 0
    return residual - book[nearest(residual, book)]


def _farthest(vectors: Tensor, errors: Tensor, count: int) -> Tensor:
    """`count` of the vectors (N, D), drawn in proportion to their squared errors (N, D)."""
    if not count:
        return vectors[:0]
    weights = errors.square().sum(1).double() + 1e-20
    return vectors[torch.multinomial(weights, count, replacement=count > len(weights))]


class CodebookTrainer:
    """Quantizes training batches and moves the books after them, on all processes of a team alike."""

    def __init__(self, quantizer: ResidualQuantizer, decay: float = 0.998, team: Team = Team()):
        self.quantizer, self.decay, self.team = quantizer, decay, team
        self.counts = torch.ones_like(quantizer.codebooks[..., 0])     # (K, V), 1 on average
        self.sums = quantizer.codebooks.clone()                        # (K, V, D)

    def restart(self) -> None:
        """Take the books as they are for the averages; to be called when something else has set them."""
        self.counts.fill_(1)
        self.sums.copy_(self.quantizer.codebooks)

    def quantize(self, latents: Tensor, num_books: Tensor, prices: Tensor,
                 learn: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, D, T) -> quantized latents, the books that each frame used (B, T), and the commitment loss.

        num_books (B,): of all frames of an item, unless it has a price (B,) above 0 by which to choose depths.
        learn: let the books move. Else they are final, and codes are searched for as they will be in files.
        Gradients pass straight through. Each residual is formed from detached vectors, so every book's commitment
        reaches the encoder (EnCodec's issue 25 tells what happens otherwise).
        """
        batch, dim, frames = latents.shape
        rows = latents.transpose(1, 2).reshape(-1, dim)
        wanted = torch.where(prices > 0, len(self.quantizer.codebooks), num_books).repeat_interleave(frames)
        steps = self._steps(rows.detach(), wanted) if learn else self._searched(rows.detach())
        norms = torch.stack([left.norm(dim=1) for left, *_ in steps] + [(steps[-1][0] - steps[-1][1]).norm(dim=1)], 1)
        priced = choose_depths(norms.view(batch, frames, -1).transpose(1, 2), prices[:, None, None], 1)
        depths = torch.where(prices[:, None] > 0, priced, num_books[:, None])
        remaining = depths.flatten()
        quantized = torch.zeros_like(rows)
        commitment = rows.new_zeros(())
        seen = []
        for k, (left, chosen, index) in enumerate(steps):
            active = (remaining > k).nonzero()[:, 0]
            left, chosen, index = left[active], chosen[active], index[active]
            commitment = commitment + (rows[active] - quantized[active] - chosen).square().sum() / len(rows)
            seen.append((left, chosen, index))
            quantized = quantized.index_add(0, active, chosen)
        if learn:
            self._move(seen)
        straight = rows + (quantized - rows).detach()
        return straight.reshape(batch, frames, dim).transpose(1, 2), depths, commitment / dim

    def _steps(self, rows: Tensor, wanted: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What each book finds of vectors (N, D): residuals (N, D), the entries nearest to them, their numbers (N,).

        wanted (N,): how many books a vector can need; from the others it gets entry 0, which is none.
        """
        steps = []
        for k, (book, dim) in enumerate(zip(self.quantizer.codebooks, self.quantizer.dims)):
            here = (wanted > k).nonzero()[:, 0]
            index = torch.zeros_like(wanted)
            index[here] = nearest(rows[here, :dim], book[:, :dim])
            steps.append((rows, book[index], index))
            rows = rows - book[index]
        return steps

    def _searched(self, rows: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The same by beam search, whose choices are not the nearest ones but come nearer in the end."""
        steps = []
        codes = self.quantizer.encode(rows.T[None], len(self.quantizer.codebooks))[0]
        for book, index in zip(self.quantizer.codebooks, codes):
            steps.append((rows, book[index], index))
            rows = rows - book[index]
        return steps

    @torch.no_grad()
    def _move(self, seen: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Move each book after the residuals (N, D) that it saw, for which it gave entries (N, D) of numbers (N,)."""
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        for k, (residual, _, index) in enumerate(seen):
            counts[k] = torch.bincount(index, minlength=counts.shape[1])
            sums[k].index_add_(0, index, residual)
        self.team.sum(counts, sums)
        total = counts.sum(1, keepdim=True)
        share = (1 - self.decay) * (total > 0)                          # a book that nobody used stays
        scale = counts.shape[1] / total.clamp_min(1)
        self.counts.lerp_(counts * scale, share)
        self.sums.lerp_(sums * scale[..., None], share[..., None])
        dead = (self.counts < _LEAST_USE) & (total > 0)
        for k in dead[:len(seen)].any(1).nonzero()[:, 0].tolist():
            residual, chosen, _ = seen[k]
            self.sums[k, dead[k]] = _farthest(residual, residual - chosen, int(dead[k].sum()))
            self.counts[k, dead[k]] = 1
        self.team.share(self.counts, self.sums)
        self.quantizer.codebooks.copy_(self.sums / self.counts[..., None].clamp_min(1e-6))
        self.quantizer.codebooks[:, 0] = 0
        for book, dim in zip(self.quantizer.codebooks, self.quantizer.dims):
            book[:, dim:] = 0
