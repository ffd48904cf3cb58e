"""How the entropy model learns: a float twin of audiocodec/entropy.py, then the same with rounding, then integers.

The twin limits every value from the start as the integer model will, so rounding is all that is left to get used to;
gradients pass straight through it. Bengio et al.: "Estimating or propagating gradients through stochastic neurons",
2013; Jacob et al.: "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
2018.
"""
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from audiocodec.depths import PRICES, choose_depths
from audiocodec.entropy import (
    ABSENT, ACTIVATION_BITS, ATTENTION_SCALE, ATTENTION_STEPS, BOOK_SIZE, CLASSES, DEPTHS, LIMIT, MAX_FRAMES, MEMBERS,
    RESIDUAL_BITS, SCORE_STEPS, UNTOLD, WEIGHT_BITS, EntropyConfig, EntropyModel)
from audiocodec.errors import NacError
from audiocodec.paths import Codes, Paths
from audiocodec.training.checkpoint import save
from audiocodec.training.console import BAR, NOT_FINITE, Interrupt

_ACTIVATION = 1 << ACTIVATION_BITS
_WEIGHT = 1 << WEIGHT_BITS
_RESIDUAL = 1 << RESIDUAL_BITS
_PRODUCT = _ACTIVATION * _WEIGHT
_EIGHT_BITS = {"first": _WEIGHT, "second": _WEIGHT, "context": _WEIGHT, "hidden": _WEIGHT, "class": _WEIGHT,
               "member": _WEIGHT, "input": _ACTIVATION, "here": _ACTIVATION, "before": _ACTIVATION}
_RANGE = 7                         # scores are limited to as many nats on either side of 0
_MASKED = -1e4
_ROUNDING_FROM = 0.75              # of the way
_PRICED = 0.6                      # of the sequences; the others have equally many books in all frames
_DEPTH_WEIGHT = 0.1                # of a frame's depth, in codes
_LEARNING = (8, 4), (8, 3), (None, 2)   # of the first books, the next and the rest so many learn in an update
_LOG_UPDATES = 50
_UNSEEN_UPDATES = 1000             # from one look at codes that are not trained on to the next ...
_UNSEEN, _UNSEEN_BATCH = 8, 8      # ... at so many batches, of so many stretches
_CHECKPOINT_SECONDS = 180


def train_entropy(rows: np.ndarray, form: Paths | Codes, codebooks: np.ndarray, *, config: EntropyConfig,
                  minutes: float | None = None, updates: int | None = None, batch: int = 8, rate: float = 3e-3,
                  seed: int = 0, device: str = "cpu", checkpoint: Path | None = None,
                  log: Callable[[int, float, float, float | None], None] | None = None,
                  begun: dict[str, np.ndarray] | None = None) -> tuple[EntropyConfig, dict[str, np.ndarray], dict]:
    """Train on rows (S, R, T) of this form, codes of codebooks (K, 1024, D), for so many minutes or so many updates.

    Returns the configuration with its answer, the integer tensors, and a report: bits per code of each book on the
    last twentieth of the sequences, which are not trained on, for the integer model and for its twin without any
    rounding. `log(updates, seconds, bits, unseen)` is called now and then with the mean bits per code, and less often
    with those of the codes that are not trained on, else None. A `checkpoint` that exists is where it goes on. begun:
    the integer tensors of a model of this configuration, but perhaps of fewer layers, to begin from, at a third of
    the rate, since what it knows is to be kept.
    """
    torch.manual_seed(seed)
    ranks = begun["order"].astype(np.int64) if begun else class_ranks(codebooks[:config.num_books])
    stream, held_out = _Stream(rows, form, ranks).split(19 / 20)
    learner = _Learner(config, codebooks, ranks, rate / 3 if begun else rate, seed, device)
    if begun:
        learner.net.start_from_integers(begun)
    if checkpoint and checkpoint.exists():
        learner.load(checkpoint)
    recent, saved = [], time.monotonic()
    with Interrupt() as interrupt, tqdm(total=1000, desc="entropy", disable=None, bar_format=BAR) as bar:
        while (share := learner.share(minutes, updates)) < 1:
            recent.append(learner.update(stream, batch, share))
            bar.update(round(1000 * share) - bar.n)
            ends = learner.share(minutes, updates) >= 1 or interrupt.wanted
            if learner.updates % _LOG_UPDATES == 0 or ends:
                bar.set_postfix_str(f", {np.mean(recent):.3f} bits per code")
                if log:
                    shown = ends or learner.updates % _UNSEEN_UPDATES == 0
                    log(learner.updates, learner.seconds, float(np.mean(recent)),
                        learner.unseen(held_out) if shown else None)
                recent.clear()
            if checkpoint and (ends or time.monotonic() - saved > _CHECKPOINT_SECONDS):
                learner.save(checkpoint)
                saved = time.monotonic()
            if interrupt.wanted:
                interrupt.obey()
    net = learner.net
    net.rounding = False
    tensors = net.integers() | {"order": ranks.astype(np.int16)}
    answer = EntropyModel(replace(config, answer=""), tensors).answer()
    model = EntropyModel(replace(config, answer=answer), tensors)
    places = held_out.segments()
    report = {"updates": learner.updates, "float": twin_bits(net, places, device),
              "integer": integer_bits(model, places)}
    return model.config, tensors, report


class _Learner:
    """The twin, its optimizer, and how far they have come."""

    def __init__(self, config: EntropyConfig, codebooks: np.ndarray, ranks: np.ndarray, rate: float, seed: int,
                 device: str):
        self.net = EntropyNet(config)
        self.net.start_from(codebooks, ranks)
        self.net.to(device)
        self.optimizer = torch.optim.AdamW(_groups(self.net), lr=rate, betas=(0.9, 0.98), fused=True)
        self.random = torch.Generator().manual_seed(seed)
        self.rate, self.device = rate, device
        self.updates, self.seconds = 0, 0.0

    def share(self, minutes: float | None, updates: int | None) -> float:
        """How much of its length is done: 1 at the end."""
        return self.updates / updates if updates else self.seconds / (60 * minutes)

    def update(self, stream: "_Stream", batch: int, share: float) -> float:
        """One update, `share` of the way; returns bits per code."""
        began = time.monotonic()
        self.net.rounding = share >= _ROUNDING_FROM
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1, 0.02 + share / 0.04) * (0.51 + 0.49 * math.cos(math.pi * share))
        loss, depth_loss = self._losses(stream, batch, self.random)
        bits = loss.item() / math.log(2)
        if not math.isfinite(bits):
            raise NacError(f"the entropy model's loss is not finite: {NOT_FINITE}")
        self.optimizer.zero_grad(set_to_none=True)
        (loss + _DEPTH_WEIGHT * depth_loss).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.net.limit()
        self.updates += 1
        self.seconds += time.monotonic() - began
        return bits

    @torch.no_grad()
    def unseen(self, stream: "_Stream") -> float:
        """Bits per code as `update` gives them, of always the same stretches."""
        random = torch.Generator().manual_seed(0)
        nats = [self._losses(stream, _UNSEEN_BATCH, random)[0].item() for _ in range(_UNSEEN)]
        return float(np.mean(nats)) / math.log(2)

    def _losses(self, stream: "_Stream", batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Nats a code and a depth, of random stretches and some of the books."""
        places, depths, is_told = (part.to(self.device) for part in stream.draw(batch, self.net.config, random))
        chosen = _choose_books(self.net.config.num_books, random)
        with torch.autocast(places.device.type, torch.bfloat16):
            depth_nats, nats = self.net.losses(places, depths, is_told, chosen)
        is_there = torch.tensor(chosen, device=places.device)[:, None, None] < depths
        loss = (nats * is_there).sum() / is_there.sum().clamp_min(1)
        return loss, (depth_nats.mean(1) * is_told).sum() / is_told.sum().clamp_min(1)

    def save(self, path: Path) -> None:
        """Write what a resumed training needs."""
        save({"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "updates": self.updates,
              "seconds": self.seconds, "random": self.random.get_state()}, path)

    def load(self, path: Path) -> None:
        """Go on from there."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.seconds = state["updates"], state["seconds"]
        self.random.set_state(state["random"].cpu())


def _choose_books(num_books: int, random: torch.Generator) -> list[int]:
    """The books that learn in an update, in rising order."""
    chosen, first = [], 0
    for size, count in _LEARNING:
        size = min(size or num_books, num_books - first)
        chosen += (first + torch.randperm(size, generator=random)[:count]).sort().values.tolist()
        first += size
    return chosen


def class_ranks(codebooks: np.ndarray) -> np.ndarray:
    """Number each book's entries so that neighbours are similar: (K, 1024, D) -> places of entries (K, 1024).

    A book is halved ten times over, each part at the median of its first principal component.
    """
    books, size, dim = codebooks.shape
    order = np.tile(np.arange(size), (books, 1))
    parts = 1
    while parts < size:
        vectors = np.take_along_axis(codebooks, order[..., None], 1).astype(np.float64)
        vectors = vectors.reshape(books, parts, -1, dim)
        vectors -= vectors.mean(2, keepdims=True)
        axes = vectors[:, :, :1].swapaxes(2, 3)                      # (K, parts, D, 1)
        for _ in range(20):                                          # power iteration
            axes = vectors.swapaxes(2, 3) @ (vectors @ axes)
            axes /= np.linalg.norm(axes, axis=2, keepdims=True) + 1e-30
        places = np.argsort((vectors @ axes)[..., 0], axis=2, kind="stable")
        order = np.take_along_axis(order.reshape(books, parts, -1), places, 2).reshape(books, size)
        parts *= 2
    return np.argsort(order, 1)


class EntropyNet(nn.Module):
    """The twin: the same steps as EntropyModel in real units, rounded to its steps once `rounding` is set."""

    def __init__(self, config: EntropyConfig):
        super().__init__()
        self.config = config
        self.rounding = False
        self.input = nn.ParameterList(
            _table(BOOK_SIZE + 1, config.width) for _ in range(config.context_books))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.context = _weight(config.head_width, config.width)
        self.context_bias = _zeros(config.head_width)
        self.depth = _Depth(config)
        self.books = nn.ModuleList(_Book(config, k < config.detailed_books) for k in range(config.num_books))

    @torch.no_grad()
    def start_from(self, codebooks: np.ndarray, ranks: np.ndarray) -> None:
        """Start the embeddings from the codebooks (K, 1024, D): what looks similar begins similar."""
        entries = np.take_along_axis(codebooks[:len(ranks)], np.argsort(ranks, 1)[..., None], 1)
        entries = torch.from_numpy(entries).float()
        entries *= 0.5 / entries[0].square().mean().sqrt().clamp_min(1e-6)
        dim = entries.shape[-1]
        detailed = [book for book in self.books if book.detailed]
        for tables, scale in ((self.input, 1.0), ([book.here for book in detailed], 1.0),
                              ([book.before for book in detailed], 0.3)):
            width = tables[0].shape[1]
            axes = nn.init.orthogonal_(torch.empty(dim, width)) * max(1, width / dim) ** 0.5
            for table, book in zip(tables, entries):
                table[:BOOK_SIZE] = scale * book @ axes
        self.limit()

    @torch.no_grad()
    def limit(self) -> None:
        """Keep every matrix and embedding within what eight bits hold."""
        for name, value in self.named_parameters():
            if steps := _EIGHT_BITS.get(_kind(name)):
                value.clamp_(-LIMIT / steps, LIMIT / steps)

    @torch.no_grad()
    def start_from_integers(self, tensors: dict[str, np.ndarray]) -> None:
        """Start from what `integers` gave; layers that it lacked stay as they are, and add nothing yet."""
        for name, value in self.named_parameters():
            place, number = _place(name)
            if name.startswith("layers.") and place not in tensors:
                continue
            found = tensors[place] if number is None else tensors[place][number]
            found = (found.astype(np.float64) - _offset(name)) / _steps(name)
            value.copy_(torch.from_numpy(found))

    def losses(self, codes: Tensor, depths: Tensor, is_told: Tensor, books: list[int]) -> tuple[Tensor, Tensor]:
        """Nats of the depths (B, T), and of the codes of some books, in rising order, (len(books), B, T).

        Places in class order (B, K, T), of which the first depths (B, T) are there; is_told (B,): whether depths are
        coded. The nats of what is not coded mean nothing.
        """
        is_there = torch.arange(codes.shape[1], device=codes.device)[:, None] < depths[:, None]
        last = F.pad(torch.where(is_there, codes, ABSENT)[:, :, :-1], (1, 0), value=ABSENT)
        told = torch.where(is_told[:, None], depths, UNTOLD)
        last_told = F.pad(told[:, :-1], (1, 0), value=UNTOLD)
        sums = self.contexts(last, last_told)
        depth_nats = self.depth(sums, last_told, depths.clamp_max(DEPTHS - 1), self.rounding)
        sums = sums + self.depth.add(told, self.rounding)
        starts = {book: turn.start for turn in self.config.books(self.config.num_books) for book in turn}
        nats, done = [], 0
        for k in books:
            for j in range(done, starts[k]):        # books of its own turn tell it nothing
                if self.books[j].detailed:
                    sums = sums + self.books[j].add(codes[:, j], self.rounding)
            nats.append(self.books[k](sums, last[:, k], codes[:, k], self.rounding))
            done = starts[k]
        return depth_nats, torch.stack(nats)

    def contexts(self, last: Tensor, last_told: Tensor) -> Tensor:
        """Each frame's codes (B, K, T) and depth (B, T) one frame ago -> what the books start from (B, T, E)."""
        x = _rounded(F.embedding(last_told, self.depth.input), _ACTIVATION, self.rounding)
        for k, table in enumerate(self.input):
            x = x + _rounded(F.embedding(last[:, k], table), _ACTIVATION, self.rounding)
        for layer in self.layers:
            x = x + layer(x, self.rounding)
        weights = _rounded(self.context, _WEIGHT, self.rounding)
        sums = F.linear(_normalised(x, self.rounding), weights, self.context_bias)
        return _rounded(sums.float(), _ACTIVATION, self.rounding)

    @torch.no_grad()
    def integers(self) -> dict[str, np.ndarray]:
        """The integer model's tensors, all but `order`."""
        parts = {}
        for name, value in self.named_parameters():
            value = np.rint(value.double().cpu().numpy() * _steps(name)) + _offset(name)
            kind = _kind(name)
            kept = "int8" if kind in _EIGHT_BITS else "int16" if kind == "distance" else "int32"
            place, number = _place(name)
            parts.setdefault((place, number is None), []).append(value.astype(kept))
        tensors = {place: values[0] if is_alone else np.stack(values) for (place, is_alone), values in parts.items()}
        falling = np.exp(-np.arange(256) / ATTENTION_STEPS)
        rising = np.exp(np.arange(2 * _RANGE * SCORE_STEPS) / SCORE_STEPS)
        return tensors | {"attention_table": np.rint(255 * falling).astype(np.uint8),
                          "count_table": np.rint(rising).astype(np.int32)}


class _Depth(nn.Module):
    """How frames' depths are predicted, and how they tell the books of their frame, and the next frame."""

    def __init__(self, config: EntropyConfig):
        super().__init__()
        self.input = _table(DEPTHS + 1, config.width)
        self.before = _table(DEPTHS + 1, config.head_width)
        self.here = _table(DEPTHS + 1, config.head_width)
        self.hidden = _weight(config.head_hidden, config.head_width)
        self.hidden_bias = _zeros(config.head_hidden)
        self.register_parameter("class", nn.Parameter(0.02 * torch.randn(DEPTHS, config.head_hidden)))
        self.class_bias = _zeros(DEPTHS)

    def add(self, told: Tensor, rounding: bool) -> Tensor:
        """Depths (B, T) -> what they add to the sums that the frame's books start from (B, T, E)."""
        return _rounded(F.embedding(told, self.here), _ACTIVATION, rounding)

    def forward(self, sums: Tensor, last_told: Tensor, depths: Tensor, rounding: bool) -> Tensor:
        """Sums (B, T, E), depths one frame ago and now (B, T) -> nats (B, T)."""
        sums = sums + _rounded(F.embedding(last_told, self.before), _ACTIVATION, rounding)
        hidden = F.linear(_activation(sums, -LIMIT, rounding), _rounded(self.hidden, _WEIGHT, rounding),
                          self.hidden_bias)
        hidden = _activation(hidden, 0, rounding)
        scores = F.linear(hidden, _rounded(getattr(self, "class"), _WEIGHT, rounding), self.class_bias)
        return F.cross_entropy(scores.float().clamp(-_RANGE, _RANGE).transpose(1, 2), depths, reduction="none")


class _Book(nn.Module):
    """One book: how its codes are predicted, and how they tell the books after it and the next frame."""

    def __init__(self, config: EntropyConfig, detailed: bool):
        super().__init__()
        self.hidden = _weight(config.head_hidden, config.head_width)
        self.hidden_bias = _zeros(config.head_hidden)
        self.register_parameter("class", nn.Parameter(0.02 * torch.randn(CLASSES, config.head_hidden)))
        self.class_bias = _zeros(CLASSES)
        if detailed:
            self.here = _table(BOOK_SIZE, config.head_width)
            self.before = _table(BOOK_SIZE + 1, config.head_width)
            self.member = nn.Parameter(0.02 * torch.randn(CLASSES, MEMBERS, config.head_hidden))
            self.member_bias = _zeros(CLASSES, MEMBERS)
        self.detailed = detailed

    def add(self, codes: Tensor, rounding: bool) -> Tensor:
        """Codes (B, T) -> what they add to the sums that later books start from (B, T, E)."""
        return _rounded(F.embedding(codes, self.here), _ACTIVATION, rounding)

    def forward(self, sums: Tensor, previous: Tensor, codes: Tensor, rounding: bool) -> Tensor:
        """Sums (B, T, E), this book's codes one frame ago and now (B, T) -> nats (B, T)."""
        if self.detailed:
            sums = sums + _rounded(F.embedding(previous, self.before), _ACTIVATION, rounding)
        inputs = _activation(sums, -LIMIT, rounding).flatten(0, 1)
        hidden = F.linear(inputs, _rounded(self.hidden, _WEIGHT, rounding), self.hidden_bias)
        hidden = _activation(hidden, 0, rounding)
        places = codes.flatten()
        classes, members = places // MEMBERS, places % MEMBERS
        scores = F.linear(hidden, _rounded(getattr(self, "class"), _WEIGHT, rounding), self.class_bias)
        loss = F.cross_entropy(scores.float().clamp(-_RANGE, _RANGE), classes, reduction="none")
        if not self.detailed:
            return (loss + math.log(MEMBERS)).view_as(codes)
        order = classes.argsort()
        sizes = torch.bincount(classes, minlength=CLASSES).tolist()
        weights = _rounded(self.member, _WEIGHT, rounding).to(hidden.dtype)
        scores = _Grouped.apply(hidden[order], weights, sizes).float() + self.member_bias[classes[order]]
        nats = F.cross_entropy(scores.clamp(-_RANGE, _RANGE), members[order], reduction="none")
        return loss.index_add(0, order, nats).view_as(codes)


class _Layer(nn.Module):
    """Attention over the last `window` frames and feed-forward side by side."""

    def __init__(self, config: EntropyConfig):
        super().__init__()
        self.config = config
        self.first = _weight(3 * config.width + config.feed_forward, config.width)
        self.first_bias = _zeros(len(self.first))
        self.second = _zeros(config.width, config.width + config.feed_forward)
        self.second_bias = _zeros(config.width)
        self.distance = _zeros(config.heads, config.window)

    def forward(self, x: Tensor, rounding: bool) -> Tensor:
        """Residual values (B, T, D) -> what to add to them."""
        width = self.config.width
        inner = F.linear(_normalised(x, rounding), _rounded(self.first, _WEIGHT, rounding), self.first_bias)
        attended = self._attend(_activation(inner[..., :3 * width], -LIMIT, rounding))
        inner = torch.cat([_rounded(attended, _ACTIVATION, rounding),
                           _activation(inner[..., 3 * width:], 0, rounding)], -1)
        outer = F.linear(inner, _rounded(self.second, _WEIGHT, rounding), self.second_bias)
        return _rounded(outer.float(), _RESIDUAL, rounding)

    def _attend(self, inner: Tensor) -> Tensor:
        """Queries, keys and values (B, T, 3 D) -> (B, T, D).

        Blocks of one window's length look at themselves and at the block before.
        """
        batch, frames, _ = inner.shape
        window, heads = self.config.window, self.config.heads
        inner = F.pad(inner, (0, 0, 0, -frames % window))
        blocks = inner.view(batch, -1, window, 3, heads, self.config.width // heads).permute(3, 0, 4, 1, 2, 5)
        queries, keys, values = blocks                                   # (B, heads, blocks, window, size)
        keys, values = (torch.cat([F.pad(z, (0, 0, 0, 0, 1, 0))[:, :, :-1], z], 3) for z in (keys, values))
        distance = torch.arange(window, 2 * window, device=inner.device)[:, None] \
            - torch.arange(2 * window, device=inner.device)
        seen = (distance >= 0) & (distance < window)
        bias = torch.where(seen, self.distance[:, distance.clamp(0, window - 1)], _MASKED)
        bias = bias[:, None].repeat(1, blocks.shape[3], 1, 1)
        bias[:, 0, :, :window] = _MASKED
        weights = (queries @ keys.transpose(-1, -2) * ATTENTION_SCALE + bias).softmax(-1)
        attended = (weights.to(values.dtype) @ values).permute(0, 2, 3, 1, 4)
        return attended.reshape(batch, -1, self.config.width)[:, :frames]


class _Rounded(torch.autograd.Function):
    """Round to steps; the gradient passes straight through."""

    @staticmethod
    def forward(ctx, x, steps):
        return x.mul(steps).round_().div_(steps)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class _Grouped(torch.autograd.Function):
    """Rows (N, H) in the order of their class, times the matrix (C, M, H) of each one's class -> (N, M)."""

    @staticmethod
    def forward(ctx, rows, weights, sizes):
        ctx.save_for_backward(rows, weights)
        ctx.sizes = sizes
        return torch.cat([part @ weight.T for part, weight in zip(rows.split(sizes), weights)])

    @staticmethod
    def backward(ctx, gradient):
        rows, weights = ctx.saved_tensors
        parts = gradient.to(rows.dtype).split(ctx.sizes)
        to_rows = torch.cat([part @ weight for part, weight in zip(parts, weights)])
        to_weights = torch.stack([part.T @ row for part, row in zip(parts, rows.split(ctx.sizes))])
        return to_rows, to_weights, None


def _rounded(x: Tensor, steps: int, rounding: bool) -> Tensor:
    return _Rounded.apply(x, steps) if rounding else x


def _activation(x: Tensor, low: int, rounding: bool) -> Tensor:
    return _rounded(F.hardtanh(x, low / _ACTIVATION, LIMIT / _ACTIVATION), _ACTIVATION, rounding)


def _normalised(x: Tensor, rounding: bool) -> Tensor:
    return _activation(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6), -LIMIT, rounding)


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(shape))


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def _kind(name: str) -> str:
    """The last word of a parameter's name."""
    return re.sub(r"\.\d+$", "", name).rpartition(".")[2]


def _place(name: str) -> tuple[str, int | None]:
    """In which of the integer model's tensors a parameter lies, and at which number of its first axis (None: all)."""
    owner, *number = name.split(".")
    return (_kind(name), int(number[0])) if owner in ("books", "input") else (name, None)


def _steps(name: str) -> int:
    """What a parameter's 1.0 is as an integer."""
    kind = _kind(name)
    return _EIGHT_BITS.get(kind, ATTENTION_STEPS if kind == "distance" else _PRODUCT)


def _offset(name: str) -> int:
    """What is added to a parameter's integers: scores begin at 0 there, and cutting rounds them."""
    is_score = _kind(name) in ("class_bias", "member_bias")
    return round((_RANGE + 0.5 / SCORE_STEPS) * _PRODUCT) if is_score else 0


def _groups(net: EntropyNet) -> list[dict]:
    """Weight decay for matrices; none for embeddings, biases and distances."""
    matrices, others = [], []
    for name, value in net.named_parameters():
        (matrices if _EIGHT_BITS.get(_kind(name)) == _WEIGHT else others).append(value)
    return [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]


class _Stream:
    """Rows (S, R, T), end to end, and what they are as places in class order."""

    def __init__(self, rows: np.ndarray, form: Paths | Codes, ranks: np.ndarray):
        self._rows, self._form, self._ranks = rows, form, ranks

    def split(self, share: float) -> tuple["_Stream", "_Stream"]:
        """The first sequences, of so large a share, and the others."""
        at = int(len(self._rows) * share)
        return tuple(_Stream(rows, self._form, self._ranks) for rows in (self._rows[:at], self._rows[at:]))

    def draw(self, batch: int, config: EntropyConfig, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random stretches: places (B, K, 512), depths (B, 512), and whether these are told (B,)."""
        sequences, _, frames = self._rows.shape
        starts = torch.randint(sequences * frames - MAX_FRAMES + 1, (batch,), generator=random).tolist()
        rows = np.stack([self._stretch(start) for start in starts])
        depths, is_told = draw_depths(torch.from_numpy(self._form.norms(rows)), config, random)
        return self._places(self._form.plain(rows, depths.numpy())), depths, is_told

    def segments(self) -> Tensor:
        """Places (S, K, 512) of all books: at most 64 stretches, evenly spread."""
        sequences, _, frames = self._rows.shape
        length = min(MAX_FRAMES, sequences * frames)
        most = sequences * frames // length
        chosen = np.linspace(0, most - 1, min(64, most)).astype(int)
        rows = np.stack([self._stretch(number * length, length) for number in chosen.tolist()])
        return self._places(self._form.plain(rows, np.full((1, 1), len(self._ranks))))

    def _stretch(self, start: int, length: int = MAX_FRAMES) -> np.ndarray:
        """Rows (R, length) from the frame of this number on."""
        frames = self._rows.shape[2]
        first, last = start // frames, (start + length - 1) // frames
        return np.concatenate(self._rows[first:last + 1], 1)[:, start % frames:][:, :length]

    def _places(self, codes: np.ndarray) -> Tensor:
        """Codes (B, K and more, T) -> places, int64 (B, K, T)."""
        books = np.arange(len(self._ranks))[:, None]
        return torch.from_numpy(self._ranks[books, codes[:, :len(books)]])


def draw_depths(norms: Tensor, config: EntropyConfig, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Depths of sequences (B, T) by their norms (B, K + 1, T), and whether they are told (B,).

    Some sequences pay a price, and tell their depths. The others have as many books in all frames as the model has, or
    some few, which the transformer is to do with.
    """
    batch = len(norms)
    few = torch.randint(1, 3 * config.context_books, (batch, 1), generator=random)
    constant = few.where(few < config.context_books, config.num_books)
    low, high = (math.log(price) for price in PRICES)
    prices = torch.exp(low + (high - low) * torch.rand((batch, 1, 1), generator=random))
    least = int(torch.randint(4, (1,), generator=random) > 0)
    is_told = torch.rand(batch, generator=random) < _PRICED
    return torch.where(is_told[:, None], choose_depths(norms, prices, least), constant), is_told


@torch.no_grad()
def twin_bits(net: EntropyNet, places: Tensor, device: str) -> list[float]:
    """The twin's bits per code of each book on places (S, K, T), in float32, with all books there."""
    books, bits = net.config.num_books, []
    for part in places.to(device).split(8):
        depths = torch.full_like(part[:, 0], books)
        _, nats = net.losses(part, depths, torch.zeros_like(depths[:, 0], dtype=torch.bool), list(range(books)))
        bits.append(nats.mean(2).cpu() / math.log(2))
    return torch.cat(bits, 1).mean(1).tolist()


def integer_bits(model: EntropyModel, places: Tensor) -> list[float]:
    """The integer model's bits per code of each book on the same places."""
    codes = model.codes(places.numpy())
    return (model.cost(codes).mean(0) / codes.shape[2]).tolist()
