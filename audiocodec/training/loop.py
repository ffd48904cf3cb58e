"""The stages of the codec's training, each resumable: reconstruction, adversarial, polish."""
import contextlib
import copy
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from audiocodec.depths import PRICES
from audiocodec.errors import NacError
from audiocodec.training import checkpoint, report
from audiocodec.training.codebooks import CodebookTrainer, refit
from audiocodec.training.config import ADVERSARIAL, STAGES, TrainConfig
from audiocodec.training.console import BAR, NOT_FINITE, Interrupt
from audiocodec.training.data import Crops, loader
from audiocodec.training.distributed import Team
from audiocodec.training.generator import Generator, can_compile, linear_start
from audiocodec.training.losses import (
    Balancer, Discriminator, LoudnessDistance, SpectrumDistance, StructureDistance, adversarial_loss, critic_loss,
    matching_loss, waveform_distance)
from audiocodec.training.optimizer import Optimizer
from audiocodec.training.validation import codebook_use, encode, examples, validate
from audiocodec.weights import rounded

CODEC_STAGES = STAGES[:3]
_LOUDNESS_WINDOWS = 256, 768             # samples
_SPECTRUM_WINDOW = 768                   # samples
_UNHEARD = 1e-3                          # of an item's level, under which the discriminator has noise
_PAYING = 0.7                            # share of items whose frames choose their depths by a price
_LOG_UPDATES = 100
_CHECKPOINT_SECONDS = 180
_START, _REFIT = 1 << 40, 1 << 41        # numbers of batches that training itself never reaches


class Trainer:
    """One run: the networks, their optimizers, and where in the stages it stands.

    lengths: of each stage, in minutes of training or, if `count_updates`, in updates; a stage of length 0 is left out.
    clips: to validate on, float32 (B, N).
    """

    def __init__(self, config: TrainConfig, crops: Crops, clips: np.ndarray, run: Path, team: Team,
                 lengths: dict[str, float], count_updates: bool = False):
        self.config, self.crops, self.run, self.team = config, crops, run, team
        self.clips = torch.from_numpy(clips)
        self.lengths, self.count_updates = lengths, count_updates
        torch.manual_seed(config.seed)
        self.generator = Generator(config.model).to(team.device)
        self.books = CodebookTrainer(self.generator.quantizer, config.codebook_decay, team)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.critic = Discriminator(channels=config.discriminator_channels).to(team.device)
        self.critic.to(memory_format=torch.channels_last)
        self.loudness = nn.ModuleList(
            LoudnessDistance(config.model.sample_rate, window) for window in _LOUDNESS_WINDOWS).to(team.device)
        self.spectrum = SpectrumDistance(_SPECTRUM_WINDOW).to(team.device)
        self.structure = StructureDistance(config.model.sample_rate).to(team.device)
        self.balancer = Balancer(config.losses, team)
        self.stage, self.updates, self.seconds = CODEC_STAGES[0], 0, 0.0
        self.total_updates, self.total_seconds = 0, 0.0
        self.borrowed: dict | None = None    # the model's settings, if they came with weights to begin from
        self.settled = False                 # whether encoder and books are final
        self.best: dict | None = None        # score, stage and averaged weights of the best validation
        fuse = config.compile and can_compile(team.device)
        if config.compile and not fuse and team.leads:
            print("torch.compile does not work here (it needs a C++ compiler, and no space in torch's path): "
                  "training without it, which takes longer", file=sys.stderr)
        self.generator.accelerate(team.device, fuse)
        self._begin_stage()

    def start(self) -> None:
        """Begin from the data: linear path and codebooks."""
        if self.team.leads:
            linear_start(self.generator, self._samples(_START, self.config.start_crops))
        self._share_start()

    def start_from(self, tensors: dict[str, np.ndarray], settings: dict) -> None:
        """Begin from a trained codec's tensors, its books fitted anew to this run's audio, if so configured.

        settings: what its ModelConfig holds, which a resumed run will ask for.
        """
        self.borrowed = settings
        self.average.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        if self.team.leads and self.config.refit_crops:
            self._refit()
        self.generator.load_state_dict(self.average.state_dict())
        self._share_start()

    def _share_start(self) -> None:
        self.team.share(*self.generator.state_dict().values())
        self.books.restart()
        self.average.load_state_dict(self.generator.state_dict())
        self.save()                          # so that a run that is killed early can be resumed

    def _samples(self, number: int, count: int) -> Tensor:
        """So many crops (count, N), from batches that training does not use."""
        batch = self.config.batch
        batches = [self.crops.batch(number + i, batch) for i in range(math.ceil(count / batch))]
        return torch.from_numpy(np.concatenate(batches)).to(self.team.device)

    @torch.no_grad()
    def _refit(self) -> None:
        """Fit the averaged codec's books to its own latents."""
        parts = self._samples(_REFIT, self.config.refit_crops).split(64)
        latents = torch.cat([self.average.latents(part)[:, :, 1:].transpose(1, 2).flatten(0, 1) for part in parts])
        refit(self.average.quantizer, latents)

    def _begin_stage(self) -> None:
        self.generator.encoder.requires_grad_(self.stage != "polish")
        self.optimizer = Optimizer(self.generator)
        self.critic_optimizer = torch.optim.AdamW(
            self.critic.parameters(), betas=(0.5, 0.9), weight_decay=0, fused=True)
        self._generate, self._criticise = self.team.wrap(self.generator), self.team.wrap(self.critic)

    def progress(self) -> float:
        """How far the present stage has come, 0 to 1."""
        done = self.updates if self.count_updates else self.seconds / 60
        return min(1.0, done / self.lengths[self.stage]) if self.lengths[self.stage] else 1.0

    def fit(self) -> None:
        """Train until the last stage ends. Ctrl-C saves before it passes on."""
        batches = loader(self.crops, self.config.batch, self.total_updates * self.team.size + self.team.rank,
                         self.team.size, self.config.workers, pin=self.team.device == "cuda")
        with contextlib.closing(batches) as self.batches, Interrupt() as self.interrupt:
            self.board = report.open_board(self.run, self.total_updates) if self.team.leads else None
            for stage in CODEC_STAGES[CODEC_STAGES.index(self.stage):]:
                if stage != self.stage:
                    self._enter(stage)
                if self.progress() < 1:
                    self._fit_stage()
            if not self.settled:
                self._settle()
            if self.best and self.best["stage"] == "polish" and not self._is_adversarial():    # codes are all the same
                self.average.load_state_dict(self.best["average"])
            self.save()

    def _enter(self, stage: str) -> None:
        self.stage, self.updates, self.seconds = stage, 0, 0.0
        if stage == "polish" and self.lengths[stage] and not self.settled:
            self._settle()
        self._begin_stage()

    def _settle(self) -> None:
        """From here codes are final: of the averaged encoder, and of the books, as a weights file will have both."""
        state = {name: tensor.cpu().numpy() for name, tensor in self.average.state_dict().items()
                 if not name.startswith("decoder.")}
        final = {name: torch.from_numpy(tensor) for name, tensor in rounded(state).items()}
        for module in (self.generator, self.average):
            module.load_state_dict(final, strict=False)
        self.settled = True

    def _fit_stage(self) -> None:
        saved, recent = time.monotonic(), []
        with tqdm(total=1000, initial=round(1000 * self.progress()), desc=self.stage,
                  disable=None if self.team.leads else True, bar_format=BAR) as bar:
            while self.progress() < 1:
                began = time.monotonic()
                recent.append(self.update())
                # The leader's clock and anybody's Ctrl-C hold for all, or processes would part.
                clock = torch.tensor([(time.monotonic() - began) * self.team.leads, self.interrupt.wanted],
                                     dtype=torch.float64, device=self.team.device)
                self.team.sum(clock)
                elapsed, interrupted = clock.tolist()
                self.seconds += elapsed
                self.total_seconds += elapsed
                bar.update(round(1000 * self.progress()) - bar.n)
                ends = self.progress() == 1
                if self.updates % _LOG_UPDATES == 0 or ends:
                    bar.set_postfix_str(self._log(recent))
                    recent.clear()
                if self.updates % self.config.validate_updates == 0 or ends:
                    self._validate()
                if time.monotonic() - saved > _CHECKPOINT_SECONDS or ends or interrupted:
                    self.save()
                    saved = time.monotonic()
                if interrupted:
                    self.interrupt.obey()

    def update(self) -> dict[str, Tensor]:
        """One step of the generator, and of the discriminator where the stage has one; the losses."""
        config = self.config
        adversarial = self._is_adversarial()
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate[self.stage] * rate
        for group in self.critic_optimizer.param_groups:
            group["lr"] = config.discriminator_rate * rate

        samples = next(self.batches).to(self.team.device, non_blocking=True)
        num_books, prices = (torch.from_numpy(drawn).to(self.team.device) for drawn in self._draw_rates())
        made, depths, commitment = self._generate(samples, num_books, prices, self.books, self.stage == "polish")

        leaf = made.detach().requires_grad_()
        losses = {"loudness": sum(distance(leaf, samples).mean() for distance in self.loudness),
                  "spectrum": self.spectrum(leaf, samples).mean(),
                  "structure": self.structure(leaf, samples).mean(),
                  "waveform": waveform_distance(leaf, samples)}
        reported = {"commitment": commitment.detach()}
        if adversarial:                         # one pass of the discriminator serves both sides
            with torch.autocast(self.team.device, torch.bfloat16):
                real, fake = self._opinions(samples, self._judged(leaf, depths))
                losses |= {"adversarial": adversarial_loss(fake), "matching": matching_loss(real, fake)}
                reported["critic"] = critic_loss(real, fake)
        gradient = self.balancer.gradient(losses, leaf)
        if adversarial:
            self.critic_optimizer.zero_grad(set_to_none=True)
            reported["critic"].backward(inputs=list(self.critic.parameters()))
            self.critic_optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.stage == "polish":
            made.backward(gradient)
        else:
            torch.autograd.backward([made, config.commitment * commitment], [gradient, None])
        self.optimizer.step()
        self.updates += 1
        self.total_updates += 1
        self._average_weights()
        return {name: loss.detach() for name, loss in (losses | reported).items()}

    def _rate(self) -> float:
        """The learning rate now, as a share of the stage's: a cosine after 200 updates of warm-up."""
        last = self.config.last_rate
        return min(1, (self.updates + 1) / 200) * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * self.progress())))

    def _is_adversarial(self) -> bool:
        return self.stage != "reconstruction" and max(self.config.losses[name] for name in ADVERSARIAL) > 0

    def _judged(self, made: Tensor, depths: Tensor) -> Tensor:
        """Decoded samples (B, N), of which the discriminator's gradient is less for items of many books (B, T).

        Where little has to be made up, what it asks for only takes the decoded audio farther from the original.
        """
        share = (self.config.judged_books / depths.float().mean(1)).clamp(max=1) ** 3
        return torch.lerp(made.detach(), made, share[:, None])

    def _opinions(self, real: Tensor, fake: Tensor) -> tuple[list, list]:
        """What the discriminator gives for real and for decoded samples, in one pass over both.

        Noise 60 dB under each item hides what nobody hears, such as what a recording lacks over its low-pass.
        """
        noise = torch.randn(2, *real.shape).to(real.device)        # of the random state that checkpoints have
        noise = _UNHEARD * real.square().mean(-1, keepdim=True).sqrt() * noise
        both = self._criticise(torch.cat([real, fake]) + noise.flatten(0, 1))
        halves = [[score.chunk(2), [feature.chunk(2) for feature in features]] for score, features in both]
        return tuple([(scores[i], [feature[i] for feature in features]) for scores, features in halves] for i in (0, 1))

    def _draw_rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Each item's number of books, and the price of a book.

        Most items pay a price, as files do: each frame takes as many books as are worth it. Of the others half take
        one of the nominal rates, half any number of books, small ones more often.
        """
        batch, most = self.config.batch, self.config.model.num_books
        random = np.random.default_rng((self.config.seed, self.total_updates, self.team.rank))
        nominal = [n for n in (2, 4, 8, 16, 32) if n <= most]
        any_number = np.exp(random.uniform(math.log(1.5), math.log(most + 1), batch)).astype(np.int64).clip(1, most)
        constant = np.where(random.random(batch) < 0.5, random.choice(nominal, batch), any_number)
        pays = random.random(batch) < _PAYING
        prices = np.exp(random.uniform(*np.log(PRICES), batch)).astype(np.float32)
        return constant, prices * pays

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = min(self.config.average_decay, (1 + self.total_updates) / (10 + self.total_updates))
        ours, theirs = list(self.average.parameters()), list(self.generator.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        self.average.quantizer.codebooks.copy_(self.generator.quantizer.codebooks)

    def _log(self, recent: list[dict[str, Tensor]]) -> str:
        """Append mean losses to RUN/metrics.jsonl; returns what the progress bar says. Raises NacError for NaN."""
        means = {name: torch.stack([losses[name] for losses in recent]).mean().item() for name in recent[0]}
        waiting = self.batches.share()
        if self.team.leads:
            rate = self.config.learning_rate[self.stage] * self._rate()
            self._write({"rate": rate, "waiting": round(waiting, 4), **{k: round(v, 5) for k, v in means.items()}})
            shown = means | {"learning rate": rate, "waiting": waiting}
            self.board.scalars({f"train/{name}": value for name, value in shown.items()}, self.total_updates)
        return f", loudness distance {means['loudness']:.3f}, {waiting:.0%} waiting for data"

    def _write(self, facts: dict) -> None:
        line = {"stage": self.stage, "updates": self.updates, "total": self.total_updates,
                "seconds": round(self.seconds, 1), "hours": round(self.total_seconds / 3600, 5), **facts}
        with open(self.run / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def log_entropy(self, updates: int, seconds: float, bits: float, unseen: float | None) -> None:
        """Take note of how the entropy model's training stands, for `train_entropy`: mean bits per code."""
        total = self.total_updates + updates
        place = {"stage": STAGES[-1], "updates": updates, "total": total, "seconds": round(seconds, 1),
                 "hours": round((self.total_seconds + seconds) / 3600, 5)}
        self._write(place | {"bits": round(bits, 4)})
        self.board.scalars({"train/bits": bits}, total)
        if unseen is not None:
            self._write(place | {"valid": {"bits": round(unseen, 4)}})
            self.board.scalars({"valid/bits": unseen}, total)

    def _validate(self) -> None:
        """Score the averaged codec on the validation clips; keep the best one."""
        if not self.team.leads:
            return
        codes = encode(self.average, self.clips)
        scores = validate(self.average, self.clips, codes=codes)
        self._write({"valid": scores})
        if not sys.stderr.isatty():              # where there is no progress bar
            print(f"{self.stage}: {self.updates:,} updates, score {scores['score']:.4f}", file=sys.stderr, flush=True)
        is_first = not self.best or self.best["stage"] != self.stage
        if math.isfinite(scores["score"]) and (is_first or scores["score"] < self.best["score"]):
            self.best = {"score": scores["score"], "stage": self.stage, "total": self.total_updates,
                         "average": copy.deepcopy(self.average.state_dict())}
            checkpoint.save(self.best, self.run / "best.pt")
        self.board.scalars({f"valid/{name}": value for name, value in scores.items()}, self.total_updates)
        self.board.codebooks(*codebook_use(codes, self.config.model.book_size), self.total_updates)
        self.board.examples(self.clips[:2], examples(self.average, codes, self.clips), self.total_updates,
                            self.config.model.sample_rate)
        report.draw(self.run)

    def save(self) -> None:
        """Write RUN/last.pt: everything a resumed run needs. Raises NacError for weights that are not finite."""
        if self.team.leads:
            if not all(p.isfinite().all() for p in self.generator.parameters()):
                raise NacError(f"{self.run}: weights not finite; {NOT_FINITE}")
            places = {name: getattr(self, name) for name in (
                "stage", "updates", "seconds", "total_updates", "total_seconds", "settled", "lengths",
                "count_updates", "borrowed")}
            states = {name: getattr(self, name).state_dict()
                      for name in ("generator", "average", "critic", "optimizer", "critic_optimizer")}
            checkpoint.save({**places, **states, "config": asdict(self.config), "norms": self.balancer.norms,
                             "best": self.best, "torch_random": torch.get_rng_state(), "counts": self.books.counts,
                             "sums": self.books.sums}, self.run / "last.pt")

    def resume(self, keep_lengths: bool = True) -> None:
        """Go on from RUN/last.pt, to the lengths it was begun with if `keep_lengths`.

        Other settings than those it was begun with are taken, and named. Raises NacError for another model.
        """
        state = torch.load(self.run / "last.pt", map_location=self.team.device, weights_only=True)
        changed = [key for key, value in asdict(self.config).items() if state["config"].get(key) != value]
        if {"model", "discriminator_channels"} & set(changed):
            raise NacError(f"{self.run}: begun with another model; what differs: {', '.join(changed)}")
        if changed and self.team.leads:
            print(f"{self.run}: goes on with other settings than before: {', '.join(changed)}", file=sys.stderr)
        if keep_lengths:
            self.lengths, self.count_updates = state["lengths"], state["count_updates"]
        for name in ("stage", "updates", "seconds", "total_updates", "total_seconds", "settled", "borrowed", "best"):
            setattr(self, name, state[name])
        self.balancer.norms = state["norms"]
        torch.set_rng_state(state["torch_random"].cpu())
        self._begin_stage()
        for name in ("generator", "average", "critic", "optimizer", "critic_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.books.counts.copy_(state["counts"])
        self.books.sums.copy_(state["sums"])
