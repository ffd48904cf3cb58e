import numpy as np
import pytest
import torch

from audiocodec import few
from audiocodec.model import LOWEST_LEVEL, NUM_LEVELS, Decoder, Encoder, Envelope, Gains, ModelConfig, to_blocks

TINY = ModelConfig(hop=16, latent_dim=8, gain_bands=2, level_bands=3, encoder_width=12, encoder_blocks=2,
                   decoder_width=12, decoder_blocks=2, num_books=4, book_size=16)


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
    latents = torch.randn(1, 20, 8, dtype=torch.float64)
    changed = latents.clone()
    changed[:, 10:] += 1
    books = torch.tensor([3])
    before, after = (decoder(x, books, decoder.start(x))[0] for x in (latents, changed))
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10], after[:, 10])


@pytest.mark.parametrize("part, width", [(Encoder, 16), (Decoder, 8)])
def test_frame_by_frame_equals_whole(part, width):
    network = _seeded(part(TINY))
    rows = torch.randn(2, 30, width, dtype=torch.float64)
    extra = () if part is Encoder else (torch.tensor([2, 4]),)
    whole = network(rows, *extra, network.start(rows))[0]
    state, pieces = network.start(rows), []
    for piece in rows.split(1, 1):
        made, *_, state = network(piece, *extra, state)
        pieces.append(made)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5 if part is Decoder else 1e-12)


@pytest.mark.parametrize("part, twin, width", [(Encoder, few.Encoder, 16), (Decoder, few.Decoder, 8)])
@pytest.mark.parametrize("together", [1, 3])
def test_a_few_frames_in_numpy_equal_the_network(part, twin, width, together):
    network = _seeded(part(TINY))
    rows = torch.randn(2, 30, width, dtype=torch.float64)
    extra = () if part is Encoder else (torch.randint(0, 5, (2, 30)),)
    whole = network(rows, *extra, network.start(rows))[0]
    state, pieces, step = network.start(rows), [], twin(network)
    for piece in zip(rows.split(together, 1), *(values.split(together, 1) for values in extra)):
        made, *_, state = step(*piece, state)
        pieces.append(made)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5 if part is Decoder else 1e-12)


@pytest.mark.parametrize("frames", [1, 6, 7])
@pytest.mark.parametrize("group", [2, 4])
def test_a_few_frames_in_numpy_have_the_network_s_levels(frames, group):
    encoder, decoder = _seeded(Encoder(TINY)), _seeded(Decoder(TINY))
    blocks, latents = torch.randn(2, frames, 16).double(), torch.randn(2, frames, 8).double()
    latents_made, levels, _ = encoder(blocks, encoder.start(blocks), group)
    assert torch.equal(levels, few.Encoder(encoder)(blocks, encoder.start(blocks), group)[1])
    assert latents_made.shape == (2, frames, 8) and levels.shape == (2, frames, 3)
    books = torch.full((2, frames), 4)
    told, _ = decoder(latents, books, decoder.start(latents), levels, group)
    again, _ = few.Decoder(decoder)(latents, books, decoder.start(latents), levels, group)
    assert torch.allclose(told, again, atol=1e-5)
    assert not torch.allclose(told, decoder(latents, books, decoder.start(latents))[0])


def test_untrained_networks_add_nothing():
    encoder = Encoder(TINY)
    samples = torch.randn(1, 64)
    blocks = to_blocks(samples, 16)
    real, _ = encoder.mdct.analyse(blocks, torch.zeros(1, 1, 16))
    linear = encoder.linear(real.sign() * real.abs() ** TINY.companding)
    assert torch.allclose(_latents(encoder, samples), linear, atol=1e-6)


def test_gains_are_of_bands_and_bounded():
    gains = Gains(ModelConfig(gain_bands=20))
    assert (gains(torch.zeros(1, 1, 20)) == 1).all()
    said = torch.zeros(1, 3, 20, dtype=torch.float64)
    said[0, :, 19] = torch.tensor([1.0, 1e6, -1e6])
    made = gains(said)[0]
    assert (made[:, :280] == 1).all()                       # under 10.5 kHz
    assert made[:, -1].log().numpy() == pytest.approx([0.25, 2, -2], abs=0.01)
    bands = torch.bincount(gains.band)
    assert len(bands) == 20 and bands.sum() == 320 and (bands[1:] >= bands[:-1] - 1).all() and bands[0] > 0


def test_the_decoder_sets_the_gain_of_each_band():
    decoder = _seeded(Decoder(TINY))
    louder = _seeded(Decoder(TINY))
    louder.load_state_dict(decoder.state_dict())
    louder.network.leave.bias[-1] += 1e6                    # of the upper band
    decoder.network.leave.weight[-1] = louder.network.leave.weight[-1] = 0
    decoder.network.leave.bias[-1] = 0
    latents = torch.randn(1, 6, 8, dtype=torch.float64)
    before, after = (part.mdct.analyse(made, made[:, :1] * 0)[0].abs()[:, 1:-1] for part in (decoder, louder)
                     for made, _ in [part(latents, torch.tensor([4]), part.start(latents))])
    gain = torch.log(after / before).median(1).values[0]
    upper = decoder.gains.band == 1
    assert gain[upper].numpy() == pytest.approx(2 / TINY.companding, rel=0.1)
    assert gain[~upper][:6].numpy() == pytest.approx(0, abs=0.1)


def test_silence_stays_silent_whatever_the_weights():
    encoder, decoder = _seeded(Encoder(TINY)), _seeded(Decoder(TINY))
    latents = _latents(encoder, torch.zeros(1, 160, dtype=torch.float64))
    assert not latents.any()
    assert not decoder(latents, torch.tensor([4]), decoder.start(latents))[0].any()


def _levels(coefficients, group):
    """By the definition, band by band."""
    edges = [4500, *(2000 * (3.25 * (7 / 3.25) ** (i / 4) - 1) for i in (1, 2, 3)), 12_000]
    frequency = (np.arange(320) + 0.5) * 37.5
    found = np.empty((5, 4))
    for frame in range(5):
        for band in range(4):
            inside = (frequency >= edges[band]) & (frequency < edges[band + 1])
            frames = np.minimum(frame // group * group + np.arange(group), 4)
            power = np.square(coefficients[0, frames][:, inside].numpy()).mean()
            found[frame, band] = np.rint(np.log2(power + 2.0 ** LOWEST_LEVEL)) - LOWEST_LEVEL
    return found.clip(0, NUM_LEVELS - 1)


@pytest.mark.parametrize("group", [2, 4])
def test_levels_are_of_bands_and_groups_of_frames(group):
    envelope = Envelope(ModelConfig(level_bands=4))
    loudness = 10 ** torch.linspace(-5, 1, 5)[None, :, None]
    coefficients = torch.randn(1, 5, 320, generator=torch.Generator().manual_seed(0)).double() * loudness
    assert np.array_equal(envelope.levels(coefficients, group)[0].numpy(), _levels(coefficients, group))
    assert (envelope.levels(torch.zeros(1, 3, 320), group) == 0).all()
    assert (envelope.levels(torch.full((1, 2, 320), 1e9), group) == NUM_LEVELS - 1).all()


@pytest.mark.parametrize("group", [2, 4])
def test_bands_are_brought_to_their_levels(group):
    envelope = Envelope(ModelConfig(level_bands=4))
    random = torch.Generator().manual_seed(0)
    coefficients = torch.randn(2, 5, 320, generator=random).double() * 0.01
    levels = torch.randint(14, 20, (2, 3, 4), generator=random).double().repeat_interleave(group, 1)[:, :5]
    levels[1, :, 2] = -1
    made = envelope.enforce(coefficients, levels, group)
    told = levels >= 0
    assert torch.equal(envelope.levels(made, group)[told], levels[told])
    assert torch.equal(made[..., :120], coefficients[..., :120])                     # under 4.5 kHz
    assert torch.equal(envelope.levels(made, group)[~told], envelope.levels(coefficients, group)[~told])
    ratio = made / coefficients
    assert all(torch.allclose(part, part[:, :1].expand_as(part)) for part in ratio.split(group, 1))
    silence = torch.zeros(1, 2, 320)
    assert not envelope.enforce(silence, torch.full((1, 2, 4), 20.0), group).any()
    faint = envelope.enforce(silence + 1e-4, torch.full((1, 2, 4), 39.0), group)
    assert faint.max() < 0.11                               # no more than 60 dB
