"""depths.py: what frames use at a price."""
import numpy as np
import pytest
import torch

from audiocodec.depths import MAX_DEPTH, choose_depths, norms_left


@pytest.fixture
def norms():
    """What is left of frames (2, 33, 50) by ever smaller steps, as by good books."""
    shares = torch.rand(2, 1, 50, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.6
    return 5 * shares ** torch.arange(33)[:, None]


def test_a_hand_worked_example():
    left = torch.tensor([[[8.0, 3.0], [4.0, 3.0], [3.0, 3.0], [2.5, 0.5]]])     # two frames after 0, 1, 2, 3 books
    for price, wanted in ((5, [1, 1]), (1.2, [1, 3]), (0.7, [2, 3]), (0.4, [3, 3]), (1.3, [1, 1])):
        assert choose_depths(left, price, 1).tolist() == [wanted]
    assert choose_depths(left, 5, 0).tolist() == [[0, 0]]


def test_prices_from_nothing_to_everything(norms):
    assert (choose_depths(norms, 1e3, 1) == 1).all() and (choose_depths(norms, 1e3, 0) == 0).all()
    assert (choose_depths(norms, 1e-9, 1) == MAX_DEPTH).all()
    depths = [choose_depths(norms, price, 1) for price in np.geomspace(1e-4, 10, 30)]
    assert all((dear <= cheap).all() for cheap, dear in zip(depths, depths[1:]))
    assert len({int(part.sum()) for part in depths}) > 15


def test_each_item_may_have_its_price(norms):
    both = choose_depths(norms, torch.tensor([0.05, 0.8])[:, None, None], 1)
    assert torch.equal(both[0], choose_depths(norms[:1], 0.05, 1)[0])
    assert torch.equal(both[1], choose_depths(norms[1:], 0.8, 1)[0])


def test_silence_uses_the_least():
    assert not choose_depths(torch.zeros(1, 9, 4), 1e-3, 0).any()
    assert (choose_depths(torch.zeros(1, 9, 4), 1e-3, 1) == 1).all()


@pytest.mark.parametrize("books", [1, 2, 8])
def test_norms_left_against_a_plain_computation(books):
    rng = np.random.default_rng(0)
    codebooks = rng.normal(0, 1, (9, 16, 5)).astype(np.float32)
    codes = rng.integers(0, 16, (2, books, 7)).astype(np.uint16)
    codebooks[:2, :, 4:] = codebooks[0, :, 2:] = 0
    found = norms_left(codes, [codebooks[0, :, :2], codebooks[1, :, :4], *codebooks[2:]])
    assert found.shape == (2, books + 1, 7) and found.dtype == np.float32
    for channel in range(2):
        for t in range(7):
            parts = [codebooks[k, codes[channel, k, t]].astype(float) for k in range(books)]
            energy = [np.square(sum(parts[n:], np.zeros(5))).sum() for n in range(books + 1)]
            wanted = np.sqrt(np.array(energy) + 0.5 * energy[books * 3 // 4])
            assert found[channel, :, t] == pytest.approx(wanted, rel=1e-5)
