import io
import math
import zlib

import numpy as np
import pytest
import soundfile
import torch

from audiocodec import codec as walks
from audiocodec import container, editing, encoding, payloads, rangecoder, tokens
from audiocodec.codec import Codec, StreamDecoder, StreamEncoder, decode, encode
from audiocodec.errors import AudioError, FormatError, ModelError, NacError

RATE = 24_000
SPEECH = "examples/speech.flac"


@pytest.fixture(scope="module")
def codec():
    return Codec.load(device="cpu")


@pytest.fixture(scope="module")
def speech(request):
    samples, rate = soundfile.read(request.config.rootpath / SPEECH, dtype="float32", frames=5 * RATE)
    assert rate == RATE
    return samples[None]                                     # (1, N)


def _snr(samples, decoded):
    return 10 * math.log10(np.square(samples).sum() / np.square(samples - decoded).sum())


def test_codes_do_not_depend_on_how_audio_is_cut(codec, speech):
    for size, length in ((320, speech.shape[1]), (777, speech.shape[1]), (1, 2000)):
        whole = codec.encode_codes(speech[:, None, :length], 16)
        encoder = StreamEncoder(codec, 1, 16)
        pieces = [encoder.push(speech[:, at:min(at + size, length)]) for at in range(0, length, size)]
        assert np.array_equal(np.concatenate([*pieces, encoder.flush()], 2), whole)


@pytest.mark.parametrize("threads, at_once", [(2, 1024), (3, 1024), (3, 48)])
def test_codes_and_levels_do_not_depend_on_threads(codec, speech, threads, at_once, monkeypatch):
    monkeypatch.setattr(tokens, "_ENCODED", at_once)
    before, samples = torch.get_num_threads(), np.concatenate([speech, 0.1 * speech[:, ::-1]])
    found = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            encoder = StreamEncoder(codec, 2, 12, level_frames=4)
            assert len(encoder._runs(samples.shape[1] // 320)) == count
            pieces = [encoder.push(samples[:, :90_000]), encoder.push(samples[:, 90_000:]), encoder.flush()]
            found.append(np.concatenate(pieces, 2))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*found)


def test_samples_do_not_depend_on_how_codes_are_cut(codec, speech):
    codes = codec.encode_codes(speech[:, None], 8)
    whole = codec.decode_codes(codes)[:, 0]
    decoder = StreamDecoder(codec, 1)
    pieces = [decoder.push(codes[:, :, at:at + 1], np.array([8])) for at in range(codes.shape[2])]
    assert np.array_equal(np.concatenate(pieces, 1), whole)


def test_shapes_of_the_token_calls(codec):
    samples = np.random.default_rng(0).normal(0, 0.1, (2, 1, 1000)).astype(np.float32)
    codes = codec.encode_codes(samples, 5)
    assert codes.shape == (2, 5, 5) and codes.dtype == np.int64 and 0 <= codes.min() and codes.max() < 1024
    decoded = codec.decode_codes(codes)
    assert decoded.shape == (2, 1, 1280) and decoded.dtype == np.float32


def test_more_books_are_nearer_to_the_original(codec, speech):
    codes = codec.encode_codes(speech[:, None], 32)
    scores = [_snr(speech, codec.decode_codes(codes[:, :count])[:, 0, :speech.shape[1]]) for count in (2, 8, 32)]
    assert scores[0] < scores[1] < scores[2]
    assert scores[1] > 4 and scores[2] > 7     # dB; training gives up some of the linear path's 7 and 12 for the sound


@pytest.mark.parametrize("kbps", [1.5, 3, 6, 12, 24])
def test_kbps_is_a_ceiling_on_every_byte(speech, kbps):
    data = encode(speech, RATE, kbps)
    budget = kbps * 125 * speech.shape[1] / RATE
    assert len(data) <= budget
    assert len(data) > 0.98 * budget or _unpacked(data)[1].mean() > 30          # of 31
    constant = encode(speech, RATE, kbps, cbr=True)
    header = container.Reader(io.BytesIO(constant)).header
    assert len(constant) <= budget and not header.has_depths
    one_more = len(encode(speech, RATE, None, codebooks=header.codebooks + 1)) if header.codebooks < 32 else math.inf
    assert one_more > 0.98 * budget          # a search for that many books may end in slightly cheaper ones


def _unpacked(data):
    """The codes (C, K, T) of a file, the books that frames use (C, T), and the levels of bands (C, L, T)."""
    header, _, segments, _ = container.unpack(data)
    coder = Codec.load(device="cpu").coder(header.entropy_coded, header.level_frames)
    codes, depths, levels = zip(*payloads.unpack(coder, segments, header))
    most = max(part.shape[1] for part in codes)
    codes = [np.pad(part, ((0, 0), (0, most - part.shape[1]), (0, 0))) for part in codes]
    return np.concatenate(codes, 2), np.concatenate(depths, 1), np.concatenate(levels, 2)


@pytest.mark.parametrize("entropy", [True, False])
def test_frames_differ_and_decode_as_their_depths_say(codec, speech, entropy):
    mid_side = np.concatenate([speech, 0.03 * speech[:, ::-1]])
    samples = np.concatenate([mid_side.sum(0, keepdims=True), mid_side[:1] - mid_side[1:]])
    data = encode(samples, RATE, 9, entropy=entropy)
    found, depths, levels = _unpacked(data)
    assert all(len(set(channel.tolist())) > 5 for channel in depths) and depths[0].min() >= 1
    assert depths[0].mean() > 1.5 * depths[1].mean()            # the louder channel has more
    mid_side = np.stack([samples.sum(0), samples[0] - samples[1]]) / 2
    wish = encoding.Wish(9, None, entropy)
    paths = wish.paths(codec)
    encoder = StreamEncoder(codec, 2, wish.most_books(codec), 4, paths)
    rows = paths.plain(np.concatenate([encoder.push(mid_side), encoder.flush()], 2), depths)
    assert np.array_equal(levels, rows[:, wish.most_books(codec):]) and levels.shape[1] == 8
    codes = rows[:, :found.shape[1]].astype(int)
    assert np.array_equal(found, codes)
    mid, side = walks.StreamDecoder(codec, 2).push(codes, depths, levels, 4)[:, :samples.shape[1]]
    assert np.array_equal(decode(data)[0], np.stack([mid + side, mid - side]))


@pytest.mark.parametrize("channels, seconds, frames", [
    (1, 1, 192), (1, 81, 192), (1, 82, 208), (2, 81, 384), (1, 218, 512), (2, 109, 512), (1, 4000, 512),
    (1, None, 512)])
def test_segments_are_short_while_all_are_decoded_in_one_go(codec, channels, seconds, frames):
    source = encoding.Source(48_000, channels, seconds and seconds * 48_000)
    file = io.BytesIO()
    encoding.encode(codec, [np.zeros((channels, 100), np.float32)], source, file, encoding.Wish(6, None, True),
                    lambda seconds: None)
    file.seek(0)
    assert container.Reader(file).header.segment_frames == frames


def test_frames_of_silence_use_the_least(speech):
    samples = np.concatenate([speech, np.zeros_like(speech)], 1)
    depths = _unpacked(encode(samples, RATE, 4))[1]
    frames = speech.shape[1] // 320
    assert (depths[0, frames + 20:] == 1).all() and depths[0, :frames].mean() > 5


@pytest.mark.parametrize("options", [{"kbps": 6}, {"kbps": 6, "cbr": True}, {"kbps": None, "codebooks": 8}])
def test_a_longer_search_comes_nearer_in_as_many_bytes(speech, options):
    plain, best = (encode(speech, RATE, **options, best=best) for best in (False, True))
    assert len(best) < 1.02 * len(plain)
    assert _snr(speech, decode(best)[0]) > _snr(speech, decode(plain)[0]) + 0.03


def test_encoding_twice_gives_the_same_bytes(speech):
    assert encode(speech, RATE) == encode(speech, RATE)


@pytest.mark.parametrize("entropy", [True, False])
def test_both_coders_carry_the_same_codes(speech, entropy):
    data = encode(speech, RATE, None, codebooks=6, entropy=entropy)
    packed = encode(speech, RATE, None, codebooks=6, entropy=False)
    assert np.array_equal(decode(data)[0], decode(packed)[0])
    assert len(data) < len(packed) or not entropy


@pytest.mark.parametrize("rate", [8000, 11_025, 24_000, 44_100, 96_000])
@pytest.mark.parametrize("num_samples", [0, 1, 319, 320, 321, 12_345])
def test_length_rate_and_channels_come_back(rate, num_samples):
    channels = 1 + num_samples % 2
    samples = np.random.default_rng(1).normal(0, 0.05, (channels, num_samples)).astype(np.float32)
    decoded, decoded_rate = decode(encode(samples, rate))
    assert decoded.shape == samples.shape and decoded_rate == rate and decoded.dtype == np.float32


def test_stereo_sides_stay_apart(speech):
    samples = np.concatenate([speech, np.zeros_like(speech)])
    decoded, _ = decode(encode(samples, RATE, None, codebooks=24))
    assert _snr(speech, decoded[:1]) > 7
    assert np.square(decoded[1]).mean() < 0.05 * np.square(decoded[0]).mean()


def test_two_equal_channels_cost_as_much_as_one(speech):
    mono, stereo = encode(speech, RATE, 3), encode(np.concatenate([speech, speech]), RATE, 3)
    reader = container.Reader(io.BytesIO(stereo))
    assert {segment.books[1] for segment in reader} == {0} and reader.header.has_depths
    assert len(stereo) < 1.1 * len(mono)


@pytest.mark.parametrize("options", [{}, {"entropy": False}, {"cbr": True}, {"kbps": None, "codebooks": 3}])
@pytest.mark.parametrize("channels", [1, 2])
def test_silence_stays_silent(options, channels):
    data = encode(np.zeros((channels, RATE), np.float32), RATE, **options)
    assert decode(data)[0].shape == (channels, RATE) and not decode(data)[0].any()


@pytest.mark.parametrize("entropy", [True, False])
def test_a_frame_deeper_than_its_segment_is_refused(codec, entropy):
    frames = rangecoder.Frames(np.zeros((3, 5), np.int64), np.array([1, 3, 2, 3, 1]), True)
    payload, = codec.coder(entropy).encode([frames])
    header = container.Header(1, RATE, 4 * 320, codec.weights.identity, 3, entropy_coded=entropy, has_depths=True)
    for books in (3, 2):
        data = container.pack(header, (), [container.Segment(5, (books,), (payload,))], 4 * 320)
        if books == 3:
            assert not decode(data)[0].any()
        else:
            with pytest.raises(FormatError):
                decode(data)


def test_mid_that_uses_no_codebook_is_read_and_written(codec, tmp_path):
    """nac gives mid at least one book a frame; other programs may give it none."""
    segment, = payloads.pack_depths(codec.coder(True), [np.zeros((2, 4, 5), np.int64)], [np.zeros((2, 5), int)], True)
    assert segment.books == (1, 0)
    header = container.Header(2, RATE, 4 * 320, codec.weights.identity, 4, has_depths=True)
    (tmp_path / "a.nac").write_bytes(container.pack(header, (), [segment], 4 * 320))
    assert decode((tmp_path / "a.nac").read_bytes())[0].shape == (2, 4 * 320)
    editing.truncate_file(tmp_path / "a.nac", tmp_path / "b.nac", codebooks=2)
    assert container.unpack((tmp_path / "b.nac").read_bytes())[2] == [segment]


def test_damage_is_refused_or_passed_over_with_a_word(tmp_path, speech):
    samples = np.tile(speech, 4)                             # three segments
    data = bytearray(encode(samples, RATE, 3))
    whole, _ = decode(bytes(data))
    data[len(data) // 2] ^= 4
    with pytest.raises(FormatError):
        decode(bytes(data))
    (tmp_path / "a b.nac").write_bytes(data)
    result = walks.decode_file(tmp_path / "a b.nac", tmp_path / "a.wav", subtype="FLOAT", salvage=True)
    assert len(result.damaged) == 1
    salvaged, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert len(salvaged) == samples.shape[1]
    second = 512 * 320
    assert np.array_equal(salvaged[:second - 640], whole[0, :second - 640])
    assert np.array_equal(salvaged[2 * second + RATE:], whole[0, 2 * second + RATE:])


def test_damage_in_the_last_segment_adds_nothing(tmp_path, speech):
    data = bytearray(encode(np.tile(speech, 2), RATE, 3))    # two segments, the second one short
    data[-60] ^= 1
    (tmp_path / "a.nac").write_bytes(data)
    result = walks.decode_file(tmp_path / "a.nac", tmp_path / "a.wav", salvage=True)
    assert result.damaged and soundfile.info(tmp_path / "a.wav").frames <= 2 * speech.shape[1]


def test_a_forged_index_does_not_swell_the_output(tmp_path, speech):
    header = container.Header(1, RATE, 100, Codec.load(device="cpu").weights.identity, 2)
    forged = container.pack(header, (), [container.Segment(3, (2,), (b"",))], 100)
    start = 32
    record = bytearray(forged[start:])
    record[1] = 20                                           # the segment says that it is the 21st
    body = bytes(record[:-4])
    (tmp_path / "a.nac").write_bytes(forged[:start] + body[:6] + zlib.crc32(body[:6]).to_bytes(4, "little"))
    walks.decode_file(tmp_path / "a.nac", tmp_path / "a.wav", salvage=True)
    assert soundfile.info(tmp_path / "a.wav").frames <= 100


@pytest.mark.parametrize("rate", [{"kbps": None, "codebooks": 2}, {"kbps": 6}])
def test_every_prefix_and_flipped_byte_is_refused(speech, rate):
    data = encode(speech[:, :4000], RATE, **rate)
    for end in range(len(data)):
        with pytest.raises(NacError):
            decode(data[:end])
    for at in range(len(data)):
        with pytest.raises(NacError):
            decode(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1:])


@pytest.mark.parametrize("shape, books, error", [
    ((1, 2, 500), 4, "shape"), ((1, 500), 4, "shape"), ((1, 1, 500), 33, "33"), ((1, 1, 500), 0, "0 codebooks")])
def test_token_calls_refuse_what_they_cannot_take(codec, shape, books, error):
    with pytest.raises(NacError, match=error):
        codec.encode_codes(np.zeros(shape, np.float32), books)


@pytest.mark.parametrize("codes", [np.full((1, 2, 3), 1024), np.full((1, 2, 3), -1), np.zeros((1, 33, 3), int),
                                   np.zeros((2, 3), int), np.zeros((1, 2, 3))])
def test_token_calls_refuse_codes_that_are_none(codec, codes):
    with pytest.raises(NacError):
        codec.decode_codes(codes)


def test_other_weights_are_named(speech):
    data = container.pack(
        container.Header(1, RATE, 0, bytes.fromhex("00112233aabb"), 8), (), [], 0)
    with pytest.raises(ModelError, match="00112233aabb"):
        decode(data)


@pytest.mark.parametrize("samples, rate, options, error, words", [
    (np.zeros(5, np.float32), RATE, {}, AudioError, "shape"),
    (np.zeros((1, 5), np.int16), RATE, {}, AudioError, "int16"),
    (np.zeros((3, 5), np.float32), RATE, {}, AudioError, "3 channels"),
    (np.zeros((1, 5), np.float32), 7000, {}, AudioError, "7000 Hz"),
    (np.full((1, 5), np.nan, np.float32), RATE, {}, AudioError, "not numbers"),
    (np.zeros((1, 5), np.float32), RATE, {"kbps": 500}, NacError, "500 kbps"),
    (np.zeros((1, 5), np.float32), RATE, {"kbps": None, "codebooks": 33}, NacError, "33 codebooks"),
    (np.zeros((1, 5), np.float32), RATE, {"model": "nothing"}, ModelError, "nothing"),
])
def test_what_cannot_be_encoded_is_refused(samples, rate, options, error, words):
    with pytest.raises(error, match=words):
        encode(samples, rate, **options)


@pytest.mark.parametrize("channels, options, frames", [
    (1, {"kbps": 6}, 4), (1, {"kbps": 12}, 4), (1, {"kbps": 24}, 2), (1, {"kbps": 1.5}, 0),
    (2, {"kbps": 3}, 0), (2, {"kbps": 6}, 4),
    (1, {"kbps": 6, "entropy": False}, 4), (1, {"kbps": 24, "cbr": True}, 2),
    (1, {"kbps": None, "codebooks": 2}, 0), (1, {"kbps": None, "codebooks": 8}, 4)])
def test_levels_are_told_where_there_are_bits_for_them(speech, channels, options, frames):
    header = container.unpack(encode(np.tile(speech[:, :RATE], (channels, 1)), RATE, **options))[0]
    assert (header.level_frames, header.version) == (frames, 1 + (frames > 0))


def test_the_treble_comes_back_as_loud_as_it_was(codec):
    rng = np.random.default_rng(0)
    loudness = np.repeat(10 ** rng.uniform(-2.5, -0.5, 20), RATE // 10)
    noise = (loudness * rng.normal(0, 0.3, 2 * RATE)).astype(np.float32)[None]
    for frames, options in ((4, {"kbps": 6}), (2, {"kbps": None, "codebooks": 22})):
        wanted, found = (_levels(codec, part, frames) for part in (noise, decode(encode(noise, RATE, **options))[0]))
        assert (found == wanted).mean() > 0.97
    untold = _levels(codec, decode(encode(noise, RATE, None, codebooks=3))[0], 4)
    assert (untold == _levels(codec, noise, 4)).mean() < 0.8


def _levels(codec, samples, frames):
    encoder = StreamEncoder(codec, 1, 1, level_frames=frames)
    return np.concatenate([encoder.push(samples), encoder.flush()], 2)[:, 1:, :2 * RATE // 320]


@pytest.mark.parametrize("frames", [2, 4])
def test_levels_do_not_depend_on_how_audio_is_cut(codec, speech, frames):
    encoder = StreamEncoder(codec, 1, 2, level_frames=frames)
    whole = np.concatenate([encoder.push(speech), encoder.flush()], 2)
    for size in (320, 777, 5000):
        encoder = StreamEncoder(codec, 1, 2, level_frames=frames)
        pieces = [encoder.push(speech[:, at:at + size]) for at in range(0, speech.shape[1], size)]
        assert all(piece.shape[2] % frames == 0 for piece in pieces)
        assert np.array_equal(np.concatenate([*pieces, encoder.flush()], 2), whole)
    assert np.array_equal(whole[:, 2:, ::frames].repeat(frames, 2)[:, :, :whole.shape[2]], whole[:, 2:])


def test_a_model_without_levels_refuses_a_file_that_tells_them(codec, speech, monkeypatch):
    data = encode(speech, RATE, 6)
    monkeypatch.setattr(codec, "levels", None)
    header = container.unpack(data)[0]
    with pytest.raises(FormatError, match="its model has none"):
        codec.coder(header.entropy_coded, header.level_frames)


def test_pieces_are_joined_up_to_a_number_of_frames_and_where_groups_of_levels_end():
    rng = np.random.default_rng(0)

    def piece(frames, books):
        codes = rng.integers(0, 9, (2, books, frames))
        return payloads.Unpacked(codes, rng.integers(0, books, (2, frames)), rng.integers(0, 40, (2, 8, frames)))

    pieces = [piece(*shape) for shape in ((192, 3), (192, 5), (192, 2), (6, 4), (8, 1), (600, 3))]
    found = list(payloads.joined(iter(pieces), 500))
    assert [one.codes.shape for one in found] == [(2, 5, 384), (2, 4, 198), (2, 1, 8), (2, 3, 600)]
    for name in ("depths", "levels"):
        assert np.array_equal(np.concatenate([getattr(one, name) for one in pieces], -1),
                              np.concatenate([getattr(one, name) for one in found], -1))
    first = found[0].codes
    assert np.array_equal(first[:, :3, :192], pieces[0].codes) and not first[:, 3:, :192].any()
    assert np.array_equal(first[:, :, 192:], pieces[1].codes)


def test_pieces_before_damage_are_given():
    piece = payloads.Unpacked(np.zeros((1, 2, 8), int), np.zeros((1, 8), int), np.zeros((1, 8, 8), int))

    def pieces():
        yield piece
        raise FormatError("damaged")

    found = payloads.joined(pieces(), 500)
    assert next(found).codes.shape == (1, 2, 8)
    with pytest.raises(FormatError, match="damaged"):
        next(found)
