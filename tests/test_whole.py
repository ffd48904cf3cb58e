"""Products of whole numbers: what they come near to, and that every way to them gives the same."""
import numpy as np
import pytest
import torch
from torch import nn

from audiocodec import whole
from audiocodec.whole import WholeLinear, byte_product, byte_product_of_few, counted, prepared

WIDE = torch.float32, torch.float64


@pytest.fixture(params=[True, False], ids=["bytes", "wide"])
def multiplies_bytes(request, monkeypatch):
    """Both ways to the same sums, the first only where the CPU has it."""
    if request.param and not whole._multiplies_bytes("cpu"):
        pytest.skip("this CPU does not multiply bytes")
    monkeypatch.setattr(whole, "_multiplies_bytes", lambda device: request.param)


def _layer(inputs, outputs, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs).to(dtype).requires_grad_(False)
    numbers, steps = counted(layer.weight)
    layer.weight.copy_(numbers * steps[:, None])       # as weights files have them
    return layer


@pytest.mark.parametrize("dtype", WIDE)
def test_a_whole_layer_is_near_the_layer(dtype, multiplies_bytes):
    layer = _layer(96, 40, dtype)
    x = torch.randn(5, 7, 96, dtype=dtype) * torch.logspace(-6, 3, 7, dtype=dtype)[:, None]
    expected, found = layer(x), WholeLinear(layer)(x)
    assert found.shape == expected.shape and found.dtype == dtype
    size = (expected - layer.bias).abs().amax(-1, keepdim=True)
    assert ((found - expected).abs() < 3e-4 * size + 1e-6).all()


@pytest.mark.parametrize("dtype", WIDE)
def test_all_ways_give_the_same(dtype, monkeypatch):
    layer = _layer(1152, 24, dtype)
    x = torch.randn(3, 4, 1152, dtype=dtype)
    x[0, 0] = 0
    x[1] = x[1].sign() * 2                             # the largest sums
    usual = WholeLinear(layer)
    monkeypatch.setattr(whole, "_multiplies_bytes", lambda device: False)
    wide = WholeLinear(layer)
    assert torch.equal(usual(x), wide(x))
    for one in (usual, wide):
        np.testing.assert_array_equal(one.few(x.numpy()), usual(x).numpy())


def test_the_largest_sum_fits(multiplies_bytes):
    layer = nn.Linear(1152, 1, dtype=torch.float64).requires_grad_(False)
    layer.weight.fill_(0.5)
    layer.bias.fill_(0)
    x = torch.full((1, 1, 1152), -3, dtype=torch.float64)
    assert WholeLinear(layer)(x).item() == pytest.approx(-1152 * 1.5, rel=1e-9)
    assert WholeLinear(layer).few(x.numpy()).item() == pytest.approx(-1152 * 1.5, rel=1e-9)


def test_bytes_are_multiplied_exactly(multiplies_bytes):
    random = torch.Generator().manual_seed(0)
    rows, numbers = (torch.randint(-127, 128, shape, generator=random, dtype=torch.int8)
                     for shape in ((9, 128), (128, 33)))
    rows[0], rows[1], numbers[:, 0] = 127, -127, 127
    expected = rows.long() @ numbers.long()
    factor = prepared(numbers, torch.float32)
    assert torch.equal(byte_product(rows.double(), factor).long(), expected)
    np.testing.assert_array_equal(byte_product_of_few(rows.double().numpy(), factor), expected.numpy())


def test_rows_are_counted_in_steps_of_their_own():
    numbers, steps = counted(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
    assert numbers.tolist() == [[64, -127, 32], [0, 0, 0]]
    torch.testing.assert_close(steps[0], torch.tensor(2 / 127))
