"""audio.py: files and samples, refusals, atomic output, tags, resampling."""

import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocodec import audio, container
from audiocodec.errors import AudioError, NacError


def noise(channels: int, num_samples: int, seed: int = 0) -> np.ndarray:
    """float32 (C, N) in [-0.5, 0.5], on the grid of 16 bits so that every subtype holds it exactly."""
    steps = np.random.default_rng(seed).integers(-16384, 16384, (channels, num_samples))
    return (steps / 32768).astype(np.float32)


# Files

@pytest.mark.parametrize("ending, subtype", [
    (".wav", "PCM_16"), (".wav", "PCM_24"), (".wav", "PCM_32"), (".wav", "FLOAT"), (".flac", "PCM_16"),
    (".flac", "PCM_24"), (".WAV", "PCM_16")])
@pytest.mark.parametrize("channels, num_samples", [(1, 0), (1, 1), (2, 12345), (1, 70000)])
def test_what_is_written_is_read(tmp_path, ending, subtype, channels, num_samples):
    path = tmp_path / f"a name with spaces{ending}"
    samples = noise(channels, num_samples)
    audio.write(path, samples, 44100, subtype)
    restored, rate = audio.read(path)
    assert rate == 44100
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored, samples)
    assert soundfile.info(str(path)).subtype == subtype
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 48000, 96000, 192000])
def test_rates(tmp_path, rate):
    for path in (tmp_path / "a.wav", tmp_path / "a.flac"):
        audio.write(path, noise(2, 100), rate)
        assert audio.read(path)[1] == rate


@pytest.mark.parametrize("ending, subtype", [
    ("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_16"), ("wav", "PCM_U8"),
    ("wav", "ULAW"), ("w64", "DOUBLE")])
def test_other_formats_are_read(tmp_path, ending, subtype):
    path = tmp_path / f"a.{ending}"
    tone = 0.5 * np.sin(np.arange(48000) * 0.05)
    soundfile.write(path, tone, 48000, format=ending.upper(), subtype=subtype)
    samples, rate = audio.read(path)
    assert rate == 48000
    assert samples.shape == (1, 48000)
    assert np.abs(samples[0, 5000:40000] - tone[5000:40000]).max() < 0.05


def test_reader_describes_and_blocks(tmp_path):
    path = tmp_path / "a.flac"
    samples = noise(2, 2500)
    audio.write(path, samples, 32000, "PCM_24")
    with audio.AudioReader(path) as reader:
        assert (reader.sample_rate, reader.channels, reader.num_samples) == (32000, 2, 2500)
        assert reader.subtype == "PCM_24"
        blocks = list(reader.blocks(1000))
    assert [block.shape for block in blocks] == [(2, 1000), (2, 1000), (2, 500)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), samples)


def test_loud_values_survive_in_float_and_are_clipped_in_pcm(tmp_path):
    samples = np.array([[1.5, -1.5, 1.0, -1.0, 0.25]], np.float32)
    audio.write(tmp_path / "f.wav", samples, 8000, "FLOAT")
    np.testing.assert_array_equal(audio.read(tmp_path / "f.wav")[0], samples)
    top = 32767 / 32768
    audio.write(tmp_path / "p.wav", samples, 8000, "PCM_16")
    np.testing.assert_array_equal(audio.read(tmp_path / "p.wav")[0], np.float32([[top, -1, top, -1, 0.25]]))


def test_pcm_rounds_to_the_nearest_step(tmp_path):
    audio.write(tmp_path / "a.wav", np.float32([[0.6, 0.4, -0.6, -0.4]]) / 32768, 8000, "PCM_16")
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav")[0] * 32768, [[1, 0, -1, 0]])


TAGS = (("TITLE", "Ein Lied – 歌"), ("ARTIST", "A & B"), ("ALBUM", "x" * 500), ("DATE", "2001-02-03"),
        ("GENRE", "Folk"), ("TRACKNUMBER", "7"), ("COMMENT", "two\nlines"))


@pytest.mark.parametrize("ending", [".wav", ".flac"])
def test_tags(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    dropped = (("LICENSE", ""), ("UNHEARD-OF", "text"))
    with audio.AudioWriter(path, 8000, 1, "PCM_16", TAGS + dropped) as writer:
        writer.write(noise(1, 10))
    with audio.AudioReader(path) as reader:
        assert reader.tags == TAGS
    again = tmp_path / f"b{ending}"
    with audio.AudioWriter(again, 8000, 1, "PCM_16", TAGS) as writer:
        writer.write(noise(1, 10))
    with audio.AudioReader(again) as reader:
        assert reader.tags == TAGS


def test_tags_too_long_for_a_nac_file(tmp_path):
    path = tmp_path / "a.flac"
    tags = (("TITLE", "T"), ("ALBUM", "é" * 20_000), ("COMMENT", "x" * 65_000), ("LICENSE", "y" * 25_500))
    with audio.AudioWriter(path, 8000, 1, "PCM_16", tags) as writer:
        writer.write(noise(1, 10))
    with pytest.warns(UserWarning, match=f"{path}: tags left out, too long for a .nac file: COMMENT$"):
        with audio.AudioReader(path) as reader:
            assert reader.tags == (tags[0], tags[1], tags[3])
            assert reader.dropped_tags == ("COMMENT",)
    header = container.Header(1, 8000, 0, bytes(6), 1)
    assert container.unpack(container.pack(header, reader.tags, [], 0))[1] == reader.tags


def test_long_wav_becomes_rf64(tmp_path):
    path = tmp_path / "a.wav"
    with audio.AudioWriter(path, 8000, 1, "PCM_16", num_samples=3_000_000_000) as writer:
        writer.write(noise(1, 10))
    assert soundfile.info(str(path)).format == "RF64"
    np.testing.assert_array_equal(audio.read(path)[0], noise(1, 10))


def test_restored_subtype(tmp_path):
    wav, flac = tmp_path / "a.wav", tmp_path / "a.flac"
    stored = ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "PCM_U8", "VORBIS"]
    assert [audio.restored_subtype(name, wav) for name in stored] == [
        "PCM_16", "PCM_24", "PCM_32", "FLOAT", "FLOAT", "PCM_16", "PCM_16"]
    assert [audio.restored_subtype(name, flac) for name in stored] == [
        "PCM_16", "PCM_24", "PCM_24", "PCM_24", "PCM_24", "PCM_16", "PCM_16"]


# Refusals

def refusal(path) -> str:
    with pytest.raises(AudioError) as caught:
        audio.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_what_is_not_there_or_not_audio(tmp_path):
    assert refusal(tmp_path / "none.wav") == "no such file or directory"
    assert refusal(tmp_path) == "is a directory"
    (tmp_path / "empty.wav").touch()
    assert refusal(tmp_path / "empty.wav") == "the file is empty"
    (tmp_path / "text.wav").write_bytes(b"Hello, this is a letter and no audio at all. " * 10)
    assert refusal(tmp_path / "text.wav").startswith("not an audio file that nac reads")


def test_unsupported_layouts(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((10, 6)), 48000)
    assert refusal(path) == "6 channels; nac reads 1 or 2"
    for rate in (7999, 192001):
        soundfile.write(path, np.zeros(10), rate)
        assert refusal(path) == f"sample rate {rate} Hz; nac reads 8000 to 192000"


@pytest.mark.parametrize("ending", [".wav", ".flac", ".aiff", ".mp3"])
def test_truncated(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    soundfile.write(path, noise(1, 50000)[0], 44100)
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2])
    assert "truncated" in refusal(path)
    path.write_bytes(data[:20])
    refusal(path)


def test_damaged_flac(tmp_path):
    path = tmp_path / "a.flac"
    audio.write(path, noise(1, 50000), 44100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert "damaged" in refusal(path)


def test_flac_of_unknown_length(tmp_path):
    """Programs that write FLAC to a pipe leave the number of samples at zero."""
    path = tmp_path / "a.flac"
    samples = noise(1, 10_000)
    audio.write(path, samples, 8000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    with audio.AudioReader(path) as reader:
        assert reader.num_samples is None
    np.testing.assert_array_equal(audio.read(path)[0], samples)


def test_wav_of_unknown_length(tmp_path):
    """Programs that write WAV to a pipe leave the sizes at their largest value."""
    path = tmp_path / "a.wav"
    samples = noise(1, 1000)
    audio.write(path, samples, 8000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    np.testing.assert_array_equal(audio.read(path)[0], samples)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers(tmp_path, value):
    path = tmp_path / "a.wav"
    samples = noise(2, 100)
    samples[1, 50] = value
    audio.write(path, samples, 8000, "FLOAT")
    assert "infinite or not a number" in refusal(path)


def test_unwritable_names_and_subtypes(tmp_path):
    samples = noise(1, 10)
    for name, subtype, found in [
            ("a.mp3", "PCM_16", "nac writes .wav and .flac"), ("a", "PCM_16", "nac writes .wav and .flac"),
            ("a.flac", "FLOAT", "do not hold FLOAT"), ("a.wav", "ULAW", "do not hold ULAW")]:
        with pytest.raises(AudioError, match=found):
            audio.write(tmp_path / name, samples, 8000, subtype)
    with pytest.raises(AudioError, match="a sample rate of 96001 Hz"):
        audio.write(tmp_path / "a.flac", samples, 96001)
    assert list(tmp_path.iterdir()) == []


# Atomic output

def test_output_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a file.nac"
    with audio.atomic_output(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with pytest.raises(NacError, match="exists already"):
        with audio.atomic_output(path):
            pytest.fail("not reached")
    with audio.atomic_output(path, force=True) as file:
        file.write(b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("open_output", [audio.atomic_output, audio.atomic_path])
def test_errors_of_reading_are_not_told_as_the_outputs(tmp_path, open_output):
    with pytest.raises(FileNotFoundError):
        with open_output(tmp_path / "a.nac"):
            open(tmp_path / "none.wav", "rb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_full_device():
    with pytest.raises(NacError, match="^/dev/full: cannot be written: no space left on device$"):
        with audio.atomic_output(Path("/dev/full")) as file:
            file.write(b"data")


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_output(tmp_path, error):
    path = tmp_path / "a.wav"
    audio.write(path, noise(1, 10), 8000)
    before = path.read_bytes()
    with pytest.raises(error):
        with audio.AudioWriter(path, 8000, 1, "PCM_16", force=True) as writer:
            writer.write(noise(1, 10, seed=1))
            raise error
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_places(tmp_path):
    (tmp_path / "file").touch()
    for path, found in [
            (tmp_path, "is a folder"), (tmp_path / "none" / "a.nac", "no such file or directory"),
            (tmp_path / "file" / "a.nac", "not a directory"), (tmp_path / ("n" * 300), "too long")]:
        with pytest.raises(NacError, match=found) as caught:
            with audio.atomic_output(path):
                pytest.fail("not reached")
        assert str(caught.value).startswith(f"{path}: ")


def test_links_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "link.nac").symlink_to(tmp_path / "real.nac")
    with audio.atomic_output(tmp_path / "link.nac") as file:
        file.write(b"data")
    assert (tmp_path / "link.nac").is_symlink()
    assert (tmp_path / "real.nac").read_bytes() == b"data"
    (tmp_path / "null.nac").symlink_to("/dev/null")
    with audio.atomic_output(tmp_path / "null.nac") as file:
        file.write(b"data")
    assert (tmp_path / "null.nac").is_char_device()


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.nac"])
def test_full_disk(tmp_path, name):
    """A limit on the size of files stands in for the disk."""
    script = textwrap.dedent(f"""
        import resource, numpy as np
        from pathlib import Path
        from audiocodec import audio
        from audiocodec.errors import NacError
        resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 16}, {resource.RLIM_INFINITY}))
        path = Path({str(tmp_path / name)!r})
        try:
            if path.suffix == ".nac":
                with audio.atomic_output(path) as file:
                    file.write(bytes(1 << 17))
            else:
                audio.write(path, np.random.default_rng(0).uniform(-1, 1, (1, 200000)), 8000)
        except NacError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith(f"{tmp_path / name}: ")
    assert list(tmp_path.iterdir()) == []


# Sample rates

ROUGH_RATIOS = [(44100, 24000), (24000, 44100), (47999, 24000), (24000, 47999)]


def resample(samples: np.ndarray, source: int, target: int, sizes: list[int]) -> np.ndarray:
    """Push samples (C, N) in blocks of the given sizes, over and over."""
    resampler, out, start = audio.Resampler(source, target), [], 0
    while start < samples.shape[1]:
        for size in sizes:
            out.append(resampler.push(samples[:, start:start + size]))
            start += size
    return np.concatenate([*out, resampler.flush()], axis=1)


@pytest.mark.parametrize("source, target", [
    (44100, 24000), (24000, 44100), (48000, 24000), (24000, 48000), (8000, 24000), (24000, 8000),
    (11025, 24000), (24000, 22050), (192000, 24000)])
@pytest.mark.parametrize("interpolated", [False, True])
def test_equals_torchaudio_over_the_whole_file(source, target, interpolated, monkeypatch):
    import torch
    from audiocodec._torchaudio import torchaudio
    samples = noise(2, 40_010)
    whole = torchaudio.functional.resample(
        torch.from_numpy(samples).double(), source, target, lowpass_filter_width=64,
        rolloff=0.9475937167399596, beta=14.769656459379492, resampling_method="sinc_interp_kaiser").numpy()
    if interpolated:
        monkeypatch.setattr(audio, "_MAX_TAPS", 0)
    resampled = resample(samples, source, target, [30_000])
    np.testing.assert_allclose(resampled, whole, rtol=0, atol=3e-6 if interpolated else 1e-6)


@pytest.mark.parametrize("source, target", ROUGH_RATIOS)
@pytest.mark.parametrize("num_samples", [0, 1, 2, 319, 33_000])
def test_block_sizes_make_no_difference(source, target, num_samples):
    samples = noise(1, num_samples)
    whole = resample(samples, source, target, [1 << 20])
    assert whole.shape == (1, -(-num_samples * target // source))
    np.testing.assert_array_equal(resample(samples, source, target, [1, 0, 7, 4096]), whole)


@pytest.mark.parametrize("source, target", ROUGH_RATIOS)
def test_tone_keeps_its_pitch_and_place(source, target):
    frequency = 9000    # Hz
    tone = np.sin(2 * np.pi * frequency / source * np.arange(source))[None].astype(np.float32)
    expected = np.sin(2 * np.pi * frequency / target * np.arange(target))
    middle = slice(target // 4, -target // 4)
    np.testing.assert_allclose(resample(tone, source, target, [8192])[0, middle], expected[middle], atol=3e-6)


def test_nothing_aliases():
    tone = np.sin(2 * np.pi * 13_000 / 48_000 * np.arange(48_000))[None].astype(np.float32)
    assert np.abs(resample(tone, 48_000, 24_000, [8192])[0, 1000:-1000]).max() < 1e-5
    assert np.abs(resample(tone, 47_999, 24_000, [8192])[0, 1000:-1000]).max() < 1e-5


def test_equal_rates_pass_through():
    samples = noise(2, 1000)
    np.testing.assert_array_equal(resample(samples, 24000, 24000, [7]), samples)


def test_stream_without_samples():
    assert audio.Resampler(8000, 24000).flush().shape == (1, 0)
