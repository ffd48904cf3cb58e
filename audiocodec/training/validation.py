"""What the codec in training is worth on audio it does not learn from: scores at several rates, use of the books."""
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from audiocodec import metrics
from audiocodec.training.generator import Generator

BOOKS = 4, 8, 16, 32
_BATCH = 4                   # clips coded together, which bounds the memory
_LEVEL_FRAMES = 4            # of which levels of bands are told, as at 6 kbps

_SCORES = {"mel": metrics.log_mel_distance, "si_sdr": metrics.si_sdr}
if find_spec("pesq"):
    _SCORES["pesq"] = metrics.pesq_wb


@torch.inference_mode()
def encode(generator: Generator, clips: Tensor) -> Tensor:
    """Clips (B, N) at the model's rate -> codes (B, K, T) of all books, on the CPU."""
    quantizer, most = generator.quantizer, generator.config.num_books
    device = quantizer.codebooks.device
    return torch.cat([quantizer.encode(generator.latents(some.to(device)), most).cpu() for some in clips.split(_BATCH)])


@torch.inference_mode()
def decode(generator: Generator, codes: Tensor, clips: Tensor) -> Tensor:
    """Codes (B, K, T), of the first K books, and the clips (B, N) they are of -> samples (B, N) on the CPU.

    Of the clips nothing is taken but the levels that a file would tell.
    """
    quantizer, parts = generator.quantizer, []
    for some, originals in zip(codes.split(_BATCH), clips.split(_BATCH)):
        some, originals = some.to(quantizer.codebooks.device), originals.to(quantizer.codebooks.device)
        num_books = torch.full_like(some[:, 0, 0], codes.shape[1])
        decoded = generator.samples(quantizer.decode(some), num_books, generator.levels(originals, _LEVEL_FRAMES),
                                    _LEVEL_FRAMES)
        parts.append(decoded[:, :clips.shape[1]].float().cpu())
    return torch.cat(parts)


def validate(generator: Generator, clips: Tensor, books: tuple[int, ...] = BOOKS,
             codes: Tensor | None = None) -> dict[str, float]:
    """Code clips, float32 (B, N) at the model's rate, and score what comes back.

    books: how many to decode from; counts above the model's are left out, and its own is always among them.
    codes: of the clips, where `encode` has given them already.

    For each count n, means over the clips by the functions of audiocodec.metrics: mel@n, si_sdr@n in dB and, where
    the package pesq is installed, pesq@n, which means little for music. A clip that a score says nothing of (nan or
    infinite: silence, a perfect copy) is left out of that mean, and a mean of no clips is left out altogether; mel@n
    applies to every clip, so it is nan as soon as the codec's output is.

    For book number n, 1 included: use@n and perplexity@n, see `codebook_use`, and `frames`, the number they were
    counted on.

    score: one number to choose checkpoints by, lower is better: the mean of all mel@n. It needs no optional package,
    applies to any audio, moves smoothly, and weighs every rate; SI-SDR would be ruled by the highest ones and asks
    for phases that nobody hears. The adversarial loss trades some of it for sharpness, so compare within a stage.
    """
    most = generator.config.num_books
    books = sorted({min(n, most) for n in (*books, most) if n <= most})
    codes = encode(generator, clips) if codes is None else codes
    report: dict[str, float] = {}
    for n in books:
        report |= _scores(generator, clips, codes[:, :n], n)
    report["score"] = float(np.mean([report[f"mel@{n}"] for n in books]))
    use, perplexity = codebook_use(codes, generator.config.book_size)
    for n in sorted({1, *books}):
        report |= {f"use@{n}": float(use[n - 1]), f"perplexity@{n}": float(perplexity[n - 1])}
    return report | {"frames": codes.shape[0] * codes.shape[2]}


def _scores(generator: Generator, clips: Tensor, codes: Tensor, n: int) -> dict[str, float]:
    decoded = decode(generator, codes, clips)
    sane = bool(decoded.isfinite().all())
    report = {}
    for name, score in _SCORES.items() if sane else [("mel", metrics.log_mel_distance)]:
        with np.errstate(invalid="ignore"):      # 0 / 0 where silence came back: nan, left out below
            values = np.array([score(ours.numpy(), theirs.numpy(), generator.config.sample_rate)
                               for ours, theirs in zip(clips.cpu(), decoded)])
        if name != "mel":
            values = values[np.isfinite(values)]
        if len(values):
            report[f"{name}@{n}"] = float(values.mean())
    return report


def codebook_use(codes: Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (B, K, T) of books of `size` entries -> each book's use (K,) and perplexity (K,).

    Use is the share of its entries that occur; perplexity is 2 to the power of their empirical entropy in bits: `size`
    for entries chosen equally often, 1 for one entry alone. Few frames underestimate both, which cannot exceed the
    number of frames: the entropy by about (size - 1) / (2 frames) nats, so that 1,024 equally likely entries show a
    perplexity of some 900 on 4,096 frames. Compare values of equally many frames only.
    """
    rows = codes.transpose(0, 1).flatten(1).cpu()
    counts = np.stack([torch.bincount(row, minlength=size).numpy() for row in rows])
    shares = counts / counts.sum(1, keepdims=True)
    entropy = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1)
    return (counts > 0).mean(1), 2.0 ** entropy


def examples(generator: Generator, codes: Tensor, clips: Tensor, books: tuple[int, ...] = BOOKS) -> dict[int, Tensor]:
    """The first two of clips' codes (B, K, T), decoded from each number of books that the model has: samples (2, N)."""
    return {n: decode(generator, codes[:2, :n], clips[:2]) for n in books if n <= codes.shape[1]}
