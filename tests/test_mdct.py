import math

import torch

from audiocodec.mdct import MDCT
from audiocodec.model import to_blocks


def _noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _analyse(samples, hop):
    blocks = to_blocks(samples, hop)
    return MDCT(hop).analyse(blocks, torch.zeros_like(blocks[:, :1]))


def test_coefficients_follow_the_definition():
    hop, samples = 4, _noise(1, 8)
    frame = samples[0]                                      # the second frame sees both blocks
    wanted = [math.sqrt(2 / hop) * sum(
        frame[n] * math.sin(math.pi / 8 * (n + 0.5)) * math.cos(math.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5))
        for n in range(8)) for k in range(hop)]
    real, _ = _analyse(samples, hop)
    assert torch.allclose(real[0, 1], torch.tensor(wanted, dtype=torch.float64))


def test_synthesis_gives_the_samples_back():
    samples = _noise(2, 1000)
    real, _ = _analyse(samples, 320)
    blocks, _ = MDCT(320).synthesise(real, torch.zeros(2, 1, 320, dtype=torch.float64))
    assert torch.allclose(blocks[:, 1:].flatten(1)[:, :1000], samples, atol=1e-10)


def test_the_transform_keeps_energy():
    samples = _noise(1, 3200)
    real, _ = _analyse(samples, 320)
    assert math.isclose(real.square().sum(), samples.square().sum(), rel_tol=1e-9)


def test_magnitude_of_a_steady_tone_is_steady():
    hop = 320
    tone = torch.sin(2 * math.pi * 1000 / 24_000 * torch.arange(10 * hop, dtype=torch.float64))[None]
    real, imaginary = _analyse(tone, hop)
    peaks = torch.sqrt(real.square() + imaginary.square())[0, 1:-2].max(1).values
    assert peaks.max() / peaks.min() < 1.001
