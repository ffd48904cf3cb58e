import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from audiocodec import codec, metrics, weights
from audiocodec.cli import cli
from audiocodec.entropy import EntropyConfig
from audiocodec.errors import NacError
from audiocodec.model import ModelConfig
from audiocodec.quantizer import ResidualQuantizer, nearest
from audiocodec.training import config as configs
from audiocodec.training import console, loop
from audiocodec.training.codebooks import CodebookTrainer, kmeans_start, refit
from audiocodec.training.data import Crops, clips
from audiocodec.training.distributed import Team
from audiocodec.training.generator import Generator
from audiocodec.training.losses import (
    Balancer, Discriminator, LoudnessDistance, SpectrumDistance, StructureDistance, adversarial_loss, matching_loss,
    waveform_distance)
from audiocodec.training.loop import Trainer
from audiocodec.training.optimizer import Optimizer
from audiocodec.training.run import Plan
from audiocodec.training.sources import open_source
from audiocodec.training.validation import validate

TINY = dataclasses.replace(
    configs.load("tiny"), batch=2, crop=6400, start_crops=40, refit_crops=80, validate_updates=100,
    model=ModelConfig(latent_dim=32, gain_bands=4, level_bands=4, encoder_width=32, encoder_blocks=1, decoder_width=32,
                      decoder_blocks=1, num_books=4, book_size=64, coarse_books=[1, 1], coarse_dims=[8, 16]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("some audio")
    shutil.copy(request.config.rootpath / "examples" / "speech.flac", folder)
    (folder / "broken.wav").write_bytes(b"RIFF, but no more than that")
    return folder


@pytest.fixture(scope="module")
def source(folder, tmp_path_factory):
    return open_source(folder, tmp_path_factory.mktemp("index"), 24_000)


def _trainer(source, run, updates, config=TINY):
    run.mkdir(exist_ok=True)
    crops = Crops([source], config.crop, 24_000, config.seed)
    lengths = dict.fromkeys(configs.STAGES, updates)
    return Trainer(config, crops, clips([source], 24_000, 2, 2), run, Team(), lengths, True)


def _lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Losses

@pytest.mark.parametrize("distance", [
    LoudnessDistance(24_000, 256), LoudnessDistance(24_000, 768), SpectrumDistance(768), StructureDistance(24_000)])
def test_distances_are_least_for_equal_samples(distance):
    samples = torch.randn(2, 6400, generator=torch.Generator().manual_seed(0)) * 0.1
    same, louder, much_louder = (distance(samples * gain, samples) for gain in (1, 1.5, 3))
    assert (same < 0.01).all() and (louder > 2 * same).all() and (much_louder > 2 * louder).all()


def test_only_the_spectrum_and_the_waveform_see_phase():
    samples = torch.randn(2, 6400, generator=torch.Generator().manual_seed(0)) * 0.1
    assert torch.allclose(LoudnessDistance(24_000, 768)(-samples, samples), torch.tensor(1e-3), atol=1e-4)
    assert (SpectrumDistance(768)(-samples, samples) > 0.05).all()
    assert float(waveform_distance(samples * 0.5, samples)) == pytest.approx(0.5)


def test_loudness_follows_the_ear():
    """Zwicker and Fastl: loudness doubles every 10 dB or a little more (0.23 of the power: 1.7 times), and what lies
    under the threshold in quiet, 3 dB SPL at 1 kHz and over 40 dB at 40 Hz, is not heard."""
    seconds = torch.arange(24_000) / 24_000
    distance = LoudnessDistance(24_000, 768)

    def loudness(frequency, level):              # of a sine, in dB SPL, with full scale at 103
        samples = 10 ** ((level - 103) / 20) * torch.sin(2 * torch.pi * frequency * seconds)
        return float(distance.loudness(distance.excitation(samples[None]))[0, :, 10:-10].max())

    assert loudness(1000, 70) / loudness(1000, 60) == pytest.approx(10 ** 0.23, rel=0.1)
    assert loudness(1000, -3) == 0 and loudness(1000, 15) > 0
    assert loudness(40, 30) == 0


def test_what_is_added_is_worse_than_what_is_missing():
    generator = torch.Generator().manual_seed(0)
    speech, noise = (torch.randn(1, 6400, generator=generator) * level for level in (0.01, 0.01))
    low = torch.nn.functional.avg_pool1d(speech, 33, 1, 16) * 4           # what has no highs
    distance = LoudnessDistance(24_000, 768)
    assert float(distance(low + noise, low)) > 1.5 * float(distance(low, low + noise))


def test_the_structure_is_how_levels_rise_and_fall():
    noise, other = torch.randn(2, 1, 24_000, generator=torch.Generator().manual_seed(0)) * 0.1
    distance = StructureDistance(24_000)
    assert float(distance(-noise, noise)) < 1e-3
    assert float(distance(0.5 * noise, noise)) == pytest.approx(0.1 * 6.02, abs=0.01)
    assert 0.5 < float(distance(other, noise)) < 1.5            # equally loud, with other ups and downs
    assert float(distance(noise * 0, noise * 0)) < 1e-4
    quiet = noise.clone().requires_grad_()
    assert torch.autograd.grad(distance(quiet * 0, noise * 0).sum(), quiet)[0].isfinite().all()


def test_the_balancer_gives_each_loss_its_share():
    output = torch.zeros(2, requires_grad=True)
    losses = {"small": 1e-3 * output[0], "large": 1e3 * output[1]}
    gradient = Balancer({"small": 3.0, "large": 1.0}).gradient(losses, output)
    assert gradient.tolist() == pytest.approx([0.75, 0.25])


def test_the_generator_is_told_to_please_the_discriminator_and_to_match_its_features():
    torch.manual_seed(0)
    critic = Discriminator(channels=2)
    speech, other = 0.1 * torch.randn(2, 1, 6400)
    with torch.no_grad():
        real, fake = critic(speech), critic(other)
    assert float(matching_loss(real, real)) == 0 < float(matching_loss(real, fake))
    scores = torch.cat([score.flatten() for score, _ in fake])
    better = [(score + 1, features) for score, features in fake]
    assert float(adversarial_loss(fake) - adversarial_loss(better)) == pytest.approx(1, abs=1e-5)
    assert -scores.max() < float(adversarial_loss(fake)) < -scores.min()


def test_the_discriminator_has_noise_60_db_under_each_item(source, tmp_path):
    trainer = _trainer(source, tmp_path, 1)
    real, fake = torch.randn(2, 2, 6400) * torch.tensor([[0.1], [0.001]])
    seen = []
    trainer._criticise = lambda both: seen.append(both) or []
    trainer._opinions(real, fake)
    noise = (seen[0] - torch.cat([real, fake])).square().mean(1).sqrt()
    assert noise.tolist() == pytest.approx([1e-4, 1e-6, 1e-4, 1e-6], rel=0.1)


def test_the_discriminator_counts_less_where_many_books_are_used(source, tmp_path):
    trainer = _trainer(source, tmp_path, 1)
    made = torch.randn(3, 640, requires_grad=True)
    judged = trainer._judged(made, torch.tensor([[1, 5], [5, 15], [15, 25]]))
    assert torch.equal(judged, made)
    judged.sum().backward()
    assert made.grad[:, 0].tolist() == pytest.approx([1, 1, 1 / 8])


def test_a_machine_that_cannot_compile_is_told_and_trains_without(source, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no C++ compiler")
    monkeypatch.setattr(torch, "compile", lambda function: fail)
    trainer = _trainer(source, tmp_path, 1, dataclasses.replace(TINY, compile=True))
    trainer.start()
    trainer.fit()
    assert capsys.readouterr().err.startswith("torch.compile does not work here (it needs a C++ compiler")
    assert trainer.total_updates > 0


# Codebooks

def test_every_book_sends_the_encoder_its_gradient():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 16, 8)
    latents = torch.randn(2, 8, 50)
    kmeans_start(quantizer, latents.transpose(1, 2).reshape(-1, 8))
    gradients = []
    for count in (1, 4):
        leaf = latents.clone().requires_grad_()
        _, _, commitment = CodebookTrainer(copy.deepcopy(quantizer)).quantize(
            leaf, torch.tensor([count, count]), torch.zeros(2), learn=True)
        commitment.backward()
        gradients.append(leaf.grad)
    residuals, left = [], latents.transpose(1, 2)
    for book in quantizer.codebooks:
        left = left - book[nearest(left, book)]
        residuals.append(left.transpose(1, 2))
    assert torch.allclose(gradients[0], 2 * residuals[0] / 100 / 8, atol=1e-6)
    assert torch.allclose(gradients[1], 2 * sum(residuals) / 100 / 8, atol=1e-6)


def test_books_follow_what_they_see_and_keep_their_zero():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(1, 4, 2)
    latents = torch.randn(1, 2, 64) + 5
    trainer = CodebookTrainer(quantizer, decay=0.5)
    for _ in range(50):
        trainer.quantize(latents, torch.tensor([1]), torch.zeros(1), learn=True)
    assert not quantizer.codebooks[0, 0].any()
    error = (latents - quantizer.decode(quantizer.encode(latents, 1))).square().mean()
    assert error < 0.9 * latents.var()


def test_final_books_are_searched_as_for_files():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 16, 8)
    latents = torch.randn(2, 8, 50)
    kmeans_start(quantizer, latents.transpose(1, 2).reshape(-1, 8), rounds=2)
    final, nearest_ones = (CodebookTrainer(copy.deepcopy(quantizer)).quantize(
        latents, torch.tensor([4, 4]), torch.zeros(2), learn=learn)[0] for learn in (False, True))
    assert torch.allclose(final, quantizer.decode(quantizer.encode(latents, 4)), atol=1e-6)
    assert (latents - final).norm() < (latents - nearest_ones).norm()


def test_items_with_a_price_use_books_where_they_are_worth_it():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(6, 16, 8)
    latents = (torch.randn(8, 40) * torch.linspace(0, 2, 40)).repeat(3, 1, 1)     # from silence to loud
    kmeans_start(quantizer, latents.transpose(1, 2).reshape(-1, 8))
    leaf = latents.clone().requires_grad_()
    quantized, depths, _ = CodebookTrainer(quantizer).quantize(
        leaf, torch.tensor([2, 2, 2]), torch.tensor([0, 0.2, 0.6]), learn=False)
    assert (depths[0] == 2).all() and (depths[1:].min(1).values == 1).all()
    assert (depths[1] >= depths[2]).all() and depths[1].sum() > depths[2].sum()
    assert depths[1, :5].sum() < depths[1, -5:].sum()
    codes = quantizer.encode(latents, 6)
    codes = torch.where(torch.arange(6)[:, None] < depths[:, None], codes, 0)
    assert torch.allclose(quantized, quantizer.decode(codes), atol=1e-5)
    quantized.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))              # straight through


def test_only_matrices_of_blocks_that_learn_take_orthogonal_steps():
    torch.manual_seed(0)
    generator = Generator(TINY.model)
    generator.encoder.requires_grad_(False)
    before = copy.deepcopy(generator.state_dict())
    optimizer = Optimizer(generator)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for parameter in generator.decoder.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    moved = {name: tensor - before[name] for name, tensor in generator.state_dict().items()}
    assert all((tensor == 0).all() for name, tensor in moved.items() if not name.startswith("decoder"))
    spread = {}
    for name in ("enter", "blocks.0.expand", "blocks.0.project"):
        values = torch.linalg.svdvals(moved[f"decoder.network.{name}.weight"])
        spread[name] = float(values.max() / values.median())
    assert max(spread["blocks.0.expand"], spread["blocks.0.project"]) < 1.3 < spread["enter"]


def test_a_refit_wastes_no_entry():
    """Four far clusters and a book whose entries all sit in one of them: Lloyd's algorithm alone would leave it so."""
    torch.manual_seed(0)
    centres = torch.tensor([[0., 0.], [10., 0.], [0., 10.], [10., 10.]])
    latents = centres.repeat(100, 1) + 0.1 * torch.randn(400, 2)
    quantizer = ResidualQuantizer(1, 8, 2)
    quantizer.codebooks[0] = 0.1 * torch.randn(8, 2)
    refit(quantizer, latents, rounds=8)
    nearest = torch.cdist(centres, quantizer.codebooks[0]).min(1).values
    assert (nearest < 0.3).all()


# Runs

def test_training_goes_through_its_stages_and_its_loss_falls(source, tmp_path):
    trainer = _trainer(source, tmp_path, 60)
    trainer.start()
    before = validate(trainer.average, trainer.clips)["score"]
    trainer.fit()
    lines = _lines(tmp_path)
    stages = [line["stage"] for line in lines if "valid" not in line]
    assert stages == list(loop.CODEC_STAGES)
    scores = [line["valid"]["score"] for line in lines if "valid" in line]
    assert len(scores) == 3 and max(scores) < before
    assert trainer.average.quantizer.codebooks[2:, :, 16:].any()
    assert not trainer.average.quantizer.codebooks[:2, :, 16:].any()         # which coarse books leave alone
    assert not trainer.average.quantizer.codebooks[0, :, 8:].any()
    assert "critic" in lines[2] and "critic" not in lines[0]
    assert validate(trainer.average, trainer.clips)["score"] == pytest.approx(scores[-1])


def test_a_resumed_run_equals_an_uninterrupted_one(source, tmp_path):
    straight = _trainer(source, tmp_path / "straight", 6)
    straight.start()
    straight.fit()

    halted = _trainer(source, tmp_path / "halted", 6)
    halted.start()
    updates, update = iter(range(8)), halted.update

    def interrupted():
        if next(updates, None) is None:          # in the second stage
            os.kill(os.getpid(), signal.SIGINT)
        return update()

    halted.update = interrupted
    with pytest.raises(KeyboardInterrupt):
        halted.fit()
    resumed = _trainer(source, tmp_path / "halted", 6)
    resumed.resume()
    assert (resumed.stage, resumed.updates) == ("adversarial", 3)
    resumed.fit()

    for mine, theirs in zip(resumed.average.state_dict().values(), straight.average.state_dict().values()):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("weight, kept", [(0.0, 1), (6.0, 2)])
def test_only_without_a_discriminator_the_best_polish_is_kept(source, tmp_path, monkeypatch, weight, kept):
    config = dataclasses.replace(TINY, validate_updates=1, losses=TINY.losses | {"adversarial": weight, "matching": 0})
    trainer = _trainer(source, tmp_path, 0, config)
    trainer.lengths["polish"] = 2
    trainer.start()
    averages = []

    def worse_each_time(generator, clips, codes):
        averages.append(copy.deepcopy(generator.state_dict()))
        return validate(generator, clips, codes=codes) | {"score": len(averages)}

    monkeypatch.setattr(loop, "validate", worse_each_time)
    trainer.fit()
    assert all(map(torch.equal, trainer.average.state_dict().values(), averages[kept - 1].values()))
    assert not all(map(torch.equal, averages[0].values(), averages[1].values()))


def test_another_model_cannot_be_resumed_and_other_settings_are_named(source, tmp_path, capsys):
    trainer = _trainer(source, tmp_path, 1)
    trainer.start()                              # which saves: a run killed in its first minutes can be resumed
    _trainer(source, tmp_path, 1, dataclasses.replace(TINY, commitment=0.5)).resume()
    assert capsys.readouterr().err.endswith("goes on with other settings than before: commitment\n")
    model = dataclasses.replace(TINY.model, decoder_width=64)
    with pytest.raises(NacError, match="what differs: model"):
        _trainer(source, tmp_path, 1, dataclasses.replace(TINY, model=model)).resume()


def test_a_second_signal_counts_when_it_is_another(monkeypatch):
    seconds = iter([10.0, 10.2, 12.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(seconds))
    with console.Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)      # torchrun passes a terminal's Ctrl-C on, which has come already
        assert interrupt.wanted == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_stages_without_a_share_are_refused():
    with pytest.raises(NacError, match="no time"):
        Plan(minutes=1, stages=("polish",)).lengths(dict.fromkeys(configs.STAGES, 0.0))


def test_weights_that_are_not_finite_are_not_kept(source, tmp_path):
    trainer = _trainer(source, tmp_path, 3)
    trainer.start()
    trainer.save()
    good = (tmp_path / "last.pt").read_bytes()
    trainer.generator.decoder.network.leave.bias.data.fill_(float("nan"))
    with pytest.raises(NacError, match="not finite.*last good"):
        trainer.fit()
    assert (tmp_path / "last.pt").read_bytes() == good


def _nac(*arguments):
    return CliRunner().invoke(cli, ["train", *map(str, arguments)], catch_exceptions=False)


def test_a_tiny_model_learns_a_few_seconds_by_heart(tmp_path, request):
    """The whole way: nac train on four seconds of speech, then encode and decode with what came out."""
    samples, rate = soundfile.read(request.config.rootpath / "examples" / "speech.flac", dtype="float32")
    clip = resampled(samples[:4 * rate], rate)
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a clip.wav", clip, 24_000)
    run = tmp_path / "run"
    done = _nac(tmp_path / "audio", "--out", run, "--config", "tiny", "--updates", 300, "--licence", "CC0")
    assert not done.exit_code, done.output

    losses = [line["loudness"] for line in _lines(run) if "loudness" in line]
    assert losses[-1] < 0.9 * losses[0]
    model = str(run / "model.safetensors")
    assert weights.load(model).config["about"]["licence"] == "CC0"
    decoded, _ = codec.decode(codec.encode(clip[None], 24_000, kbps=12, model=model), model=model)
    assert metrics.si_sdr(clip, decoded[0], 24_000) > 3.5
    assert "RUN exists" not in _nac(tmp_path / "audio", "--out", run).output


def resampled(samples, rate):
    return metrics.resample(samples, rate, 24_000)


def test_two_processes_train_as_one(folder, tmp_path):
    """Under torchrun; only the leader writes and speaks."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
               "-m", "audiocodec", "train", str(folder), "--out", str(tmp_path / "run"),
               "--config", str(_small(tmp_path)), "--updates", "12"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done; nac encode") == 1
    assert (tmp_path / "run" / "model.safetensors").exists()


def _small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text('base = "tiny"\n[model]\nnum_books = 2\nencoder_width = 32\ndecoder_width = 32\n'
                    '[entropy]\ndetailed_books = 2\ncontext_books = 2\n[training]\nbatch = 2\nstart_crops = 24\n'
                    'refit_crops = 24\n')
    return path


def test_a_killed_command_goes_on(folder, tmp_path):
    """SIGINT after the first lines of metrics, then --resume to the end."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "audiocodec", "train", str(folder), "--out", str(run), "--config",
               str(_small(tmp_path)), "--updates", "150"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    ends = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < ends:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume goes on" in stderr and "Traceback" not in stderr
    assert _nac(folder, "--out", run, "--config", _small(tmp_path)).output.endswith("--resume goes on with it\n")
    assert not _nac(folder, "--out", run, "--config", _small(tmp_path), "--resume").exit_code
    assert (run / "model.safetensors").exists()

    again = tmp_path / "again"                   # begun from what came out; what the model is like comes with it
    done = _nac(folder, "--out", again, "--config", "tiny", "--init", run / "model.safetensors", "--updates", 8,
                "--stages", "polish")
    assert not done.exit_code and "--resume --stages entropy" in done.output
    assert {line["stage"] for line in _lines(again)} == {"polish"}
    order = weights.load(str(run / "model.safetensors")).part("entropy")["order"]
    done = _nac(folder, "--out", again, "--config", "tiny", "--resume", "--updates", 8, "--stages", "entropy")
    made = weights.load(str(again / "model.safetensors"))
    assert not done.exit_code and made.config["codec"]["num_books"] == 2
    assert (made.part("entropy")["order"] == order).all()       # the entropy model was begun from, too


# Errors

@pytest.mark.parametrize("text, message", [
    ("[training]\nbtach = 4", "unknown key in [training]: btach; the nearest is batch"),
    ("[modle]\nhop = 4", "unknown table: modle; the nearest is model"),
    ("[training]\nbatch = 'many'", "training.batch = 'many'; expected a whole number, such as 12"),
    ("[training]\ncompile = 1", "training.compile = 1; expected true or false, such as True"),
    ("[training]\nbatch = 0", "training.batch = 0; expected 1 or more"),
    ("[training]\nvalidate_updates = 0", "training.validate_updates = 0; expected 1 or more"),
    ("[training]\nstart_crops = 2", "training.start_crops = 2; expected 11 or more"),
    ("[training]\naverage_decay = 1.5", "training.average_decay = 1.5; expected 0 to 1"),
    ("[learning_rate]\npolish = nan", "learning_rate.polish = nan; expected 0 or more"),
    ("[losses]\nwaveform = inf", "losses.waveform = inf; expected 0 or more"),
    ("[model]\nsample_rate = 0", "model.sample_rate = 0; expected 8000 to 192000"),
    ("[model]\nbook_size = 512", "model.book_size = 512; expected 1024"),
    ("[model]\nnum_books = 33", "model.num_books = 33; expected 1 to 32"),
    ("[model]\nlatent_dim = 321", "model.latent_dim = 321; expected the hop, 320, or less"),
    ("[model]\ngain_bands = -1", "model.gain_bands = -1; expected"),
    ("[model]\nlevel_bands = 33", "model.level_bands = 33; expected 0 to 32"),
    ("[model]\nsample_rate = 8000", "model.level_bands = 8 at 8000 Hz; expected 0, as they begin at 4500 Hz"),
    ("[model]\ncoarse_dims = [64]", "model.coarse_books = [8, 8], coarse_dims = [64]; expected as many of both"),
    ("[model]\ncoarse_books = [4, 4]\ncoarse_dims = [64, 32]", "the dims in rising order"),
    ("[entropy]\nheads = 3", "entropy.width = 128; expected a multiple of the heads, 3"),
    ("[entropy]\nwindow = 257", "entropy.window = 257; expected 1 to 256"),
    ("[entropy]\nfeed_forward = 700", "width + feed_forward = 828"),
    ("[entropy]\nturns = []", "entropy.turns = []; expected a list of whole numbers over 0"),
    ("[share]\nreconstruction = 0\nadversarial = 0\npolish = 0\nentropy = 0", "[share] leaves no stage any time"),
    ("[losses]\nloudness = 0\nspectrum = 0\nstructure = 0\nwaveform = 0", "nothing else"),
    ("[training]\ncrop = 1000", "training.crop = 1000; expected 16 times the hop, 320, or more of it"),
    ("base = 'huge'", "base 'huge'; expected one of nac-24k, nac-24k-gpu, tiny"),
    ("[training", "small.toml: "),
])
def test_a_wrong_configuration_is_named(tmp_path, text, message):
    path = tmp_path / "small.toml"
    path.write_text(text)
    with pytest.raises(NacError) as error:
        configs.load(str(path))
    assert message in str(error.value)


def test_a_model_of_few_books_needs_no_other_settings(tmp_path):
    path = tmp_path / "few.toml"
    path.write_text("[model]\nnum_books = 2")
    settings = configs.load(str(path))
    assert (settings.entropy.num_books, settings.entropy.detailed_books, settings.entropy.context_books) == (2, 2, 2)


def test_the_configuration_and_the_code_agree():
    settings = configs.load("nac-24k")
    assert settings.model == ModelConfig(gain_bands=40, gain_limit=4, level_bands=8, coarse_books=[8, 8],
                                         coarse_dims=[64, 128])
    assert settings.entropy == EntropyConfig(layers=4, turns=(1, 1, 2, 4, 8))
    for preset in configs.presets():
        assert configs.load(preset).model.book_size == 1024


@pytest.mark.parametrize("arguments, message", [
    (["--minutes", "1", "--updates", "1"], "exclude each other"),
    (["--stages", "polishing"], "is none of reconstruction, adversarial, polish, entropy"),
    (["--resume", "--init", "nac-24k"], "exclude each other"),
    (["--config", "nothing.toml"], "nothing.toml: no such configuration"),
    (["--resume"], "nothing to resume"),
    (["--init", "nothing"], "nothing: no such model"),
])
def test_wrong_usage_gives_one_line(folder, tmp_path, arguments, message):
    result = _nac(folder, "--out", tmp_path / "run", *arguments)
    assert result.exit_code and message in result.output
    assert not (tmp_path / "run").exists()


def test_cuda_that_is_not_there_is_named(folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    result = _nac(folder, "--out", tmp_path / "run", "--device", "cuda")
    assert result.exit_code == 1 and "CUDA" in result.output


def test_a_folder_without_audio_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    result = _nac(tmp_path / "empty", "--out", tmp_path / "run", "--config", "tiny")
    assert result.exit_code == 1 and "no audio found" in result.output
    assert np.array_equal(result.output.count("\n"), 1)
