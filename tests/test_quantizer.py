import numpy as np
import pytest
import torch

from audiocodec.paths import Paths
from audiocodec.quantizer import ResidualQuantizer, beams, nearest


def _quantizer(books):
    books = torch.tensor(books)
    quantizer = ResidualQuantizer(*books.shape)
    quantizer.codebooks.copy_(books)
    return quantizer


def test_each_stage_takes_what_the_last_left():
    quantizer = _quantizer([[[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]]])
    latents = torch.tensor([[[4.9, 0.1], [0.2, 2.9]]])        # (1, D, T): the frames (4.9, 0.2) and (0.1, 2.9)
    codes = quantizer.encode(latents, 2)
    assert codes.tolist() == [[[1, 2], [1, 2]]]
    assert quantizer.decode(codes).tolist() == [[[5.0, 0.0], [0.0, 3.0]]]


def _random_quantizer():
    generator = torch.Generator().manual_seed(0)
    books = torch.randn(6, 32, 8, generator=generator) * 0.7 ** torch.arange(6)[:, None, None]
    books[:, 0] = 0
    return _quantizer(books.tolist()), torch.randn(2, 8, 50, generator=generator)


def _error(quantizer, latents, codes):
    return float((latents - quantizer.decode(codes)).square().mean())


def test_the_search_beats_taking_the_nearest_entry_of_each_book_in_turn():
    quantizer, latents = _random_quantizer()
    residual, greedy = latents.transpose(1, 2), []
    for book in quantizer.codebooks:
        greedy.append(nearest(residual, book))
        residual = residual - book[greedy[-1]]
    assert _error(quantizer, latents, quantizer.encode(latents, 6)) < 0.6 * float(residual.square().mean())
    assert torch.equal(quantizer.encode(latents, 1)[:, 0], greedy[0])


def test_two_books_of_few_entries_are_searched_to_the_end():
    quantizer, latents = _random_quantizer()
    quantizer.codebooks = quantizer.codebooks[:2, :4]         # no more entries than the beam is wide
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T[None]              # (1, 2, 16)
    distances = (latents[..., None] - quantizer.decode(every)[0][:, None]).square().sum(1)
    best = every[0][:, distances.argmin(-1)].transpose(0, 1)
    assert torch.equal(quantizer.encode(latents, 2), best)


def test_the_first_books_are_good_codes_themselves_and_more_never_hurt():
    quantizer, latents = _random_quantizer()
    codes = quantizer.encode(latents, 6)
    errors = [_error(quantizer, latents, codes[:, :count]) for count in range(1, 7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 1.5 * _error(quantizer, latents, quantizer.encode(latents, 4))


def test_codes_do_not_depend_on_what_is_searched_together():
    quantizer, latents = _random_quantizer()
    latents = latents.repeat(1, 1, 9).double()
    codes = quantizer.double().encode(latents, 6)
    assert torch.equal(codes, torch.cat([quantizer.encode(latents[:, :, t:t + 1], 6) for t in range(450)], 2))


def test_codes_do_not_depend_on_what_is_searched_together_where_entries_are_dead():
    books = torch.randn(8, 64, 8, generator=torch.Generator().manual_seed(1)) * 0.8 ** torch.arange(8)[:, None, None]
    books[:, ::3] = 0
    quantizer = _quantizer(books.tolist()).double().freeze()
    latents = torch.randn(1, 8, 300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    codes = quantizer.encode(latents, 8)
    assert torch.equal(codes, torch.cat([quantizer.encode(part, 8) for part in latents.split(3, 2)], 2))
    assert not (codes[codes % 3 == 0]).any()                  # of equal entries the first


def test_beams_narrow_after_the_books_that_are_likely_to_be_used():
    assert beams(20, 10) == [4] * 10 + [2] * 7 + [1] * 3
    assert beams(3, 3, 16) == [16] * 3
    quantizer, latents = _random_quantizer()
    latents = latents.repeat(1, 1, 9).double()
    quantizer, errors = quantizer.double(), []
    for likely, most in ((1, 4), (3, 4), (6, 4), (6, 16)):
        paths = Paths(beams(6, likely, most))
        codes = paths.plain(quantizer.follow(latents, paths), np.full((2, 1), 6)).astype(int)
        errors.append(_error(quantizer, latents, torch.from_numpy(codes)))
        if most == 4 and likely == 6:
            assert np.array_equal(codes, quantizer.encode(latents, 6))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] == _error(quantizer, latents, quantizer.encode(latents, 6, 16))


@pytest.mark.parametrize("frames", [1, 450])                # few frames have a search of their own
def test_paths_have_the_codes_of_the_nearest_sum_of_any_number_of_entries_and_what_it_leaves(frames):
    quantizer, latents = _random_quantizer()
    latents, quantizer = latents.repeat(1, 1, 9)[:, :, :frames].double(), quantizer.double()
    paths = Paths([4] * 6)
    rows = quantizer.follow(latents, paths)
    assert rows.shape == (2, paths.num_rows, frames) and rows.dtype == np.uint16
    rest = (latents - quantizer.decode(quantizer.encode(latents, 6))).square().sum(1).numpy()
    norms = np.sqrt(paths.norms(rows) ** 2 + 0.7 * rest[:, None])
    assert norms[:, 0] == pytest.approx(latents.norm(dim=1).numpy(), rel=2e-3)
    for depth in range(1, 7):
        codes = paths.plain(rows, np.full((2, 1), depth))
        assert not codes[:, depth:].any()
        codes = torch.from_numpy(codes[:, :depth].astype(int))
        assert torch.equal(codes, quantizer.encode(latents, depth))     # a search for so many would end there
        assert norms[:, depth] == pytest.approx((latents - quantizer.decode(codes)).norm(dim=1).numpy(), rel=2e-3)
    assert not paths.plain(rows, np.zeros((2, frames), int)).any()


def test_each_frame_has_codes_of_its_own_depth_and_rows_go_on():
    quantizer, latents = _random_quantizer()
    paths = Paths([4] * 6)
    rows = quantizer.follow(latents, paths)
    rows = np.concatenate([rows, np.arange(2 * 3 * 50, dtype=np.uint16).reshape(2, 3, 50)], 1)
    depths = np.random.default_rng(0).integers(0, 7, (2, 50))
    plain = paths.plain(rows, depths)
    for depth in range(7):
        whole = paths.plain(rows, np.full((2, 1), depth))
        assert np.array_equal(plain.swapaxes(1, 2)[depths == depth], whole.swapaxes(1, 2)[depths == depth])
    assert np.array_equal(plain[:, 6:], rows[:, paths.num_rows:])


@pytest.mark.parametrize("threads", [1, 2])
def test_codes_do_not_depend_on_preparation_or_threads(threads):
    quantizer, latents = _random_quantizer()
    quantizer, latents = quantizer.double(), latents.repeat(1, 1, 9).double()
    codes, before = quantizer.encode(latents, 6), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(quantizer.freeze().encode(latents, 6), codes)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_latents_do_not_depend_on_how_many_frames_are_decoded_together():
    quantizer, latents = _random_quantizer()
    codes = quantizer.encode(latents, 6)
    whole = quantizer.decode(codes)
    assert torch.equal(torch.cat([quantizer.freeze().decode(part) for part in codes.split(5, 2)], 2), whole)


def test_silence_takes_entry_zero_of_every_book():
    books = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(2))
    books[:, 0] = 0
    assert not _quantizer(books.tolist()).encode(torch.zeros(1, 8, 3), 4).any()


def test_coarse_books_leave_the_other_latents_alone():
    books = torch.randn(4, 64, 6, generator=torch.Generator().manual_seed(0)) / torch.arange(1, 5)[:, None, None]
    books[:, 0] = 0
    books[:2, :, 3:] = 0
    latents = torch.randn(2, 6, 9, dtype=torch.float64)
    coarse = ResidualQuantizer(4, 64, 6, [3, 3, 6, 6])
    coarse.codebooks.copy_(books)
    whole = _quantizer(books.tolist())
    codes = whole.encode(latents, 4)
    assert (coarse.encode(latents, 4) == codes).all() and torch.equal(coarse.decode(codes), whole.decode(codes))
    changed = latents.clone()
    changed[:, 3:] = 0
    assert (coarse.encode(latents, 2) == coarse.encode(changed, 2)).all()
