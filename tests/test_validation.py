import numpy as np
import pytest
import soundfile
import torch

from audiocodec.model import ModelConfig
from audiocodec.training import validation
from audiocodec.training.generator import Generator
from audiocodec.training.validation import codebook_use, examples, validate

TINY = ModelConfig(latent_dim=32, encoder_width=32, encoder_blocks=1, decoder_width=32, decoder_blocks=1,
                   num_books=4, book_size=64)


@pytest.fixture(scope="module")
def clips(request):
    """Two pieces of speech and one of silence, of a length that is no multiple of the hop."""
    samples, _ = soundfile.read(request.config.rootpath / "examples" / "speech.flac", dtype="float32")
    return torch.from_numpy(np.stack([samples[:24_100], samples[60_000:84_100], np.zeros(24_100, np.float32)]))


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = Generator(TINY)
    generator.quantizer.codebooks.normal_(0, 0.1)
    generator.quantizer.codebooks[:, 0] = 0
    return generator


class Perfect:
    """A codec whose latents are the samples, and whose only codes stand for all of them."""

    config = TINY

    def __init__(self, clips):
        self.clips, self.quantizer = clips, self
        self.codebooks = torch.zeros(4, 64, 1)

    def latents(self, samples):
        return samples

    def encode(self, latents, num_books):
        self.coded = latents
        return torch.zeros(len(latents), num_books, 76, dtype=torch.int64)

    def decode(self, codes):
        return codes

    def levels(self, samples, frames):
        return None

    def samples(self, latents, num_books, levels, level_frames):
        return torch.nn.functional.pad(self.coded, (0, 219))


def test_perplexity_of_uniform_and_of_constant_codes():
    uniform = torch.arange(64).repeat(10).reshape(2, 1, 320)
    halved = uniform % 32
    use, perplexity = codebook_use(torch.cat([uniform, halved, 0 * uniform + 5], 1), 64)
    assert use.tolist() == [1, 0.5, 1 / 64]
    assert perplexity == pytest.approx([64, 32, 1])


def test_perplexity_of_skewed_codes_by_hand():
    _, perplexity = codebook_use(torch.tensor([[[0, 0, 1, 2]]]), 1024)
    assert perplexity == pytest.approx([2 ** 1.5])       # half a bit, and twice half a bit


def test_few_frames_underestimate_as_the_docstring_says():
    codes = torch.randint(1024, (4, 1, 1024), generator=torch.Generator().manual_seed(0))
    assert 890 < codebook_use(codes, 1024)[1][0] < 920


def test_a_perfect_copy(clips):
    report = validate(Perfect(clips), clips)
    assert report["mel@4"] == report["score"] == 0
    assert "si_sdr@4" not in report                      # infinite for speech, undefined for silence
    assert report["perplexity@1"] == 1 and report["use@4"] == 1 / 64
    assert report["frames"] == 3 * 76


def test_scores_are_those_of_the_metrics(clips, generator):
    report = validate(generator, clips, books=(1, 2, 4, 9))
    assert {"mel@1", "mel@2", "mel@4", "si_sdr@2", "score", "use@1", "perplexity@4", "frames"} <= set(report)
    assert "mel@9" not in report
    assert report["score"] == pytest.approx(np.mean([report[f"mel@{n}"] for n in (1, 2, 4)]))
    assert 0 < report["mel@4"] < 5 and all(np.isfinite(value) for value in report.values())
    heard = examples(generator, validation.encode(generator, clips), clips, books=(2, 4, 9))
    assert set(heard) == {2, 4} and heard[2].shape == (2, 24_100)
    si_sdr = [validation.metrics.si_sdr(a.numpy(), b.numpy(), 24_000) for a, b in zip(clips, heard[2])]
    assert report["si_sdr@2"] == pytest.approx(np.mean(si_sdr), abs=0.01)     # the silent clip left out


def test_the_number_of_all_books_is_always_among_the_rates(clips, generator):
    assert [name for name in validate(generator, clips[2:], books=(8, 16)) if name.startswith("mel")] == ["mel@4"]


def test_batches_do_not_change_the_outcome(clips, generator, monkeypatch):
    together = validate(generator, clips, books=())
    monkeypatch.setattr(validation, "_BATCH", 1)
    assert validate(generator, clips, books=()) == pytest.approx(together, rel=1e-3)


def test_pesq_where_it_is_installed(clips, generator, monkeypatch):
    pytest.importorskip("pesq")
    assert 1 <= validate(generator, clips, books=())["pesq@4"] < 4.7
    assert validate(Perfect(clips), clips)["pesq@4"] == pytest.approx(4.64, abs=0.01)
    monkeypatch.delitem(validation._SCORES, "pesq")
    assert "pesq@4" not in validate(generator, clips, books=())


def test_a_broken_codec_scores_nan(clips):
    broken = Perfect(clips)
    broken.samples = lambda *_: clips * torch.nan
    report = validate(broken, clips)
    assert np.isnan(report["score"]) and not report["score"] < 1
    assert not any(name.startswith(("si_sdr", "pesq")) for name in report)
