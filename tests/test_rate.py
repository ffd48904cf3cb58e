import numpy as np

from audiocodec import rate


def test_one_channel_climbs_book_by_book():
    assert rate.ladder(np.array([[5.0, 3.0, 1.0]])) == [(1,), (2,), (3,)]


def test_books_go_where_more_is_left():
    gains = np.array([[8.0, 4.0, 2.0], [6.0, 1.0, 0.0]])
    # left: mid 6, side 7; mid 6, side 1; mid 2, side 1; mid is full, side 1; nothing
    assert rate.ladder(gains) == [(1, 0), (1, 1), (2, 1), (3, 1), (3, 2)]


def test_a_silent_side_gets_none():
    assert rate.ladder(np.array([[1.0, 0.5], [0.0, 0.0]])) == [(1, 0), (2, 0)]


def test_silence_gets_one_book():
    assert rate.ladder(np.zeros((2, 4))) == [(1, 0)]


def _largest(true_sizes, estimates, budget):
    rungs = [(count,) for count in range(1, len(true_sizes) + 1)]
    bits = np.diff(np.array([0, *estimates]))[None] * 8.0
    rung, data = rate.largest(lambda rung: bytes(true_sizes[rung[0] - 1]), rungs, bits, 0, budget)
    assert len(data) == true_sizes[rung[0] - 1]
    return rung[0]


def test_the_largest_file_within_the_budget_is_found():
    true = [10, 20, 30, 40, 50]
    for estimates in (true, [11, 22, 33, 44, 55], [9, 19, 28, 38, 47]):
        for budget, count in ((10, 1), (29, 2), (30, 3), (49.9, 4), (1000, 5)):
            assert _largest(true, estimates, budget) == count


def test_the_lowest_rung_is_the_last_resort():
    assert _largest([10, 20], [10, 20], 5) == 1
