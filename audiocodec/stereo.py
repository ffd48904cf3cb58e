"""Left and right <-> mid and side, the two channels of a stereo file; one channel stays as it is."""
import numpy as np


def to_mid_side(samples: np.ndarray) -> np.ndarray:
    """Left and right (2, N) -> mid and side (2, N)."""
    return samples if len(samples) == 1 else np.stack([samples[0] + samples[1], samples[0] - samples[1]]) / 2


def from_mid_side(samples: np.ndarray) -> np.ndarray:
    """Mid and side (2, N) -> left and right (2, N)."""
    return samples if len(samples) == 1 else np.stack([samples[0] + samples[1], samples[0] - samples[1]])
