"""Residual vector quantization: latents <-> codes.

Each stage quantizes what the stages before it left over; a decoder may stop after any of them. Zeghidour et al.:
"SoundStream: An end-to-end neural audio codec", 2021. Entry 0 of every book is the zero vector, so digital silence
stays silent at every rate and no stage can make things worse.
"""
import torch
from torch import Tensor, nn


class ResidualQuantizer(nn.Module):
    """The codebooks, coarse first: (K, V, D)."""

    def __init__(self, num_books: int, book_size: int, dim: int):
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(num_books, book_size, dim))

    def encode(self, latents: Tensor, num_books: int) -> Tensor:
        """Latents (B, D, T) -> codes (B, K, T), the nearest entry of each book in turn."""
        residual = latents.transpose(1, 2)
        codes = []
        for book in self.codebooks[:num_books]:
            index = nearest(residual, book)
            residual = residual - book[index]
            codes.append(index)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K, T) -> latents (B, D, T), the sum of the chosen entries."""
        total = sum(book[index] for book, index in zip(self.codebooks, codes.unbind(1)))
        return total.transpose(1, 2)


def nearest(vectors: Tensor, book: Tensor) -> Tensor:
    """The index of the entry of `book` (V, D) nearest to each vector (..., D); the first one on ties."""
    return (vectors @ book.T - book.square().sum(-1) / 2).argmax(-1)
