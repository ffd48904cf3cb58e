"""How many books each frame uses, its depth: as many as are worth their price.

A file has one price for all of its frames: a book is used where it brings a frame nearer to what it should be by more
than the price. So bits go to where they tell most, from frame to frame, and any rate can be met by choosing the price.
Chae et al.: "Variable bitrate residual vector quantization for audio coding", 2024, let a network choose.

What is left of a latent after n books counts by its length, not by its square: a compromise between equal distances
in all frames and equal ratios to what the frames hold, which PESQ and SI-SDR favour both (docs/design.md).
"""
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PRICES = 0.01, 1.5            # between which training draws: from nearly all books in every frame to two
MAX_DEPTH = 31                # of a frame that pays a price: with 0 there are as many depths as the coder has symbols
_TAIL = 0.5                   # of the energy that three quarters of the books leave, as a guess at what all leave


def choose_depths(norms: Tensor, prices: Tensor | float, least: int) -> Tensor:
    """What is left of frames after 0, 1, ... K books (B, K + 1, T) -> how many books each one is to use (B, T).

    prices: of a book, for all or (B, 1, 1). least: what every frame uses, whatever its price.
    """
    norms = norms[:, least:MAX_DEPTH + 1]
    return least + (norms + prices * torch.arange(norms.shape[1], device=norms.device)[:, None]).argmin(1)


def norms_left(codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """About what is left of frames after 0, 1, ... K books, judged by their codes (C, K, T): float32 (C, K + 1, T).

    codes: of more books, or other rows after these, if there are only K codebooks. codebooks: float32 (V, D) of each
    of the K books, or of more. An earlier one may have fewer of the latents.
    Depths chosen so score as those chosen by the latents themselves to 0.01 of PESQ, if there are twice as many books
    as are used on average.
    """
    channels, rows, frames = codes.shape
    books = min(rows, len(codebooks))
    left = np.zeros((channels, frames, codebooks[books - 1].shape[1]), np.float32)
    energy = np.zeros((channels, books + 1, frames), np.float32)
    beyond = np.zeros((channels, frames), np.float32)       # the energy of latents that no earlier book has
    for k in range(books - 1, -1, -1):
        book = codebooks[k]
        left, others = left[..., :book.shape[1]], left[..., book.shape[1]:]
        beyond += np.square(others).sum(2)
        left += book.take(codes[:, k], 0)
        energy[:, k] = np.square(left).sum(2) + beyond
    energy += _TAIL * energy[:, books * 3 // 4, None]
    return np.sqrt(energy)
