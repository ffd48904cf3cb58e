import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from audiocodec.errors import AudioError
from audiocodec.model import ModelConfig
from audiocodec.quantizer import ResidualQuantizer
from audiocodec.training import loop
from audiocodec.training.codebooks import CodebookTrainer, kmeans_start
from audiocodec.training.data import Crops, Shard, pack
from audiocodec.training.losses import Balancer, SpectralDistance, waveform_distance
from audiocodec.training.loop import TrainConfig, Trainer

TINY = TrainConfig(
    model=ModelConfig(latent_dim=32, encoder_width=32, encoder_blocks=1, decoder_width=32, decoder_blocks=1,
                      num_books=4, book_size=64),
    batch=2, crop=6400, compile=False)


@pytest.fixture(scope="module")
def shard(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("some audio")
    shutil.copy(request.config.rootpath / "examples" / "speech.flac", folder)
    (folder / "broken.wav").write_bytes(b"RIFF, but no more than that")
    return Shard.open(pack(folder, tmp_path_factory.mktemp("run"), 24_000))


@pytest.fixture(autouse=True)
def few_crops(monkeypatch):
    monkeypatch.setattr(loop, "_START_CROPS", 20)


def _trainer(shard, run, updates):
    run.mkdir(exist_ok=True)
    lengths = dict.fromkeys(loop.STAGES, updates)
    return Trainer(TINY, Crops([shard], TINY.crop, 0), run, "cpu", lengths, count_updates=True)


def test_a_shard_holds_the_audio_and_leaves_out_broken_files(shard, request):
    samples, _ = soundfile.read(request.config.rootpath / "examples" / "speech.flac", dtype="int16")
    assert shard.spans.tolist() == [[0, len(samples)]]
    assert np.abs(shard.samples.astype(int) - samples).max() <= 1


def test_a_folder_without_audio_is_named(tmp_path):
    with pytest.raises(AudioError, match="no audio found"):
        pack(tmp_path, tmp_path / "run", 24_000)


def test_crops_are_varied_and_reproducible(shard):
    first, second = (Crops([shard], 4800, 3).batch(40) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (40, 4800) and np.abs(first).max() <= 1
    assert len({crop.tobytes() for crop in first}) >= 38


def test_distances_are_zero_only_for_equal_samples():
    distance = SpectralDistance(24_000, floor=1e-5)
    samples = torch.randn(2, 6400, generator=torch.Generator().manual_seed(0)) * 0.1
    target = distance.spectra(samples)
    assert not any(d.any() for d in distance(samples, target))
    assert all((d > 0.01).all() for d in distance(samples * 1.5, target))
    mel, complex_ = distance(-samples, target)
    assert not mel.any() and (complex_ > 0.01).all()          # the mel term is blind to phase, the others are not
    assert float(waveform_distance(samples * 0.5, samples)) == pytest.approx(0.5)


def test_the_balancer_gives_each_loss_its_share():
    output = torch.zeros(2, requires_grad=True)
    losses = {"small": 1e-3 * output[0], "large": 1e3 * output[1]}
    gradient = Balancer({"small": 3.0, "large": 1.0}).gradient(losses, output)
    assert gradient.tolist() == pytest.approx([0.75, 0.25])


def test_every_book_sends_the_encoder_its_gradient():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 16, 8)
    latents = torch.randn(2, 8, 50)
    kmeans_start(quantizer, latents.transpose(1, 2).reshape(-1, 8))
    gradients = []
    for count in (1, 4):
        leaf = latents.clone().requires_grad_()
        _, commitment = CodebookTrainer(quantizer).quantize(leaf, torch.tensor([count, count]), learn=False)
        commitment.backward()
        gradients.append(leaf.grad)
    codes = quantizer.encode(latents, 4)
    residuals = [latents - quantizer.decode(codes[:, :k]) for k in (1, 2, 3, 4)]
    assert torch.allclose(gradients[0], 2 * residuals[0] / 100 / 8, atol=1e-6)
    assert torch.allclose(gradients[1], 2 * sum(residuals) / 100 / 8, atol=1e-6)


def test_books_follow_what_they_see_and_keep_their_zero():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(1, 4, 2)
    latents = torch.randn(1, 2, 64) + 5
    trainer = CodebookTrainer(quantizer, decay=0.5)
    for _ in range(50):
        trainer.quantize(latents, torch.tensor([1]), learn=True)
    assert not quantizer.codebooks[0, 0].any()
    error = (latents - quantizer.decode(quantizer.encode(latents, 1))).square().mean()
    assert error < 0.9 * latents.var()


@torch.no_grad()
def _mel_distance(trainer, shard):
    samples = torch.from_numpy(shard.samples[:96_000].astype(np.float32) / 32768)[None]
    generator = trainer.average
    codes = generator.quantizer.encode(generator.latents(samples), 4)
    made = generator.samples(generator.quantizer.decode(codes), torch.tensor([4]))
    return float(trainer.distance(made, trainer.distance.spectra(samples))[0])


def test_training_goes_through_its_stages_and_its_loss_falls(shard, tmp_path):
    trainer = _trainer(shard, tmp_path, 100)
    trainer.start()
    before = _mel_distance(trainer, shard)
    trainer.fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == list(loop.STAGES)
    assert _mel_distance(trainer, shard) < 0.95 * before
    assert "critic" in lines[1] and "critic" not in lines[0]


def test_a_resumed_run_equals_an_uninterrupted_one(shard, tmp_path):
    straight = _trainer(shard, tmp_path / "straight", 6)
    straight.start()
    straight.fit()

    halted = _trainer(shard, tmp_path / "halted", 6)
    halted.start()
    updates = iter(range(9))                                  # into the second stage
    update = halted.update
    halted.update = lambda: update() if next(updates, None) is not None else (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        halted.fit()
    resumed = _trainer(shard, tmp_path / "halted", 6)
    resumed.resume()
    resumed.fit()

    for mine, theirs in zip(resumed.average.state_dict().values(), straight.average.state_dict().values()):
        assert torch.equal(mine, theirs)
