"""One training run from folders of audio to a weights file: data, the codec's stages, the entropy model, export."""
import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from audiocodec import __version__, levels, weights
from audiocodec.entropy import MAX_FRAMES, EntropyConfig
from audiocodec.errors import NacError
from audiocodec.model import ModelConfig
from audiocodec.paths import Paths
from audiocodec.quantizer import BEAM
from audiocodec.training import distributed, report
from audiocodec.training.config import STAGES, TrainConfig, fitted
from audiocodec.training.data import Crops, clips
from audiocodec.training.distributed import Team
from audiocodec.training.entropy import train_entropy
from audiocodec.training.generator import Generator
from audiocodec.training.loop import Trainer
from audiocodec.training.sources import open_source

_LEAD = 48                   # frames of context before a sequence
_VALID_SECONDS = 8
_SEQUENCES = 4               # coded together
_LEVEL_BATCHES = 1500        # of these, 11 h, that tables of levels are counted on
_BEGUN = "init.safetensors"  # in the run's folder: the weights that it began from


@dataclass(frozen=True)
class Plan:
    """How long a run takes, and what it does: minutes or updates in all, shared by the stages as configured."""

    minutes: float | None = None
    updates: int | None = None
    stages: tuple[str, ...] = STAGES

    def lengths(self, share: dict[str, float]) -> dict[str, float]:
        """Each stage's minutes or updates; 0 for those left out."""
        total = sum(share[stage] for stage in self.stages)
        if not total:
            raise NacError(f"--stages {','.join(self.stages)}: [share] leaves them no time")
        length = self.updates if self.updates else self.minutes
        lengths = {stage: length * share[stage] / total if stage in self.stages else 0.0 for stage in STAGES}
        return {stage: round(n) for stage, n in lengths.items()} if self.updates else lengths


@dataclass(frozen=True)
class Material:
    """What a run learns from, and on what it is judged: folders, files or shards (.npy)."""

    sources: list[Path]
    valid: list[Path] = field(default_factory=list)    # none: about one file in a hundred of the sources


def train(material: Material, run: Path, config: TrainConfig, plan: Plan | None, *, device: str = "auto",
          resume: bool = False, init: str | None = None, about: dict | None = None) -> Path | None:
    """Train until RUN/model.safetensors is made; returns its path, or None in a process that does not lead its team.

    Without the entropy stage the path is that of the checkpoint, RUN/last.pt.

    plan: None goes on with that of the run to be resumed. init: name or path of weights to begin from, which then
    also say what the model is like. about: what the weights file says of its origin.
    Raises NacError for a run folder that exists without `resume`, AudioError for folders without audio.
    """
    last = run / "last.pt"
    if last.exists() != resume:
        raise NacError(f"{last}: nothing to resume" if resume else f"{run}: holds a run; --resume goes on with it")
    begun = weights.load(init) if init else None
    if begun:
        config = _with_model(config, begun.config["codec"])
    elif resume and (borrowed := torch.load(last, weights_only=True, mmap=True)["borrowed"]):
        config = _with_model(config, borrowed)
    with distributed.join(device) as team:
        run.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(config, *_data(material, run, config, team), run, team,
                          plan.lengths(config.share) if plan else {}, bool(plan and plan.updates))
        if resume:
            trainer.resume(keep_lengths=plan is None)
        elif begun:
            if team.leads:
                shutil.copyfile(begun.path, run / _BEGUN)
            trainer.start_from(begun.codec(), begun.config["codec"])
        else:
            trainer.start()
        trainer.fit()
        if not team.leads:
            return None
        return finish(trainer, about or {}) if trainer.lengths["entropy"] else last


def _with_model(config: TrainConfig, model: dict) -> TrainConfig:
    """A configuration for networks that are as the weights to begin from say."""
    return replace(config, model=ModelConfig(**model), entropy=fitted(config.entropy, model["num_books"]))


def _data(material: Material, run: Path, config: TrainConfig, team: Team) -> tuple[Crops, np.ndarray]:
    """Crops to train on and clips to validate on. The leader looks through the folders, the others find its indexes."""
    rate = config.model.sample_rate
    for turn in (True, False):
        if team.leads == turn:
            sources, valid = ([open_source(path, run, rate, quietly=not team.leads) for path in paths]
                              for paths in (material.sources, material.valid))
        team.wait()
    if not valid:
        sources, valid = zip(*(source.split() for source in sources))
    return Crops(sources, config.crop, rate, config.seed), clips(valid, rate, _VALID_SECONDS, config.validate_clips)


def finish(trainer: Trainer, about: dict) -> Path:
    """Train the entropy model on the codes of a finished codec, and write RUN/model.safetensors; returns its path."""
    config, run, generator = trainer.config, trainer.run, trainer.average
    length = trainer.lengths["entropy"]
    limit = {"updates": length} if trainer.count_updates else {"minutes": length * 2 / 3}
    paths = Paths([BEAM] * config.model.num_books)
    rows = _followed(trainer, paths, run / "paths.raw")
    tables = _level_tables(trainer, -(-len(rows) // _SEQUENCES))
    tensors = weights.codec_tensors({name: tensor.cpu().numpy() for name, tensor in generator.state_dict().items()})
    books = generator.quantizer.codebooks.cpu().numpy()
    entropy_config, entropy_tensors, bits = train_entropy(
        rows, paths, books, config=config.entropy, seed=config.seed, device=trainer.team.device,
        rate=config.learning_rate["entropy"], log=trainer.log_entropy, checkpoint=run / "entropy.pt",
        begun=_begun_entropy(run / _BEGUN, config), **limit)
    description = {"codec": asdict(config.model), "entropy": asdict(entropy_config),
                   "about": {"command": shlex.join(["nac", *sys.argv[1:]]), "version": __version__,
                             "hours": round(trainer.total_seconds / 3600, 2), "updates": trainer.total_updates,
                             "entropy": bits, **about}}
    tensors |= {f"entropy.{name}": value for name, value in entropy_tensors.items()} | tables
    target = run / "model.safetensors"
    partial = target.with_suffix(".part")
    partial.write_bytes(weights.pack(description, tensors))
    os.replace(partial, target)
    report.draw(run)
    return target


def _begun_entropy(path: Path, config: TrainConfig) -> dict[str, np.ndarray] | None:
    """The entropy model of the weights that a run began from, if it has the same sizes, or fewer layers."""
    if not path.exists():
        return None
    begun = weights.load(str(path))
    sizes = EntropyConfig(**begun.config["entropy"] | {"answer": ""})
    layers = max(sizes.layers, config.entropy.layers)
    return begun.part("entropy") if replace(sizes, layers=layers) == config.entropy else None


def _followed(trainer: Trainer, paths: Paths, path: Path) -> np.ndarray:
    """What the entropy model learns from: searches for codes, uint16 (S, R, 512), of random stretches of the sources.

    So it is shown the codes that files have, at any depth. Kept in a file, so that a resumed run has the same. A third
    of the stage's minutes goes into them at most.
    """
    if not path.exists():
        config, length = trainer.config, trainer.lengths["entropy"]
        wanted = config.code_hours * 3600 * config.model.sample_rate / config.model.hop / MAX_FRAMES
        if trainer.count_updates:
            wanted = min(wanted, 8 * length)
        ends = float("inf") if trainer.count_updates else time.monotonic() + length * 60 / 3
        crops, done = _stretches(trainer), 0
        partial = path.with_suffix(".part")
        with open(partial, "wb") as file:
            while not done or done * _SEQUENCES < wanted and time.monotonic() < ends:
                rows = _searched(trainer.average, crops.batch(done, _SEQUENCES), paths, trainer.team.device)
                file.write(rows.tobytes())
                done += 1
        os.replace(partial, path)
    return np.memmap(path, np.uint16, "r").reshape(-1, paths.num_rows, MAX_FRAMES)


def _stretches(trainer: Trainer) -> Crops:
    """Random stretches of the sources, each with what leads up to it."""
    config = trainer.config
    samples = (MAX_FRAMES + _LEAD - 1) * config.model.hop
    return Crops(trainer.crops.sources, samples, config.model.sample_rate, config.seed + 1)


@torch.inference_mode()
def _level_tables(trainer: Trainer, most: int) -> dict[str, np.ndarray]:
    """The tables that levels of bands are coded by, counted on up to so many batches; none for a model without.

    Of sounds as they are in the sources: the noise and the tones of training's crops have other levels.
    """
    num_bands = trainer.config.model.level_bands
    if not num_bands:
        return {}
    crops, counts = _stretches(trainer), np.zeros((levels.num_contexts(num_bands), levels.NUM_SYMBOLS))
    random = np.random.default_rng(crops.seed)
    for _ in range(min(most, _LEVEL_BATCHES)):
        sounds = [crops.sound(crops.draw(random), random) for _ in range(_SEQUENCES)]
        samples = torch.from_numpy(np.stack(sounds)).to(trainer.team.device)
        for frames in levels.GROUPS:
            found = trainer.average.levels(samples, frames)[:, _LEAD::frames].transpose(1, 2).cpu().numpy()
            for sequence in found:
                for stretch in (sequence, sequence[:, :sequence.shape[1] // 2]):     # segments are of either length
                    np.add.at(counts, levels.coded(stretch, frames), 1)
    return {"levels.tables": levels.to_tables(counts)}


@torch.inference_mode()
def _searched(generator: Generator, samples: np.ndarray, paths: Paths, device: str) -> np.ndarray:
    """Samples (B, N) -> rows of paths uint16 (B, R, T), without the lead."""
    latents = generator.latents(torch.from_numpy(samples).to(device))[:, :, _LEAD:]
    return generator.quantizer.follow(latents, paths)
