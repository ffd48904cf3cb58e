"""pcm.py: WAV and raw samples without seeking, against libsndfile."""
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiocodec import audio, pcm
from audiocodec.errors import AudioError

TAGS = (("TITLE", "Ein Satz"), ("COMMENT", "a = b"))


def stream(data: bytes, path=Path("-")):
    return pcm._open_stream(io.BytesIO(data), path)


def samples(channels: int = 2, num_samples: int = 1001) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (channels, num_samples)).astype(np.float32)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
def test_reads_as_libsndfile_does(tmp_path, subtype, container):
    path = tmp_path / "a.wav"
    soundfile.write(path, samples().T, 8000, subtype=subtype, format=container)
    with stream(path.read_bytes()) as reader, audio.AudioReader(path) as wanted:
        assert isinstance(reader, pcm.PcmReader)
        assert (reader.sample_rate, reader.channels, reader.subtype) == (8000, 2, subtype)
        assert reader.num_samples == 1001
        assert np.array_equal(np.concatenate(list(reader.blocks(100)), 1), np.concatenate(list(wanted.blocks(100)), 1))


@pytest.mark.parametrize("whole, size", [
    (0, 0), (36, 0), (0xFFFFFFFF, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFFF24, 0x7FFFFF00)])
def test_length_may_be_unknown(tmp_path, whole, size):
    audio.write(tmp_path / "a.wav", samples(1), 8000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at:at + 4] = struct.pack("<I", size)
    data[4:8] = struct.pack("<I", whole)
    with stream(bytes(data)) as reader:
        assert reader.num_samples is None
        assert sum(block.shape[1] for block in reader.blocks(64)) == 1001


def test_tags_and_chunks_after_the_samples(tmp_path):
    with audio.AudioWriter(tmp_path / "a.wav", 8000, 1, "PCM_16", TAGS) as writer:
        writer.write(samples(1))
    with stream((tmp_path / "a.wav").read_bytes()) as reader:
        assert sum(block.shape[1] for block in reader.blocks(64)) == 1001


def test_no_samples_and_chunks_after_them():
    layout = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    chunks = b"WAVEfmt \x10\0\0\0" + layout + b"data\0\0\0\0" + b"LIST\x0e\0\0\0INFOINAM\x02\0\0\0a\0"
    with stream(b"RIFF" + struct.pack("<I", len(chunks)) + chunks) as reader:
        assert reader.num_samples == 0 and not list(reader.blocks(64))


def test_truncation_is_noticed(tmp_path):
    audio.write(tmp_path / "a.wav", samples(1), 8000)
    with stream((tmp_path / "a.wav").read_bytes()[:-100]) as reader:
        with pytest.raises(AudioError, match="truncated: 951 samples, 1001 expected"):
            list(reader.blocks(64))


def test_other_formats_go_through_a_copy(tmp_path):
    audio.write(tmp_path / "a.flac", samples(), 8000)
    with stream((tmp_path / "a.flac").read_bytes()) as reader:
        assert reader.num_samples == 1001 and str(reader.path) == "-"
    with pytest.raises(AudioError, match="^-: not an audio file"):
        with stream(b"RIFF????WAVEjunk"):
            pass


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("num_samples", [1001, None])
def test_writes_what_libsndfile_reads(tmp_path, subtype, num_samples):
    written, wanted = tmp_path / "a.wav", tmp_path / "b.wav"
    audio.write(wanted, 1.1 * samples(1), 8000, subtype)
    with open(written, "wb") as file:
        file.write(pcm._wav_header(8000, 1, subtype, num_samples, TAGS))
        pcm.PcmWriter(file, subtype).write(1.1 * samples(1))
    with audio.AudioReader(written) as reader:
        assert (reader.subtype, reader.tags) == (subtype, TAGS)
        found = np.concatenate(list(reader.blocks(2000)), 1)
    assert np.array_equal(found, audio.read(wanted)[0])


@pytest.mark.parametrize("name, subtype", pcm.RAW_FORMATS.items())
def test_raw_there_and_back(tmp_path, name, subtype):
    path, layout = tmp_path / "a.raw", pcm.RawFormat.parse(f"44100,2,{name}")
    with pcm.open_writer(path, 44100, 2, "PCM_16", raw=layout) as writer:
        writer.write(samples())
    with pcm.open_reader(path, layout) as reader:
        found = np.concatenate(list(reader.blocks(100)), 1)
    assert np.abs(found - samples()).max() <= 2**-16
    assert path.stat().st_size == 2002 * int(name[1:3]) // 8


def test_raw_has_to_fit_the_file(tmp_path):
    with pytest.raises(AudioError, match="44100 Hz and 1 channels in the file; --raw says 8000 Hz and 1"):
        with pcm.open_writer(tmp_path / "a.raw", 44100, 1, "PCM_16", raw=pcm.RawFormat.parse("8000,1,s16le")):
            pass


@pytest.mark.parametrize("text", ["", "8000", "8000,1", "x,1,s16le", "8000,1,s16be", "8000,1,s16le,x", "8000,3,s16le",
                                  "7999,1,s16le"])
def test_raw_layouts_that_are_none(text):
    with pytest.raises(AudioError):
        pcm.RawFormat.parse(text)
