"""Levels of bands: what goes in comes out, and tables that fit save bits."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocodec import levels
from audiocodec.errors import FormatError, ModelError
from audiocodec.levels import LevelModel
from audiocodec.model import NUM_LEVELS
from audiocodec.rangecoder import BY_COUNTS, RangeDecoder, RangeEncoder, shortest, words

BANDS = 3


def random_tables(seed=0):
    shape = levels.num_contexts(BANDS), levels.NUM_SYMBOLS
    return np.random.default_rng(seed).integers(1, 2000, shape).astype(np.uint16)


def walk(seed, num_groups):
    """Levels (L, P) that wander, all bands nearly alike."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(-1, 2, num_groups) + rng.integers(-1, 2, (BANDS, num_groups)) * rng.integers(0, 2, num_groups)
    return np.clip(20 + np.cumsum(steps, 1), 0, NUM_LEVELS - 1)


def encoded(model, told, frames=2):
    encoder = RangeEncoder()
    counts, symbols = model.tables(told, frames)
    encoder.encode(symbols, BY_COUNTS, counts)
    return shortest(encoder)


def decoded(model, payload, num_groups, frames=2):
    decoder = RangeDecoder(words(payload))
    return model.decode(1, num_groups, frames, lambda counts: decoder.decode(BY_COUNTS, counts[0])[None])[0]


@settings(max_examples=40, deadline=None)
@given(num_groups=st.integers(1, 256), frames=st.sampled_from([2, 4]), seed=st.integers(0, 99))
def test_levels_come_back(num_groups, frames, seed):
    model, rng = LevelModel(BANDS, random_tables()), np.random.default_rng(seed)
    for told in (rng.integers(0, NUM_LEVELS, (BANDS, num_groups)), walk(seed, num_groups)):
        payload = encoded(model, told, frames)
        assert np.array_equal(decoded(model, payload, num_groups, frames), told)
        assert abs(len(payload) - model.bits(told, frames) / 8) < 5


@pytest.mark.parametrize("num_groups", [1, 2, 37])
def test_sequences_are_decoded_side_by_side(num_groups):
    model = LevelModel(BANDS, random_tables())
    told = [walk(seed, num_groups) for seed in range(4)]
    decoders = [RangeDecoder(words(encoded(model, levels_of_one))) for levels_of_one in told]

    def take(counts):
        return np.stack([decoder.decode(BY_COUNTS, of_one) for decoder, of_one in zip(decoders, counts)])

    assert np.array_equal(model.decode(4, num_groups, 2, take), told)


def test_each_level_but_the_first_lies_between_two_that_are_known():
    known = {0}
    for _, places, left, right in levels._steps(11):
        assert all(at in known for at in left) and all(at in known or at == -1 for at in right)
        assert not known & set(places)
        known |= set(places.tolist())
    assert known == set(range(11))


def test_tables_that_were_counted_save_bits():
    counts = np.zeros((levels.num_contexts(BANDS), levels.NUM_SYMBOLS))
    for seed in range(60):
        np.add.at(counts, levels.coded(walk(seed, 256), 4), 1)
    counted, untaught = (LevelModel(BANDS, levels.to_tables(c)) for c in (counts, np.zeros_like(counts)))
    told = walk(1000, 256)
    assert counted.bits(told, 4) < 0.9 * untaught.bits(told, 4) < 0.9 * 5.33 * told.size       # log2(40) each
    assert untaught.bits(np.full_like(told, 17), 4) < untaught.bits(told, 4)


def test_tables_that_do_not_fit():
    tables = random_tables()
    for wrong in (tables[1:], tables[:, 1:], tables * 0):
        with pytest.raises(ModelError, match="tables of levels"):
            LevelModel(BANDS, wrong)


def test_a_level_that_does_not_exist():
    model = LevelModel(BANDS, random_tables())
    told = np.full((BANDS, 4), NUM_LEVELS - 1)
    told[1, 2] += 3
    with pytest.raises(FormatError, match="a level that does not exist"):
        decoded(model, encoded(model, told), 4)


@settings(max_examples=60, deadline=None)
@given(payload=st.binary(max_size=80), num_groups=st.integers(1, 40))
def test_damage_ends_in_levels_or_an_error(payload, num_groups):
    model = LevelModel(BANDS, random_tables())
    try:
        found = decoded(model, payload, num_groups)
    except (FormatError, AssertionError):       # of constriction, which rangecoder.py takes for damage
        return
    assert found.shape == (BANDS, num_groups) and 0 <= found.min() <= found.max() < NUM_LEVELS
