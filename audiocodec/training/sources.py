"""Folders of audio, audio files and packed shards: how long their files are, and stretches of them.

A folder is looked through once; what was found lies in one file, which is memory-mapped.
"""
import contextlib
import copy
import hashlib
import itertools
import json
import os
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from audiocodec import audio
from audiocodec.errors import AudioError

_SUFFIXES = (b".wav", b".flac", b".ogg", b".oga", b".opus", b".mp3", b".aif", b".aiff")
_RATES = range(1_000, 768_001)     # Hz
_UNKNOWN_LENGTH = 2**63 - 1        # libsndfile's number of frames for a FLAC stream that does not tell its own
_SILENT_FILE = 10 ** (-70 / 20)    # root mean square, of every second
_INDEX_VERSION = b"1"              # part of each digest: caches of another version are made anew
_THREADS = 8                       # that read headers; with a network disk they mostly wait
WARNINGS = 5                      # told one by one, for each source
_HELD_OUT, _MOST_HELD_OUT = 0.01, 200   # share and number of files


class Source:
    """Files to draw stretches from.

    Attributes: path, frames and rates (F,) of each file, held_out (F,), seconds of those that are drawn from. Arrays
    that lie in files are memory-mapped, and go to other processes as the file's name: memory does not grow with them.
    """

    def __init__(self, path: Path, frames: np.ndarray, rates: np.ndarray, held_out: np.ndarray):
        self.path, self.frames, self.rates, self.held_out = path, frames, rates, held_out
        self._select(np.ones(len(frames), bool))

    def _select(self, files: np.ndarray) -> None:
        self._until = np.cumsum(np.where(files, self.frames / self.rates, 0))
        self.seconds = float(self._until[-1])

    def split(self) -> tuple["Source", "Source"]:
        """This source without its held-out files, and those alone: 1 % of the files, at least one and at most 200.

        The hash of a file's name decides, so files that are added or removed move few others. A source of one file
        holds out nothing: both parts are then the source itself.
        """
        if not self.held_out.any():
            return self, self
        parts = copy.copy(self), copy.copy(self)
        parts[0]._select(~self.held_out)
        parts[1]._select(self.held_out)
        return parts

    def draw(self, random: np.random.Generator) -> int:
        """The number of a file, drawn in proportion to its duration."""
        return int(np.searchsorted(self._until, random.random() * self.seconds, side="right"))

    def read(self, file: int, start: int, count: int) -> np.ndarray:
        """Frames start to start + count of a file, float32 (C, n); n is less at its end. Raises AudioError."""
        raise NotImplementedError

    def __getstate__(self) -> dict:
        return {name: _Mapped(value.filename, value.dtype, value.offset, value.shape)
                if isinstance(value, np.memmap) else value for name, value in vars(self).items()}

    def __setstate__(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value.open() if isinstance(value, _Mapped) else value)


@dataclass(frozen=True)
class _Mapped:
    """Where the values of a memory-mapped array lie."""

    path: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]

    def open(self) -> np.memmap:
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


def open_source(path: Path, cache: Path, sample_rate: int, quietly: bool = False) -> Source:
    """Open a folder, an audio file or a shard (.npy, at `sample_rate`); indexes go to the folder `cache`.

    quietly: say nothing of what was found.

    Raises AudioError where there is no audio, NacError where the index cannot be written.
    """
    return Shard.open(path, sample_rate) if path.suffix == ".npy" else Index.open(path, cache, quietly)


class Shard(Source):
    """Packed audio: int16 samples (N,) in NAME.npy, and [start, end, file] of each of its files in NAME.json."""

    @classmethod
    def open(cls, path: Path, sample_rate: int) -> "Shard":
        """Open a shard by the path of its .npy. Raises AudioError for files that are not one."""
        try:
            spans = json.loads(path.with_suffix(".json").read_text())
            samples = np.load(path, mmap_mode="r")
            bounds = np.array([span[:2] for span in spans], np.int64).reshape(-1, 2)
            held_out = _choose_held_out([repr(span[2:]).encode() for span in spans])
        except (OSError, ValueError, TypeError) as error:
            raise AudioError(f"{path}: not a shard of audio ({error})") from None
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise AudioError(f"{path}: {samples.dtype} {samples.shape}; expected int16 samples, mono")
        starts, ends = bounds.T
        if not len(bounds) or (starts < 0).any() or (starts >= ends).any() or (ends > len(samples)).any():
            raise AudioError(f"{path}: no spans, or spans that do not lie in its {len(samples)} samples")
        shard = cls(path, ends - starts, np.full(len(bounds), sample_rate), held_out)
        shard.samples, shard.spans = samples, bounds
        return shard

    def read(self, file: int, start: int, count: int) -> np.ndarray:
        first, end = self.spans[file]
        return self.samples[None, first + start:min(end, first + start + count)].astype(np.float32) / 32768


class Index(Source):
    """The audio files in a folder and below, or a single one, as found once and kept in a cache.

    counts: of broken and of silent files, which are left out. names: uint8, the paths of the others from the folder,
    one after another, name_ends: (F,), where each of them ends.
    """

    def __init__(self, path: Path, counts: np.ndarray, frames: np.ndarray, name_ends: np.ndarray, rates: np.ndarray,
                 held_out: np.ndarray, names: np.ndarray):
        super().__init__(path, frames, rates, held_out)
        self.counts, self.name_ends, self.names = counts, name_ends, names
        self._folder = _folder(path)

    @classmethod
    def open(cls, path: Path, cache: Path, quietly: bool = False) -> "Index":
        """The index of `path` from the folder `cache`, made first unless it is there and no file has changed.

        Broken and silent files are left out, counted, and the first of them told. Raises AudioError without audio.
        """
        names, digest = _list_files(path)
        place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]
        file = cache / f"{path.resolve().name[:50]}-{place}.index"
        arrays = _load_arrays(file)
        if not arrays or arrays[0].tobytes() != digest:
            cache.mkdir(parents=True, exist_ok=True)
            with audio.atomic_output(file, force=True) as output:    # before the survey, which may take an hour
                for array in (np.frombuffer(digest, np.uint8), *_survey(path, names)):
                    np.save(output, array)
            arrays = _load_arrays(file)
        index = cls(path, *arrays[1:])
        if not quietly:
            _tell(index.summary())
        return index

    def summary(self) -> str:
        """One line on what was found."""
        files = "1 file" if len(self.frames) == 1 else f"{len(self.frames):,} files"
        left_out = [f"{count:,} {word}" for count, word in zip(self.counts, ("broken", "silent")) if count]
        duration = f"{self.seconds / 3600:.1f} h" if self.seconds >= 3600 else f"{self.seconds / 60:.1f} min"
        return (f"{self.path}: {files}, {duration}"
                + (f"; {', '.join(left_out)} left out" if left_out else ""))

    def file(self, number: int) -> bytes:
        """The path of a file."""
        start = self.name_ends[number - 1] if number else 0
        return os.path.join(self._folder, self.names[start:self.name_ends[number]].tobytes())

    def read(self, file: int, start: int, count: int) -> np.ndarray:
        with _Stream(self.file(file)) as stream:
            return stream.stretch(start, count).T


def _folder(path: Path) -> bytes:
    return os.fsencode(path.parent if path.is_file() else path)


def _list_files(path: Path) -> tuple[list[bytes], bytes]:
    """Audio files by their paths from the folder, in order, and a digest of their names, sizes and times of change."""
    folder, digest, names = _folder(path), hashlib.sha256(_INDEX_VERSION), []
    for name in [os.fsencode(path.name)] if path.is_file() else _walk(folder):
        try:
            status = os.stat(os.path.join(folder, name))
        except OSError:     # a link that leads nowhere
            continue
        if stat.S_ISREG(status.st_mode):
            names.append(name)
            digest.update(b"%b\0%d %d\n" % (name, status.st_size, status.st_mtime_ns))
    if not names:
        raise AudioError(f"{path}: no audio found")
    return names, digest.digest()


def _walk(top: bytes) -> Iterator[bytes]:
    """Names that look like audio, from `top`. Links are followed, each folder once; hidden names are left out."""
    seen = set()
    for folder, folders, files in os.walk(top, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(b"."))
        for name in sorted(files):
            if name.lower().endswith(_SUFFIXES) and not name.startswith(b"."):
                yield os.path.relpath(os.path.join(folder, name), top)


def _survey(path: Path, names: list[bytes]) -> tuple[np.ndarray, ...]:
    """Look into every file; the arrays that make an Index."""
    folder, kept, frames, rates = _folder(path), [], [], []
    counts, warn = np.zeros(2, np.int64), Warnings(WARNINGS)

    def look(name: bytes) -> tuple[int, int] | AudioError:
        try:
            return _look_into(os.path.join(folder, name))
        except AudioError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as threads, \
            tqdm(total=len(names), desc=f"looking into {path}", unit="file", disable=None) as bar:
        for start in range(0, len(names), 1024):     # a task for each of a million files at once would take memory
            some = names[start:start + 1024]
            for name, found in zip(some, threads.map(look, some)):
                bar.update()
                if isinstance(found, AudioError):
                    counts[0] += 1
                    warn(f"left out: {found}")
                elif not found[0]:
                    counts[1] += 1
                    warn(f"left out: {os.fsdecode(os.path.join(folder, name))}: silent")
                else:
                    kept.append(name)
                    frames.append(found[0])
                    rates.append(found[1])
    if not kept:
        raise AudioError(f"{path}: no audio found; {counts[0]:,} broken and {counts[1]:,} silent files")
    ends = np.cumsum([len(name) for name in kept], dtype=np.int64)
    return (counts, np.array(frames, np.int64), ends, np.array(rates, np.int32), _choose_held_out(kept),
            np.frombuffer(b"".join(kept), np.uint8))


def _look_into(path: bytes) -> tuple[int, int]:
    """Frames and sample rate (Hz) of a file; no frames if it is silent. Raises AudioError.

    The last second is decoded, and more of the file only where that is silent or its header tells a wrong length.
    """
    with _Stream(path) as stream:
        rate, frames = stream.samplerate, stream.frames
        if rate not in _RATES:
            raise AudioError(f"{os.fsdecode(path)}: sample rate {rate} Hz; expected {_RATES[0]} to {_RATES[-1]}")
        last = stream.stretch(max(0, frames - rate), rate) if frames != _UNKNOWN_LENGTH else ()
        if len(last) < min(frames, rate):
            frames = sum(len(block) for block in stream.all_seconds())
        if not frames:
            raise AudioError(f"{os.fsdecode(path)}: no samples")
        middle_and_start = (stream.stretch(start, rate) for start in (max(0, frames - rate) // 2, 0))
        stretches = itertools.chain([last], middle_and_start, stream.all_seconds())
        is_loud = any(len(block) and np.sqrt(np.mean(block ** 2)) > _SILENT_FILE for block in stretches)
    return frames if is_loud else 0, rate


class _Stream(soundfile.SoundFile):
    """An audio file to read stretches of. All failures are AudioErrors.

    Not seekable, it says: else soundfile seeks after each read, which takes time and fails in some files.
    """

    def __init__(self, path: bytes):
        try:
            super().__init__(path)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{os.fsdecode(path)}: not readable audio ({audio.reason(error)})") from None

    def seekable(self) -> bool:
        return False

    def stretch(self, start: int, count: int) -> np.ndarray:
        """Frames start to start + count, float32 (n, C); n is less at the end of the file."""
        with self._failures_named():
            self.seek(start)
        return self._next(count)

    def _next(self, count: int) -> np.ndarray:
        with self._failures_named():
            samples = self.read(count, dtype="float32", always_2d=True)
        if not np.isfinite(samples).all():
            raise AudioError(f"{os.fsdecode(self.name)}: values that are infinite or not a number")
        return samples

    def all_seconds(self) -> Iterator[np.ndarray]:
        """The whole file, a second at a time."""
        with self._failures_named():
            self.seek(0)
        while len(samples := self._next(self.samplerate)):
            yield samples

    @contextlib.contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{os.fsdecode(self.name)}: damaged or truncated ({audio.reason(error)})") from None


def _load_arrays(path: Path) -> list[np.ndarray]:
    """Arrays saved one after another, memory-mapped; none if the file is not there or not whole."""
    arrays = []
    try:
        with open(path, "rb") as file:
            while file.peek(1):
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                arrays.append(np.memmap(str(path), dtype, "r", file.tell(), shape))
                file.seek(arrays[-1].nbytes, os.SEEK_CUR)
    except (OSError, ValueError):
        return []
    return arrays


def _choose_held_out(names: list[bytes]) -> np.ndarray:
    """Which files are held out, bool (F,): those whose names have the lowest hashes."""
    hashes = np.array([int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) for name in names], np.uint64)
    count = min(max(1, round(_HELD_OUT * len(names))), _MOST_HELD_OUT) if len(names) > 1 else 0
    held_out = np.zeros(len(names), bool)
    held_out[np.argsort(hashes, kind="stable")[:count]] = True
    return held_out


class Warnings:
    """Tells the first `most` different messages."""

    def __init__(self, most: int):
        self._most, self._told = most, set()

    def __call__(self, message: str) -> None:
        if len(self._told) < self._most and message not in self._told:
            self._told.add(message)
            _tell(message)


def _tell(message: str) -> None:
    tqdm.write(message, file=sys.stderr)    # leaves progress bars whole
