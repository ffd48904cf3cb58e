"""pricing.py: the price at which what is coded stays within a budget, and near it."""
import numpy as np
import pytest
import torch

from audiocodec.depths import choose_depths
from audiocodec.paths import Codes
from audiocodec.pricing import Pricing, limits

BOOKS = 12


@pytest.fixture(scope="module")
def codebooks():
    rng = np.random.default_rng(1)
    books = rng.normal(0, 1, (BOOKS, 32, 8)) * 0.75 ** np.arange(BOOKS)[:, None, None]
    books[:, 0] = 0
    return books.astype(np.float32)


@pytest.fixture(scope="module")
def segments():
    """Six segments of mid and a side of which half is silent; the fourth is silent in both."""
    rng = np.random.default_rng(2)
    codes = [rng.integers(0, 32, (2, BOOKS, 40)).astype(np.uint16) for _ in range(6)]
    for part in codes:
        part[1, :, :20] = 0
    codes[3][:] = 0
    return codes


@pytest.fixture
def pricing(codebooks, segments):
    return Pricing(Codes(codebooks), segments)


class Coder:
    """Codes segments by a formula that the first guess does not know."""

    def __init__(self, pricing, segments, bits_per_code=9.1, fixed=50):
        self.pricing, self.segments, self.bits_per_code, self.fixed = pricing, segments, bits_per_code, fixed
        self.calls = 0

    def __call__(self, price):
        self.calls += 1
        depths = [self.pricing.depths(codes, price) for codes in self.segments]
        bits = self.bits_per_code * sum(part.sum() for part in depths) + 2 * sum(part.size for part in depths)
        return depths, self.fixed + int(bits / 8), bits


def test_mid_has_a_book_and_the_side_may_have_none(pricing, segments):
    for price in (1e-3, 0.5, 1e3):
        silent = pricing.depths(segments[3], price)
        assert (silent[0] == 1).all() and not silent[1].any()
        loud = pricing.depths(segments[0], price)
        assert loud.shape == (2, 40) and loud[0].min() >= 1 and not loud[1, :20].any()
    assert (pricing.depths(segments[0], 1e3) == [[1], [0]]).all()
    assert (pricing.depths(segments[0], 1e-3)[0] == BOOKS).all()


def test_bits_of_a_range_add_up_and_follow_what_was_learnt(pricing):
    assert pricing.bits(0.3, 0) == pytest.approx(pricing.bits(0.3, 0, 2) + pricing.bits(0.3, 2))
    pricing.learn(0.3, 0, 2, 5000.0)
    assert pricing.bits(0.3, 0, 2) == pytest.approx(5000)


def test_find(pricing):
    for first in (0, 4):
        cheapest, dearest = pricing.bits(1e-3, first), pricing.bits(1e3, first)
        for share in (0.1, 0.4, 0.8):
            budget = dearest + share * (cheapest - dearest)
            price = pricing.find(first, budget)
            assert 0.95 * budget < pricing.bits(price, first) <= budget
            assert pricing.bits(price / 1.05, first) > budget
    assert pricing.find(0, 0) == pricing.find(0, -5) == 1e3
    assert pricing.find(0, 1e9) < 2e-3


@pytest.mark.parametrize("bits_per_code", [3, 9.1, 12])
@pytest.mark.parametrize("budget", [900, 1500, 2500])
def test_fit_is_within_the_budget_and_near_it(pricing, segments, bits_per_code, budget):
    code = Coder(pricing, segments, bits_per_code)
    depths, price = pricing.fit(code, 0, budget, 40)
    assert code.calls <= 5
    found, size, _ = code(price)
    assert all(map(np.array_equal, depths, found))
    assert size <= budget and (size > 0.98 * budget or price < 2e-3)


def test_fit_of_what_never_fits_gives_the_least(pricing, segments):
    code = Coder(pricing, segments)
    depths, price = pricing.fit(code, 0, 20, 40)
    assert price == 1e3 and code.calls < 10
    assert all((part == [[1], [0]]).all() for part in depths)


def test_many_frames_are_judged_by_some(codebooks):
    codes = np.random.default_rng(3).integers(0, 32, (1, BOOKS, 2000)).astype(np.uint16)
    few, many = Pricing(Codes(codebooks), [codes]), Pricing(Codes(codebooks), [codes] * 50)
    assert many.bits(0.3, 0) == pytest.approx(50 * few.bits(0.3, 0), rel=0.05)


def test_limits_are_where_depths_change():
    norms = np.abs(np.random.default_rng(4).normal(0, 1, (2, BOOKS + 1, 300)).cumsum(1)[:, ::-1]).astype(np.float32)
    found = limits(norms)
    for price in (0.01, 0.2, 0.7, 3):
        chosen = choose_depths(torch.from_numpy(norms), price, 0).numpy()
        assert 0 < chosen.mean() < BOOKS
        assert np.array_equal((found > price).sum(1), chosen)
