"""The walk there: audio -> samples -> latents -> codes -> payload -> .nac bytes, with the rate held."""
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from audiocodec import audio, container, payloads, rate
from audiocodec.depths import MAX_DEPTH
from audiocodec.entropy import MAX_FRAMES
from audiocodec.errors import AudioError, NacError
from audiocodec.fitting import Count, Fitter
from audiocodec.limits import MAX_KBPS, MIN_KBPS
from audiocodec.paths import Paths
from audiocodec.pricing import Pricing
from audiocodec.quantizer import BEAM, WIDE_BEAM, beams
from audiocodec.stereo import to_mid_side
from audiocodec.tokens import Codec, StreamEncoder

SEGMENT_FRAMES = MAX_FRAMES          # what the entropy model takes at once
_SHORT_SEGMENT_FRAMES = 192          # the fewest that are worth it: an entropy model begins each knowing nothing
_FRAMES_STEP = 16                    # between the lengths of segments
LIVE_SEGMENT_FRAMES = 16             # the fewest that the format has
_FILE_OVERHEAD, _SEGMENT_OVERHEAD = 48, 10     # bytes besides payloads, roughly
_WORTH = 2.5                         # times the books that fit without entropy coding: what may be worth computing,
_LIKELY = 1.1                        # and what most frames have to do with
_FOURS_KBPS, _PAIRS_KBPS = 2.5, 16   # of a channel, from which levels of so many frames are worth their bits,
_LEVEL_KBPS = 1.5                    # which are this, about, over the frames of a group


Progress = Callable[[float, float], None]     # seconds done, seconds in all


@dataclass(frozen=True)
class EncodeResult:
    """What became of one recording."""

    num_bytes: int
    seconds: float
    codebooks: tuple[float, ...] = ()    # per channel, the mean of all frames; two channels are mid and side

    @property
    def kbps(self) -> float:
        """The true bit rate, of every byte in the file."""
        return self.num_bytes * 8e-3 / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Source:
    """What a file remembers of the audio it was made from."""

    sample_rate: int
    channels: int
    num_samples: int | None          # as announced
    subtype: str = "FLOAT"
    tags: container.Tags = ()


@dataclass(frozen=True)
class Wish:
    """What was asked for: a ceiling in kbps or a count of codebooks, and whether to entropy-code."""

    kbps: float | None
    codebooks: int | None
    entropy: bool
    is_varied: bool = True           # whether frames may have other counts than those beside them, below a ceiling
    is_best: bool = False            # whether to search longer for codes

    def __post_init__(self):
        if self.codebooks is None:
            check_kbps(self.kbps)

    def most_books(self, codec: Codec) -> int:
        """Books per channel that are worth computing: a frame may use twice as many as the mean, and bits are saved."""
        if self.codebooks is None:
            most = min(codec.config.num_books, MAX_DEPTH) if self.is_varied else codec.config.num_books
            return min(most, self._fitting(codec, _WORTH))
        codec.check_books(self.codebooks)
        return self.codebooks

    def paths(self, codec: Codec) -> Paths:
        """What is kept of the search until depths are chosen; less is looked at of books that few frames will use."""
        most = self.most_books(codec)
        likely = most if self.codebooks is not None else min(most, self._fitting(codec, _LIKELY))
        return Paths(beams(most, likely, WIDE_BEAM if self.is_best else BEAM))

    def level_frames(self, codec: Codec, channels: int) -> int:
        """How many frames have levels in common, which are told besides the codes; 0: none are, for want of bits."""
        if not codec.levels:
            return 0
        kbps = self.kbps / channels if self.codebooks is None else self.codebooks * codec.config.bits_per_book / 1000
        return 2 if kbps >= _PAIRS_KBPS else 4 if kbps >= _FOURS_KBPS else 0

    def _fitting(self, codec: Codec, times: float) -> int:
        """So many times the books that fit below the ceiling beside one channel's levels, without entropy coding."""
        frames = self.level_frames(codec, 1)
        left = self.kbps - (_LEVEL_KBPS / frames if frames else 0)
        return math.ceil(times * left * 1000 / codec.config.bits_per_book)


def check_kbps(kbps: float | None) -> None:
    """Raise NacError for a rate that nac does not code at."""
    if not (kbps and MIN_KBPS <= kbps <= MAX_KBPS):
        raise NacError(f"{kbps} kbps; nac codes at {MIN_KBPS:g} to {MAX_KBPS:g}")


def to_bandwidth(kbps: float) -> int:
    """A rate as a file's header has it: bit/s, in steps of 10."""
    return round(kbps * 100) * 10


def encode(codec: Codec, blocks: Iterable[np.ndarray], source: Source, file, wish: Wish,
           progress: Callable[[float], None], is_live: bool = False,
           segment_frames: int | None = None) -> EncodeResult:
    """Write one file. With a count of books, or live, segments are written one by one; else the whole decides.

    segment_frames: frames of a segment; None for what suits the length.
    """
    segment_frames = segment_frames or suitable_frames(codec, source)
    analysis = _Segments(codec, blocks, source, wish, segment_frames, progress)
    header = make_header(codec, source, wish, segment_frames)
    if wish.codebooks is None and not (is_live and wish.is_varied):
        return _fit(codec, analysis, source, file, wish, header)
    if wish.codebooks is not None:
        groups = ([rows] for rows in analysis) if is_live else payloads.batches(analysis)
        books, pack = (wish.codebooks,) * source.channels, constant_packing(codec, wish, source)
        size = _write(file, header, source.tags, (segment for group in groups for segment in pack(group)), analysis)
    else:
        segments = Running(codec, wish, source)
        size = _write(file, header, source.tags, segments.pack(analysis), analysis)
        books = segments.count.mean
    return EncodeResult(size, analysis.num_samples / source.sample_rate, books)


def suitable_frames(codec: Codec, source: Source) -> int:
    """The frames of a segment: decoding takes a step for each, so there are as many segments as fit side by side."""
    if source.num_samples is None:
        return SEGMENT_FRAMES
    frames = codec.config.frames(-(-source.num_samples * codec.config.sample_rate // source.sample_rate))
    each = -(-frames // (payloads.MOST // source.channels * _FRAMES_STEP)) * _FRAMES_STEP
    return min(max(each, _SHORT_SEGMENT_FRAMES), SEGMENT_FRAMES)


def make_header(codec: Codec, source: Source, wish: Wish, segment_frames: int) -> container.Header:
    """What the file that is wished for begins with."""
    bandwidth = to_bandwidth(wish.kbps) if wish.codebooks is None else 0
    return container.Header(
        source.channels, source.sample_rate, source.num_samples, codec.weights.identity, wish.most_books(codec),
        bandwidth, wish.entropy, source.subtype, segment_frames,
        has_depths=wish.codebooks is None and wish.is_varied, level_frames=wish.level_frames(codec, source.channels))


Packing = Callable[[Sequence[np.ndarray]], list[container.Segment]]


def constant_packing(codec: Codec, wish: Wish, source: Source) -> Packing:
    """What makes segments of rows, with the count of books that is wished for in all frames."""
    coder, paths = codec.coder(wish.entropy, wish.level_frames(codec, source.channels)), wish.paths(codec)
    books = np.full((source.channels, 1), wish.codebooks)
    return lambda segments: payloads.pack(coder, [paths.plain(rows, books) for rows in segments], books[:, 0])


class Analysis:
    """Samples, piece by piece -> their rows, uint16 (C, R + L, t), in segments of equal length but for the last.

    Rows of paths, or of codes without, and of levels of bands if these are told. chunk: source samples that are
    resampled at once.
    """

    def __init__(self, codec: Codec, sample_rate: int, channels: int, num_books: int, segment_frames: int, chunk: int,
                 level_frames: int = 0, paths: Paths | None = None):
        self._resampler = audio.Resampler(sample_rate, codec.config.sample_rate, chunk=chunk)
        self._encoder = StreamEncoder(codec, channels, num_books, level_frames, paths)
        self._segment_frames = segment_frames
        self._held: np.ndarray | None = None
        self.num_samples = 0         # per channel, taken so far

    def push(self, samples: np.ndarray) -> list[np.ndarray]:
        """Samples float32 (C, n) -> the segments they complete."""
        self.num_samples += samples.shape[1]
        return self._cut(self._encoder.push(self._resampler.push(to_mid_side(samples))))

    def flush(self) -> list[np.ndarray]:
        """The last segments, the very last one of any length."""
        ready = self._cut(self._encoder.push(self._resampler.flush())) if self.num_samples else []
        ready += self._cut(self._encoder.flush())
        return ready + [self._held] if self._held.shape[2] else ready

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        rows = rows.astype(np.uint16, copy=False)
        self._held = rows if self._held is None else np.concatenate([self._held, rows], 2)
        ready = []
        while self._held.shape[2] >= self._segment_frames:
            ready.append(self._held[:, :, :self._segment_frames])
            self._held = self._held[:, :, self._segment_frames:]
        return ready


class _Segments:
    """Iterating gives the rows, uint16 (C, R + L, t), of one segment after another."""

    def __init__(self, codec: Codec, blocks: Iterable[np.ndarray], source: Source, wish: Wish,
                 segment_frames: int, progress: Callable[[float], None]):
        self._analysis = Analysis(
            codec, source.sample_rate, source.channels, wish.most_books(codec), segment_frames,
            audio.chunk_for(segment_frames), wish.level_frames(codec, source.channels), wish.paths(codec))
        self._blocks, self._source = blocks, source
        self.progress = progress     # hears of the share of the file that is done ...
        self.scale = 1.0             # ... of which this is the analysis

    @property
    def num_samples(self) -> int:
        """Per channel, taken so far."""
        return self._analysis.num_samples

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            for block in self._blocks:
                yield from self._analysis.push(block)
                self.progress(self.scale * self.num_samples / max(1, self.num_samples, self._source.num_samples or 0))
        except AudioError:       # what has come goes out, where that is a pipe; without a trailer, as it is no whole
            yield from self._analysis.flush()
            raise
        yield from self._analysis.flush()


def _write(file, header: container.Header, tags: container.Tags, segments: Iterable[container.Segment],
           analysis: _Segments) -> int:
    """Write segments as they come; return the bytes of the file."""
    writer = container.Writer(file, header, tags)
    for segment in segments:
        writer.write(segment)
    writer.close(analysis.num_samples)
    return writer.size


def _fit(codec: Codec, analysis: _Segments, source: Source, file, wish: Wish, header: container.Header) -> EncodeResult:
    """Write a file that the whole decides about."""
    analysis.scale = 0.5
    with rate.Spool() as segments:
        for rows in analysis:
            segments.append(rows)
        budget = wish.kbps * 125 * analysis.num_samples / source.sample_rate
        fitter = Fitter(codec, wish.paths(codec), header, source.tags, segments, analysis.num_samples, budget,
                        lambda share: analysis.progress(0.5 + 0.5 * share))
        fitted = fitter.write(file)
    return EncodeResult(fitted.num_bytes, analysis.num_samples / source.sample_rate, fitted.books)


class Running:
    """Rate control of a stream: each segment's price keeps the file so far below the ceiling.

    Bytes that a segment leaves over, as in silence, are there for those after it.
    """

    def __init__(self, codec: Codec, wish: Wish, source: Source):
        self._codec, self._wish, self._channels = codec, wish, source.channels
        self._coder = codec.coder(wish.entropy, wish.level_frames(codec, source.channels))
        self._paths = wish.paths(codec)
        self._seconds_per_frame = codec.config.hop / codec.config.sample_rate
        tags = sum(len(f"{name}={text}".encode()) + 3 for name, text in source.tags)
        self._size = _FILE_OVERHEAD + 8 + (tags + 8 if tags else 0)
        self._seconds = -2 * self._seconds_per_frame     # the last frame is the overlap, that before may be padding
        self._ratio = 1.0
        self.count = Count(self._channels)

    def pack(self, segments: Iterable[np.ndarray]) -> Iterator[container.Segment]:
        """Rows (C, R + L, t) of each segment -> segments."""
        for rows in segments:
            self._seconds += rows.shape[2] * self._seconds_per_frame
            segment = self._pack(rows, max(0.0, self._seconds) * self._wish.kbps * 125 - self._size)
            self._size += sum(map(len, segment.payloads)) + _SEGMENT_OVERHEAD + 4 * self._channels
            yield segment

    def _pack(self, rows: np.ndarray, budget: float) -> container.Segment:
        overhead = _SEGMENT_OVERHEAD + 4 * self._channels
        pricing = Pricing(self._paths, [rows], self._ratio)

        def code(price: float) -> tuple[list[container.Segment], int, int]:
            depths = pricing.depths(rows, price)
            made = payloads.pack_depths(self._coder, [self._paths.plain(rows, depths)], [depths], True)
            size = sum(map(len, made[0].payloads))
            return (made, depths), size, 8 * size

        (made, depths), _ = pricing.fit(code, 0, budget - overhead, 0)
        self._ratio = pricing.ratio
        self.count.add([depths])
        return made[0]
