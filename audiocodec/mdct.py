"""Samples <-> MDCT frames: causal, critically sampled, orthonormal, streamable.

Frame t sees the blocks t - 1 and t of `hop` samples, so block t can be rebuilt once frame t + 1 is known: the transform
delays audio by one block. Before the first block lie zeros.

Princen, Johnson, Bradley: "Subband/transform coding using filter bank designs based on time domain aliasing
cancellation", ICASSP 1987. The sine-modulated twin (MDST) gives the magnitude of Malvar's complex lapped transform.
"""
import math

import torch
from torch import Tensor, nn


class MDCT(nn.Module):
    """The transform by one FFT of complex numbers for each frame, either way."""

    def __init__(self, hop: int):
        super().__init__()
        self.hop = hop
        n = torch.arange(2 * hop, dtype=torch.float64)
        k = torch.arange(hop, dtype=torch.float64)
        window = math.sqrt(2 / hop) * torch.sin(math.pi / (2 * hop) * (n + 0.5))
        # exp(-i pi / hop (n + 1/2 + hop / 2) (k + 1/2)) is the FFT's exp(-i pi / hop n k) with these before and after.
        before, after = math.pi / (2 * hop) * n, math.pi / hop * (0.5 + hop / 2) * (k + 0.5)
        self.register_buffer("before", window * torch.exp(-1j * before), persistent=False)     # (2 hop,)
        self.register_buffer("after", torch.exp(-1j * after), persistent=False)                # (hop,)

    def analyse(self, blocks: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks (B, T, hop) and the block before them (B, 1, hop) -> MDCT and MDST coefficients, each (B, T, hop)."""
        frames = torch.cat([torch.cat([before, blocks[:, :-1]], 1), blocks], 2)
        precision = frames.dtype.to_complex()
        spectrum = torch.fft.fft(frames * self.before.to(precision))[..., :self.hop] * self.after.to(precision)
        return spectrum.real, -spectrum.imag

    def synthesise(self, coefficients: Tensor, overlap: Tensor) -> tuple[Tensor, Tensor]:
        """MDCT coefficients (B, T, hop) -> blocks (B, T, hop), one block late, and the overlap for the next call.

        `overlap` (B, 1, hop) is what the call before returned; zeros at the start. The first block ever returned is the
        one before the audio, and is to be dropped.
        """
        precision = coefficients.dtype.to_complex()
        turned = torch.fft.ifft(coefficients * self.after.conj().to(precision), 2 * self.hop, norm="forward")
        frames = (turned * self.before.conj().to(precision)).real
        early, late = frames.split(self.hop, 2)
        return early + torch.cat([overlap, late[:, :-1]], 1), late[:, -1:]
