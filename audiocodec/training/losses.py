"""What training minimises: spectral and waveform distances, and the discriminator's opinion, kept in balance."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiocodec._torchaudio import torchaudio

_SILENCE = 1e-3              # mean magnitude under which a relative error stops growing


class SpectralDistance(nn.Module):
    """Multi-scale log10-mel L1 and complex compressed STFT L1, which share their transforms.

    The mel term alone leaves phase unlearned; the complex term, on spectra of magnitudes raised to 0.5, teaches it.
    Kumar et al.: "High-fidelity audio compression with improved RVQGAN", 2023 (windows 64 to 2048, hop a quarter).

    floor: mel magnitudes under this, where a full-scale sine is 0.5, count as silence; what nobody hears should not be
    learnt at the cost of what everybody does.
    """

    def __init__(self, sample_rate: int, floor: float, windows=(64, 128, 256, 512, 1024, 2048),
                 complex_windows=(512, 1024)):
        super().__init__()
        self.floor, self.windows, self.complex_windows = floor, windows, complex_windows
        for window in windows:
            self.register_buffer(f"hann_{window}", torch.hann_window(window), persistent=False)
            mels = torchaudio.functional.melscale_fbanks(
                window // 2 + 1, 0.0, sample_rate / 2, max(5, window * 5 // 32 if window < 512 else 80), sample_rate)
            self.register_buffer(f"mel_{window}", mels, persistent=False)

    def spectra(self, samples: Tensor) -> list[Tensor]:
        """Samples (B, N) -> complex spectra (B, F, frames), one for each window."""
        return [torch.stft(samples, w, w // 4, window=getattr(self, f"hann_{w}"), return_complex=True)
                for w in self.windows]

    def forward(self, samples: Tensor, target: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Samples (B, N) and the spectra of what they should be -> each item's mel and complex distance, (B,) both."""
        mel, complex_ = 0.0, 0.0
        for window, got, want in zip(self.windows, self.spectra(samples), target):
            bank = getattr(self, f"mel_{window}").T
            scale = 2 / window                                  # a full-scale sine is about 0.5
            got_size = torch.sqrt(got.real.square() + got.imag.square() + 1e-12)
            want_size = torch.sqrt(want.real.square() + want.imag.square() + 1e-12)
            got_mel, want_mel = (bank @ size * scale for size in (got_size, want_size))
            ratio = torch.log10(got_mel.clamp_min(self.floor)) - torch.log10(want_mel.clamp_min(self.floor))
            mel = mel + ratio.abs().mean((1, 2))
            if window in self.complex_windows:
                got_root, want_root = got_size.rsqrt(), want_size.rsqrt()
                difference = (torch.view_as_real(got) * got_root[..., None]
                              - torch.view_as_real(want) * want_root[..., None])
                complex_ = complex_ + difference.abs().mean((1, 2, 3)) / window ** 0.25    # of noise, at any window
        return mel / len(self.windows), complex_ / len(self.complex_windows)


def waveform_distance(samples: Tensor, target: Tensor) -> Tensor:
    """L1 distance of samples (B, N), relative to each item's own level, so quiet crops count as much as loud ones."""
    error = (samples - target).abs().mean(-1)
    return (error / target.abs().mean(-1).clamp_min(_SILENCE)).mean()


class SpectrumCritic(nn.Module):
    """Scores patches of one complex spectrogram; one of the members of `Discriminator`."""

    def __init__(self, window: int, channels: int):
        super().__init__()
        self.window = window
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        norm = nn.utils.parametrizations.weight_norm
        shapes = [(2, (1, 2), 1), (channels, (1, 2), 1), (channels, (1, 2), 2), (channels, (1, 2), 4)]
        self.layers = nn.ModuleList(
            norm(nn.Conv2d(inputs, channels, (3, 9), stride, (dilation, 4), (dilation, 1)))
            for inputs, stride, dilation in shapes)
        self.layers.append(norm(nn.Conv2d(channels, channels, 3, padding=1)))
        self.leave = norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, samples: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Samples (B, N) -> scores (B, 1, frames, bins) and the features of every layer."""
        spectrum = torch.stft(samples.float(), self.window, self.window // 2, window=self.hann, return_complex=True)
        size = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-12)
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1) * (size ** -0.5).transpose(1, 2)[:, None]
        x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.leave(x).float(), features


class Discriminator(nn.Module):
    """A light multi-scale STFT discriminator. Défossez et al.: "High fidelity neural audio compression", 2022.

    Half-overlapping windows: a quarter's would cost twice the time.
    """

    def __init__(self, windows=(2048, 1024, 512, 256), channels: int = 16):
        super().__init__()
        self.critics = nn.ModuleList(SpectrumCritic(window, channels) for window in windows)

    def forward(self, samples: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        return [critic(samples) for critic in self.critics]


def critic_loss(real, fake) -> Tensor:
    """Hinge loss that the discriminator minimises."""
    return sum(F.relu(1 - r).mean() + F.relu(1 + f).mean() for (r, _), (f, _) in zip(real, fake)) / len(real)


def adversarial_loss(real, fake, matching_weight: float = 4.0) -> Tensor:
    """What the generator minimises: the hinge, and the distance of features relative to the size of the real ones."""
    hinge = sum(F.relu(1 - f).mean() for f, _ in fake) / len(fake)
    pairs = [(r.detach(), f) for (_, reals), (_, fakes) in zip(real, fake) for r, f in zip(reals, fakes)]
    matching = sum(F.l1_loss(f, r).float() / r.abs().mean().float().clamp_min(1e-4) for r, f in pairs) / len(pairs)
    return hinge + matching_weight * matching


class Balancer:
    """Gives each loss its share of the gradient at the decoder's output, whatever its scale.

    Défossez et al. 2022, section 3.4: gradients are divided by a running mean of their norms, then weighted.
    """

    def __init__(self, weights: dict[str, float], decay: float = 0.99):
        self.weights, self.decay = weights, decay
        self.norms: dict[str, float] = {}

    def gradient(self, losses: dict[str, Tensor], output: Tensor) -> Tensor:
        """The losses of `output` (a leaf) -> the gradient to pass on to what made it, of norm about 1."""
        total = sum(self.weights[name] for name in losses)
        mixed = torch.zeros_like(output)
        for name, loss in losses.items():
            gradient, = torch.autograd.grad(loss, output, retain_graph=True)
            norm = gradient.norm().item()
            if not math.isfinite(norm):
                raise FloatingPointError(f"the {name} loss has a gradient that is not finite")
            self.norms[name] = self.decay * self.norms.get(name, norm) + (1 - self.decay) * norm
            mixed += gradient * (self.weights[name] / total / max(self.norms[name], 1e-12))
        return mixed
