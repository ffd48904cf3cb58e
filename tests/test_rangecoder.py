"""Both coders: what goes in comes out, and damage ends in FormatError or in codes that are in range."""
import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocodec.entropy import BOOK_SIZE, EntropyConfig, EntropyModel
from audiocodec.errors import FormatError
from audiocodec.levels import NUM_SYMBOLS, LevelModel, num_contexts
from audiocodec.rangecoder import Frames, PackedCoder, RangeCoder, Shape
from test_entropy import random_tensors

CONFIG = EntropyConfig(num_books=32, detailed_books=5, context_books=3, layers=1, width=16, heads=2,
                       feed_forward=16, window=8, head_width=8, head_hidden=8, turns=(1, 1, 2, 4))
MODEL = EntropyModel(CONFIG, random_tensors(CONFIG))
PACKED, RANGE = PackedCoder(), RangeCoder(MODEL)
SHAPES = st.lists(st.builds(Shape, st.integers(0, 31), st.integers(0, 12), st.booleans()), min_size=1, max_size=20)


def random_frames(shapes, seed=0):
    """Random codes; where depths are told, random ones of those as well."""
    rng = np.random.default_rng(seed)
    found = []
    for books, frames, is_told in shapes:
        depths = rng.integers(0, books + 1, frames) if is_told else np.full(frames, books)
        codes = rng.integers(0, BOOK_SIZE, (books, frames)) * (np.arange(books)[:, None] < depths)
        found.append(Frames(codes, depths, is_told))
    return found


def assert_same(before, after):
    assert after.codes.dtype == np.int64
    assert np.array_equal(before.codes, after.codes) and np.array_equal(before.depths, after.depths)
    assert before.is_told == after.is_told


@pytest.mark.parametrize("coder", [PACKED, RANGE], ids=["packed", "range"])
@settings(max_examples=25, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_codes_come_back(coder, shapes, seed):
    sequences = random_frames(shapes, seed)
    found = coder.decode(coder.encode(sequences), shapes)
    for before, after in zip(sequences, found, strict=True):
        assert_same(before, after)


@pytest.mark.parametrize("coder", [PACKED, RANGE], ids=["packed", "range"])
def test_the_largest_segment_comes_back(coder):
    shapes = [Shape(32, 512), Shape(3, 512), Shape(31, 512, True)]
    sequences = random_frames(shapes)
    for before, after in zip(sequences, coder.decode(coder.encode(sequences), shapes), strict=True):
        assert_same(before, after)


@pytest.mark.parametrize("coder", [PACKED, RANGE], ids=["packed", "range"])
def test_payloads_do_not_depend_on_what_is_coded_beside_them(coder):
    shapes = [Shape(4, 9), Shape(32, 3), Shape(1, 12, True), Shape(4, 9), Shape(9, 2, True)]
    sequences = random_frames(shapes, 5)
    alone = [coder.encode([sequence])[0] for sequence in sequences]
    assert coder.encode(sequences) == alone
    for before, payload, shape in zip(sequences, alone, shapes):
        assert_same(before, coder.decode([payload], [shape])[0])


def test_packed_layout_of_a_hand_worked_example():
    codes = np.array([[1, 1023], [512, 2]])      # first 0000000001 1000000000, then 1111111111 0000000010
    assert PACKED.encode([Frames.whole(codes)]) == [bytes([0b00000000, 0b01100000, 0b00001111, 0b11111100, 0b00000010])]
    assert PACKED.encode([Frames.whole(np.array([[1023]]))]) == [bytes([0b11111111, 0b11000000])]
    assert PACKED.encode([Frames.whole(np.zeros((8, 0), int))]) == [b""]
    told = Frames(np.array([[1, 0], [0, 0]]), np.array([1, 0]), True)        # 00001 0000000001, then 00000
    assert PACKED.encode([told]) == [bytes([0b00001000, 0b00000010, 0b00000000])]


def test_a_range_payload_is_as_short_as_the_tables_allow():
    sequences = random_frames([Shape(8, 40)] * 6 + [Shape(5, 1)] * 6, 3)
    for payload, sequence in zip(RANGE.encode(sequences), sequences):
        assert len(payload) < MODEL.cost(sequence.codes[None]).sum() / 8 + 1.01
        assert not payload.endswith(b"\0")


def test_constriction_takes_counts_as_they_are():
    """Frequencies are counts plus one each: of 2**24 parts the first six decode to the first symbol here."""
    counts = np.float64([[5, 2**24 - 2 - 5]])
    tables = constriction.stream.model.Categorical(perfect=False)
    decoders = [constriction.stream.queue.RangeDecoder(np.array([part << 8], np.uint32)) for part in (5, 6)]
    assert [decoder.decode(tables, counts)[0] for decoder in decoders] == [0, 1]


def test_packed_payloads_of_another_length_are_refused():
    for shape in (Shape(3, 5), Shape(3, 5, True)):
        payload, = PACKED.encode([Frames(np.full((3, 5), 7), np.full(5, 3), shape.is_told)])
        for wrong in (payload[:-1], payload + b"\0", b"", payload[:-1] + bytes([payload[-1] | 1])):
            with pytest.raises(FormatError):
                PACKED.decode([wrong], [shape])


@settings(max_examples=60, deadline=None)
@given(payload=st.binary(max_size=80), books=st.integers(1, 32), frames=st.integers(0, 6), is_told=st.booleans())
def test_any_bytes_decode_to_codes_in_range_or_are_refused(payload, books, frames, is_told):
    for coder in (PACKED, RANGE):
        try:
            found, = coder.decode([payload], [Shape(books, frames, is_told)])
        except FormatError:
            continue
        assert found.codes.shape == (books, frames) and found.depths.shape == (frames,)
        assert found.codes.size == 0 or 0 <= found.codes.min() and found.codes.max() < BOOK_SIZE
        assert (found.depths <= books).all()


def test_shapes_beyond_the_model_are_refused():
    for shape in [Shape(33, 4), Shape(4, 513)]:
        with pytest.raises(FormatError, match="codebooks"):
            RANGE.decode([b""], [shape])


LEVELS = LevelModel(2, np.random.default_rng(0).integers(1, 99, (num_contexts(2), NUM_SYMBOLS)))


@pytest.mark.parametrize("coder, plainly", [(PackedCoder(2, 4), PACKED), (RangeCoder(MODEL, LEVELS, 4), RANGE)])
def test_levels_go_before_codes(coder, plainly):
    shapes = [Shape(4, 9), Shape(3, 1, True), Shape(9, 12, True)]
    rng = np.random.default_rng(1)
    sequences = [frames._replace(levels=rng.integers(0, 40, (2, -(-frames.codes.shape[1] // 4))))
                 for frames in random_frames(shapes, 7)]
    plain, made = plainly.encode(random_frames(shapes, 7)), coder.encode(sequences)
    for before, after in zip(sequences, coder.decode(made, shapes), strict=True):
        assert_same(before, after)
        assert np.array_equal(before.levels, after.levels)
    assert all(len(told) > len(untold) for told, untold in zip(made, plain))
    with pytest.raises(FormatError, match="damaged payload|packed"):
        for seed in range(200):
            coder.decode([np.random.default_rng(seed).bytes(40)], [Shape(9, 12, True)])
