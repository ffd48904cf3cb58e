"""seek.py, and excerpts against the whole decode."""
import io
from fractions import Fraction

import numpy as np
import pytest
import soundfile

from audiocodec import audio, codec, container, decoding, seek
from audiocodec.errors import NacError
from audiocodec.rangecoder import Shape


@pytest.mark.parametrize("text, seconds", [
    ("0", 0), ("75.5", 75.5), (".5", 0.5), ("90", 90), ("1:15.5", 75.5), ("100:00", 6000), ("1:02:03.25", 3723.25)])
def test_times(text, seconds):
    assert seek.parse_time(text) == Fraction(seconds)


@pytest.mark.parametrize("text", ["", "x", "-1", "1:60", "1:60:00", "1:2:3:4", "1e3", ".", "1:", ":1", "inf", "\u0661"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="no time"):
        seek.parse_time(text)


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A path maker: 30 s of noise at a rate, in twelve segments, and its whole decode."""
    folder = tmp_path_factory.mktemp("coded")

    def make(rate: int):
        path = folder / f"{rate}.nac"
        if not path.exists():
            samples = np.random.default_rng(rate).normal(0, 0.1, (1 + rate % 2, 30 * rate)).astype(np.float32)
            path.write_bytes(codec.encode(samples, rate, None, codebooks=2, entropy=False))
            codec.decode_file(path, path.with_suffix(".wav"), subtype="FLOAT")
        return path, soundfile.read(path.with_suffix(".wav"), dtype="float32", always_2d=True)[0]

    return make


@pytest.mark.parametrize("rate", [24000, 44100, 8000, 47999])
@pytest.mark.parametrize("start, end", [(0, 1), (7.6, 7.7), (12.8, 12.8001), (20.01, None), (29.9, 40), (3.3, 27)])
def test_excerpts_are_exact(coded, tmp_path, rate, start, end):
    path, whole = coded(rate)
    first, last = Fraction(start), None if end is None else Fraction(end)
    codec.decode_file(path, tmp_path / "a.wav", subtype="FLOAT", start=first, end=last)
    found = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)[0]
    wanted = whole[round(first * rate):None if last is None else round(last * rate)]
    assert np.array_equal(found, wanted)


def test_only_the_segments_needed_are_read(coded):
    path, _ = coded(24000)
    loaded = codec.Codec.load(device="cpu")
    reader = container.Reader(io.BytesIO(path.read_bytes()))
    excerpt = decoding.find_excerpt(reader, loaded, Fraction(22), Fraction(45, 2), True)
    assert (excerpt.first_segment, excerpt.num_segments) == (8, 1)
    reader = container.Reader(io.BytesIO(path.read_bytes()))
    assert decoding.find_excerpt(reader, loaded, Fraction(22), Fraction(45, 2), False).num_segments is None


def test_without_seeking_the_samples_are_the_same(coded, tmp_path):
    path, whole = coded(24000)
    codec.decode_file(path, tmp_path / "a.wav", subtype="FLOAT", start=Fraction(21), end=Fraction(22), salvage=True)
    assert np.array_equal(audio.read(tmp_path / "a.wav")[0], whole[21 * 24000:22 * 24000].T)


@pytest.mark.parametrize("start, end, words", [(30, None, "after the end, 0:30.000"), (5, 5, "is not after --start")])
def test_ranges_that_hold_nothing(coded, tmp_path, start, end, words):
    path, _ = coded(24000)
    with pytest.raises(NacError, match=words):
        codec.decode_file(path, tmp_path / "a.wav", start=Fraction(start), end=end and Fraction(end))
    assert not list(tmp_path.iterdir())


def test_fewer_books(coded, tmp_path):
    path, whole = coded(24000)
    codec.decode_file(path, tmp_path / "a.wav", subtype="FLOAT", codebooks=9)
    assert np.array_equal(audio.read(tmp_path / "a.wav")[0], whole.T)
    codec.decode_file(path, tmp_path / "b.wav", subtype="FLOAT", codebooks=1)
    header, _, segments, num_samples = container.unpack(path.read_bytes())
    loaded = codec.Codec.load(device="cpu")
    codes = [loaded.coder(False).decode(segment.payloads, [Shape(2, segment.num_frames)])[0].codes[:1]
             for segment in segments]
    wanted = loaded.decode_codes(np.concatenate(codes, 1)[None])[0, :, :num_samples]
    assert np.array_equal(audio.read(tmp_path / "b.wav")[0], wanted)
    with pytest.raises(NacError, match="0 codebooks"):
        codec.decode_file(path, tmp_path / "c.wav", codebooks=0)
