"""The walk back: .nac bytes -> payload -> codes -> latents -> samples, of a whole file or of an excerpt."""
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from audiocodec import audio, container, payloads, seek
from audiocodec.errors import FormatError
from audiocodec.stereo import from_mid_side
from audiocodec.tokens import Codec, StreamDecoder

_TOGETHER = 512     # frames that are decoded at once, if they are there


@dataclass(frozen=True)
class DecodeResult:
    """What came of one file."""

    seconds: float
    sample_rate: int
    channels: int
    damaged: tuple[str, ...]         # what was wrong, where damage was to be passed over


def decode(reader: container.Reader, codec: Codec, damaged: list[str], excerpt: seek.Excerpt,
           codebooks: int | None = None, *, is_partial: bool = False,
           group: Callable = payloads.batches) -> Iterator[np.ndarray]:
    """The samples (C, n) of a file, piece by piece, at the original rate and of the original length.

    is_partial: give what came before damage, which is added to `damaged` instead of raised.
    group: one of the ways that payloads.py has to take several segments at once.
    """
    synthesis = Synthesis(codec, reader.header, excerpt)
    for segment in read_codes(reader, codec, damaged, excerpt, codebooks, is_partial, group, _TOGETHER):
        yield synthesis.push(segment)
        if synthesis.is_complete:
            return
    yield synthesis.flush(reader.trailer.num_samples if reader.trailer else reader.header.num_samples)


class Synthesis:
    """The codes of a file, piece by piece -> its samples (C, n) at the original rate.

    The last samples are held back until it is known how many of them are padding.
    """

    def __init__(self, codec: Codec, header: container.Header, excerpt: seek.Excerpt = seek.Excerpt()):
        self._excerpt = excerpt
        self._decoder = StreamDecoder(codec, header.channels)
        self._resampler = make_resampler(codec, header, excerpt.resampler_start)
        skip = excerpt.resampler_start - excerpt.first_segment * header.segment_frames * codec.config.hop
        self._skip, missing = max(0, skip), max(0, -skip)      # a part of a file may lack some of its lead-in
        self._held = self._resampler.push(np.zeros((header.channels, missing), np.float32))
        self._before, self._num_samples = header.before.samples, header.num_samples
        self._most_held, self._level_frames = _held(header, codec), header.level_frames
        self._position = self._resampler.first_out     # of the first sample held
        self._has_input = False

    @property
    def is_complete(self) -> bool:
        """Whether all samples of the excerpt have been given."""
        return self._excerpt.end is not None and self._position >= self._excerpt.end

    def push(self, segment: payloads.Unpacked) -> np.ndarray:
        """The next segment -> the next samples float32 (C, n)."""
        self._has_input |= bool(segment.codes.shape[2])
        samples = from_mid_side(self._decoder.push(*segment, self._level_frames))
        samples, self._skip = samples[:, self._skip:], max(0, self._skip - samples.shape[1])
        self._held = np.concatenate([self._held, self._resampler.push(samples)], 1)
        return self._take(self._held.shape[1] - self._most_held, self._num_samples)

    def flush(self, num_samples: int | None) -> np.ndarray:
        """The last samples of a file of so many in all; None: as many as there are."""
        if self._has_input:
            self._held = np.concatenate([self._held, self._resampler.flush()], 1)
        return self._take(self._held.shape[1], num_samples)

    def _take(self, count: int, num_samples: int | None) -> np.ndarray:
        """Up to so many samples of those held, none after a file of num_samples."""
        if num_samples is not None:
            count = min(count, self._before + num_samples - self._position)
        count = max(0, count)
        ready, self._held = self._held[:, :count], self._held[:, count:]
        start, self._position = self._position, self._position + ready.shape[1]
        return ready[:, self._excerpt.part(start, ready.shape[1])]


def make_resampler(codec: Codec, header: container.Header, start: int = 0) -> audio.Resampler:
    """The resampler of a file's samples."""
    chunk = audio.chunk_for(header.segment_frames)
    return audio.Resampler(codec.config.sample_rate, header.sample_rate, start, chunk)


def _held(header: container.Header, codec: Codec) -> int:
    """Samples at the original rate that may be padding at a file's end; there are less than these."""
    return -(-2 * codec.config.hop * header.sample_rate // codec.config.sample_rate)


def read_codes(reader: container.Reader, codec: Codec, damaged: list[str], excerpt: seek.Excerpt,
               codebooks: int | None = None, is_partial: bool = False,
               group: Callable = payloads.batches, together: int = 0) -> Iterator[payloads.Unpacked]:
    """What each segment holds, or several of no more than so many frames together; codes 0, silence, for damage.

    No more frames than the number of samples asks for: FormatError if a sound file has more, or fewer.
    """
    unpacking = Unpacking(reader, codec, excerpt, codebooks)
    try:
        for batch in group(itertools.islice(reader, excerpt.num_segments)):
            damaged += [record.reason for record in batch if isinstance(record, container.Damage)]
            yield from payloads.joined(unpacking.push(batch, bool(damaged)), together)
        if not damaged and reader.trailer is not None:
            unpacking.check_length()
    except FormatError as error:
        if not is_partial:
            raise
        damaged.append(str(error))


class Unpacking:
    """What a reader gives, piece by piece -> codes, no more frames than the number of samples asks for."""

    def __init__(self, reader: container.Reader, codec: Codec, excerpt: seek.Excerpt, codebooks: int | None = None):
        self._reader, self._codec, self._codebooks = reader, codec, codebooks
        self._coder = codec.coder(reader.header.entropy_coded, reader.header.level_frames)
        self._num_frames = excerpt.first_segment * reader.header.segment_frames
        _, self._most = _num_frames(codec, reader.header, reader.header.num_samples)

    def push(self, batch: Sequence[payloads.Record], is_damaged: bool = False) -> Iterator[payloads.Unpacked]:
        """Yield what each segment holds. Raises FormatError if a sound file has too many frames."""
        for codes, depths, levels in payloads.unpack(self._coder, batch, self._reader.header):
            left = self._most - self._num_frames
            if not is_damaged and codes.shape[2] > left:
                raise FormatError(f"more than the {self._most} frames of {self._reader.header.num_samples} samples")
            count = int(min(left, codes.shape[2]))
            codes = codes[:, :self._codebooks, :count]
            self._num_frames += count
            yield payloads.Unpacked(codes, np.minimum(depths[:, :count], codes.shape[1]), levels[:, :, :count])

    def check_length(self) -> None:
        """Raise FormatError unless there were as many frames as the trailer's number of samples asks for."""
        num_samples = self._reader.trailer.num_samples
        needed, most = _num_frames(self._codec, self._reader.header, num_samples)
        if not needed <= self._num_frames <= most:
            raise FormatError(f"{self._num_frames} frames; {needed} expected for {num_samples} samples")


def _num_frames(codec: Codec, header: container.Header, num_samples: int | None) -> tuple[float, float]:
    """How many frames there are up to the end of a file of num_samples, which may be unknown: at least, at most.

    A part of a longer file holds its last segment whole, and may hold one more that resampling looks ahead at.
    """
    if num_samples is None:
        return 0, math.inf
    end = header.before.samples + num_samples
    needed = codec.config.frames(-(-end * codec.config.sample_rate // header.sample_rate))
    return needed, needed + (2 * header.segment_frames - 1 if header.origin else 0)


def find_excerpt(reader: container.Reader, codec: Codec, start: Fraction | None, end: Fraction | None,
                 can_seek: bool) -> seek.Excerpt:
    """What to decode for a range of times; the reader goes to its first segment, where it can.

    Raises NacError for an empty range, FormatError for a part of a file that begins before its first segment.
    """
    header, before = reader.header, reader.header.before
    walk = find_walk(header, codec)
    if can_seek and (start is not None or end is not None):
        trailer = reader.find_trailer()
        wanted = seek.excerpt(start, end, header.sample_rate, trailer.num_samples).later(before.samples)
        found = seek.plan(wanted, walk, held_segments(header, trailer))
        reader.seek(found.first_segment - before.segments)
        return found
    wanted = seek.excerpt(start, end, header.sample_rate, header.num_samples).later(before.samples)
    whole = seek.plan(seek.Excerpt(before.samples), walk, range(before.segments, container.MAX_SEGMENTS))
    return dataclasses.replace(wanted, first_segment=before.segments, resampler_start=whole.resampler_start)


def find_walk(header: container.Header, codec: Codec) -> seek.Walk:
    """What seek.py has to know of the way from a file's codes to its samples. Raises FormatError."""
    config, before = codec.config, header.before
    if before.samples * config.sample_rate // header.sample_rate < before.segments * header.segment_frames * config.hop:
        raise FormatError(f"a part that begins at sample {before.samples}, before its first segment")
    resampler = make_resampler(codec, header)
    return seek.Walk(header.sample_rate, config.sample_rate, config.hop, config.decoder_reach, header.segment_frames,
                     resampler.chunk, resampler.context, _held(header, codec))


def held_segments(header: container.Header, trailer: container.Trailer) -> range:
    """The segments of the whole recording that the file has."""
    return range(header.before.segments, header.before.segments + len(trailer.sizes))


def length(excerpt: seek.Excerpt, header: container.Header, num_samples: int | None) -> int | None:
    """How many samples come of an excerpt of a file that has so many, if that is known."""
    if num_samples is None:
        return None
    part = excerpt.part(0, header.before.samples + num_samples)
    return part.stop - part.start


def announced_samples(reader: container.Reader, can_seek: bool) -> int | None:
    """How many samples a file has, as far as that is known beforehand; None for one that is seen to be cut short."""
    if not can_seek:
        return reader.header.num_samples
    try:
        return reader.find_trailer().num_samples
    except FormatError:
        return None
