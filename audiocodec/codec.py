"""The two walks: audio -> samples -> latents -> codes -> payload -> .nac bytes, and back."""
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from audiocodec import audio, container, rate, weights
from audiocodec.entropy import MAX_FRAMES
from audiocodec.errors import AudioError, FormatError, ModelError, NacError
from audiocodec.tokens import DEFAULT_MODEL, Codec, StreamDecoder, StreamEncoder, choose_device

DEFAULT_KBPS = 6.0
MIN_KBPS, MAX_KBPS = 0.75, 48.0      # from one book of one channel to every book of two

_SEGMENT_FRAMES = MAX_FRAMES         # what the entropy model takes at once
_BATCH = 16                          # segments that are range-coded side by side
_READ = 1 << 18                      # samples per channel read from a file at once
_FILE_OVERHEAD, _SEGMENT_OVERHEAD = 48, 10     # bytes besides payloads, roughly

Progress = Callable[[float, float], None]     # seconds done, seconds in all


@dataclass(frozen=True)
class EncodeResult:
    """What became of one recording."""

    num_bytes: int
    seconds: float
    codebooks: tuple[int, ...]       # per channel; two channels are mid and side

    @property
    def kbps(self) -> float:
        """The true bit rate, of every byte in the file."""
        return self.num_bytes * 8e-3 / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class DecodeResult:
    seconds: float
    sample_rate: int
    channels: int
    damaged: tuple[str, ...]         # what was wrong, where damage was to be passed over


# Mid and side

def to_mid_side(samples: np.ndarray) -> np.ndarray:
    """Left and right (2, N) -> mid and side (2, N); one channel stays as it is."""
    return samples if len(samples) == 1 else np.stack([samples[0] + samples[1], samples[0] - samples[1]]) / 2


def from_mid_side(samples: np.ndarray) -> np.ndarray:
    """Mid and side (2, N) -> left and right (2, N); one channel stays as it is."""
    return samples if len(samples) == 1 else np.stack([samples[0] + samples[1], samples[0] - samples[1]])


# Audio -> .nac

@dataclass(frozen=True)
class _Source:
    """What a file remembers of the audio it was made from."""

    sample_rate: int
    channels: int
    num_samples: int | None          # as announced
    subtype: str = "FLOAT"
    tags: container.Tags = ()


@dataclass(frozen=True)
class _Wish:
    """What was asked for: a ceiling in kbps or a count of codebooks, and whether to entropy-code."""

    kbps: float | None
    codebooks: int | None
    entropy: bool

    def __post_init__(self):
        if self.codebooks is None and not (self.kbps and MIN_KBPS <= self.kbps <= MAX_KBPS):
            raise NacError(f"{self.kbps} kbps; nac codes at {MIN_KBPS:g} to {MAX_KBPS:g}")

    def most_books(self, codec: Codec) -> int:
        """Books per channel that are worth computing: those that would fit if half of their bits were saved."""
        if self.codebooks is None:
            return min(codec.config.num_books, math.ceil(2 * self.kbps * 1000 / codec.config.bits_per_book))
        codec.check_books(self.codebooks)
        return self.codebooks


def encode(samples: np.ndarray, sample_rate: int, kbps: float | None = DEFAULT_KBPS, *, codebooks: int | None = None,
           model: str = DEFAULT_MODEL, entropy: bool = True, device: str = "auto") -> bytes:
    """Compress samples to the bytes of a .nac file.

    samples: float32 (C, N) in [-1, 1], one or two channels. sample_rate: Hz, 8000 to 192000.
    kbps: a ceiling for the whole file, unless a count of codebooks per channel is given instead; a file that cannot
    meet it has the smallest count. model: weights by name or path. entropy: False packs codes plainly.
    device: "auto", "cpu" or "cuda", for the networks.
    Raises AudioError for samples it does not take, NacError for a rate it cannot meet, ModelError.
    """
    samples = np.asarray(samples)
    if samples.ndim != 2 or samples.dtype.kind != "f":
        raise AudioError(f"samples of shape {samples.shape}, {samples.dtype}; expected floats of (channels, samples)")
    samples, sample_rate = np.ascontiguousarray(samples, np.float32), int(sample_rate)
    audio.check_layout(sample_rate, len(samples))
    if not np.isfinite(samples).all():
        raise AudioError("samples that are infinite or not numbers")
    target, source = io.BytesIO(), _Source(sample_rate, len(samples), samples.shape[1])
    _encode(_load(model, device), [samples], source, target, _Wish(kbps, codebooks, entropy), lambda share: None)
    return target.getvalue()


def encode_file(source: Path, target: Path, *, kbps: float | None = DEFAULT_KBPS, codebooks: int | None = None,
                model: str = DEFAULT_MODEL, mono: bool = False, entropy: bool = True, device: str = "auto",
                force: bool = False, progress: Progress | None = None) -> EncodeResult:
    """Compress one audio file to one .nac file, with its tags. Arguments and errors are those of `encode`."""
    wish = _Wish(kbps, codebooks, entropy)
    with audio.AudioReader(source) as reader, audio.atomic_output(target, force) as file:
        total = (reader.num_samples or 0) / reader.sample_rate
        blocks = reader.blocks(_READ)
        if mono:
            blocks = (block.mean(0, keepdims=True) for block in blocks)
        subtype = audio.restored_subtype(reader.subtype, Path("a.wav"))
        channels = 1 if mono else reader.channels
        layout = _Source(reader.sample_rate, channels, reader.num_samples, subtype, reader.tags)
        return _encode(_load(model, device), blocks, layout, file, wish,
                       lambda share: progress(share * total, total) if progress else None)


def _encode(codec: Codec, blocks: Iterable[np.ndarray], source: _Source, file, wish: _Wish,
            progress: Callable[[float], None]) -> EncodeResult:
    """Write one file; progress(share) hears of it, half for the networks and half for the coding."""
    codes, num_samples = _analyse(codec, blocks, source, wish.most_books(codec), progress)
    segments = [codes[:, :, at:at + _SEGMENT_FRAMES] for at in range(0, codes.shape[2], _SEGMENT_FRAMES)]
    coder = codec.coder(wish.entropy)
    seconds = num_samples / source.sample_rate

    def pack(books: tuple[int, ...]) -> bytes:
        header = container.Header(
            source.channels, source.sample_rate, num_samples, codec.weights.identity, max(books),
            round((wish.kbps or 0) * 100) * 10 if wish.codebooks is None else 0, wish.entropy, source.subtype,
            _SEGMENT_FRAMES)
        return container.pack(header, source.tags, _pack_segments(coder, segments, books, progress), num_samples)

    if wish.codebooks is not None or not segments:
        books = (wish.codebooks or 1,) * source.channels
        data = pack(books)
    else:
        bits = rate.costs(codec.entropy if wish.entropy else None, segments)
        books, data = rate.largest(pack, rate.ladder(_gains(codec, codes)), bits,
                                   _FILE_OVERHEAD + _SEGMENT_OVERHEAD * len(segments), wish.kbps * 125 * seconds)
    file.write(data)
    return EncodeResult(len(data), seconds, books)


def _analyse(codec: Codec, blocks: Iterable[np.ndarray], source: _Source, num_books: int,
             progress: Callable[[float], None]) -> tuple[np.ndarray, int]:
    """Blocks of samples (C, n) -> codes uint16 (C, K, T), and the number of samples."""
    resampler = audio.Resampler(source.sample_rate, codec.config.sample_rate)
    encoder = StreamEncoder(codec, source.channels, num_books)
    codes, num_samples = [], 0
    for block in blocks:
        num_samples += block.shape[1]
        codes.append(encoder.push(resampler.push(to_mid_side(block))).astype(np.uint16))
        progress(0.5 * num_samples / max(1, num_samples, source.num_samples or 0))
    if num_samples:
        codes.append(encoder.push(resampler.flush()).astype(np.uint16))
    codes.append(encoder.flush().astype(np.uint16))
    return np.concatenate(codes, 2), num_samples


def _pack_segments(coder, segments: list[np.ndarray], books: tuple[int, ...],
                   progress: Callable[[float], None]) -> Iterator[container.Segment]:
    for at in range(0, len(segments), _BATCH):
        batch = segments[at:at + _BATCH]
        streams = [segment[channel, :count].astype(np.int64)
                   for segment in batch for channel, count in enumerate(books) if count]
        payloads = iter(coder.encode(streams))
        for segment in batch:
            yield container.Segment(segment.shape[2], books, tuple(next(payloads) if k else b"" for k in books))
        progress(0.5 + 0.5 * (at + len(batch)) / len(segments))


def _gains(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Codes (C, K, T) -> the energy of what each book adds to each channel, (C, K)."""
    energies = codec.quantizer.codebooks.square().sum(-1).cpu().numpy()
    return np.array([[energy[index].sum() for energy, index in zip(energies, channel)] for channel in codes])


# .nac -> audio

def decode(data: bytes, *, model: str | None = None, device: str = "auto") -> tuple[np.ndarray, int]:
    """Decode the bytes of a .nac file to samples float32 (C, N) and their rate in Hz.

    model: the weights, by name or path, where they are none of the released ones.
    Raises FormatError for damage, ModelError when the weights it was made with are not here.
    """
    reader = container.Reader(io.BytesIO(data))
    pieces = [np.zeros((reader.header.channels, 0), np.float32)]
    pieces += _decode(reader, _codec_for(reader.header, model, device), [])
    return np.concatenate(pieces, 1), reader.header.sample_rate


def decode_file(source: Path, target: Path, *, subtype: str | None = None, salvage: bool = False,
                model: str | None = None, device: str = "auto", force: bool = False,
                progress: Progress | None = None) -> DecodeResult:
    """Decode one .nac file to one WAV or FLAC file, with its tags.

    subtype: of the samples, as "PCM_24"; None restores the original's. salvage: put silence where segments are
    damaged, stop where nothing sound follows, and report it. Raises as `decode`, and NacError for the target.
    """
    with _open(source) as file:
        reader = container.Reader(file, salvage=salvage)
        header = reader.header
        codec = _codec_for(header, model, device)
        subtype = subtype or audio.restored_subtype(header.subtype, target)
        damaged: list[str] = []
        done, total = 0, (header.num_samples or 0) / header.sample_rate
        with audio.AudioWriter(target, header.sample_rate, header.channels, subtype, reader.tags,
                               num_samples=header.num_samples, force=force) as writer:
            for samples in _decode(reader, codec, damaged):
                writer.write(samples)
                done += samples.shape[1]
                if progress:
                    progress(done / header.sample_rate, total)
    return DecodeResult(done / header.sample_rate, header.sample_rate, header.channels, tuple(damaged))


def verify_file(source: Path, *, model: str | None = None) -> None:
    """Check every checksum of a .nac file and decode every code. Raises FormatError, ModelError."""
    with _open(source) as file:
        reader = container.Reader(file)
        codec = _codec_for(reader.header, model, "cpu")
        for _ in _codes(reader, codec, []):
            pass


def _decode(reader: container.Reader, codec: Codec, damaged: list[str]) -> Iterator[np.ndarray]:
    """The samples (C, n) of a file, piece by piece, at the original rate and of the original length."""
    header = reader.header
    decoder = StreamDecoder(codec, header.channels)
    resampler = audio.Resampler(codec.config.sample_rate, header.sample_rate)
    tail = -(-2 * codec.config.hop * header.sample_rate // codec.config.sample_rate)     # padding is less than this
    held = np.zeros((header.channels, 0), np.float32)
    num_frames, num_written = 0, 0
    for codes, books in _codes(reader, codec, damaged):
        num_frames += codes.shape[2]
        held = np.concatenate([held, resampler.push(from_mid_side(decoder.push(codes, books)))], 1)
        ready = held[:, :max(0, held.shape[1] - tail)]
        held = held[:, ready.shape[1]:]
        num_written += ready.shape[1]
        yield ready
    if num_frames:
        held = np.concatenate([held, resampler.flush()], 1)
    num_samples = reader.trailer.num_samples if reader.trailer else header.num_samples
    yield held if num_samples is None else held[:, :max(0, num_samples - num_written)]


def _codes(reader: container.Reader, codec: Codec, damaged: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The codes (C, K, t) of each segment and the books they use (C,); codes 0, which is silence, for damage.

    No more frames than the number of samples asks for: FormatError if a sound file has more, or fewer.
    """
    expected = _num_frames(codec, reader.header, reader.header.num_samples)
    coder = codec.coder(reader.header.entropy_coded)
    num_frames = 0
    for batch in _batches(reader):
        damaged += [record.reason for record in batch if isinstance(record, container.Damage)]
        for codes, books in _unpack(batch, coder, reader.header):
            if not damaged and codes.shape[2] > expected - num_frames:
                raise FormatError(f"more than the {expected} frames of {reader.header.num_samples} samples")
            codes = codes[:, :, :int(min(expected - num_frames, codes.shape[2]))]
            num_frames += codes.shape[2]
            yield codes, books
    if not damaged and num_frames != (expected := _num_frames(codec, reader.header, reader.trailer.num_samples)):
        raise FormatError(f"{num_frames} frames; {expected} expected for {reader.trailer.num_samples} samples")


def _num_frames(codec: Codec, header: container.Header, num_samples: int | None) -> float:
    """The frames that samples at the original rate take; infinity for an unknown number."""
    if num_samples is None:
        return math.inf
    return codec.config.frames(-(-num_samples * codec.config.sample_rate // header.sample_rate))


def _batches(reader: container.Reader) -> Iterator[tuple]:
    records = iter(reader)
    while batch := tuple(itertools.islice(records, _BATCH)):
        yield batch


def _unpack(batch: tuple, coder, header: container.Header) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    used = [(segment, channel) for segment in batch if isinstance(segment, container.Segment)
            for channel in range(header.channels) if segment.books[channel]]
    decoded = iter(coder.decode([segment.payloads[channel] for segment, channel in used],
                                [(segment.books[channel], segment.num_frames) for segment, channel in used]))
    for record in batch:
        if isinstance(record, container.Damage):
            for _ in range(record.count or 0):
                yield (np.zeros((header.channels, header.codebooks, header.segment_frames), np.int64),
                       np.full(header.channels, header.codebooks))
            continue
        codes = np.zeros((header.channels, max(record.books), record.num_frames), np.int64)
        for channel, count in enumerate(record.books):
            if count:
                codes[channel, :count] = next(decoded)
        yield codes, np.array(record.books)


def _open(source: Path):
    try:
        return open(source, "rb")
    except OSError as error:
        raise NacError(f"{source}: {(error.strerror or str(error)).lower()}") from None


def _load(model: str, device: str) -> Codec:
    return _load_path(weights.find(model), choose_device(device))


@lru_cache(maxsize=4)
def _load_path(path: Path, device: str) -> Codec:
    return Codec(weights.load(str(path)), device)


def _codec_for(header: container.Header, model: str | None, device: str) -> Codec:
    """The codec whose weights a file was made with."""
    candidates = [weights.find(model)] if model else weights.released()
    for path in candidates:
        if weights.identity(path) == header.weights_id:
            codec = _load_path(path, choose_device(device))
            if header.codebooks > codec.config.num_books:
                raise FormatError(f"{header.codebooks} codebooks; the model has {codec.config.num_books}")
            return codec
    known = ", ".join(f"{path.stem} {weights.identity(path).hex()}" for path in candidates) or "none"
    raise ModelError(f"made with the weights {header.weights_id.hex()}; here are: {known}; --model FILE names others")
