import torch

from audiocodec.quantizer import ResidualQuantizer


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


def test_fewer_books_are_a_prefix_and_more_never_hurt():
    generator = torch.Generator().manual_seed(0)
    books = torch.randn(6, 32, 8, generator=generator) * 0.7 ** torch.arange(6)[:, None, None]
    books[:, 0] = 0
    quantizer = _quantizer(books.tolist())
    latents = torch.randn(2, 8, 50, generator=generator)
    all_codes = quantizer.encode(latents, 6)
    errors = []
    for count in range(1, 7):
        codes = quantizer.encode(latents, count)
        assert torch.equal(codes, all_codes[:, :count])
        errors.append((latents - quantizer.decode(codes)).square().sum(1))
    assert all((later <= earlier + 1e-6).all() for earlier, later in zip(errors, errors[1:]))


def test_silence_takes_entry_zero_of_every_book():
    books = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(2))
    books[:, 0] = 0
    assert not _quantizer(books.tolist()).encode(torch.zeros(1, 8, 3), 4).any()
