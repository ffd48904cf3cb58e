"""The stages of the codec's training, each resumable: reconstruction, adversarial, polish."""
import copy
import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from audiocodec.errors import NacError
from audiocodec.model import Decoder, Encoder, ModelConfig, to_blocks
from audiocodec.quantizer import ResidualQuantizer
from audiocodec.training.codebooks import CodebookTrainer, kmeans_start
from audiocodec.training.data import Crops
from audiocodec.training.losses import (
    Balancer, Discriminator, SpectralDistance, adversarial_loss, critic_loss, waveform_distance)

STAGES = ("reconstruction", "adversarial", "polish")
_MEL_BOOKS = 8               # from so many on, the mel distance counts less and less
_START_CROPS = 1200          # crops that the principal components and the first codebooks are made of
_CHECKPOINT_SECONDS = 180


@dataclass(frozen=True)
class TrainConfig:
    """How to train; `model` says what."""

    model: ModelConfig = ModelConfig()
    batch: int = 8
    crop: int = 15_360                       # samples, a multiple of the hop
    learning_rates: dict[str, float] = field(
        default_factory=lambda: {"reconstruction": 8e-4, "adversarial": 3e-4, "polish": 3e-4})
    last_rate: float = 0.02                  # where the cosine ends, as a share of the first
    discriminator_rate: float = 3e-4
    weights: dict[str, float] = field(
        default_factory=lambda: {"mel": 3.0, "complex": 4.0, "waveform": 2.0, "adversarial": 3.0})
    mel_floor: float = 2e-4                  # 68 dB under a full-scale sine
    commitment: float = 0.03
    average_decay: float = 0.999             # of the moving average of weights
    compile: bool = True                     # fuse the networks' blocks; takes a minute or two to begin with
    seed: int = 0


class Generator(nn.Module):
    """Encoder, quantizer and decoder together."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = ResidualQuantizer(config.num_books, config.book_size, config.latent_dim)
        self.decoder = Decoder(config)

    def latents(self, samples: Tensor) -> Tensor:
        """Samples (B, N) -> latents (B, D, T)."""
        blocks = to_blocks(samples, self.config.hop)
        return self.encoder(blocks, self.encoder.start(blocks))[0].float().transpose(1, 2)

    def samples(self, latents: Tensor, num_books: Tensor) -> Tensor:
        """Latents (B, D, T), books (B,) -> samples (B, (T - 1) * hop)."""
        rows = latents.transpose(1, 2)
        blocks, _ = self.decoder(rows, num_books, self.decoder.start(rows))
        return blocks[:, 1:].flatten(1)


@torch.no_grad()
def linear_start(generator: Generator, crops: Crops, device: str) -> None:
    """Set the linear path to the principal components of the companded MDCT, and the codebooks by k-means on them."""
    config = generator.config
    blocks = to_blocks(torch.from_numpy(crops.batch(_START_CROPS)), config.hop).to(device)
    real, _ = generator.encoder.mdct.analyse(blocks, torch.zeros_like(blocks[:, :1]))
    rows = (real.sign() * real.abs() ** config.companding).flatten(0, 1)
    _, axes = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
    axes = axes.flip(1)[:, :config.latent_dim].float()           # (hop, D), the strongest first
    scale = (rows @ axes).square().mean().sqrt()
    generator.encoder.linear.weight.copy_(axes.T / scale)
    generator.decoder.linear.weight.copy_(axes * scale)
    kmeans_start(generator.quantizer, rows @ axes / scale)


class Trainer:
    """One run: the networks, their optimizers, and where in the stages it stands.

    lengths: of each stage, in minutes of training or, if `count_updates`, in updates; a stage of length 0 is left out.
    """

    def __init__(self, config: TrainConfig, crops: Crops, run: Path, device: str, lengths: dict[str, float],
                 count_updates: bool = False):
        self.config, self.crops, self.run, self.device = config, crops, run, device
        self.lengths, self.count_updates = lengths, count_updates
        torch.manual_seed(config.seed)
        self.generator = Generator(config.model).to(device)
        self.books = CodebookTrainer(self.generator.quantizer)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.critic = Discriminator().to(device).to(memory_format=torch.channels_last)
        self.distance = SpectralDistance(config.model.sample_rate, config.mel_floor).to(device)
        self.balancer = Balancer(config.weights)
        self.stage, self.updates, self.seconds, self.total_updates = STAGES[0], 0, 0.0, 0
        self.random = np.random.default_rng(config.seed)
        self._begin_stage()
        for stack in (self.generator.encoder.network, self.generator.decoder.network):
            _accelerate(stack, device, config.compile)

    def start(self) -> None:
        """Begin from the data: linear path and codebooks."""
        linear_start(self.generator, self.crops, self.device)
        self.books.sums.copy_(self.generator.quantizer.codebooks)
        self.average.load_state_dict(self.generator.state_dict())

    def _begin_stage(self) -> None:
        generator = self.generator
        frozen = self.stage == "polish"
        generator.encoder.requires_grad_(not frozen)
        if frozen:                      # from here the codes are final, and those of the averaged encoder
            generator.encoder.load_state_dict(self.average.encoder.state_dict())
        learning = [p for p in generator.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, betas=(0.8, 0.99), weight_decay=0.01, fused=True)
        self.critic_optimizer = torch.optim.AdamW(
            self.critic.parameters(), betas=(0.5, 0.9), weight_decay=0, fused=True)

    def progress(self) -> float:
        """How far the present stage has come, 0 to 1."""
        done = self.updates if self.count_updates else self.seconds / 60
        return min(1.0, done / self.lengths[self.stage])

    def fit(self) -> None:
        """Train until the last stage ends; checkpoints every few minutes, a line of metrics every hundred updates.

        Ctrl-C saves before it passes on.
        """
        for stage in STAGES[STAGES.index(self.stage):]:
            if stage != self.stage:
                self.stage, self.updates, self.seconds = stage, 0, 0.0
                self._begin_stage()
            if self.lengths[stage]:
                try:
                    self._fit_stage()
                finally:
                    self.save()

    def _fit_stage(self) -> None:
        saved = time.monotonic()
        recent: list[dict[str, float]] = []
        with tqdm(total=1000, initial=round(1000 * self.progress()), disable=None, desc=self.stage,
                  bar_format="{desc}: {percentage:3.0f}% |{bar}| {remaining} left{postfix}") as bar:
            while self.progress() < 1:
                began = time.monotonic()
                recent.append(self.update())
                self.seconds += time.monotonic() - began
                bar.update(round(1000 * self.progress()) - bar.n)
                if self.updates % 100 == 0:
                    bar.set_postfix_str(self._log(recent))
                    recent.clear()
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()

    def update(self) -> dict[str, float]:
        """One step of the generator, and of the discriminator where the stage has one."""
        config = self.config
        rate = config.last_rate + (1 - config.last_rate) * 0.5 * (1 + math.cos(math.pi * self.progress()))
        rate *= min(1.0, (self.updates + 1) / 200)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rates[self.stage] * rate
        for group in self.critic_optimizer.param_groups:
            group["lr"] = config.discriminator_rate * rate

        samples = torch.from_numpy(self.crops.batch(config.batch)).to(self.device)
        num_books = torch.from_numpy(self._draw_books()).to(self.device)
        frozen = self.stage == "polish"
        with torch.set_grad_enabled(not frozen):
            latents = self.generator.latents(samples)
        quantized, commitment = self.books.quantize(latents, num_books, learn=not frozen)
        made = self.generator.samples(quantized, num_books)

        leaf = made.detach().requires_grad_()
        mel, complex_ = self.distance(leaf, self.distance.spectra(samples))
        few = (_MEL_BOOKS / num_books).clamp(max=1)     # with many books, come near to the waveform instead
        losses = {"mel": (few * mel).mean(), "complex": complex_.mean(),
                  "waveform": waveform_distance(leaf, samples)}
        report = {}
        if self.stage != "reconstruction":      # one pass of the discriminator serves both sides
            with torch.autocast(self.device, torch.bfloat16):
                real, fake = self.critic(samples), self.critic(leaf)
                losses["adversarial"] = adversarial_loss(real, fake)
                report["critic"] = critic_loss(real, fake)
        gradient = self.balancer.gradient(losses, leaf)
        if "critic" in report:
            self._update_critic(report["critic"])
        roots, gradients = [made], [gradient]
        if not frozen:
            roots.append(config.commitment * commitment)
            gradients.append(None)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(roots, gradients)
        self.optimizer.step()
        self.updates += 1
        self.total_updates += 1
        self._average_weights()
        return {name: loss.item() for name, loss in (report | losses).items()} | {"commitment": commitment.item()}

    def _draw_books(self) -> np.ndarray:
        """Half of the items take one of the nominal rates, half any number of books, small ones more often."""
        most = self.config.model.num_books
        nominal = [n for n in (2, 4, 8, 16, 32) if n <= most]
        any_number = np.exp(self.random.uniform(math.log(1.5), math.log(most + 1), self.config.batch)).astype(np.int64)
        return np.where(self.random.random(self.config.batch) < 0.5,
                        self.random.choice(nominal, self.config.batch), any_number.clip(1, most))

    def _update_critic(self, loss: Tensor) -> None:
        self.critic_optimizer.zero_grad(set_to_none=True)
        for parameter, gradient in zip(self.critic.parameters(),
                                       torch.autograd.grad(loss, list(self.critic.parameters()))):
            parameter.grad = gradient
        self.critic_optimizer.step()

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = min(self.config.average_decay, (1 + self.total_updates) / (10 + self.total_updates))
        ours, theirs = list(self.average.parameters()), list(self.generator.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        self.average.quantizer.codebooks.copy_(self.generator.quantizer.codebooks)

    def _log(self, recent: list[dict[str, float]]) -> str:
        """Append the means to RUN/metrics.jsonl; the mel distance is returned for the progress bar."""
        means = {name: round(float(np.mean([r[name] for r in recent])), 5) for name in recent[0]}
        line = {"stage": self.stage, "updates": self.updates, "seconds": round(self.seconds), **means}
        with open(self.run / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        return f", mel distance {means['mel']:.3f}"

    def save(self) -> None:
        """Write RUN/last.pt: everything a resumed run needs."""
        state = {
            "stage": self.stage, "updates": self.updates, "seconds": self.seconds, "total": self.total_updates,
            "lengths": self.lengths, "config": asdict(self.config), "norms": self.balancer.norms,
            "random": [self.random.bit_generator.state, self.crops.random.bit_generator.state],
            "torch_random": torch.get_rng_state(),
            **{name: getattr(self, name).state_dict()
               for name in ("generator", "average", "critic", "optimizer", "critic_optimizer")},
            "counts": self.books.counts, "sums": self.books.sums,
        }
        torch.save(state, self.run / "last.tmp")
        os.replace(self.run / "last.tmp", self.run / "last.pt")

    def resume(self) -> None:
        """Go on from RUN/last.pt, to the lengths it was begun with. Raises NacError for another configuration."""
        state = torch.load(self.run / "last.pt", map_location=self.device, weights_only=True)
        if state["config"] != asdict(self.config):
            raise NacError(f"{self.run}: begun with another configuration")
        self.lengths = state["lengths"]
        self.stage, self.updates, self.seconds = state["stage"], state["updates"], state["seconds"]
        self.total_updates, self.balancer.norms = state["total"], state["norms"]
        self.random.bit_generator.state, self.crops.random.bit_generator.state = state["random"]
        torch.set_rng_state(state["torch_random"].cpu())
        self.average.load_state_dict(state["average"])
        self._begin_stage()
        for name in ("generator", "critic", "optimizer", "critic_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.books.counts.copy_(state["counts"])
        self.books.sums.copy_(state["sums"])


def _accelerate(stack: nn.Module, device: str, fuse: bool) -> None:
    """Run a stack's products in bfloat16, and compile it."""
    plain = torch.compile(stack.forward) if fuse else stack.forward

    def forward(*inputs):
        with torch.autocast(device, torch.bfloat16):
            return plain(*inputs)

    stack.forward = forward
