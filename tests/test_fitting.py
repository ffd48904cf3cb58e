"""fitting.py: files of many short segments, which both ways of fitting have to code in batches."""
import io

import numpy as np
import pytest
import soundfile

from audiocodec import container, fitting, rate
from audiocodec.codec import Codec
from audiocodec.paths import Codes
from audiocodec.rangecoder import Shape

RATE, FRAMES = 24_000, 32
NUM_BOOKS = 8


@pytest.fixture(scope="module")
def codec():
    return Codec.load(device="cpu")


@pytest.fixture(scope="module")
def spool(codec, request):
    """20 s in 47 segments: music, silence, music, as two channels of which the second one is faint."""
    samples, _ = soundfile.read(request.config.rootpath / "examples" / "music.flac", dtype="float32", frames=9 * 44_100)
    mono = samples.mean(1)[None, None, :8 * RATE]
    sound = np.concatenate([mono, np.zeros_like(mono[..., :4 * RATE]), mono], 2)
    codes = codec.encode_codes(np.concatenate([sound, sound / 30]), NUM_BOOKS).astype(np.uint16)
    with rate.Spool() as segments:
        for at in range(0, codes.shape[2], FRAMES):
            segments.append(codes[:, :, at:at + FRAMES])
        yield segments


@pytest.fixture(scope="module")
def fit(codec, spool):
    def run(kbps: float, is_constant: bool = False, entropy: bool = True):
        header = container.Header(2, RATE, None, codec.weights.identity, NUM_BOOKS, entropy_coded=entropy,
                                  segment_frames=FRAMES, has_depths=not is_constant)
        file = io.BytesIO()
        form = Codes(codec.codebooks[:NUM_BOOKS])
        fitter = fitting.Fitter(codec, form, header, (("TITLE", "x" * 50),), spool, 20 * RATE, kbps * 125 * 20)
        fitted = fitter.write(file)
        assert fitted.num_bytes == len(file.getvalue())
        return fitted, *container.unpack(file.getvalue())

    return run


def _unpacked(codec, segments, entropy=True):
    """The depths (C, t) of each segment, and the codes (K, t) of each of its channels."""
    for segment in segments:
        used = [channel for channel in (0, 1) if segment.books[channel]]
        found = codec.coder(entropy).decode(
            [segment.payloads[channel] for channel in used],
            [Shape(segment.books[channel], segment.num_frames, True) for channel in used])
        depths = np.zeros((2, segment.num_frames), int)
        depths[used] = [frames.depths for frames in found]
        yield depths, dict(zip(used, (frames.codes for frames in found)))


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("kbps", [3, 4.3])
def test_the_ceiling_is_met_and_used(fit, codec, kbps, entropy):
    fitted, header, tags, segments, num_samples = fit(kbps, entropy=entropy)
    assert 0.98 < fitted.num_bytes / (kbps * 125 * 20) <= 1
    assert header.codebooks == NUM_BOOKS and header.has_depths
    assert (tags, header.num_samples, num_samples) == ((("TITLE", "x" * 50),), 20 * RATE, 20 * RATE)
    depths = np.concatenate([depths for depths, _ in _unpacked(codec, segments, entropy)], 1)
    assert fitted.books == pytest.approx(tuple(depths.mean(1)))


def test_silence_has_no_more_than_it_must(fit, codec):
    _, _, _, segments, _ = fit(4)
    assert all(segment.books == (1, 0) for segment in segments[21:26])     # 9 to 11 s
    assert max(depths[0].max() for depths, _ in _unpacked(codec, segments)) > 4


def test_frames_differ(fit, codec):
    depths = [depths[0] for depths, _ in _unpacked(codec, fit(4)[3][:15])]     # of music
    assert sum(len(set(part.tolist())) > 1 for part in depths) > 7
    assert all(part.min() >= 1 for part in depths)


def test_constant_counts_are_constant(fit):
    fitted, header, _, segments, _ = fit(4, is_constant=True)
    assert {segment.books for segment in segments} == {fitted.books} and not header.has_depths
    assert fitted.num_bytes <= 4 * 125 * 20
    assert fit(4)[0].num_bytes > fitted.num_bytes


@pytest.mark.parametrize("entropy", [True, False])
def test_codes_are_those_that_came(fit, codec, spool, entropy):
    _, _, _, segments, _ = fit(3, entropy=entropy)
    for (depths, found), codes in zip(_unpacked(codec, segments[::9], entropy), spool[::9]):
        for channel, there in found.items():
            wanted = np.where(np.arange(NUM_BOOKS)[:, None] < depths[channel], codes[channel], 0)
            assert np.array_equal(there, wanted[:len(there)]) and not wanted[len(there):].any()


def test_a_budget_that_is_too_small_gives_the_least(fit):
    fitted, _, _, segments, _ = fit(0.5)
    assert fitted.books == (1, 0) and fitted.num_bytes > 0.5 * 125 * 20
    assert {segment.books for segment in segments} == {(1, 0)}


def test_more_than_all_codes_take_gives_all_that_add_anything(fit):
    fitted, *_ = fit(40)
    assert fitted.num_bytes < 40 * 125 * 20 and fitted.books[0] > 0.7 * NUM_BOOKS      # a fifth is silence


def test_no_segments(codec):
    for has_depths in (True, False):
        header = container.Header(2, RATE, None, codec.weights.identity, NUM_BOOKS, has_depths=has_depths)
        file = io.BytesIO()
        with rate.Spool() as empty:
            fitted = fitting.Fitter(codec, Codes(codec.codebooks), header, (), empty, 0, 0).write(file)
        assert fitted == fitting.Fitted(len(file.getvalue()), (1, 0))
        assert container.unpack(file.getvalue())[2:] == ([], 0)


def test_the_same_twice(fit):
    assert fit(4) == fit(4)


def test_count():
    count = fitting.Count(2)
    assert count.mean == (1, 0)
    count.add([np.array([[1, 3], [0, 0]]), np.array([[5], [3]])])
    assert count.mean == (3, 1)
