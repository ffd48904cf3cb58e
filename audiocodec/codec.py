"""The two walks: audio -> samples -> latents -> codes -> payload -> .nac bytes, and back."""
import dataclasses
import io
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from audiocodec import audio, container, pcm, rate, seek, weights
from audiocodec.entropy import MAX_FRAMES
from audiocodec.errors import AudioError, FormatError, ModelError, NacError
from audiocodec.tokens import DEFAULT_MODEL, Codec, StreamDecoder, StreamEncoder, choose_device

DEFAULT_KBPS = 6.0
MIN_KBPS, MAX_KBPS = 0.75, 48.0      # from one book of one channel to every book of two

_SEGMENT_FRAMES = MAX_FRAMES         # what the entropy model takes at once
_BATCH = 16                          # segments that are range-coded side by side
_READ = 1 << 16                      # samples per channel read from a file at once
_PATIENCE = 0.1                      # seconds that a segment on a pipe may take to come without being waited for
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
                raw: pcm.RawFormat | None = None, tags: container.Tags = (), no_tags: bool = False,
                force: bool = False, progress: Progress | None = None) -> EncodeResult:
    """Compress one audio file to one .nac file, with its tags. Arguments and errors are those of `encode`.

    source, target: "-" is standard input or output. To standard output segments go as soon as they are complete;
    with kbps each then takes what keeps the file so far below the ceiling. raw: the layout of a source without a
    header. tags: put in place of the source's tags of the same names. no_tags: leave the source's tags out.
    """
    wish = _Wish(kbps, codebooks, entropy)
    with pcm.open_reader(source, raw) as reader, pcm.open_output(target, force) as file:
        total = (reader.num_samples or 0) / reader.sample_rate
        blocks = reader.blocks(_READ)
        if mono:
            blocks = (block.mean(0, keepdims=True) for block in blocks)
        subtype = audio.restored_subtype(reader.subtype, Path("a.wav"))
        channels = 1 if mono else reader.channels
        layout = _Source(reader.sample_rate, channels, reader.num_samples, subtype,
                         audio.replace_tags(() if no_tags else reader.tags, tags))
        return _encode(_load(model, device), blocks, layout, file, wish,
                       lambda share: progress(share * total, total) if progress else None, pcm.is_pipe(target))


def _encode(codec: Codec, blocks: Iterable[np.ndarray], source: _Source, file, wish: _Wish,
            progress: Callable[[float], None], is_live: bool = False) -> EncodeResult:
    """Write one file. With a count of books, or live, segments are written one by one; else the whole decides."""
    analysis = _Analysis(codec, blocks, source, wish.most_books(codec), progress)
    header = container.Header(
        source.channels, source.sample_rate, source.num_samples, codec.weights.identity, analysis.num_books,
        round((wish.kbps or 0) * 100) * 10 if wish.codebooks is None else 0, wish.entropy, source.subtype,
        _SEGMENT_FRAMES)
    coder = codec.coder(wish.entropy)
    if wish.codebooks is not None:
        books = (wish.codebooks,) * source.channels
        segments = (segment for batch in _batches(analysis) for segment in _pack_segments(coder, batch, books))
        size = _write(file, header, source.tags, segments, analysis)
    elif is_live:
        segments = _Running(codec, wish, source, header)
        size = _write(file, header, source.tags, segments.pack(analysis), analysis)
        books = segments.most
    else:
        analysis.scale = 0.5
        books, data = _fit(codec, analysis, source, header, wish)
        file.write(data)
        size = len(data)
    return EncodeResult(size, analysis.num_samples / source.sample_rate, books)


class _Analysis:
    """Iterating gives the codes, uint16 (C, K, t), of one segment after another."""

    def __init__(self, codec: Codec, blocks: Iterable[np.ndarray], source: _Source, num_books: int,
                 progress: Callable[[float], None]):
        self._codec, self._blocks, self._source = codec, blocks, source
        self.num_books = num_books
        self.num_samples = 0         # per channel, taken so far
        self.progress = progress     # hears of the share of the file that is done ...
        self.scale = 1.0             # ... of which this is the analysis

    def __iter__(self) -> Iterator[np.ndarray]:
        held = np.zeros((self._source.channels, self.num_books, 0), np.uint16)
        for codes in self._codes():
            held = np.concatenate([held, codes.astype(np.uint16)], 2)
            while held.shape[2] >= _SEGMENT_FRAMES:
                yield held[:, :, :_SEGMENT_FRAMES]
                held = held[:, :, _SEGMENT_FRAMES:]
        if held.shape[2]:
            yield held

    def _codes(self) -> Iterator[np.ndarray]:
        resampler = audio.Resampler(self._source.sample_rate, self._codec.config.sample_rate)
        encoder = StreamEncoder(self._codec, self._source.channels, self.num_books)
        for block in self._blocks:
            self.num_samples += block.shape[1]
            yield encoder.push(resampler.push(to_mid_side(block)))
            self.progress(self.scale * self.num_samples / max(1, self.num_samples, self._source.num_samples or 0))
        if self.num_samples:
            yield encoder.push(resampler.flush())
        yield encoder.flush()


def _write(file, header: container.Header, tags: container.Tags, segments: Iterable[container.Segment],
           analysis: _Analysis) -> int:
    """Write segments as they come; return the bytes of the file."""
    writer = container.Writer(file, header, tags)
    for segment in segments:
        writer.write(segment)
    writer.close(analysis.num_samples)
    return writer.size


def _pack_segments(coder, segments: Sequence[np.ndarray], books: tuple[int, ...]) -> list[container.Segment]:
    streams = [segment[channel, :count].astype(np.int64)
               for segment in segments for channel, count in enumerate(books) if count]
    payloads = iter(coder.encode(streams))
    return [container.Segment(segment.shape[2], books, tuple(next(payloads) if k else b"" for k in books))
            for segment in segments]


def _fit(codec: Codec, analysis: _Analysis, source: _Source, header: container.Header,
         wish: _Wish) -> tuple[tuple[int, ...], bytes]:
    """The counts of books that keep the whole file below the ceiling, the same in all segments, and its bytes."""
    coder = codec.coder(wish.entropy)
    with rate.Spool() as segments:
        gains = np.zeros((source.channels, analysis.num_books))
        for codes in analysis:
            segments.append(codes)
            gains += _gains(codec, codes)
        num_samples = analysis.num_samples

        def pack(books: tuple[int, ...]) -> bytes:
            file = io.BytesIO()
            exact = dataclasses.replace(header, num_samples=num_samples, codebooks=max(books))
            writer = container.Writer(file, exact, source.tags)
            for at in range(0, len(segments), _BATCH):
                batch = segments[at:at + _BATCH]
                for segment in _pack_segments(coder, batch, books):
                    writer.write(segment)
                analysis.progress(0.5 + 0.5 * (at + len(batch)) / len(segments))
            writer.close(num_samples)
            return file.getvalue()

        if not len(segments):
            books = (1,) * source.channels
            return books, pack(books)
        bits = rate.costs(codec.entropy if wish.entropy else None, segments)
        return rate.largest(pack, rate.ladder(gains), bits, _FILE_OVERHEAD + _SEGMENT_OVERHEAD * len(segments),
                            wish.kbps * 125 * num_samples / source.sample_rate)


class _Running:
    """Rate control of a stream: each segment takes the most books that keep the file so far below the ceiling.

    Bytes that a segment leaves over, as in silence, are there for those after it.
    """

    def __init__(self, codec: Codec, wish: _Wish, source: _Source, header: container.Header):
        self._codec, self._wish, self._channels = codec, wish, source.channels
        self._coder = codec.coder(wish.entropy)
        self._seconds_per_frame = codec.config.hop / codec.config.sample_rate
        tags = sum(len(f"{name}={text}".encode()) + 3 for name, text in source.tags)
        self._size = _FILE_OVERHEAD + 8 + (tags + 8 if tags else 0)
        self._seconds = -2 * self._seconds_per_frame     # the last frame is the overlap, that before may be padding
        self.most = (1,) + (0,) * (self._channels - 1)   # books per channel that a segment has used

    def pack(self, segments: Iterable[np.ndarray]) -> Iterator[container.Segment]:
        for codes in segments:
            self._seconds += codes.shape[2] * self._seconds_per_frame
            segment = self._pack(codes, max(0.0, self._seconds) * self._wish.kbps * 125 - self._size)
            self._size += sum(map(len, segment.payloads)) + _SEGMENT_OVERHEAD + 4 * self._channels
            self.most = tuple(map(max, self.most, segment.books))
            yield segment

    def _pack(self, codes: np.ndarray, budget: float) -> container.Segment:
        made = {}

        def code(books: tuple[int, ...]) -> bytes:
            made[books], = _pack_segments(self._coder, [codes], books)
            return b"".join(made[books].payloads)

        bits = rate.costs(self._codec.entropy if self._wish.entropy else None, [codes])
        overhead = _SEGMENT_OVERHEAD + 4 * self._channels
        books, _ = rate.largest(code, rate.ladder(_gains(self._codec, codes)), bits, 1, budget - overhead)
        return made[books]


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
                start: Fraction | None = None, end: Fraction | None = None, codebooks: int | None = None,
                raw: pcm.RawFormat | None = None, model: str | None = None, device: str = "auto",
                force: bool = False, progress: Progress | None = None) -> DecodeResult:
    """Decode one .nac file to one WAV or FLAC file, with its tags.

    source, target: "-" is standard input or output; what ends early on a pipe is decoded to its last whole segment,
    and reported. subtype: of the samples, as "PCM_24"; None restores the original's. salvage: put silence where
    segments are damaged, stop where nothing sound follows, and report it. start, end: seconds, of what is wanted.
    codebooks: use no more of each channel than these first ones. raw: write samples so, without a header.
    Raises as `decode`, and NacError for the target.
    """
    if codebooks is not None and codebooks < 1:
        raise NacError(f"{codebooks} codebooks; at least 1 is needed")
    is_partial = pcm.is_pipe(source) or pcm.is_pipe(target)
    with pcm.open_input(source) as file:
        reader = container.Reader(file, salvage=salvage)
        header = reader.header
        codec = _codec_for(header, model, device)
        subtype = subtype or audio.restored_subtype(header.subtype, target)
        excerpt = _excerpt(reader, codec, start, end, not salvage and file.seekable())
        num_samples = _length(excerpt, header.num_samples)
        damaged: list[str] = []
        done, total = 0, (num_samples or 0) / header.sample_rate
        with pcm.open_writer(target, header.sample_rate, header.channels, subtype, reader.tags,
                             num_samples=num_samples, force=force, raw=raw) as writer:
            for samples in _decode(reader, codec, damaged, excerpt, codebooks, is_partial):
                writer.write(samples)
                done += samples.shape[1]
                if progress:
                    progress(done / header.sample_rate, total)
            if start and not done and not damaged:
                raise seek.starts_late(start, reader.trailer.num_samples, header.sample_rate)
    return DecodeResult(done / header.sample_rate, header.sample_rate, header.channels, tuple(damaged))


def _excerpt(reader: container.Reader, codec: Codec, start: Fraction | None, end: Fraction | None,
             can_seek: bool) -> seek.Excerpt:
    """What to decode for a range of times; the reader goes to its first segment, where it can."""
    header = reader.header
    if start is None and end is None:
        return seek.Excerpt()
    if not can_seek:
        return seek.excerpt(start, end, header.sample_rate, header.num_samples)
    trailer = reader.find_trailer()
    wanted = seek.excerpt(start, end, header.sample_rate, trailer.num_samples)
    resampler = audio.Resampler(codec.config.sample_rate, header.sample_rate)
    look_back = codec.config.decoder_blocks * (codec.config.kernel - 1) + 1     # the network and the overlap
    walk = seek.Walk(header.sample_rate, codec.config.sample_rate, codec.config.hop, look_back, header.segment_frames,
                     resampler.chunk, resampler.context, _held(header, codec))
    wanted = seek.plan(wanted, walk, len(trailer.sizes))
    reader.seek(wanted.first_segment)
    return wanted


def _length(excerpt: seek.Excerpt, num_samples: int | None) -> int | None:
    """How many samples come of a file of num_samples, which may be unknown."""
    if num_samples is None:
        return None
    part = excerpt.part(0, num_samples)
    return part.stop - part.start


def verify_file(source: Path, *, model: str | None = None) -> None:
    """Check every checksum of a .nac file and decode every code. Raises FormatError, ModelError."""
    with pcm.open_input(source) as file:
        reader = container.Reader(file)
        codec = _codec_for(reader.header, model, "cpu")
        for _ in _codes(reader, codec, []):
            pass


def _decode(reader: container.Reader, codec: Codec, damaged: list[str], excerpt: seek.Excerpt = seek.Excerpt(),
            codebooks: int | None = None, is_partial: bool = False) -> Iterator[np.ndarray]:
    """The samples (C, n) of a file, piece by piece, at the original rate and of the original length.

    is_partial: give what came before damage, which is added to `damaged` instead of raised.
    """
    header = reader.header
    decoder = StreamDecoder(codec, header.channels)
    resampler = audio.Resampler(codec.config.sample_rate, header.sample_rate, excerpt.resampler_start)
    skip = excerpt.resampler_start - excerpt.first_segment * header.segment_frames * codec.config.hop
    held, position = np.zeros((header.channels, 0), np.float32), resampler.first_out     # of the first one held
    num_frames = 0
    for codes, books in _codes(reader, codec, damaged, excerpt, codebooks, is_partial):
        num_frames += codes.shape[2]
        samples = from_mid_side(decoder.push(codes, books))
        samples, skip = samples[:, skip:], max(0, skip - samples.shape[1])
        held = np.concatenate([held, resampler.push(samples)], 1)
        ready = held[:, :max(0, held.shape[1] - _held(header, codec))]
        yield ready[:, excerpt.part(position, ready.shape[1])]
        position += ready.shape[1]
        held = held[:, ready.shape[1]:]
        if excerpt.end is not None and position >= excerpt.end:
            return
    if num_frames:
        held = np.concatenate([held, resampler.flush()], 1)
    num_samples = reader.trailer.num_samples if reader.trailer else header.num_samples
    held = held if num_samples is None else held[:, :max(0, num_samples - position)]
    yield held[:, excerpt.part(position, held.shape[1])]


def _held(header: container.Header, codec: Codec) -> int:
    """Samples at the original rate that may be padding at a file's end; there are less than these."""
    return -(-2 * codec.config.hop * header.sample_rate // codec.config.sample_rate)


def _codes(reader: container.Reader, codec: Codec, damaged: list[str], excerpt: seek.Excerpt = seek.Excerpt(),
           codebooks: int | None = None, is_partial: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The codes (C, K, t) of each segment and the books they use (C,); codes 0, which is silence, for damage.

    No more frames than the number of samples asks for: FormatError if a sound file has more, or fewer.
    """
    expected = _num_frames(codec, reader.header, reader.header.num_samples)
    coder = codec.coder(reader.header.entropy_coded)
    num_frames = excerpt.first_segment * reader.header.segment_frames
    try:
        for batch in _paced(itertools.islice(reader, excerpt.num_segments), is_partial):
            damaged += [record.reason for record in batch if isinstance(record, container.Damage)]
            for codes, books in _unpack(batch, coder, reader.header):
                if not damaged and codes.shape[2] > expected - num_frames:
                    raise FormatError(f"more than the {expected} frames of {reader.header.num_samples} samples")
                codes = codes[:, :codebooks, :int(min(expected - num_frames, codes.shape[2]))]
                num_frames += codes.shape[2]
                yield codes, np.minimum(books, codes.shape[1])
        if damaged or reader.trailer is None:
            return
        expected = _num_frames(codec, reader.header, reader.trailer.num_samples)
        if num_frames != expected:
            raise FormatError(f"{num_frames} frames; {expected} expected for {reader.trailer.num_samples} samples")
    except FormatError as error:
        if not is_partial:
            raise
        damaged.append(str(error))


def _num_frames(codec: Codec, header: container.Header, num_samples: int | None) -> float:
    """The frames that samples at the original rate take; infinity for an unknown number."""
    if num_samples is None:
        return math.inf
    return codec.config.frames(-(-num_samples * codec.config.sample_rate // header.sample_rate))


def _batches(items: Iterable, size: int = _BATCH) -> Iterator[tuple]:
    items = iter(items)
    while batch := tuple(itertools.islice(items, size)):
        yield batch


def _paced(records: Iterable, is_partial: bool) -> Iterator[tuple]:
    """Batches for decoding, which is faster for many segments at once: from a pipe no more than it has ready.

    A segment that had to be waited for is decoded alone; while none has to be, batches grow. What came before
    damage comes before its FormatError.
    """
    if not is_partial:
        yield from _batches(records)
        return
    records, size = iter(records), 1
    while True:
        batch, problem, start = [], None, time.monotonic()
        try:
            for record in itertools.islice(records, size):
                batch.append(record)
        except FormatError as error:
            problem = error
        size = min(2 * size, _BATCH) if time.monotonic() - start < _PATIENCE else 1
        if batch:
            yield tuple(batch)
        if problem:
            raise problem
        if not batch:
            return


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
