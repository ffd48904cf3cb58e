"""How the entropy model learns: a float twin of audiocodec/entropy.py, then the same with rounding, then integers.

The twin limits every value from the start as the integer model will, so that rounding is the only thing left to get used
to; gradients pass straight through it. Bengio et al.: "Estimating or propagating gradients through stochastic neurons",
2013; Jacob et al.: "Quantization and training of neural networks for efficient integer-arithmetic-only inference", 2018.
"""
import math
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiocodec.entropy import (
    ABSENT, ACTIVATION_BITS, ATTENTION_SCALE, ATTENTION_STEPS, BOOK_SIZE, CLASSES, LIMIT, MAX_FRAMES, MEMBERS,
    RESIDUAL_BITS, SCORE_STEPS, WEIGHT_BITS, EntropyConfig, EntropyModel)

_ACTIVATION = 1 << ACTIVATION_BITS
_WEIGHT = 1 << WEIGHT_BITS
_RESIDUAL = 1 << RESIDUAL_BITS
_PRODUCT = _ACTIVATION * _WEIGHT
_RANGE = 7                         # scores are limited to as many nats on either side of 0
_MASKED = -1e4


def train_entropy(codes: list[np.ndarray], codebooks: np.ndarray, *, valid: list[np.ndarray] | None = None,
                  config: EntropyConfig = EntropyConfig(), minutes: float | None = None, updates: int | None = None,
                  batch: int = 8, rate: float = 3e-3, float_share: float = 0.75, seed: int = 0,
                  device: str = "cpu", progress=None) -> tuple[EntropyConfig, dict[str, np.ndarray], dict]:
    """Train on code arrays (K, T) of the books `codebooks` (K, 1024, D), for so many minutes or updates.

    Returns the configuration with its answer, the integer tensors, and a report: bits per code of the first n books for
    the float twin and for the integer model on `valid` (by default the last twentieth of the codes), and their ratio.
    `progress(share_done, bits)` is called after every update.
    """
    torch.manual_seed(seed)
    ranks = class_ranks(codebooks[:config.num_books])
    stream = _stream(codes, ranks)
    held_out = stream[:, -max(MAX_FRAMES, stream.shape[1] // 20):] if valid is None else _stream(valid, ranks)
    if valid is None:
        stream = stream[:, :-held_out.shape[1]]
    net = EntropyNet(config)
    net.start_from(codebooks, ranks)
    net.to(device)
    optimizer = torch.optim.AdamW(_groups(net), lr=rate, betas=(0.9, 0.98), fused=True)
    generator = torch.Generator().manual_seed(seed)
    report, started, update = {}, time.monotonic(), 0
    while True:
        share = update / updates if updates else (time.monotonic() - started) / (60 * minutes)
        if share >= float_share and not net.rounding:
            report["float"] = float_bits(net, held_out, device)
            net.rounding = True
            started += 0 if updates else time.monotonic() - started - 60 * minutes * share
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (update + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * share))
        bits = _update(net, optimizer, _draw(stream, batch, generator).to(device), generator)
        update += 1
        if progress:
            progress(share, bits)
    tensors = net.integers()
    tensors["order"] = ranks.astype(np.int16)
    config = replace(config, answer=EntropyModel(replace(config, answer=""), tensors).answer())
    report["integer"] = integer_bits(EntropyModel(config, tensors), held_out)
    report["ratio"] = [i / f for i, f in zip(report["integer"], report["float"])]
    return config, tensors, report | {"updates": update}


def class_ranks(codebooks: np.ndarray) -> np.ndarray:
    """Number each book's entries so that neighbours are similar: (K, 1024, D) -> place of each entry, (K, 1024).

    A book is halved ten times over, each part at the median of its first principal component.
    """
    books, size, dim = codebooks.shape
    order = np.tile(np.arange(size), (books, 1))
    parts = 1
    while parts < size:
        vectors = np.take_along_axis(codebooks, order[..., None], 1).reshape(books, parts, -1, dim).astype(np.float64)
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
        books, head, hidden = config.num_books, config.head_width, config.head_hidden
        self.config = config
        self.rounding = False
        self.input = _table(config.context_books, BOOK_SIZE + 1, config.width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.context = _weight(head, config.width)
        self.context_bias = _zeros(head)
        self.here = _table(books, BOOK_SIZE, head)
        self.before = _table(books, BOOK_SIZE + 1, head)
        self.hidden = _weight(books, hidden, head)
        self.hidden_bias = _zeros(books, hidden)
        self.classes = nn.Parameter(torch.randn(books, CLASSES, hidden) * 0.02)
        self.class_bias = _zeros(books, CLASSES)
        self.members = nn.Parameter(torch.randn(config.detailed_books, CLASSES, MEMBERS, hidden) * 0.02)
        self.member_bias = _zeros(config.detailed_books, CLASSES, MEMBERS)

    @torch.no_grad()
    def start_from(self, codebooks: np.ndarray, ranks: np.ndarray) -> None:
        """Start the embeddings from the codebooks (K, V, D), so that similar codes look similar from the beginning."""
        books = torch.from_numpy(np.take_along_axis(codebooks[:len(ranks)], np.argsort(ranks, 1)[..., None], 1)).float()
        books = books * (0.5 / books[0].square().mean().sqrt().clamp_min(1e-6))
        for table, scale in ((self.input, 1.0), (self.here, 1.0), (self.before, 0.3)):
            spread = nn.init.orthogonal_(torch.empty(books.shape[-1], table.shape[-1]))
            spread *= max(1, table.shape[-1] / books.shape[-1]) ** 0.5
            table[:, :BOOK_SIZE] = scale * books[:len(table)] @ spread

    def losses(self, codes: Tensor, num_books: Tensor, books: list[int]) -> Tensor:
        """Nats of some books' codes: places (B, K, T) in class order, of which (B,) books are there -> (len(books), B, T)."""
        previous = F.pad(codes[:, :, :-1], (1, 0), value=ABSENT)
        sums = self.contexts(previous, num_books)
        losses, done = [], 0
        for k in books:
            for j in range(done, k):
                sums = sums + self._rows(self.here[j], codes[:, j])
            done = k
            losses.append(self._book(k, sums, previous[:, k], codes[:, k]))
        return torch.stack(losses)

    def contexts(self, previous: Tensor, num_books: Tensor) -> Tensor:
        """The codes before each frame (B, K, T) -> what the books start from (B, T, E)."""
        x = sum(self._rows(table, torch.where(num_books[:, None] > k, previous[:, k], ABSENT))
                for k, table in enumerate(self.input))
        for layer in self.layers:
            x = x + layer(x, self.rounding)
        context = F.linear(_normalised(x, self.rounding), self._matrix(self.context), self.context_bias).float()
        return _stepped(context, _ACTIVATION, -math.inf, math.inf, self.rounding)

    def _book(self, k: int, sums: Tensor, previous: Tensor, codes: Tensor) -> Tensor:
        inputs = _activation(sums + self._rows(self.before[k], previous), self.rounding)
        hidden = F.linear(inputs, self._matrix(self.hidden[k]), self.hidden_bias[k])
        hidden = _activation(hidden, self.rounding, 0).flatten(0, 1)
        classes, members = codes.flatten() // MEMBERS, codes.flatten() % MEMBERS
        scores = F.linear(hidden, self._matrix(self.classes[k]), self.class_bias[k])
        loss = F.cross_entropy(scores.float().clamp(-_RANGE, _RANGE), classes, reduction="none")
        if k >= self.config.detailed_books:
            return (loss + math.log(MEMBERS)).view_as(codes)
        order = classes.argsort()
        sizes = torch.bincount(classes, minlength=CLASSES).tolist()
        scores = _Grouped.apply(hidden[order], self._matrix(self.members[k]).to(hidden.dtype), sizes)
        scores = scores.float() + self.member_bias[k][classes[order]]
        scores = scores.clamp(-_RANGE, _RANGE)
        loss = loss.index_add(0, order, F.cross_entropy(scores, members[order], reduction="none"))
        return loss.view_as(codes)

    def _rows(self, table: Tensor, index: Tensor) -> Tensor:
        return _stepped(F.embedding(index, table), _ACTIVATION, -LIMIT, LIMIT, self.rounding)

    def _matrix(self, weight: Tensor) -> Tensor:
        return _stepped(weight, _WEIGHT, -LIMIT, LIMIT, self.rounding)

    def integers(self) -> dict[str, np.ndarray]:
        """The integer model's tensors, all but `order`."""
        steps = {"context": _WEIGHT, "hidden": _WEIGHT, "class": _WEIGHT, "member": _WEIGHT, "first": _WEIGHT,
                 "second": _WEIGHT, "input": _ACTIVATION, "here": _ACTIVATION, "before": _ACTIVATION,
                 "distance": ATTENTION_STEPS}
        tensors = {}
        for name, value in self.named_parameters():
            name = name.replace("classes", "class").replace("members", "member")
            kind = name.rpartition(".")[2]
            value = np.rint(value.detach().double().cpu().numpy() * steps.get(kind, _PRODUCT))
            if kind not in steps:
                tensors[name] = value.astype(np.int32)
            elif kind == "distance":
                tensors[name] = value.clip(-1024, 1024).astype(np.int16)
            else:
                tensors[name] = value.clip(-LIMIT, LIMIT).astype(np.int8)
        tensors["attention_table"] = np.rint(255 * np.exp(-np.arange(256) / ATTENTION_STEPS)).astype(np.uint8)
        for name in ("class_bias", "member_bias"):
            tensors[name] += round((_RANGE + 0.5 / SCORE_STEPS) * _PRODUCT)     # scores begin at 0; so cutting them rounds
        tensors["count_table"] = np.rint(np.exp(np.arange(2 * _RANGE * SCORE_STEPS) / SCORE_STEPS)).astype(np.int32)
        return tensors


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
        inner = F.linear(_normalised(x, rounding), _stepped(self.first, _WEIGHT, -LIMIT, LIMIT, rounding), self.first_bias)
        attended = self._attend(_activation(inner[..., :3 * width], rounding), rounding)
        inner = torch.cat([attended, _activation(inner[..., 3 * width:], rounding, 0)], -1)
        outer = F.linear(inner, _stepped(self.second, _WEIGHT, -LIMIT, LIMIT, rounding), self.second_bias)
        return _stepped(outer.float(), _RESIDUAL, -math.inf, math.inf, rounding)

    def _attend(self, inner: Tensor, rounding: bool) -> Tensor:
        """Queries, keys and values (B, T, 3 D) -> (B, T, D). Blocks of one window look at themselves and the one before."""
        batch, frames, _ = inner.shape
        window, heads = self.config.window, self.config.heads
        inner = F.pad(inner, (0, 0, 0, -frames % window))
        blocks = inner.view(batch, -1, window, 3, heads, self.config.width // heads).permute(3, 0, 4, 1, 2, 5)
        queries, keys, values = blocks                                   # (B, heads, blocks, window, size)
        keys, values = (torch.cat([F.pad(z, (0, 0, 0, 0, 1, 0))[:, :, :-1], z], 3) for z in (keys, values))
        distance = torch.arange(window, 2 * window, device=inner.device)[:, None] \
            - torch.arange(2 * window, device=inner.device)
        seen = (distance >= 0) & (distance < window)
        bias = torch.where(seen, self.distance[:, distance.clamp(0, window - 1)], _MASKED)[:, None].repeat(
            1, blocks.shape[3], 1, 1)
        bias[:, 0, :, :window] = _MASKED
        weights = (queries @ keys.transpose(-1, -2) * ATTENTION_SCALE + bias).softmax(-1)
        attended = (weights.to(values.dtype) @ values).permute(0, 2, 3, 1, 4)
        return _activation(attended.reshape(batch, -1, self.config.width)[:, :frames], rounding)


class _Stepped(torch.autograd.Function):
    """Limit, and round where asked; the gradient passes within the limits."""

    @staticmethod
    def forward(ctx, x, steps, low, high, rounding):
        ctx.save_for_backward((x >= low / steps) & (x <= high / steps))
        if rounding:
            return (x.float() * steps).round_().clamp_(low, high).div_(steps).to(x.dtype)
        return x.clamp(low / steps, high / steps)

    @staticmethod
    def backward(ctx, gradient):
        inside, = ctx.saved_tensors
        return gradient * inside, None, None, None, None


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


def _stepped(x: Tensor, steps: int, low: float, high: float, rounding: bool) -> Tensor:
    return _Stepped.apply(x, steps, low, high, rounding)


def _activation(x: Tensor, rounding: bool, low: int = -LIMIT) -> Tensor:
    return _Stepped.apply(x, _ACTIVATION, low, LIMIT, rounding)


def _normalised(x: Tensor, rounding: bool) -> Tensor:
    return _activation(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6), rounding)


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(shape))


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def _groups(net: EntropyNet) -> list[dict]:
    """Weight decay for matrices; none for embeddings, biases and distances."""
    decayed = ("first", "second", "context", "hidden", "classes", "members")
    matrices = [value for name, value in net.named_parameters() if name.rpartition(".")[2] in decayed]
    others = [value for name, value in net.named_parameters() if name.rpartition(".")[2] not in decayed]
    return [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]


def _stream(codes: list[np.ndarray], ranks: np.ndarray) -> Tensor:
    """Code arrays (K, T) end to end, as places in class order: int16 (K, N)."""
    joined = np.concatenate([array[:len(ranks)] for array in codes], 1)
    return torch.from_numpy(np.stack([rank[row] for rank, row in zip(ranks, joined)]).astype(np.int16))


def _draw(stream: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Random segments, int64 (B, K, 512)."""
    starts = torch.randint(stream.shape[1] - MAX_FRAMES + 1, (batch,), generator=generator)
    return torch.stack([stream[:, start:start + MAX_FRAMES] for start in starts.tolist()]).long()


def _update(net: EntropyNet, optimizer: torch.optim.Optimizer, codes: Tensor, generator: torch.Generator) -> float:
    """One step on some of the books, more often early ones, with each sequence's number of books drawn anew."""
    config = net.config
    early = min(8, config.num_books)
    books = torch.randperm(early, generator=generator)[:4].tolist()
    books += (early + torch.randperm(config.num_books - early, generator=generator)[:4]).tolist()
    num_books = torch.randint(1, 3 * config.context_books, (len(codes),), generator=generator)
    num_books = num_books.to(codes.device)
    with torch.autocast(codes.device.type, torch.bfloat16):
        losses = net.losses(codes, num_books, sorted(books)).mean(2)
    coded = (torch.tensor(sorted(books), device=codes.device)[:, None] < num_books) | (num_books >= config.context_books)
    loss = (losses * coded).sum() / coded.sum().clamp_min(1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return loss.item() / math.log(2)


def _segments(stream: Tensor) -> Tensor:
    """A stream (K, N) as segments (S, K, 512), at most 64 of them, evenly spread; the rest is left out."""
    segments = stream.unfold(1, MAX_FRAMES, MAX_FRAMES).transpose(0, 1)
    return segments[torch.linspace(0, len(segments) - 1, min(64, len(segments))).long()].long()


@torch.no_grad()
def float_bits(net: EntropyNet, stream: Tensor, device: str) -> list[float]:
    """The twin's bits per code of each book on a stream (K, N), all books there, in float32."""
    bits = []
    for codes in _segments(stream).split(8):
        num_books = torch.full((len(codes),), net.config.num_books, device=device)
        losses = net.losses(codes.to(device), num_books, list(range(net.config.num_books)))
        bits.append(losses.mean(2).cpu())
    return (torch.cat(bits, 1).mean(1) / math.log(2)).tolist()


def integer_bits(model: EntropyModel, stream: Tensor) -> list[float]:
    """The integer model's bits per code of each book on the same stream."""
    places = _segments(stream).numpy()
    codes = np.stack([model.join(k, *divmod(places[:, k], MEMBERS)) for k in range(places.shape[1])], 1)
    bits = np.concatenate([model.cost(codes[i:i + 8]) for i in range(0, len(codes), 8)])
    return (bits.mean(0) / MAX_FRAMES).tolist()
