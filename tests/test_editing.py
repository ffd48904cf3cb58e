"""editing.py: parts of files and lower rates, against decoding the original."""
import dataclasses
from fractions import Fraction

import numpy as np
import pytest

import audiocodec
from audiocodec import codec, container, editing
from audiocodec.errors import FormatError, NacError

TAGS = (("TITLE", "Räuber"), ("DATE", "1781"))


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A path maker: 30 s of noise at a rate, in five segments, and its whole decode."""
    folder = tmp_path_factory.mktemp("coded")

    def make(rate: int):
        path = folder / f"{rate}.nac"
        if not path.exists():
            samples = np.random.default_rng(rate).normal(0, 0.1, (1 + rate % 2, 30 * rate + 5)).astype(np.float32)
            encoder = audiocodec.StreamEncoder(rate, len(samples), codebooks=3, entropy=False, segment_frames=512,
                                               num_samples=samples.shape[1])
            data = encoder.push(samples) + encoder.flush()
            header, _, segments, num_samples = container.unpack(data)
            path.write_bytes(container.pack(header, TAGS, segments, num_samples))
            np.save(path.with_suffix(".npy"), codec.decode(data)[0])
        return path, np.load(path.with_suffix(".npy"))

    return make


def _cut(source, target, start, end):
    return editing.cut_file(source, target, start=None if start is None else Fraction(start),
                            end=None if end is None else Fraction(end), force=True)


def _segments(path):
    return container.unpack(path.read_bytes())[2]


@pytest.mark.parametrize("rate", [24000, 16000, 44100, 47999])
@pytest.mark.parametrize("start, end", [(0, 1), (6.8, 6.9), (8.9, 20.5), (20.01, None), (0.0001, 29)])
def test_a_part_decodes_to_the_same_samples(coded, tmp_path, rate, start, end):
    path, whole = coded(rate)
    part = tmp_path / "part.nac"
    _cut(path, part, start, end)
    wanted = whole[:, round(start * rate):None if end is None else round(end * rate)]
    found, found_rate = codec.decode(part.read_bytes())
    assert found_rate == rate and np.array_equal(found, wanted)
    codec.verify_file(part)


@pytest.mark.parametrize("rate", [24000, 16000, 47999])
def test_a_part_is_a_file_like_others(coded, tmp_path, rate):
    path, whole = coded(rate)
    part, smaller = tmp_path / "part.nac", tmp_path / "smaller.nac"
    _cut(path, part, 9, 28)
    _cut(part, smaller, "10.25", 12)                     # 19.25 to 21 s of the whole
    wanted = whole[:, round(19.25 * rate):21 * rate]
    assert np.array_equal(codec.decode(smaller.read_bytes())[0], wanted)
    assert len(_segments(smaller)) < len(_segments(part)) < len(_segments(path))
    codec.decode_file(part, tmp_path / "a.wav", subtype="FLOAT", start=Fraction("10.25"), end=Fraction(12))
    codec.decode_file(part, tmp_path / "b.wav", subtype="FLOAT", start=Fraction("10.25"), end=Fraction(12),
                      salvage=True)
    assert np.array_equal(codec.audio.read(tmp_path / "a.wav")[0], wanted)
    assert np.array_equal(codec.audio.read(tmp_path / "b.wav")[0], wanted)


def test_payloads_and_tags_are_copied(coded, tmp_path):
    path, _ = coded(24000)
    result = _cut(path, tmp_path / "part.nac", 14, 16)
    header, tags, segments, num_samples = container.unpack((tmp_path / "part.nac").read_bytes())
    assert tags == TAGS and num_samples == header.num_samples == 48000
    assert header.origin == container.Origin(1, 14 * 24000)    # from the third on, and what the network looks back on
    assert segments == _segments(path)[1:3]
    assert (result.num_bytes, result.seconds) == ((tmp_path / "part.nac").stat().st_size, 2)


@pytest.mark.parametrize("start, end", [(None, None), (0, 31), (None, 90)])
def test_all_of_a_file_is_a_copy(coded, tmp_path, start, end):
    path, _ = coded(24000)
    _cut(path, tmp_path / "part.nac", start, end)
    assert (tmp_path / "part.nac").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("start, end, words", [
    (40, None, "is after the end, 0:30"), (2, 2, "not after"), (1, "1.00001", "no sample lies between")])
def test_ranges_that_hold_nothing(coded, tmp_path, start, end, words):
    with pytest.raises(NacError, match=words):
        _cut(coded(24000)[0], tmp_path / "part.nac", start, end)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("start, end", [(0, 3), (6.8, 7.1), ("7.3", "8.5"), (8, None)])
def test_a_part_of_a_file_whose_frames_differ(music, tmp_path, start, end):
    _cut(music, tmp_path / "part.nac", start, end)
    assert container.unpack((tmp_path / "part.nac").read_bytes())[0].has_depths
    whole, rate = codec.decode(music.read_bytes())
    wanted = whole[:, round(float(start) * rate):None if end is None else round(float(end) * rate)]
    assert np.array_equal(codec.decode((tmp_path / "part.nac").read_bytes())[0], wanted)


def test_only_damage_inside_the_part_matters(coded, tmp_path):
    path, whole = coded(24000)
    data = bytearray(path.read_bytes())
    data[300] ^= 1                                             # in the first segment
    (tmp_path / "a.nac").write_bytes(data)
    with pytest.raises(FormatError):
        _cut(tmp_path / "a.nac", tmp_path / "part.nac", 1, 2)
    _cut(tmp_path / "a.nac", tmp_path / "part.nac", 20, 21)
    assert np.array_equal(codec.decode((tmp_path / "part.nac").read_bytes())[0], whole[:, 480_000:504_000])


@pytest.mark.parametrize("change, words", [
    ({"origin": container.Origin(3, 480_000)}, "before its first segment"),
    ({"origin": container.Origin(1, 26 * 24000)}, "frames"),
    ({"origin": container.Origin(1, 5), "num_samples": 48000}, "before its first segment"),
    ({"origin": None}, "frames")])
def test_an_origin_that_does_not_fit_the_segments(coded, tmp_path, change, words):
    _cut(coded(24000)[0], tmp_path / "part.nac", 20, 22)
    header, tags, segments, num_samples = container.unpack((tmp_path / "part.nac").read_bytes())
    with pytest.raises(FormatError, match=words):
        codec.decode(container.pack(dataclasses.replace(header, **change), tags, segments, num_samples))


def test_a_part_without_its_lead_in_begins_with_what_there_is(coded):
    """Another program may leave it out: the samples are not exact at first, and soon they are."""
    path, whole = coded(44100)
    header, tags, segments, _ = container.unpack(path.read_bytes())
    start = -(-512 * 320 * 44100 // 24000)
    header = dataclasses.replace(header, num_samples=5 * 44100, origin=container.Origin(1, start))
    found, _ = codec.decode(container.pack(header, tags, segments[1:3], 5 * 44100))
    wanted = whole[:, start:start + 5 * 44100]
    assert np.abs(found[:, 44100:] - wanted[:, 44100:]).max() < 1e-5


# Lower rates

@pytest.fixture(scope="module")
def music(tmp_path_factory, request):
    """9 s of the example at 12 kbps, stereo, entropy-coded, with a tag."""
    path = tmp_path_factory.mktemp("music") / "a.nac"
    codec.encode_file(request.config.rootpath / "examples" / "music.flac", path, kbps=12, tags=(("TITLE", "x"),))
    return path


def test_fewer_books_decode_as_if_left_out_then(music, tmp_path):
    result = editing.truncate_file(music, tmp_path / "b.nac", codebooks=3)
    assert max(result.codebooks) <= 3 < 1.1 * result.codebooks[0]
    assert result.num_bytes == (tmp_path / "b.nac").stat().st_size
    codec.decode_file(music, tmp_path / "a.wav", subtype="FLOAT", codebooks=3)
    wanted = codec.audio.read(tmp_path / "a.wav")[0]
    assert np.array_equal(codec.decode((tmp_path / "b.nac").read_bytes())[0], wanted)
    header, tags, _, _ = container.unpack((tmp_path / "b.nac").read_bytes())
    assert (header.codebooks, header.bandwidth, header.has_depths) == (3, 0, True) and dict(tags)["TITLE"] == "x"


def test_all_books_give_the_same_payloads(music, tmp_path):
    editing.truncate_file(music, tmp_path / "b.nac", codebooks=32)
    assert _segments(tmp_path / "b.nac") == _segments(music)


@pytest.mark.parametrize("kbps", [2, 5])
def test_a_lower_rate_is_a_ceiling_again(music, tmp_path, kbps):
    result = editing.truncate_file(music, tmp_path / "b.nac", kbps=kbps)
    assert 0.98 * kbps < result.kbps <= kbps
    header = container.unpack((tmp_path / "b.nac").read_bytes())[0]
    assert header.bandwidth == kbps * 1000
    for segment, before in zip(_segments(tmp_path / "b.nac"), _segments(music)):
        assert all(few <= many for few, many in zip(segment.books, before.books))


def test_constant_counts_may_differ_at_a_lower_rate(coded, tmp_path):
    result = editing.truncate_file(coded(24000)[0], tmp_path / "b.nac", kbps=1.7)
    assert 0.98 * 1.7 < result.kbps <= 1.7
    header, _, segments, _ = container.unpack((tmp_path / "b.nac").read_bytes())
    assert header.has_depths and not header.entropy_coded and max(segment.books for segment in segments) == (3,)


def test_a_ceiling_just_above_the_least_is_met(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 720_000)).astype(np.float32)
    (tmp_path / "a.nac").write_bytes(codec.encode(noise, 24_000, None, codebooks=3, entropy=False))
    assert 0.98 * 1.7 < editing.truncate_file(tmp_path / "a.nac", tmp_path / "b.nac", kbps=1.7).kbps <= 1.7


def test_a_rate_that_is_met_already_changes_nothing(music, tmp_path):
    editing.truncate_file(music, tmp_path / "b.nac", kbps=40)
    assert [segment.books for segment in _segments(tmp_path / "b.nac")] == [s.books for s in _segments(music)]
    assert np.array_equal(codec.decode((tmp_path / "b.nac").read_bytes())[0], codec.decode(music.read_bytes())[0])


def test_a_part_stays_a_part(coded, tmp_path):
    path, _ = coded(16000)
    _cut(path, tmp_path / "part.nac", 14, 16)
    editing.truncate_file(tmp_path / "part.nac", tmp_path / "b.nac", codebooks=1)
    codec.decode_file(path, tmp_path / "a.wav", subtype="FLOAT", codebooks=1, start=Fraction(14), end=Fraction(16))
    found, _ = codec.decode((tmp_path / "b.nac").read_bytes())
    assert np.array_equal(found, codec.audio.read(tmp_path / "a.wav")[0])


def test_no_audio(tmp_path):
    (tmp_path / "a.nac").write_bytes(codec.encode(np.zeros((1, 0), np.float32), 8000))
    for rate in ({"kbps": 3}, {"codebooks": 2}):
        editing.truncate_file(tmp_path / "a.nac", tmp_path / "b.nac", force=True, **rate)
        assert codec.decode((tmp_path / "b.nac").read_bytes())[0].shape == (1, 0)
    _cut(tmp_path / "a.nac", tmp_path / "b.nac", 0, 1)
    assert (tmp_path / "b.nac").read_bytes() == (tmp_path / "a.nac").read_bytes()


@pytest.mark.parametrize("rate, words", [({"kbps": 0.1}, "0.1 kbps"), ({"codebooks": 0}, "0 codebooks"), ({}, "kbps")])
def test_rates_that_are_none(music, tmp_path, rate, words):
    with pytest.raises(NacError, match=words):
        editing.truncate_file(music, tmp_path / "b.nac", **rate)


def test_damage_leaves_no_file(music, tmp_path):
    data = bytearray(music.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.nac").write_bytes(data)
    for rate in ({"kbps": 3}, {"codebooks": 2}):
        with pytest.raises(FormatError):
            editing.truncate_file(tmp_path / "a.nac", tmp_path / "b.nac", **rate)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nac"]
