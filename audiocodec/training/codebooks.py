"""How codebooks are learnt: residual k-means to begin with, then moving averages, with dead entries restarted.

van den Oord et al.: "Neural discrete representation learning", 2017, appendix A (moving averages); Dhariwal et al.:
"Jukebox", 2020 (restarts). Entry 0 stays the zero vector.
"""
import torch
from torch import Tensor

from audiocodec.quantizer import ResidualQuantizer, nearest


@torch.no_grad()
def kmeans_start(quantizer: ResidualQuantizer, latents: Tensor, rounds: int = 8) -> None:
    """Fit the books in turn to latents (N, D), each to what the books before it left over."""
    num_books, size, _ = quantizer.codebooks.shape
    residual = latents.clone()
    for k in range(num_books):
        book = residual[torch.randperm(len(residual))[:size]].clone()
        book[0] = 0
        for _ in range(rounds):
            index = nearest(residual, book)
            counts = torch.bincount(index, minlength=size)[:, None]
            sums = torch.zeros_like(book).index_add_(0, index, residual)
            book = torch.where(counts > 0, sums / counts.clamp_min(1), residual[torch.randint(len(residual), (size,))])
            book[0] = 0
        quantizer.codebooks[k] = book
        residual -= book[nearest(residual, book)]


class CodebookTrainer:
    """Quantizes training batches and moves the books after them."""

    def __init__(self, quantizer: ResidualQuantizer, decay: float = 0.99, least_use: float = 0.02):
        self.quantizer, self.decay, self.least_use = quantizer, decay, least_use
        books = quantizer.codebooks
        self.counts = torch.ones(books.shape[:2], device=books.device)
        self.sums = books.clone()

    def quantize(self, latents: Tensor, num_books: Tensor, learn: bool) -> tuple[Tensor, Tensor]:
        """Latents (B, D, T) and each item's number of books (B,) -> quantized latents and the commitment loss.

        Gradients pass straight through. Each residual is formed from detached vectors, so every book's commitment
        reaches the encoder (EnCodec's issue 25 tells what happens otherwise).
        """
        batch, dim, frames = latents.shape
        rows = latents.transpose(1, 2).reshape(-1, dim)
        remaining = num_books.repeat_interleave(frames)
        quantized = torch.zeros_like(rows)
        commitment = rows.new_zeros(())
        for k in range(int(num_books.max())):
            active = (remaining > k).nonzero()[:, 0]
            residual = rows[active] - quantized[active]
            index = nearest(residual.detach(), self.quantizer.codebooks[k])
            chosen = self.quantizer.codebooks[k][index]
            commitment = commitment + (residual - chosen).square().sum() / len(rows)
            if learn:
                self._move(k, index, residual.detach())
            quantized = quantized.index_add(0, active, chosen)
        straight = rows + (quantized - rows).detach()
        return straight.reshape(batch, frames, dim).transpose(1, 2), commitment / dim

    @torch.no_grad()
    def _move(self, k: int, index: Tensor, residual: Tensor) -> None:
        counts, sums = self.counts[k], self.sums[k]
        hits = torch.bincount(index, minlength=len(counts)).to(counts)
        counts.mul_(self.decay).add_(hits, alpha=1 - self.decay)
        sums.mul_(self.decay).index_add_(0, index, residual, alpha=1 - self.decay)
        average = counts.mean()
        dead = (counts < self.least_use * average).nonzero()[:, 0]
        if len(dead):
            counts[dead] = average
            sums[dead] = residual[torch.randint(len(residual), (len(dead),), device=residual.device)] * average
        book = sums / counts[:, None].clamp_min(1e-8)
        book[0] = 0
        self.quantizer.codebooks[k] = book
