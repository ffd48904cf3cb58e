"""What is heard in place of frames that did not come: first the signal before them, carried on; then an echo of them.

A long linear predictor carries on what is periodic, as vowels and notes are, in phase with what was heard; it is right
for a frame, and then too faint. Its guess goes through the codec's own MDCT, whose windows blend it into the frames on
both sides. From then on the decoder repeats the last frame that came, fainter and fainter.

Burg: "A new analysis technique for time series data", 1968; Kauppinen and Roth: "Audio signal extrapolation: theory
and applications", DAFx 2002.
"""
import numpy as np
import torch

from audiocodec.mdct import MDCT

_HEARD = 1600        # samples from which the predictor is made
_ORDER = 256         # samples that it looks back on: more than a period of most voices
_FAINT = 1e-7        # mean square below which nothing is carried on
_FADE = 0.76         # by which the echo is fainter from frame to frame ...
_LONGEST = 12        # ... until there is silence, from so many frames on


class Concealer:
    """Follows a decoder's output, channel by channel, and fills what is missing."""

    def __init__(self, channels: int, hop: int):
        self._mdct = MDCT(hop).float()
        self._heard = np.zeros((channels, _HEARD), np.float32)
        self._tail = np.zeros((channels, hop), np.float32)     # what the guess adds to the block after its own
        self._num_missing = 0                                  # frames, so far
        self._gain = 1.0                                       # of the last sample

    def stand_in(self, last: np.ndarray) -> np.ndarray:
        """The codes that a decoder is to be given for the next missing frame, where `last` were the last that came."""
        return last if 0 < self._num_missing < _LONGEST else np.zeros_like(last)

    def follow(self, samples: np.ndarray) -> np.ndarray:
        """What a decoder made of frames that came, (C, n) -> what is to be heard."""
        if self._num_missing and samples.shape[1]:
            hop = self._mdct.hop
            samples = np.concatenate([self._joined(samples[:, :hop], 1.0), samples[:, hop:]], 1)
            self._num_missing = 0
        return self._remember(samples)

    def fill(self, samples: np.ndarray) -> np.ndarray:
        """What a decoder made of the codes for a missing frame, (C, hop) or none -> what is to be heard."""
        if not samples.shape[1]:
            return samples
        if self._num_missing:
            gain = _FADE ** (self._num_missing + 1) if self._num_missing < _LONGEST else 0.0
            samples = self._joined(samples, gain)
        else:
            early, self._tail = self._guess()
            samples = samples + early
        self._num_missing += 1
        return self._remember(samples)

    def _guess(self) -> tuple[np.ndarray, np.ndarray]:
        """What the missing frame may have added to its block and to the next one, each (C, hop)."""
        hop = self._mdct.hop
        signal = np.stack([_carried_on(channel, 2 * hop) for channel in self._heard])
        before, after = torch.from_numpy(signal)[:, None].split(hop, 2)
        coefficients, _ = self._mdct.analyse(after, before)
        early, late = self._mdct.synthesise(coefficients, torch.zeros_like(before))
        return early[:, 0].numpy(), late[:, 0].numpy()

    def _joined(self, samples: np.ndarray, gain: float) -> np.ndarray:
        """The next block, brought to a gain, with what is left of the guess."""
        samples = samples * np.linspace(self._gain, gain, samples.shape[1], endpoint=False, dtype=np.float32)
        samples += self._tail
        self._tail, self._gain = np.zeros_like(self._tail), gain
        return samples

    def _remember(self, samples: np.ndarray) -> np.ndarray:
        self._heard = np.concatenate([self._heard, samples], 1)[:, -_HEARD:]
        return samples


def _carried_on(heard: np.ndarray, count: int) -> np.ndarray:
    """Samples (n,) -> the `count` samples that may follow, float32."""
    heard = heard.astype(np.float64)
    result = np.concatenate([heard[-_ORDER:], np.zeros(count)])
    if heard @ heard < _FAINT * len(heard):
        return np.zeros(count, np.float32)
    weights = _predictor(heard, _ORDER)[::-1].copy()
    for i in range(count):
        result[_ORDER + i] = weights @ result[i:_ORDER + i]
    return np.clip(result[_ORDER:], -1, 1).astype(np.float32)


def _predictor(signal: np.ndarray, order: int) -> np.ndarray:
    """Burg's weights (order,) of the samples before one, the nearest first, whose sum foretells it."""
    forward, backward = signal[1:], signal[:-1]
    weights = np.ones(1)
    for _ in range(order):
        energy = forward @ forward + backward @ backward
        reflection = -2 * (forward @ backward) / energy if energy > 0 else 0.0
        weights = np.append(weights, 0)
        weights = weights + reflection * weights[::-1]
        forward, backward = (forward + reflection * backward)[1:], (backward + reflection * forward)[:-1]
    return -weights[1:]
