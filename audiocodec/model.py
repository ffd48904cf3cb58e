"""The encoder and decoder networks: samples <-> latents, causal and streamable.

A linear path runs from the companded MDCT to the latents and back (principal components of the corpus). The networks
are causal ConvNeXt stacks beside it whose last layers start at zero, so the codec works before its first update and
training only improves it. Liu et al.: "A ConvNet for the 2020s", CVPR 2022; Zhang, Sennrich: "Root mean square layer
normalization", NeurIPS 2019.

Inside this module tensors run (batch, frames, channels): all work is then large matrix products over rows.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiocodec.mdct import MDCT

LOG_FLOOR = 1e-4    # of an MDCT magnitude, about half a step of 16 bits
FAINT = 1e-6        # mean square of companded coefficients, or of latents, below which a network is faded out
NORM_FLOOR = 1e-6   # added to mean squares
LEVELS_FROM = 4500.0   # Hz
LOWEST_LEVEL = -30  # logarithm to base 2 of a power: -90 dB
NUM_LEVELS = 40     # steps of 3 dB from there
LEAST_GAIN = 1e-6   # of power, that brings a band to its level
_GAIN_STEP = 0.25   # of a gain's natural logarithm, to 1 at the network's output


@dataclass(frozen=True)
class ModelConfig:
    """What shapes the networks; stored inside the weights file, so the two cannot drift apart."""

    sample_rate: int = 24_000   # Hz
    hop: int = 320              # samples per frame; the MDCT window is twice this
    companding: float = 0.6     # power applied to MDCT magnitudes
    latent_dim: int = 256
    gain_bands: int = 0         # how many bands there are of which the decoder's network sets the gain
    gain_limit: float = 2.0     # of these gains, natural logarithm, of companded coefficients: 29 dB
    level_bands: int = 0        # how many bands over 4.5 kHz there are whose levels may be told, besides the codes
    encoder_width: int = 256
    encoder_blocks: int = 6
    decoder_width: int = 384
    decoder_blocks: int = 8
    kernel: int = 7             # frames seen by a depthwise convolution
    expansion: int = 3
    num_books: int = 32
    book_size: int = 1024       # entries of one codebook
    coarse_books: tuple[int, ...] = ()    # the first books, the next ones ... of which each code only ...
    coarse_dims: tuple[int, ...] = ()     # ... the first so many of the latents

    def __post_init__(self):
        for name in ("coarse_books", "coarse_dims"):
            object.__setattr__(self, name, tuple(getattr(self, name)))       # files have lists

    @property
    def book_dims(self) -> list[int]:
        """How many of the latents each book codes."""
        coarse = [dim for count, dim in zip(self.coarse_books, self.coarse_dims) for _ in range(count)]
        return [min(dim, self.latent_dim) for dim in coarse + [self.latent_dim] * self.num_books][:self.num_books]

    @property
    def encoder_reach(self) -> int:
        """How many frames before one the encoder sees: those of its network, and the block that the MDCT shares."""
        return self.encoder_blocks * (self.kernel - 1) + 1

    @property
    def decoder_reach(self) -> int:
        """The same of the decoder, which adds up the overlap of two."""
        return self.decoder_blocks * (self.kernel - 1) + 1

    @property
    def bits_per_book(self) -> float:
        """What one codebook takes in bit/s before entropy coding."""
        return self.sample_rate / self.hop * math.log2(self.book_size)

    def frames(self, num_samples: int) -> int:
        """Frames needed to rebuild `num_samples` samples: every block and one more for the overlap."""
        return -(-num_samples // self.hop) + 1 if num_samples else 0


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_FLOOR) * self.weight


class CausalBlock(nn.Module):
    """ConvNeXt block that looks back only: depthwise convolution, norm, expand, GELU, project, residual."""

    def __init__(self, width: int, kernel: int, expansion: int):
        super().__init__()
        self.taps = nn.Parameter(torch.randn(kernel, width) / kernel ** 0.5)
        self.norm = RMSNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.project = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, W) and the kernel - 1 frames before it -> (B, T, W) and the past of the next call."""
        seen = torch.cat([past, x], 1)
        num_frames = x.shape[1]
        mixed = seen[:, :num_frames] * self.taps[0]
        for i, tap in enumerate(self.taps[1:], 1):
            mixed.add_(seen[:, i:i + num_frames] * tap)
        mixed = self.project(_gelu(self.expand(self.norm(mixed))))
        return x + mixed, seen[:, num_frames:]


def _gelu(x: Tensor) -> Tensor:
    """By its approximation with tanh, which is x * sigmoid(2 * what the tanh is of)."""
    if torch.is_grad_enabled():
        return F.gelu(x, approximate="tanh")
    slope = math.sqrt(8 / math.pi)
    gate = x.square().mul_(0.044715 * slope).add_(slope).mul_(x).sigmoid_()     # a third quicker than torch's own
    return gate.mul_(x)


class CausalStack(nn.Module):
    """Linear in, causal blocks, linear out with zero weights."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int, kernel: int, expansion: int):
        super().__init__()
        self.width, self.context = width, kernel - 1
        self.enter = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(CausalBlock(width, kernel, expansion) for _ in range(blocks))
        self.norm = RMSNorm(width)
        self.leave = nn.Linear(width, outputs)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def replace_layers(self, kind: Callable[[nn.Linear], nn.Module]) -> None:
        """Put other layers in place of all linear ones."""
        self.enter, self.leave = kind(self.enter), kind(self.leave)
        for block in self.blocks:
            block.expand, block.project = kind(block.expand), kind(block.project)

    def start(self, like: Tensor) -> list[Tensor]:
        """The state before the first frame, for the batch, type and device of `like`."""
        return [like.new_zeros(like.shape[0], self.context, self.width) for _ in self.blocks]

    def forward(self, x: Tensor, state: list[Tensor], condition: Tensor | float = 0.0) -> tuple[Tensor, list[Tensor]]:
        """x (B, T, inputs), state, condition added after the first layer -> (B, T, outputs) and the next state."""
        x = self.enter(x) + condition
        after = []
        for block, past in zip(self.blocks, state):
            x, past = block(x, past)
            after.append(past)
        return self.leave(self.norm(x)), after


def _presence(x: Tensor) -> Tensor:
    """1 for a frame (B, T, C) that holds anything, 0 for silence, so that silence codes and decodes to silence."""
    power = x.square().mean(-1, keepdim=True)
    return power / (power + FAINT)


class Gains(nn.Module):
    """Gains of bands that are evenly spaced in log(1 + f / 2 kHz), for all coefficients in them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self._limit = config.gain_limit
        frequency = (torch.arange(config.hop, dtype=torch.float64) + 0.5) * config.sample_rate / 2 / config.hop
        place = torch.log1p(frequency / 2000) / math.log1p(config.sample_rate / 4000)
        self.register_buffer("band", (place * config.gain_bands).long(), persistent=False)     # (hop,)

    def forward(self, logarithms: Tensor) -> Tensor:
        """What the network says (B, T, G) -> factors of companded coefficients (B, T, hop)."""
        return torch.exp(self._limit * torch.tanh(logarithms * (_GAIN_STEP / self._limit)))[..., self.band]


class Envelope(nn.Module):
    """Levels of bands over 4.5 kHz in groups of frames: the powers of two that their mean power is nearest to.

    Told besides the codes, they say how loud the treble is, of which the codes hold little else: spectral band
    replication's side information (Dietz et al.: "Spectral band replication, a novel approach in audio coding", 2002).
    The bands are evenly spaced in log(1 + f / 2 kHz). A group has 2 frames, or 4; in the last one the last frame stands
    for those that are missing.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        top = config.sample_rate / 2
        frequency = (torch.arange(config.hop, dtype=torch.float64) + 0.5) * top / config.hop
        low, high = math.log1p(LEVELS_FROM / 2000), math.log1p(top / 2000)
        place = (torch.log1p(frequency / 2000) - low) / (high - low) * config.level_bands
        belongs = (place.floor()[:, None] == torch.arange(config.level_bands)).double()
        self.register_buffer("mean", belongs / belongs.sum(0).clamp_min(1), persistent=False)      # (hop, L)
        self.register_buffer("spread", belongs.T.contiguous(), persistent=False)                   # (L, hop)
        powers = [2.0 ** (LOWEST_LEVEL + level) for level in range(NUM_LEVELS)]    # exp2 might miss them by a last bit
        self.register_buffer("powers", torch.tensor(powers, dtype=torch.float64), persistent=False)

    def levels(self, coefficients: Tensor, frames: int) -> Tensor:
        """MDCT coefficients (B, T, hop) -> levels (B, T, L), whole numbers from 0 to NUM_LEVELS - 1.

        frames: of a group, in which levels are the same.
        """
        power = self._power(coefficients, frames).repeat_interleave(frames, 1)[:, :coefficients.shape[1]]
        return (torch.log2(power).round() - LOWEST_LEVEL).clamp(0, NUM_LEVELS - 1)

    def enforce(self, coefficients: Tensor, levels: Tensor, frames: int) -> Tensor:
        """MDCT coefficients (B, T, hop), brought to levels (B, T, L) as far as gains go; -1 leaves a band."""
        levels = levels[:, ::frames]
        wanted = self.powers.to(coefficients.dtype)[levels.clamp(min=0).long()]
        gains = (wanted / self._power(coefficients, frames)).clamp(LEAST_GAIN, 1 / LEAST_GAIN).sqrt()
        changes = torch.where(levels < 0, torch.zeros_like(gains), gains - 1)
        factors = 1 + changes @ self.spread.to(changes.dtype)
        return coefficients * factors.repeat_interleave(frames, 1)[:, :coefficients.shape[1]]

    def _power(self, coefficients: Tensor, frames: int) -> Tensor:
        """MDCT coefficients (B, T, hop) -> the mean power of bands in groups of frames (B, groups, L)."""
        power = coefficients.square() @ self.mean.to(coefficients.dtype)
        groups = F.pad(power, (0, 0, 0, -power.shape[1] % frames), mode="replicate").unflatten(1, (-1, frames))
        return groups.mean(2) + 2.0 ** LOWEST_LEVEL


class Encoder(nn.Module):
    """Samples -> latents."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.mdct, self.envelope = MDCT(config.hop), Envelope(config)
        self.linear = nn.Linear(config.hop, config.latent_dim, bias=False)
        self.network = CausalStack(2 * config.hop, config.encoder_width, config.latent_dim,
                                   config.encoder_blocks, config.kernel, config.expansion)

    def start(self, like: Tensor) -> tuple[Tensor, list[Tensor]]:
        return like.new_zeros(like.shape[0], 1, self.config.hop), self.network.start(like)

    def forward(self, blocks: Tensor, state, level_frames: int = 0) -> tuple[Tensor, Tensor | None, tuple]:
        """Blocks of samples (B, T, hop) -> latents (B, T, D), levels (B, T, L) or None, and the next state.

        level_frames: of a group in which levels are the same; 0: there are none.
        """
        before, past = state
        real, imaginary = self.mdct.analyse(blocks, before)
        levels = self.envelope.levels(real, level_frames) if level_frames else None
        companded = real.sign() * real.abs() ** self.config.companding
        magnitude = torch.log10(torch.sqrt(real.square() + imaginary.square()) + LOG_FLOOR)
        features = torch.cat([companded, 0.5 * magnitude + 1], -1)
        learned, past = self.network(features, past)
        return self.linear(companded) + learned * _presence(companded), levels, (blocks[:, -1:], past)


class Decoder(nn.Module):
    """Latents -> samples: a linear map to which the network adds, and a gain of each band, which it sets.

    By sums alone a network hardly finds how loud what lies 60 dB under the loudest band should be.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.mdct = MDCT(config.hop)
        self.linear = nn.Linear(config.latent_dim, config.hop, bias=False)
        self.gains, self.envelope = Gains(config), Envelope(config)
        self.books = nn.Embedding(config.num_books + 1, config.decoder_width)
        self.network = CausalStack(config.latent_dim, config.decoder_width, config.hop + config.gain_bands,
                                   config.decoder_blocks, config.kernel, config.expansion)
        nn.init.zeros_(self.books.weight)

    def start(self, like: Tensor) -> tuple[Tensor, list[Tensor]]:
        return like.new_zeros(like.shape[0], 1, self.config.hop), self.network.start(like)

    def forward(self, latents: Tensor, num_books: Tensor, state, levels: Tensor | None = None,
                level_frames: int = 0) -> tuple[Tensor, tuple]:
        """Latents (B, T, D), the books they were made of (B,) or (B, T) -> blocks (B, T, hop), one late, next state.

        levels: (B, T, L), the same in groups of so many frames, which begin with the first.
        """
        overlap, past = state
        condition = self.books(num_books.reshape(len(latents), -1))
        learned, past = self.network(latents, past, condition)
        learned, gains = learned.split([self.config.hop, self.config.gain_bands], -1)
        companded = self.linear(latents) + learned * _presence(latents)
        if self.config.gain_bands:
            companded = companded * self.gains(gains)
        coefficients = companded.sign() * companded.abs() ** (1 / self.config.companding)
        if levels is not None:
            coefficients = self.envelope.enforce(coefficients, levels, level_frames)
        blocks, overlap = self.mdct.synthesise(coefficients, overlap)
        return blocks, (overlap, past)


def to_blocks(samples: Tensor, hop: int) -> Tensor:
    """Samples (B, N) -> blocks (B, T, hop), T = ceil(N / hop) + 1: zero-padded, with one block of zeros at the end."""
    num_samples = samples.shape[-1]
    padding = -num_samples % hop + hop if num_samples else 0
    return F.pad(samples, (0, padding)).reshape(len(samples), -1, hop)
