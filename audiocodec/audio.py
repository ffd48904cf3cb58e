"""Audio files <-> samples, other sample rates, and output files that appear only when they are complete.

Everything streams, so memory stays bounded whatever the length of a file. Files go through libsndfile
(soundfile); torchaudio only resamples.
"""

import contextlib
import hashlib
import io
import math
import os
import re
import secrets
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from audiocodec import container
from audiocodec.errors import AudioError, NacError

MIN_SAMPLE_RATE = 8_000     # Hz
MAX_SAMPLE_RATE = 192_000   # Hz
MAX_CHANNELS = 2
BLOCK = 1 << 16             # samples per channel that the whole-file calls read or write at a time

_FORMATS = {".wav": "WAV", ".flac": "FLAC"}             # what nac writes, by the name's ending
_PCM_BITS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_SUBTYPES = (*_PCM_BITS, "FLOAT")                       # what nac writes
_MAX_WAV = 4_000_000_000      # bytes of audio; past this a WAV becomes an RF64, which counts in 64 bits
_UNKNOWN_LENGTH = 2**63 - 1   # libsndfile's number of samples for a FLAC stream that does not tell its own

# WAV and AIFF announce the size of their audio; libsndfile notes in its log when the file ends before that.
_CUT_SHORT = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 0x7FFF_0000   # programs that write WAV to a pipe announce this much or more

# A steep filter, as torchaudio's guide gives it for the best quality.
_FILTER = {
    "resampling_method": "sinc_interp_kaiser", "lowpass_filter_width": 64, "beta": 14.769656459379492,
}
_ROLLOFF = 0.9475937167399596
_MAX_TAPS = 1 << 20           # largest polyphase table, in coefficients
_OVERSAMPLING = 32            # before interpolating; the error at the band's edge is then 114 dB down
_OUTPUTS = 64                 # samples that a row of a product of matrices gives, at least about
CHUNK = 1 << 15               # samples resampled at a time, about, ...
_LONG_SEGMENT = 512           # ... in files of segments of so many frames

Tags = tuple[tuple[str, str], ...]   # (name, text) pairs, names as in Vorbis comments: "TITLE"
WRITABLE_TAGS = (
    "TITLE", "ARTIST", "ALBUM", "DATE", "GENRE", "TRACKNUMBER", "COMMENT", "COPYRIGHT", "LICENSE",
)
_TAG_LENGTH = 3               # bytes, at most, that a tag's length takes in a .nac file


# Reading

class _Stream(soundfile.SoundFile):
    """Not seekable, it says; else soundfile seeks after each read, which fails in FLAC of unknown length."""

    def seekable(self) -> bool:
        return False


class AudioReader:
    """An audio file to be read once from start to end; a context manager.

    Attributes: path, sample_rate (Hz), channels, num_samples (per channel; None if only reading will tell),
    subtype (libsndfile's word for how samples are stored, as "PCM_16"), tags, dropped_tags (names of those that
    are too long for a .nac file; a warning tells of them).
    Raises AudioError when the file cannot be read, and for rates and channel counts nac does not support.
    """

    def __init__(self, path: Path, name: Path | None = None):
        path = Path(path)
        self.path = name or path     # in messages: where a copy came from
        _check_readable(path)
        try:
            self._file = _Stream(os.fsencode(path))
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self.path}: not an audio file that nac reads ({reason(error)})") from None
        self.sample_rate = self._file.samplerate
        self.channels = self._file.channels
        self.num_samples = None if self._file.frames == _UNKNOWN_LENGTH else self._file.frames
        self.subtype = self._file.subtype
        try:
            check_layout(self.sample_rate, self.channels)
            self._check_complete()
        except AudioError as error:
            self._file.close()
            raise AudioError(f"{self.path}: {error}") from None
        tags = {name.upper(): text for name, text in self._file.copy_metadata().items()}
        self.tags, self.dropped_tags = fit_tags(tuple((name, tags[name]) for name in WRITABLE_TAGS if name in tags))
        if self.dropped_tags:
            names = ", ".join(self.dropped_tags)
            warnings.warn(f"{self.path}: tags left out, too long for a .nac file: {names}", stacklevel=2)

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def _check_complete(self) -> None:
        announced = _CUT_SHORT.search(self._file.extra_info)
        if announced and int(announced[1]) < _UNKNOWN_SIZE:
            raise AudioError(f"truncated: {announced[2]} bytes of audio, {announced[1]} expected")

    def blocks(self, num_frames: int) -> Iterator[np.ndarray]:
        """Yield float32 (C, n), n = num_frames except in the last block, until the file ends.

        Raises AudioError for damage, for a file that ends early, and for values that are not finite numbers.
        """
        return checked_blocks(self._pieces(num_frames), self.path, self.num_samples)

    def _pieces(self, num_frames: int) -> Iterator[np.ndarray]:
        try:
            while len(samples := self._file.read(num_frames, dtype="float32", always_2d=True)):
                yield samples
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self.path}: damaged or truncated ({reason(error)})") from None


def checked_blocks(pieces: Iterator[np.ndarray], path: Path, num_samples: int | None) -> Iterator[np.ndarray]:
    """Samples (n, C), piece by piece -> the same as (C, n).

    Raises AudioError for values that are not finite numbers, and for fewer than `num_samples` in all, if that is known.
    """
    done = 0
    for samples in pieces:
        if not np.isfinite(samples).all():
            raise AudioError(f"{path}: a value near sample {done} is infinite or not a number")
        done += len(samples)
        yield np.ascontiguousarray(samples.T)
    if num_samples is not None and done < num_samples:
        raise AudioError(f"{path}: truncated: {done} samples, {num_samples} expected")


def read(path: Path) -> tuple[np.ndarray, int]:
    """Read a whole file: samples float32 (C, N), and the sample rate in Hz. Raises AudioError."""
    with AudioReader(path) as reader:
        blocks = [np.zeros((reader.channels, 0), np.float32), *reader.blocks(BLOCK)]
        return np.concatenate(blocks, axis=1), reader.sample_rate


def check_layout(sample_rate: int, channels: int) -> None:
    """Raise AudioError unless nac supports the rate (Hz) and the number of channels."""
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"{channels} channels; nac reads 1 or 2")
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"sample rate {sample_rate} Hz; nac reads {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}")


def fit_tags(tags: Tags) -> tuple[Tags, tuple[str, ...]]:
    """Return the tags that a .nac file can hold, and the names of the others: the longest, no more than needed."""
    sizes = {name: len(f"{name}={text}".encode()) + _TAG_LENGTH for name, text in tags}
    dropped = []
    while sum(sizes.values()) > container.MAX_TAGS:
        dropped.append(max(sizes, key=sizes.get))
        del sizes[dropped[-1]]
    return tuple((name, text) for name, text in tags if name in sizes), tuple(dropped)


def replace_tags(tags: Tags, new: Tags) -> Tags:
    """Return the tags with new ones in place of those of the same names; an empty text takes a tag out.

    >>> replace_tags((("TITLE", "a"), ("DATE", "b")), (("TITLE", "c"), ("DATE", "")))
    (('TITLE', 'c'),)
    """
    names = {name for name, _ in new}
    return tuple(tag for tag in tags if tag[0] not in names) + tuple(tag for tag in new if tag[1])


def _check_readable(path: Path) -> None:
    """Raise AudioError for what libsndfile explains badly: no file, a folder, no permission, no bytes."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise AudioError(f"{path}: {_strerror(error)}") from None
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise AudioError(f"{path}: the file is empty")


def reason(error: soundfile.LibsndfileError) -> str:
    """What libsndfile has against a file that is there."""
    said = error.error_string.removeprefix("Error : ").rstrip(".")
    if said.startswith("File does not exist"):       # its word for an MP3 without a single frame
        said = "Format not recognised"
    return said or f"libsndfile's error {error.code}"


def _strerror(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# Writing

class AudioWriter:
    """A WAV or FLAC file to be written once from start to end; a context manager.

    The file appears under its name when the context ends without an error, and not at all otherwise. Of the
    tags, those in WRITABLE_TAGS are kept. num_samples, if known, lets a WAV that will pass 4 GB be an RF64.
    Raises AudioError for what the format cannot hold, NacError when writing fails.
    """

    def __init__(self, path: Path, sample_rate: int, channels: int, subtype: str, tags: Tags = (), *,
                 num_samples: int | None = None, force: bool = False):
        self.path = Path(path)
        self._format = check_writable(self.path, sample_rate, subtype)
        self._bits = _PCM_BITS.get(subtype)
        num_bytes = (num_samples or 0) * channels * (self._bits or 32) // 8
        if self._format == "WAV" and num_bytes > _MAX_WAV:
            self._format = "RF64"
        self._layout = {"samplerate": sample_rate, "channels": channels, "subtype": subtype}
        self._tags = tags
        self._force = force
        self._is_empty = True

    def __enter__(self) -> "AudioWriter":
        with contextlib.ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_path(self.path, self._force))
            self._file = self._open(self._temporary)
            stack.callback(self._close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        with self._failures_named():
            self._stack.__exit__(*error)

    def _open(self, path: Path) -> soundfile.SoundFile:
        with self._failures_named():
            file = soundfile.SoundFile(os.fsencode(path), "w", format=self._format, **self._layout)
        for name, text in self._tags:
            if text and name.upper() in WRITABLE_TAGS:
                setattr(file, name.lower(), text)
        return file

    def _close(self) -> None:
        self._file.close()
        if self._is_empty and self._format == "FLAC":   # libsndfile would leave no header
            rate, channels = self._layout["samplerate"], self._layout["channels"]
            self._temporary.write_bytes(_empty_flac(rate, channels, self._bits))

    def write(self, samples: np.ndarray) -> None:
        """Append samples (C, n); integer subtypes round to the nearest step and clip to [-1, 1]."""
        with self._failures_named():
            self._file.write(samples.T if self._bits is None else to_int32(samples, self._bits).T)
        self._is_empty &= not samples.size

    @contextlib.contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (soundfile.LibsndfileError, AssertionError, OSError):   # soundfile asserts that all was written
            raise NacError(f"{self.path}: writing failed; is the disk full?") from None


def write(path: Path, samples: np.ndarray, sample_rate: int, subtype: str = "PCM_16") -> None:
    """Write samples (C, N) to a WAV or FLAC file, replacing what has that name. Raises NacError."""
    channels, num_samples = samples.shape
    with AudioWriter(path, sample_rate, channels, subtype, num_samples=num_samples, force=True) as writer:
        for start in range(0, num_samples, BLOCK):
            writer.write(samples[:, start:start + BLOCK])


def check_writable(path: Path, sample_rate: int, subtype: str) -> str:
    """Return libsndfile's word for the format that the name asks for. Raises AudioError where nac cannot."""
    name = _FORMATS.get(path.suffix.lower())
    if name is None:
        raise AudioError(f"{path}: nac writes .wav and .flac")
    if subtype not in _SUBTYPES or not soundfile.check_format(name, subtype):
        raise AudioError(f"{path}: {name} files from nac do not hold {subtype}")
    if name == "FLAC" and sample_rate > 65_535 and sample_rate % 10:
        raise AudioError(f"{path}: FLAC files do not hold a sample rate of {sample_rate} Hz; WAV files do")
    return name


def restored_subtype(source_subtype: str, target: Path) -> str:
    """Return how samples that came from source_subtype are best stored in target.

    Float, 24 and 32 bits stay what they are where the format can; all else, lossy formats too, gets 16 bits.

    >>> restored_subtype("PCM_U8", Path("a.wav")), restored_subtype("FLOAT", Path("a.flac"))
    ('PCM_16', 'PCM_24')
    """
    subtype = "FLOAT" if source_subtype == "DOUBLE" else source_subtype
    if subtype not in _SUBTYPES:
        return "PCM_16"
    if subtype in ("PCM_32", "FLOAT") and target.suffix.lower() == ".flac":
        return "PCM_24"
    return subtype


def to_int32(samples: np.ndarray, bits: int) -> np.ndarray:
    """Round to the nearest of 2**bits steps, in the upper bits of int32; libsndfile would round down."""
    scale = 1 << (bits - 1)
    steps = np.rint(np.float64(samples) * scale).clip(-scale, scale - 1)
    return (steps * (1 << (32 - bits))).astype(np.int32)


def _empty_flac(sample_rate: int, channels: int, bits: int) -> bytes:
    """Return a whole FLAC file without samples: the mark and STREAMINFO (RFC 9639, section 8.2)."""
    layout = sample_rate << 44 | (channels - 1) << 41 | (bits - 1) << 36     # and zero samples
    block_sizes = (4096).to_bytes(2, "big") * 2
    return b"fLaC\x80\0\0\x22" + block_sizes + bytes(6) + layout.to_bytes(8, "big") + hashlib.md5().digest()


@contextlib.contextmanager
def atomic_path(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside path; rename it to path at the end, remove it on any failure or Ctrl-C.

    What is not a regular file, as /dev/null, is opened under its own name. Raises NacError when path exists
    and force is not set, and when it cannot be made; what the context raises passes through.
    """
    with _cannot_be_written(path):
        if path.is_dir():
            raise NacError(f"{path}: is a folder")
        is_special = path.exists() and not path.is_file()
        if path.is_file() and not force:
            raise NacError(f"{path}: exists already; -f overwrites")
    if is_special:
        yield path
        return
    target = Path(os.path.realpath(path))    # a link keeps pointing where it points
    temporary = target.with_name(f".nac-{secrets.token_hex(8)}.part")
    try:
        with _cannot_be_written(path):
            temporary.touch(exist_ok=False)
        yield temporary
        with _cannot_be_written(path):
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_output(path: Path, force: bool = False) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes path when the context ends without an error; see atomic_path.

    Only failures of writing are told as the file's own.
    """
    with atomic_path(path, force) as temporary:
        with _cannot_be_written(path):
            raw = _Output(temporary, path)
        with io.BufferedWriter(raw) as file:
            yield file


class _Output(io.FileIO):
    """A file to write to whose failures name the path that it will have in the end."""

    def __init__(self, temporary: Path, path: Path):
        super().__init__(temporary, "wb")
        self._path = path

    def write(self, data) -> int:
        with _cannot_be_written(self._path):
            return super().write(data)


@contextlib.contextmanager
def _cannot_be_written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NacError(f"{path}: cannot be written: {_strerror(error)}") from None


# Sample rates

class Resampler:
    """Convert the sample rate of a stream; N samples give ceil(N * target_rate / source_rate).

    The result does not depend on how the stream is cut into blocks. It equals torchaudio's resample of the
    whole stream to 1e-6 wherever that is feasible: torchaudio's filter table grows with the product of the
    two rates over their common divisor, to gigabytes for 47999 -> 24000 Hz. Past a bound torchaudio
    oversamples the stream instead, and cubics find the values at the exact positions.

    start: which sample of the stream the first one pushed is, a multiple of `chunk`. What comes out begins with the
    sample of the result at that place; from `context` source samples on it is the same as that of the whole stream.
    chunk: source samples to resample at once, about; with few of them, samples come sooner and cost more.
    """

    def __init__(self, source_rate: int, target_rate: int, start: int = 0, chunk: int = CHUNK):
        common = math.gcd(source_rate, target_rate)
        self._source, self._target = source_rate // common, target_rate // common
        self._filter = _make_filter(self._source, self._target, chunk) if source_rate != target_rate else None
        self._pending = None      # (C, context + n): samples not yet resampled, after those they lean on
        self._position = start    # of the first of those n samples
        self._num_in = start
        self._num_out = self.first_out = -(-start * self._target // self._source)

    @property
    def chunk(self) -> int:
        """Source samples that are resampled at once."""
        return self._filter.chunk if self._filter else 1

    @property
    def context(self) -> int:
        """Source samples on each side that a sample may depend on."""
        return self._filter.context if self._filter else 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take the stream's next samples, float32 (C, n); return those that are ready, float32 (C, m)."""
        if self._filter is None:
            self._pending = samples[:, :0]
            return samples
        if self._pending is None:
            self._pending = np.zeros((len(samples), self._filter.context), np.float32)
        self._num_in += samples.shape[1]
        self._pending = np.concatenate([self._pending, samples], axis=1)
        return self._advance()

    def flush(self) -> np.ndarray:
        """Return the last samples, float32 (C, m); afterwards the stream is over."""
        if self._pending is None:         # nothing was pushed
            return np.zeros((1, 0), np.float32)
        if self._filter is None:
            return self._pending
        due = -(-self._num_in * self._target // self._source) - self._num_out
        missing = self._filter.chunk + self._filter.context
        self._pending = np.pad(self._pending, ((0, 0), (0, missing)))
        return self._advance()[:, :due]

    def _advance(self) -> np.ndarray:
        chunk, context = self._filter.chunk, self._filter.context
        done = [np.zeros((len(self._pending), 0), np.float32)]
        while self._pending.shape[1] >= chunk + 2 * context:
            done.append(self._filter.apply(self._pending[:, :chunk + 2 * context], self._position))
            self._pending = self._pending[:, chunk:]
            self._position += chunk
        resampled = np.concatenate(done, axis=1)
        self._num_out += resampled.shape[1]
        return resampled


def chunk_for(segment_frames: int) -> int:
    """Samples that a Resampler takes at once in files of such segments: short ones are meant for little delay."""
    return CHUNK * min(segment_frames, _LONG_SEGMENT) // _LONG_SEGMENT


def _make_filter(source: int, target: int, chunk: int) -> "_Polyphase | _Interpolated":
    table = target * (source + 2 * _filter_width(source, target))
    return (_Polyphase if table <= _MAX_TAPS else _Interpolated)(source, target, chunk)


def _filter_width(source: int, target: int) -> int:
    """Return how many source samples on each side of a point the filter reaches."""
    return math.ceil(_FILTER["lowpass_filter_width"] * source / (min(source, target) * _ROLLOFF))


class _Polyphase:
    """torchaudio's resampling by source : target, two coprime integers, of chunks of whole periods.

    chunk samples with context samples before and after them give exactly chunk * target / source samples.
    """

    def __init__(self, source: int, target: int, chunk: int):
        self._resample = _torchaudio_resample(source, target, _ROLLOFF)
        self.context = _round_up(_filter_width(source, target), source)
        self.chunk = _round_up(chunk, source)
        self._skip = self.context // source * target

    def apply(self, samples: np.ndarray, position: int) -> np.ndarray:
        return self._resample(samples)[:, self._skip:-self._skip]


class _Interpolated:
    """The same for any ratio: torchaudio filters and oversamples, Lagrange's cubics find points between."""

    def __init__(self, source: int, target: int, chunk: int):
        self._source, self._target = source, target
        narrowing = min(1, target / source)
        self._factor = math.ceil(_OVERSAMPLING * narrowing)
        self._resample = _torchaudio_resample(1, self._factor, _ROLLOFF * narrowing)
        self.context = _filter_width(source, target) + 2
        self.chunk = -(-chunk // 4)

    def apply(self, samples: np.ndarray, position: int) -> np.ndarray:
        dense = self._resample(samples)
        first, end = (-(-start * self._target // self._source) for start in (position, position + self.chunk))
        # output j lies at j * source / target input samples: split that into whole dense samples and a rest
        scaled = np.arange(first, end, dtype=np.int64) * (self._source * self._factor)
        index = scaled // self._target - (position - self.context) * self._factor
        x = (scaled % self._target / self._target).astype(np.float32)
        a, b, c, d = (dense[:, index + offset] for offset in (-1, 0, 1, 2))
        return (b * (x + 1) * (x - 1) * (x - 2) / 2 - c * (x + 1) * x * (x - 2) / 2
                + d * (x + 1) * x * (x - 1) / 6 - a * x * (x - 1) * (x - 2) / 6)


def _torchaudio_resample(source: int, target: int, rolloff: float):
    """Return a function that resamples float32 (C, n) as torchaudio does, by its filter.

    In float64, so that the order of adding, which differs between CPUs, does not show in float32; and as one product
    of matrices, several periods at a time: torchaudio's convolution in float64 takes up to fifty times as long.
    """
    import torch                        # late, so that reading and writing files needs no torch
    from audiocodec._torchaudio import torchaudio

    transform = torchaudio.transforms.Resample(source, target, rolloff=rolloff, dtype=torch.float64, **_FILTER)
    kernel, width = transform.kernel[:, 0].T, transform.width            # (taps, target); taps before the first sample
    periods = max(1, _OUTPUTS // target)
    step, taps = periods * source, (periods - 1) * source + len(kernel)
    matrix = torch.zeros(taps, periods * target, dtype=torch.float64)
    for i in range(periods):
        matrix[i * source:i * source + len(kernel), i * target:(i + 1) * target] = kernel

    def resample(samples: np.ndarray) -> np.ndarray:
        num_in = samples.shape[1]
        blocks = -(-num_in // step)
        padding = width, (blocks - 1) * step + taps - width - num_in
        padded = torch.nn.functional.pad(torch.from_numpy(samples).double(), padding)
        resampled = (padded.unfold(1, taps, step) @ matrix).flatten(1)
        return resampled[:, :-(-num_in * target // source)].float().numpy()

    return resample


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
