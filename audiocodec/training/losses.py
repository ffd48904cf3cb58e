"""What training minimises: spectral and waveform distances, and the discriminator's opinion, kept in balance."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiocodec.errors import NacError
from audiocodec.training.console import NOT_FINITE
from audiocodec.training.distributed import Team

_SILENCE = 1e-3              # mean magnitude under which a relative error stops growing
_BARK_STEP = 0.5             # between the centres of bands
_FULL_SCALE_LEVEL = 103.0    # dB SPL at which a sine of amplitude 1 is taken to be played
_ADDED_FROM, _ADDED_TO = 3.0, 12.0     # weights of added sound: less counts nothing, more counts as much
_ERB_STEP = 1.25             # between the centres of bands, in ERB numbers
_FAINT_POWER = 5e-4          # of a band in windows of 80 ms, under which there is silence: a step of 16 bits, about
_FLAT = 0.2                  # variance in dB^2 under which there is no structure to match
_HUSH = 50.0                 # power in a band, of which 1 is at 0 dB SPL, that additions have to rise above


class LoudnessDistance(nn.Module):
    """How different samples sound, frame by frame, in specific loudness on a Bark scale.

    Power spectra are summed in overlapping bands of half a Bark, measured against the threshold in quiet, and raised
    to 0.23. A difference under a quarter of the softer loudness is masked, and counts a tenth. Sound that was added
    counts more: by the ratio of powers to 1.2, where that is 3 or more. Zwicker, Fastl: "Psychoacoustics", 1990;
    Beerends et al.: "Perceptual evaluation of speech quality, part II", 2002; bands after Traunmüller 1990, threshold
    after Terhardt 1979.
    """

    def __init__(self, sample_rate: int, window: int):
        super().__init__()
        self.window = window
        frequency = torch.arange(window // 2 + 1) * sample_rate / window
        bark = 26.81 * frequency / (1960 + frequency) - 0.53
        centre = torch.arange(0.5, float(bark[-1]), _BARK_STEP)
        bands = (1 - (bark - centre[:, None]).abs() / _BARK_STEP).clamp_min(0)
        narrow = (bands.sum(1) < 0.5).nonzero()[:, 0]           # low bands between two bins take the nearer one
        bands[narrow] = F.one_hot((bark - centre[narrow, None]).abs().argmin(1), len(bark)).float()
        kilohertz = 1.96 * (centre + 0.53) / (26.28 - centre)
        quiet = 3.64 * kilohertz ** -0.8 - 6.5 * torch.exp(-0.6 * (kilohertz - 3.3) ** 2) + 1e-3 * kilohertz ** 4
        threshold = 10 ** (quiet.clamp(-10, 60)[:, None] / 10)  # as powers, of which 1 is at 0 dB SPL
        # A sine of amplitude 1 has window**2 / 16 in its strongest bin and half as much again beside it.
        full_scale = window ** 2 / 16 * 1.5
        scale = (2 * threshold) ** 0.23
        self.register_buffer("bands", bands * 10 ** (_FULL_SCALE_LEVEL / 10) / full_scale / threshold, persistent=False)
        self.register_buffer("threshold", threshold, persistent=False)
        self.register_buffer("scale", scale / scale.mean(), persistent=False)
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def excitation(self, samples: Tensor) -> Tensor:
        """Samples (B, N) -> power in each band (B, bands, frames), 1 at the threshold in quiet."""
        spectrum = torch.stft(samples, self.window, self.window // 2, window=self.hann, return_complex=True)
        return self.bands @ (spectrum.real.square() + spectrum.imag.square())

    def loudness(self, excitation: Tensor) -> Tensor:
        """Power over the threshold (B, bands, frames) -> loudness, 0 at and below the threshold."""
        return ((0.5 + 0.5 * excitation) ** 0.23 - 1).clamp_min(0) * self.scale

    def forward(self, samples: Tensor, target: Tensor) -> Tensor:
        """Samples and what they should be, both (B, N) -> each item's distance (B,)."""
        made = self.excitation(samples)
        with torch.no_grad():
            meant = self.excitation(target)
            wanted = self.loudness(meant)
            ratio = ((made * self.threshold + _HUSH) / (meant * self.threshold + _HUSH)) ** 1.2
            weight = torch.where(ratio < _ADDED_FROM, 0, ratio.clamp(max=_ADDED_TO))
        got = self.loudness(made)
        difference, masked = got - wanted, 0.25 * torch.minimum(got, wanted)
        heard = (difference.abs() - masked).clamp_min(0)
        felt = ((heard + 0.1 * difference.abs()).square().mean(1) + 1e-6).sqrt()
        return (felt + 0.3 * (weight * heard).mean(1)).mean(1)


class SpectrumDistance(nn.Module):
    """L1 distance of STFTs whose magnitudes are raised to 0.3: of the magnitudes, and half as much of complex values.

    The loudness is blind to phase; this teaches it. Braun, Tashev: "A consolidated view of loss functions for
    supervised deep learning-based speech enhancement", 2021.
    """

    def __init__(self, window: int, power: float = 0.3):
        super().__init__()
        self.window, self.power = window, power
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def forward(self, samples: Tensor, target: Tensor) -> Tensor:
        """Samples and what they should be, both (B, N) -> each item's distance (B,)."""
        (got_size, got), (want_size, want) = self._compressed(samples), self._compressed(target)
        return (got_size - want_size).abs().mean((1, 2)) + 0.5 * (got - want).abs().mean((1, 2, 3))

    def _compressed(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = torch.stft(samples, self.window, self.window // 4, window=self.hann, return_complex=True)
        energy = spectrum.real.square() + spectrum.imag.square() + 1e-8
        return energy ** (self.power / 2), torch.view_as_real(spectrum) * energy[..., None] ** ((self.power - 1) / 2)


class StructureDistance(nn.Module):
    """How differently the levels of neighbouring moments and bands rise and fall, in dB: 1 - correlation.

    Windows of 80 ms every 20 ms, summed in bands like those of the ear, down to 90 dB under the loudest band of a
    moment; correlated over three moments by three bands. A tenth of the levels' difference in dB is added, since
    correlation does not know of levels. Hines, Harte: "Speech intelligibility prediction using a neurogram similarity
    index measure", 2012; ERB bands after Glasberg and Moore 1990, filters after Patterson et al. 1992.
    """

    def __init__(self, sample_rate: int):
        super().__init__()
        self.window = 2 * round(0.04 * sample_rate)
        top = 21.4 * math.log10(1 + 0.00437 * sample_rate / 2)
        centre = (10 ** (torch.arange(2, top, _ERB_STEP) / 21.4) - 1) / 0.00437
        frequency = torch.arange(self.window // 2 + 1) * sample_rate / self.window
        width = 1.019 * 24.7 * (1 + 0.00437 * centre[:, None])
        bands = (1 + ((frequency - centre[:, None]) / width).square()) ** -4     # a gammatone filter of order 4
        kernel = torch.tensor([[0.0113, 0.0838, 0.0113], [0.0838, 0.6196, 0.0838], [0.0113, 0.0838, 0.0113]])
        self.register_buffer("bands", bands, persistent=False)
        self.register_buffer("kernel", kernel[None, None], persistent=False)
        self.register_buffer("hann", torch.hann_window(self.window), persistent=False)

    def forward(self, samples: Tensor, target: Tensor) -> Tensor:
        """Samples and what they should be, both (B, N) -> each item's distance (B,)."""
        meant, made = self._power(target), self._power(samples)
        floor = 10 ** -9 * meant.amax(1, keepdim=True) + _FAINT_POWER
        got, wanted = 10 * torch.log10(made + floor), 10 * torch.log10(meant + floor)
        usual = wanted.mean((1, 2), keepdim=True)        # without it rounding shows, in differences of large squares
        got, wanted = got - usual, wanted - usual
        got_mean, wanted_mean = self._blurred(got), self._blurred(wanted)
        got_spread = (self._blurred(got.square()) - got_mean.square()).clamp_min(0) + _FLAT
        wanted_spread = (self._blurred(wanted.square()) - wanted_mean.square()).clamp_min(0) + _FLAT
        common = self._blurred(got * wanted) - got_mean * wanted_mean + _FLAT
        structure = common * (got_spread * wanted_spread).rsqrt()
        return (1 - structure).mean((1, 2)) + 0.1 * (got - wanted).abs().mean((1, 2))

    def _power(self, samples: Tensor) -> Tensor:
        """Samples (B, N) -> power in each band (B, bands, frames)."""
        spectrum = torch.stft(samples, self.window, self.window // 4, window=self.hann, return_complex=True)
        return self.bands @ (spectrum.real.square() + spectrum.imag.square())

    def _blurred(self, levels: Tensor) -> Tensor:
        """Levels (B, bands, frames) -> weighted means of each one and its neighbours."""
        return F.conv2d(F.pad(levels[:, None], (1, 1, 1, 1), mode="replicate"), self.kernel)[:, 0]


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


def adversarial_loss(fake) -> Tensor:
    """What the generator minimises of the discriminator's scores."""
    return sum(-f.mean() for f, _ in fake) / len(fake)


def matching_loss(real, fake) -> Tensor:
    """Distance of the discriminator's features, relative to the size of the real ones."""
    pairs = [(r.detach(), f) for (_, reals), (_, fakes) in zip(real, fake) for r, f in zip(reals, fakes)]
    return sum(F.l1_loss(f, r).float() / r.abs().mean().float().clamp_min(1e-4) for r, f in pairs) / len(pairs)


class Balancer:
    """Gives each loss its share of the gradient at the decoder's output, whatever its scale.

    Défossez et al. 2022, section 3.4: gradients are divided by a running mean of their norms, then weighted.
    """

    def __init__(self, weights: dict[str, float], team: Team = Team(), decay: float = 0.99):
        self.weights, self.team, self.decay = weights, team, decay
        self.norms: dict[str, float] = {}

    def gradient(self, losses: dict[str, Tensor], output: Tensor) -> Tensor:
        """The losses of `output` (a leaf) -> the gradient to pass on to what made it, of norm about 1.

        Raises NacError for a gradient that is not finite.
        """
        gradients = {name: torch.autograd.grad(loss, output, retain_graph=True)[0] for name, loss in losses.items()}
        norms = torch.stack([gradient.norm() for gradient in gradients.values()])
        self.team.sum(norms)
        total = sum(self.weights[name] for name in losses)
        mixed = torch.zeros_like(output)
        for (name, gradient), norm in zip(gradients.items(), (norms / self.team.size).tolist()):
            if not math.isfinite(norm):
                raise NacError(f"the gradient of the {name} loss is not finite: {NOT_FINITE}")
            self.norms[name] = self.decay * self.norms.get(name, norm) + (1 - self.decay) * norm
            mixed += gradient * (self.weights[name] / total / max(self.norms[name], 1e-12))
        return mixed
