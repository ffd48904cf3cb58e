"""One training run from folders of audio to a weights file: shards, the codec's stages, the entropy model, export."""
import os
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from audiocodec import weights
from audiocodec.entropy import MAX_FRAMES
from audiocodec.errors import NacError
from audiocodec.tokens import choose_device
from audiocodec.training.data import Crops, Shard, pack
from audiocodec.training.entropy import train_entropy
from audiocodec.training.loop import Generator, TrainConfig, Trainer

# Shares of the minutes given to each stage; the entropy model's share includes coding its material.
SHARES = {"reconstruction": 0.46, "adversarial": 0.18, "polish": 0.18, "entropy": 0.18}
_LEAD = 48                   # frames of context before a sequence
_CODE_HOURS = 8.0            # audio whose codes the entropy model learns from, at most


def train(sources: list[Path], run: Path, *, minutes: float = 90, config: TrainConfig = TrainConfig(),
          device: str = "auto", resume: bool = False, about: dict | None = None) -> Path:
    """Train on folders of audio or shards (.npy) until RUN/model.safetensors is made; returns its path.

    minutes: for the codec and the entropy model together; a resumed run keeps its own.
    about: what the weights file says of its origin.
    Raises NacError for a run folder that exists without `resume`, AudioError for folders without audio.
    """
    device = choose_device(device)
    last = run / "last.pt"
    if last.exists() != resume:
        problem = "nothing to resume" if resume else "a run is there already; --resume goes on with it"
        raise NacError(f"{last}: {problem}")
    run.mkdir(parents=True, exist_ok=True)
    rate = config.model.sample_rate
    shards = [Shard.open(source if source.suffix == ".npy" else pack(source, run / "shards", rate))
              for source in sources]
    trainer = Trainer(config, Crops(shards, config.crop, config.seed), run, device,
                      {stage: minutes * share for stage, share in SHARES.items()})
    if resume:
        trainer.resume()
    else:
        trainer.start()
    trainer.fit()
    return finish(trainer.average, shards, run, trainer.lengths["entropy"], config, device, about or {})


def finish(generator: Generator, shards: list[Shard], run: Path, minutes: float, config: TrainConfig, device: str,
           about: dict) -> Path:
    """Train the entropy model on the codes of a finished codec, and write RUN/model.safetensors; returns its path."""
    tensors = codec_tensors(generator)
    codes = draw_codes(generator, shards, minutes * 60 / 3, config.seed, device)
    books = tensors["codec.quantizer.codebooks"].astype(np.float32)
    entropy_config, entropy_tensors, report = train_entropy(
        codes, books, minutes=minutes * 2 / 3, seed=config.seed, device=device)
    description = {"codec": asdict(config.model), "entropy": asdict(entropy_config),
                   "about": {"command": shlex.join(["nac", *sys.argv[1:]]), "entropy": report, **about}}
    tensors |= {f"entropy.{name}": value for name, value in entropy_tensors.items()}
    target = run / "model.safetensors"
    partial = target.with_suffix(".part")
    partial.write_bytes(weights.pack(description, tensors))
    os.replace(partial, target)
    return target


def codec_tensors(generator: Generator) -> dict[str, np.ndarray]:
    """The codec's tensors as a weights file holds them: float16."""
    return {f"codec.{name}": tensor.cpu().numpy().astype(np.float16) for name, tensor in generator.state_dict().items()}


@torch.inference_mode()
def draw_codes(generator: Generator, shards: list[Shard], seconds: float, seed: int, device: str) -> list[np.ndarray]:
    """Code sequences uint16 (K, 512) of random stretches of the shards, as many as `seconds` of computing allow."""
    config = generator.config
    crops = Crops(shards, (MAX_FRAMES + _LEAD - 1) * config.hop, seed + 1)
    sequences, began = [], time.monotonic()
    while len(sequences) * MAX_FRAMES * config.hop < _CODE_HOURS * 3600 * config.sample_rate:
        latents = generator.latents(torch.from_numpy(crops.batch(4)).to(device))[:, :, _LEAD:]
        sequences += list(generator.quantizer.encode(latents, config.num_books).cpu().numpy().astype(np.uint16))
        if time.monotonic() - began > seconds:
            break
    return sequences
