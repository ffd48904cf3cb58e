"""Products of whole numbers: exact, so the same on every machine and in any order, and quick where bytes are.

The weights of the large layers are whole numbers of steps, a byte each, as in the weights file. What goes into such a
layer is rounded to whole numbers too, as large as 32 bits allow for the sum: at least 13 bits and the sign of each
row's largest. CPUs with VNNI multiply bytes some nine times as fast as float32, and take two products for two bytes;
others get the same sums from float64, which holds them all.
"""
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

LARGEST = 127            # byte, either sign
_TWO_BYTES = 32_639      # the largest number that is 256 times such a byte and another
_TINY = 1e-30            # taken for the largest number of a row of zeros


class WholeLinear(nn.Module):
    """A linear layer (K inputs, N outputs), for inference alone, each row of whose weights counts steps of its own."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        numbers, steps = counted(layer.weight)
        self._weight, self._steps, self._bias = prepared(numbers.T, torch.float64), steps, layer.bias
        self._most = min(_TWO_BYTES, (2 ** 31 - 1) // (LARGEST * layer.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., N)."""
        rows = x.flatten(0, -2)
        unit = rows.abs().amax(1, keepdim=True).clamp_min_(_TINY).div_(self._most)
        sums = _two_byte_product((rows * unit.reciprocal()).round_(), self._weight).to(x.dtype)
        return sums.mul_(self._steps).mul_(unit).add_(self._bias).unflatten(0, x.shape[:-1])

    def few(self, x: np.ndarray) -> np.ndarray:
        """The same for a few rows (..., K), as arrays."""
        unit = np.maximum(np.abs(x).max(-1, keepdims=True), x.dtype.type(_TINY)) / self._most
        rows = np.rint(x * (1 / unit)).reshape(-1, x.shape[-1])
        sums = _two_byte_product_of_few(rows, self._weight).astype(x.dtype).reshape(*x.shape[:-1], -1)
        return sums * self._steps.numpy() * unit + self._bias.numpy()


def counted(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, K) -> int8 (N, K) and the steps (N,) that they count: a 127th of each row's largest number."""
    steps = (rows.double().abs().amax(1) / LARGEST).clamp_min(_TINY)
    return (rows / steps[:, None]).round().to(torch.int8), steps.to(rows.dtype)


def prepared(numbers: Tensor, wide: torch.dtype) -> Tensor:
    """int8 (K, N) as products here want it: as it is, or in a type that holds all their sums."""
    return numbers.contiguous() if _multiplies_bytes(numbers.device.type) else numbers.to(wide).contiguous()


def byte_product(rows: Tensor, prepared: Tensor) -> Tensor:
    """Whole numbers (M, K) of a byte times (K, N) -> (M, N), of any type."""
    if prepared.dtype == torch.int8:
        return torch._int_mm(rows.to(torch.int8), prepared)
    return rows.to(prepared.dtype) @ prepared


def byte_product_of_few(rows: np.ndarray, prepared: Tensor) -> np.ndarray:
    """The same for a few rows, as arrays."""
    if prepared.dtype == torch.int8:
        return torch._int_mm(torch.from_numpy(rows.astype(np.int8)), prepared).numpy()
    return rows.astype(np.float32) @ prepared.numpy()


def _two_byte_product(rows: Tensor, prepared: Tensor) -> Tensor:
    if prepared.dtype != torch.int8:
        return rows.to(prepared.dtype) @ prepared
    whole = rows.to(torch.int16)
    high, low = ((whole + 128) >> 8).to(torch.int8), whole.to(torch.int8)       # whole = 256 high + low
    return torch._int_mm(low, prepared).add_(torch._int_mm(high, prepared), alpha=256)


def _two_byte_product_of_few(rows: np.ndarray, prepared: Tensor) -> np.ndarray:
    if prepared.dtype != torch.int8:
        return rows.astype(np.float64) @ prepared.numpy()
    whole = rows.astype(np.int16)
    both = np.concatenate([(whole + 128) >> 8, whole]).astype(np.int8)
    sums = torch._int_mm(torch.from_numpy(both), prepared).numpy()
    return sums[:len(rows)] * 256 + sums[len(rows):]


@cache
def _multiplies_bytes(device: str) -> bool:
    """Whether this device is quick with bytes, and without sums of 16 bits, which overflow on CPUs before VNNI."""
    if device != "cpu" or not hasattr(torch, "_int_mm") or not getattr(torch.cpu, "_is_vnni_supported", bool)():
        return False
    rows = torch.tensor([[-128, -128], [-128, 127], [127, -128], [127, 127]], dtype=torch.int8).repeat(8, 64)
    return torch.equal(torch._int_mm(rows, rows.T.contiguous()), rows.int() @ rows.int().T)
