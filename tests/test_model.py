import pytest
import torch

from audiocodec import few
from audiocodec.model import Decoder, Encoder, Levels, ModelConfig, to_blocks

TINY = ModelConfig(hop=16, latent_dim=10, level_bands=2, encoder_width=12, encoder_blocks=2, decoder_width=12,
                   decoder_blocks=2, num_books=4, book_size=16)


def _seeded(part):
    """A network none of whose weights are zero."""
    torch.manual_seed(0)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return part.double().requires_grad_(False)


def _latents(encoder, samples):
    blocks = to_blocks(samples, TINY.hop)
    return encoder(blocks, encoder.start(blocks))[0]


@pytest.mark.parametrize("num_samples, frames", [(0, 0), (1, 2), (319, 2), (320, 2), (321, 3), (24_000, 76)])
def test_number_of_frames(num_samples, frames):
    assert ModelConfig().frames(num_samples) == frames
    assert to_blocks(torch.zeros(1, num_samples), 320).shape == (1, frames, 320)


def test_encoder_looks_back_only():
    encoder = _seeded(Encoder(TINY))
    samples = torch.randn(1, 320, dtype=torch.float64)
    changed = samples.clone()
    changed[:, 160:] += 1
    before, after = _latents(encoder, samples), _latents(encoder, changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10], after[:, 10])


def test_decoder_looks_back_only():
    decoder = _seeded(Decoder(TINY))
    latents = torch.randn(1, 20, 10, dtype=torch.float64)
    changed = latents.clone()
    changed[:, 10:] += 1
    books = torch.tensor([3])
    before, after = (decoder(x, books, decoder.start(x))[0] for x in (latents, changed))
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10], after[:, 10])


@pytest.mark.parametrize("part, width", [(Encoder, 16), (Decoder, 10)])
def test_frame_by_frame_equals_whole(part, width):
    network = _seeded(part(TINY))
    rows = torch.randn(2, 30, width, dtype=torch.float64)
    extra = () if part is Encoder else (torch.tensor([2, 4]),)
    whole, _ = network(rows, *extra, network.start(rows))
    state, pieces = network.start(rows), []
    for piece in rows.split(1, 1):
        made, state = network(piece, *extra, state)
        pieces.append(made)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5 if part is Decoder else 1e-12)


@pytest.mark.parametrize("part, twin, width", [(Encoder, few.Encoder, 16), (Decoder, few.Decoder, 10)])
@pytest.mark.parametrize("together", [1, 3])
def test_a_few_frames_in_numpy_equal_the_network(part, twin, width, together):
    network = _seeded(part(TINY))
    rows = torch.randn(2, 30, width, dtype=torch.float64)
    extra = () if part is Encoder else (torch.randint(0, 5, (2, 30)),)
    whole, _ = network(rows, *extra, network.start(rows))
    state, pieces, step = network.start(rows), [], twin(network)
    for piece in zip(rows.split(together, 1), *(values.split(together, 1) for values in extra)):
        made, state = step(*piece, state)
        pieces.append(made)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5 if part is Decoder else 1e-12)


def test_untrained_networks_add_nothing():
    encoder = Encoder(TINY)
    samples = torch.randn(1, 64)
    blocks = to_blocks(samples, 16)
    real, imaginary = encoder.mdct.analyse(blocks, torch.zeros(1, 1, 16))
    linear = encoder.linear(real.sign() * real.abs() ** TINY.companding)
    levels = encoder.levels.of(real.square() + imaginary.square())
    assert torch.allclose(_latents(encoder, samples), torch.cat([levels, linear], 2), atol=1e-6)


def test_levels_tell_how_large_coefficients_are():
    config = ModelConfig(latent_dim=266, level_bands=10)
    levels = Levels(config)
    power = torch.full((1, 1, 320), 1e-4, dtype=torch.float64)
    power[..., 160:] = 1e-7                                 # over 6 kHz
    found = levels.of(power)
    assert found.shape == (1, 1, 10)
    sizes = levels.sizes(found)[0, 0]
    assert (sizes[:40] == 1).all()                          # under 1.5 kHz
    assert sizes[40:130].numpy() == pytest.approx(1e-4 ** 0.3, rel=1e-3)
    assert sizes[180:].numpy() == pytest.approx(1e-7 ** 0.3, rel=1e-2)
    assert (levels.of(power * 10) - found).numpy() == pytest.approx(1, abs=0.02)
    assert not levels.of(torch.zeros_like(power)).any()


def test_what_the_network_adds_follows_the_levels():
    decoder = _seeded(Decoder(TINY))
    decoder.linear.weight.zero_()
    decoder.network.enter.weight[:, :2] = 0                 # so that the network itself does not see them
    latents = torch.randn(1, 6, 10, dtype=torch.float64).expand(2, -1, -1).clone()
    latents[..., :2] = 4
    latents[1, :, 1] += 2                                   # 20 dB in the upper band
    made, _ = decoder(latents, torch.tensor([4, 4]), decoder.start(latents))
    before, after = decoder.mdct.analyse(made, made[:, :1] * 0)[0].abs()[:, 1:-1]
    gain = 20 * torch.log10(after / before).median(0).values
    assert gain[10:].numpy() == pytest.approx(20, abs=1) and gain[:6].numpy() == pytest.approx(0, abs=1)


def test_silence_stays_silent_whatever_the_weights():
    encoder, decoder = _seeded(Encoder(TINY)), _seeded(Decoder(TINY))
    latents = _latents(encoder, torch.zeros(1, 160, dtype=torch.float64))
    assert not latents.any()
    assert not decoder(latents, torch.tensor([4]), decoder.start(latents))[0].any()
