"""Samples on pipes: WAV and raw PCM, read and written without seeking; and which reader or writer a name gets.

"-" is standard input or output. Other formats that come through a pipe are kept in a temporary file first.
"""
import contextlib
import io
import os
import shutil
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from audiocodec import audio
from audiocodec.errors import AudioError, NacError

RAW_FORMATS = {"s16le": "PCM_16", "s24le": "PCM_24", "s32le": "PCM_32", "f32le": "FLOAT"}   # ffmpeg's words

_WIDTHS = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}      # bytes of a sample
_INTEGER, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE      # WAV's format tags
_SUBTYPES = {(_INTEGER, 8): "PCM_U8", (_INTEGER, 16): "PCM_16", (_INTEGER, 24): "PCM_24", (_INTEGER, 32): "PCM_32",
             (_FLOAT, 32): "FLOAT", (_FLOAT, 64): "DOUBLE"}
_UNKNOWN_SIZE = 0xFFFF_FFFF      # what a WAV of unknown length is written with
_LEAST_UNKNOWN = 0x7FFF_0000     # programs that write WAV to a pipe announce this much or more, or nothing
_MAX_CHUNK = 1 << 20             # bytes of what may come before a WAV's samples
_INFO = {b"INAM": "TITLE", b"IART": "ARTIST", b"IPRD": "ALBUM", b"ICRD": "DATE", b"IGNR": "GENRE",
         b"ITRK": "TRACKNUMBER", b"ICMT": "COMMENT", b"ICOP": "COPYRIGHT"}


@dataclass(frozen=True)
class RawFormat:
    """How samples without a header lie: interleaved, in the order of time."""

    sample_rate: int     # Hz
    channels: int
    subtype: str         # one of RAW_FORMATS' values

    @classmethod
    def parse(cls, text: str) -> "RawFormat":
        """Read RATE,CHANNELS,FORMAT. Raises AudioError.

        >>> RawFormat.parse("16000,1,s16le")
        RawFormat(sample_rate=16000, channels=1, subtype='PCM_16')
        """
        parts = text.split(",")
        if len(parts) != 3 or not parts[0].isdecimal() or not parts[1].isdecimal() or parts[2] not in RAW_FORMATS:
            raise AudioError(f"{text!r}; expected RATE,CHANNELS,FORMAT with one of {', '.join(RAW_FORMATS)}")
        audio.check_layout(int(parts[0]), int(parts[1]))
        return cls(int(parts[0]), int(parts[1]), RAW_FORMATS[parts[2]])


def is_pipe(path: Path) -> bool:
    """Whether the name stands for standard input or output, or for another pipe."""
    try:
        return str(path) == "-" or stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


# Reading

@contextlib.contextmanager
def open_input(path: Path) -> Iterator[BinaryIO]:
    """Yield a file's bytes. Raises NacError for one that cannot be opened."""
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")
    except OSError as error:
        raise NacError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    with file:
        yield file


@contextlib.contextmanager
def open_reader(path: Path, raw: RawFormat | None = None,
                is_live: bool = False) -> Iterator["audio.AudioReader | PcmReader"]:
    """Yield a reader of audio; from a live pipe, one that gives what has come without waiting for more.

    Raises AudioError for what it cannot read, NacError for what cannot be opened.
    """
    if raw:
        with open_input(path) as file:
            yield PcmReader(file, path, raw.sample_rate, raw.channels, raw.subtype, is_live=is_live)
    elif is_pipe(path):
        with open_input(path) as file, _open_stream(file, path, is_live) as reader:
            yield reader
    else:
        with audio.AudioReader(path) as reader:
            yield reader


@contextlib.contextmanager
def _open_stream(file: BinaryIO, path: Path, is_live: bool = False) -> Iterator["audio.AudioReader | PcmReader"]:
    source = _Remembering(file)
    reader = _read_wav_header(source, path, is_live)
    if reader:
        yield reader
        return
    if is_live:
        raise AudioError(f"{path}: not a WAV stream; --live takes that, or raw samples with --raw")
    with tempfile.NamedTemporaryFile(prefix="nac-") as copy:
        copy.write(source.seen)
        shutil.copyfileobj(file, copy)
        copy.flush()
        with audio.AudioReader(Path(copy.name), path) as reader:
            yield reader


class _Remembering:
    """A stream that keeps what was read of it, in case another reader has to start over."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.seen = bytearray()

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.seen += data
        return data


class PcmReader:
    """A stream of uncompressed samples, with the attributes of audio.AudioReader.

    num_bytes: of samples; None: all to the end. is_live: blocks do not wait until they are full.
    Raises AudioError for layouts that nac does not support.
    """

    def __init__(self, file, path: Path, sample_rate: int, channels: int, subtype: str,
                 num_bytes: int | None = None, tags: audio.Tags = (), is_live: bool = False):
        try:
            audio.check_layout(sample_rate, channels)
        except AudioError as error:
            raise AudioError(f"{path}: {error}") from None
        self._read = file.read1 if is_live else file.read
        self._frame_size = _WIDTHS[subtype] * channels
        self.path, self.sample_rate, self.channels, self.subtype, self.tags = path, sample_rate, channels, subtype, tags
        self.num_samples = None if num_bytes is None else num_bytes // self._frame_size

    def blocks(self, num_frames: int) -> Iterator[np.ndarray]:
        """Yield float32 (C, n), n <= num_frames and at most a second, until the stream ends. Raises AudioError."""
        return audio.checked_blocks(self._pieces(min(num_frames, self.sample_rate)), self.path, self.num_samples)

    def _pieces(self, num_frames: int) -> Iterator[np.ndarray]:
        done, rest = 0, b""     # a live pipe may break off within a sample
        while self.num_samples is None or done < self.num_samples:
            wanted = num_frames if self.num_samples is None else min(num_frames, self.num_samples - done)
            data = self._read(wanted * self._frame_size - len(rest))
            if not data:
                break
            whole = len(rest + data) // self._frame_size * self._frame_size
            data, rest = (rest + data)[:whole], (rest + data)[whole:]
            samples = _to_float(data, self.subtype).reshape(-1, self.channels)
            done += len(samples)
            yield samples


def _to_float(data: bytes, subtype: str) -> np.ndarray:
    """Bytes of samples -> float32 in [-1, 1], as libsndfile scales them."""
    if subtype in ("FLOAT", "DOUBLE"):
        return np.frombuffer(data, "<f4" if subtype == "FLOAT" else "<f8").astype(np.float32)
    if subtype == "PCM_U8":
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if subtype == "PCM_24":
        steps = np.zeros((len(data) // 3, 4), np.uint8)
        steps[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (steps.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    steps = np.frombuffer(data, "<i2" if subtype == "PCM_16" else "<i4")
    return (steps / 2.0**(8 * steps.itemsize - 1)).astype(np.float32)


def _read_wav_header(file: _Remembering, path: Path, is_live: bool) -> PcmReader | None:
    """Read a WAV file up to its samples; None for other formats, and for kinds of WAV that only libsndfile knows."""
    start = file.read(12)
    if not start:
        raise AudioError(f"{path}: the file is empty")
    if start[:4] != b"RIFF" or start[8:] != b"WAVE":
        return None
    layout, tags = None, ()
    while len(head := file.read(8)) == 8:
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            if layout is None:
                return None
            announced = int.from_bytes(start[4:8], "little")
            is_last = len(file.seen) - 8 >= announced or announced >= _LEAST_UNKNOWN     # so 0 means: not known yet
            known = None if size >= _LEAST_UNKNOWN or size == 0 and is_last else size
            return PcmReader(file.file, path, *layout, known, tags, is_live)
        if size > _MAX_CHUNK:
            return None
        body = file.read(size + size % 2)
        if name == b"fmt ":
            layout = _layout(body)
            if layout is None:
                return None
        elif name == b"LIST" and body[:4] == b"INFO":
            tags = _read_info(body[4:])
    return None


def _layout(body: bytes) -> tuple[int, int, str] | None:
    """A WAV's fmt chunk -> sample rate, channels, subtype; None for what is not plain samples."""
    if len(body) < 16:
        return None
    kind, channels, sample_rate, _, frame_size, bits = struct.unpack_from("<HHIIHH", body)
    if kind == _EXTENSIBLE and len(body) >= 26:
        kind = int.from_bytes(body[24:26], "little")
    subtype = _SUBTYPES.get((kind, bits))
    if subtype is None or frame_size != channels * bits // 8:
        return None
    return sample_rate, channels, subtype


def _read_info(body: bytes) -> audio.Tags:
    tags = {}
    while len(body) >= 8:
        name, size = _INFO.get(body[:4]), int.from_bytes(body[4:8], "little")
        text = body[8:8 + size].split(b"\0")[0].decode(errors="replace")
        if name and text:
            tags[name] = text
        body = body[8 + size + size % 2:]
    return audio.fit_tags(tuple((name, tags[name]) for name in audio.WRITABLE_TAGS if name in tags))[0]


# Writing

class _Unbuffered:
    """A pipe to write to: all at once, so that it is on its way. Raises NacError, but BrokenPipeError as it is."""

    def __init__(self, file: io.FileIO, path: Path):
        self._file, self._path = file, path

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest):]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise NacError(f"{self._path}: cannot be written: {(error.strerror or str(error)).lower()}") from None


@contextlib.contextmanager
def open_output(path: Path, force: bool = False):
    """Yield something to write bytes to: a pipe, or a file that appears when the context ends without an error."""
    if str(path) == "-":
        with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as file:
            yield _Unbuffered(file, path)
    elif is_pipe(path):
        with open(path, "wb", buffering=0) as file:
            yield _Unbuffered(file, path)
    else:
        with audio.atomic_output(path, force) as file:
            yield file


@contextlib.contextmanager
def open_writer(path: Path, sample_rate: int, channels: int, subtype: str, tags: audio.Tags = (), *,
                num_samples: int | None = None, force: bool = False,
                raw: RawFormat | None = None) -> Iterator["audio.AudioWriter | PcmWriter"]:
    """Yield a writer of audio: WAV on pipes, what the name says in files, no header at all where `raw` is given.

    Raises AudioError for what cannot be written so, NacError for what cannot be opened.
    """
    if raw and (raw.sample_rate, raw.channels) != (sample_rate, channels):
        found = f"{sample_rate} Hz and {channels} channels in the file"
        raise AudioError(f"{found}; --raw says {raw.sample_rate} Hz and {raw.channels}")
    if not raw and not is_pipe(path):
        with audio.AudioWriter(path, sample_rate, channels, subtype, tags, num_samples=num_samples,
                               force=force) as writer:
            yield writer
        return
    with open_output(path, force) as file:
        if not raw:
            file.write(_wav_header(sample_rate, channels, subtype, num_samples, tags))
        writer = PcmWriter(file, raw.subtype if raw else subtype)
        yield writer
        if writer.size % 2 and not raw and num_samples is not None:
            file.write(b"\0")     # a chunk's padding


class PcmWriter:
    """Uncompressed samples, one after another, to anything with write(bytes)."""

    def __init__(self, file, subtype: str):
        self._file, self._subtype = file, subtype
        self.size = 0     # bytes written

    def write(self, samples: np.ndarray) -> None:
        """Append samples (C, n), rounded and clipped as in files."""
        if samples.size:
            data = _to_bytes(np.ascontiguousarray(samples.T), self._subtype)
            self._file.write(data)
            self.size += len(data)


def _to_bytes(samples: np.ndarray, subtype: str) -> bytes:
    if subtype == "FLOAT":
        return samples.astype("<f4").tobytes()
    width = _WIDTHS[subtype]
    steps = audio.to_int32(samples, 8 * width).astype("<i4")
    return np.ascontiguousarray(steps.reshape(-1, 1).view(np.uint8)[:, 4 - width:]).tobytes()


def _wav_header(sample_rate: int, channels: int, subtype: str, num_samples: int | None, tags: audio.Tags) -> bytes:
    """All of a WAV file that comes before its samples."""
    width = _WIDTHS[subtype]
    kind = _FLOAT if subtype == "FLOAT" else _INTEGER
    layout = struct.pack("<HHIIHH", kind, channels, sample_rate, sample_rate * channels * width, channels * width,
                         8 * width)
    chunks = b"WAVE" + _chunk(b"fmt ", layout)
    names = {name: info for info, name in _INFO.items()}
    texts = [_chunk(names[name], text.encode() + b"\0") for name, text in tags if name in names and text]
    if texts:
        chunks += _chunk(b"LIST", b"INFO" + b"".join(texts))
    size = None if num_samples is None else num_samples * channels * width
    if size is None or size + len(chunks) + 8 >= _LEAST_UNKNOWN:
        sizes = [_UNKNOWN_SIZE, _UNKNOWN_SIZE]
    else:
        sizes = [size + size % 2 + len(chunks) + 8, size]
    return b"RIFF" + struct.pack("<I", sizes[0]) + chunks + b"data" + struct.pack("<I", sizes[1])


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
