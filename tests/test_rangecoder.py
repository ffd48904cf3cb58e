"""Both coders: what goes in comes out, and damage ends in FormatError or in codes that are in range."""
import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocodec.entropy import BOOK_SIZE, EntropyConfig, EntropyModel
from audiocodec.errors import FormatError
from audiocodec.rangecoder import PackedCoder, RangeCoder
from test_entropy import random_tensors

CONFIG = EntropyConfig(num_books=32, detailed_books=5, context_books=3, layers=1, width=16, heads=2,
                       feed_forward=16, window=8, head_width=8, head_hidden=8)
MODEL = EntropyModel(CONFIG, random_tensors(CONFIG))
PACKED, RANGE = PackedCoder(), RangeCoder(MODEL)
SHAPES = st.lists(st.tuples(st.integers(0, 32), st.integers(0, 12)), min_size=1, max_size=20)


def random_codes(shapes, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, BOOK_SIZE, shape) for shape in shapes]


@pytest.mark.parametrize("coder", [PACKED, RANGE], ids=["packed", "range"])
@settings(max_examples=25, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_codes_come_back(coder, shapes, seed):
    codes = random_codes(shapes, seed)
    found = coder.decode(coder.encode(codes), shapes)
    for before, after in zip(codes, found, strict=True):
        assert after.dtype == np.int64 and np.array_equal(before, after)


@pytest.mark.parametrize("coder", [PACKED, RANGE], ids=["packed", "range"])
def test_the_largest_segment_comes_back(coder):
    codes = random_codes([(32, 512), (3, 512)], 0)
    for before, after in zip(codes, coder.decode(coder.encode(codes), [(32, 512), (3, 512)])):
        assert (before == after).all()


@pytest.mark.parametrize("coder", [PACKED, RANGE], ids=["packed", "range"])
def test_payloads_do_not_depend_on_what_is_coded_beside_them(coder):
    codes = random_codes([(4, 9), (32, 3), (1, 12), (4, 9)], 5)
    alone = [coder.encode([sequence])[0] for sequence in codes]
    assert coder.encode(codes) == alone
    found = [coder.decode([payload], [sequence.shape])[0] for payload, sequence in zip(alone, codes)]
    assert all((before == after).all() for before, after in zip(codes, found))


def test_packed_layout_of_a_hand_worked_example():
    codes = np.array([[1, 1023], [512, 2]])      # first 0000000001 1000000000, then 1111111111 0000000010
    assert PACKED.encode([codes]) == [bytes([0b00000000, 0b01100000, 0b00001111, 0b11111100, 0b00000010])]
    assert PACKED.encode([np.array([[1023]])]) == [bytes([0b11111111, 0b11000000])]
    assert PACKED.encode([np.zeros((8, 0), int)]) == [b""]


def test_a_range_payload_is_as_short_as_the_tables_allow():
    codes = random_codes([(8, 40)] * 6 + [(2, 1)] * 6, 3)
    for payload, sequence in zip(RANGE.encode(codes), codes):
        assert len(payload) < MODEL.cost(sequence[None]).sum() / 8 + 1.01
        assert not payload.endswith(b"\0")


def test_constriction_takes_counts_as_they_are():
    """Frequencies are counts plus one each: of 2**24 parts the first six decode to the first symbol here."""
    counts = np.float64([[5, 2**24 - 2 - 5]])
    tables = constriction.stream.model.Categorical(perfect=False)
    decoders = [constriction.stream.queue.RangeDecoder(np.array([part << 8], np.uint32)) for part in (5, 6)]
    assert [decoder.decode(tables, counts)[0] for decoder in decoders] == [0, 1]


def test_packed_payloads_of_another_length_are_refused():
    payload, = PACKED.encode([np.full((3, 5), 7)])
    for wrong in (payload[:-1], payload + b"\0", b"", payload[:-1] + bytes([payload[-1] | 1])):
        with pytest.raises(FormatError):
            PACKED.decode([wrong], [(3, 5)])


@settings(max_examples=60, deadline=None)
@given(payload=st.binary(max_size=80), books=st.integers(1, 32), frames=st.integers(0, 6))
def test_any_bytes_decode_to_codes_in_range_or_are_refused(payload, books, frames):
    for coder in (PACKED, RANGE):
        try:
            codes, = coder.decode([payload], [(books, frames)])
        except FormatError:
            continue
        assert codes.shape == (books, frames)
        assert codes.size == 0 or 0 <= codes.min() and codes.max() < BOOK_SIZE


def test_shapes_beyond_the_model_are_refused():
    for shape in [(33, 4), (4, 513)]:
        with pytest.raises(FormatError, match="codebooks"):
            RANGE.decode([b""], [shape])
