"""A few frames at once through the networks, in numpy: products of few rows cost less than calls of torch.

The twins of model.py's Encoder and Decoder, called as they are: same weights, same states. Weights lie as (inputs,
outputs), the order in which one row times a matrix is quickest: that reads each weight once, and so takes as long as
memory does.
"""
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from audiocodec import model
from audiocodec.mdct import MDCT
from audiocodec.whole import WholeLinear

MOST = 8                 # frames at once for which this is quicker, about

State = tuple[Tensor, list[Tensor]]


class Encoder:
    """Samples -> latents."""

    def __init__(self, twin: model.Encoder):
        self._companding = twin.config.companding
        self._mdct, self._envelope = _Transform(twin.mdct), twin.envelope
        self._linear = _matrix(twin.linear)
        self._network = _Stack(twin.network)

    def __call__(self, blocks: Tensor, state: State,
                 level_frames: int = 0) -> tuple[Tensor, Tensor | None, State]:
        """What model.Encoder.forward does."""
        blocks, (before, past) = blocks.numpy(), _arrays(state)
        real, magnitude = self._mdct.analyse(np.concatenate([before, blocks], 1))
        companded = np.copysign(np.abs(real) ** self._companding, real)
        features = np.concatenate([companded, 0.5 * np.log10(magnitude + model.LOG_FLOOR) + 1], 2)
        learned, past = self._network(features, past)
        latents = companded @ self._linear + learned * _presence(companded)
        levels = self._envelope.levels(torch.from_numpy(real), level_frames) if level_frames else None
        return torch.from_numpy(latents), levels, _tensors(blocks[:, -1:], past)


class Decoder:
    """Latents -> samples."""

    def __init__(self, twin: model.Decoder):
        self._hop, self._power, self._gains = twin.config.hop, 1 / twin.config.companding, twin.gains
        self._linear = _matrix(twin.linear)
        self._books = twin.books.weight.numpy()
        self._network = _Stack(twin.network)
        self._mdct, self._envelope = _Transform(twin.mdct), twin.envelope

    def __call__(self, latents: Tensor, num_books: Tensor, state: State,
                 levels: Tensor | None = None, level_frames: int = 0) -> tuple[Tensor, State]:
        """What model.Decoder.forward does."""
        latents, (overlap, past) = latents.numpy(), _arrays(state)
        learned, past = self._network(latents, past, self._books[num_books.numpy()])
        learned, gains = np.split(learned, [self._hop], 2)
        companded = latents @ self._linear + learned * _presence(latents)
        if gains.shape[2]:
            companded = companded * self._gains(torch.from_numpy(gains)).numpy()
        coefficients = np.copysign(np.abs(companded) ** self._power, companded)
        if levels is not None:
            coefficients = self._envelope.enforce(torch.from_numpy(coefficients), levels, level_frames).numpy()
        blocks, overlap = self._mdct.synthesise(coefficients, overlap)
        return torch.from_numpy(blocks), _tensors(overlap, past)


class _Transform:
    """MDCT."""

    def __init__(self, twin: MDCT):
        self._hop, self._before, self._after = twin.hop, twin.before.numpy(), twin.after.numpy()

    def analyse(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Blocks (B, T + 1, hop) -> MDCT coefficients, and magnitudes of MDCT and MDST together, (B, T, hop)."""
        frames = np.concatenate([blocks[:, :-1], blocks[:, 1:]], 2)
        spectrum = np.fft.fft(frames * self._before)[..., :self._hop] * self._after
        return spectrum.real, np.abs(spectrum)

    def synthesise(self, coefficients: np.ndarray, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What MDCT.synthesise does."""
        turned = np.fft.ifft(coefficients * self._after.conj(), 2 * self._hop, norm="forward")
        frames = (turned * self._before.conj()).real.astype(coefficients.dtype)
        early, late = frames[..., :self._hop], frames[..., self._hop:]
        return early + np.concatenate([overlap, late[:, :-1]], 1), late[:, -1:]


class _Stack:
    """CausalStack."""

    def __init__(self, twin: model.CausalStack):
        self._kernel = twin.context + 1
        self._enter, self._leave = _few(twin.enter), _few(twin.leave)
        self._blocks = [(block.taps.numpy(), block.norm.weight.numpy(), _few(block.expand), _few(block.project))
                        for block in twin.blocks]
        self._norm = twin.norm.weight.numpy()

    def __call__(self, x: np.ndarray, state: list[np.ndarray],
                 condition: np.ndarray | float = 0.0) -> tuple[np.ndarray, list[np.ndarray]]:
        """x (B, T, inputs), state, condition added after the first layer -> (B, T, outputs) and the next state."""
        windows = _windows(x.shape[1], self._kernel)
        x, after = self._enter(x) + condition, []
        for past, (taps, norm, expand, project) in zip(state, self._blocks):
            seen = np.concatenate([past, x], 1)
            after.append(seen[:, x.shape[1]:])
            mixed = _normalised(np.einsum("btkw,kw->btw", seen.take(windows, 1), taps)) * norm
            x = x + project(_gelu(expand(mixed)))
        return self._leave(_normalised(x) * self._norm), after


def _arrays(state: State) -> tuple[np.ndarray, list[np.ndarray]]:
    return state[0].numpy(), [past.numpy() for past in state[1]]


def _tensors(first: np.ndarray, pasts: list[np.ndarray]) -> State:
    return torch.from_numpy(first), list(map(torch.from_numpy, pasts))


@cache
def _windows(num_frames: int, kernel: int) -> np.ndarray:
    """Which frames each one sees, (T, K)."""
    return np.arange(num_frames)[:, None] + np.arange(kernel)


def _matrix(layer: model.nn.Linear) -> np.ndarray:
    """A layer's weights, (inputs, outputs)."""
    return np.ascontiguousarray(layer.weight.numpy().T)


def _few(layer: model.nn.Linear | WholeLinear) -> Callable[[np.ndarray], np.ndarray]:
    """A layer for a few rows."""
    if isinstance(layer, WholeLinear):
        return layer.few
    weights, bias = _matrix(layer), layer.bias.numpy()
    return lambda x: x @ weights + bias


def _normalised(x: np.ndarray) -> np.ndarray:
    """RMSNorm without weights."""
    return x / np.sqrt(_power(x) + model.NORM_FLOOR)


def _gelu(x: np.ndarray) -> np.ndarray:
    """By its approximation with tanh."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * x * (1 + 0.044715 * np.square(x))))


def _presence(x: np.ndarray) -> np.ndarray:
    """1 for a frame (B, T, C) that holds anything, 0 for silence."""
    power = _power(x)
    return power / (power + model.FAINT)


def _power(x: np.ndarray) -> np.ndarray:
    """The mean square of each frame (B, T, C), (B, T, 1)."""
    return np.einsum("btc,btc->bt", x, x)[..., None] / x.shape[2]
