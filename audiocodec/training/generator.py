"""Encoder, quantizer and decoder together, as training needs them, and their start from data."""
import torch
from torch import Tensor, nn

from audiocodec.model import Decoder, Encoder, ModelConfig, to_blocks
from audiocodec.quantizer import ResidualQuantizer
from audiocodec.training.codebooks import CodebookTrainer, kmeans_start


_TOLD = 0.75     # of the batches: their decoder is told the levels of bands


class Generator(nn.Module):
    """The codec's networks."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = ResidualQuantizer.fitting(config)
        self.decoder = Decoder(config)

    def latents(self, samples: Tensor) -> Tensor:
        """Samples (B, N) -> latents (B, D, T)."""
        blocks = to_blocks(samples, self.config.hop)
        return self.encoder(blocks, self.encoder.start(blocks))[0].float().transpose(1, 2)

    def levels(self, samples: Tensor, frames: int) -> Tensor | None:
        """Samples (B, N) -> levels (B, T, L) of bands in groups of so many frames; None for a model without bands."""
        if not self.config.level_bands:
            return None
        blocks = to_blocks(samples, self.config.hop)
        coefficients, _ = self.encoder.mdct.analyse(blocks, torch.zeros_like(blocks[:, :1]))
        return self.encoder.envelope.levels(coefficients, frames)

    def samples(self, latents: Tensor, num_books: Tensor, levels: Tensor | None = None,
                level_frames: int = 2) -> Tensor:
        """Latents (B, D, T), books (B,) or (B, T), levels of bands (B, T, L) -> samples (B, (T - 1) * hop)."""
        rows = latents.transpose(1, 2)
        blocks, _ = self.decoder(rows, num_books, self.decoder.start(rows), levels, level_frames)
        return blocks[:, 1:].flatten(1)

    def forward(self, samples: Tensor, num_books: Tensor, prices: Tensor, books: CodebookTrainer,
                frozen: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Samples (B, N), coded with books (B,) at prices (B,) -> decoded samples, books used (B, T), commitment loss.

        num_books, prices: see `CodebookTrainer.quantize`. frozen: encoder and codebooks stay as they are.
        """
        with torch.set_grad_enabled(not frozen):
            latents = self.latents(samples)
        quantized, depths, commitment = books.quantize(latents, num_books, prices, learn=not frozen)
        told, in_fours = torch.rand(2).tolist()
        frames = 4 if in_fours < 0.5 else 2
        levels = self.levels(samples, frames) if told < _TOLD else None
        return self.samples(quantized, depths, levels, frames), depths, commitment

    def accelerate(self, device: str, fuse: bool) -> None:
        """Run the networks' products in bfloat16, and compile them."""
        for stack in (self.encoder.network, self.decoder.network):
            plain = torch.compile(stack.forward) if fuse else stack.forward
            stack.forward = torch.autocast(device, torch.bfloat16)(plain)


def can_compile(device: str) -> bool:
    """Whether torch.compile works here: on a CPU it needs a C++ compiler, and a torch whose path has no spaces."""
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.ones(8, device=device))
    except RuntimeError:                     # what all errors of the compiler are
        return False
    return True


@torch.no_grad()
def linear_start(generator: Generator, samples: Tensor) -> None:
    """Start from samples (B, N): the linear path becomes the principal components of their companded MDCT frames,
    the codebooks come of k-means on these."""
    config = generator.config
    blocks = to_blocks(samples, config.hop)
    real, _ = generator.encoder.mdct.analyse(blocks, torch.zeros_like(blocks[:, :1]))
    rows = (real.sign() * real.abs() ** config.companding).flatten(0, 1)
    _, axes = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
    axes = axes.flip(1)[:, :config.latent_dim].float()           # (hop, D), the strongest first
    scale = (rows @ axes).square().mean().sqrt()
    generator.encoder.linear.weight.copy_(axes.T / scale)
    generator.decoder.linear.weight.copy_(axes * scale)
    kmeans_start(generator.quantizer, rows @ axes / scale)
