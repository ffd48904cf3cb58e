"""Times -> samples, and which segments have to be decoded for them; standard library only."""
import re
from dataclasses import dataclass
from fractions import Fraction

from audiocodec.errors import NacError

_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)", re.ASCII)


def parse_time(text: str) -> Fraction:
    """Return the seconds that "75.5", "1:15.5" or "0:01:15.5" mean. Raises ValueError for anything else.

    >>> parse_time("1:02:03.5")
    Fraction(7447, 2)
    """
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no time")
    hours, minutes, seconds = match.groups()
    if minutes and Fraction(seconds) >= 60 or hours and int(minutes) >= 60:
        raise ValueError(f"{text!r} is no time")
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + Fraction(seconds)


def format_time(seconds: float | Fraction) -> str:
    """
    >>> format_time(7447 / 2), format_time(9)
    ('1:02:03.500', '0:09.000')
    """
    minutes, rest = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{start}:{rest // 1000:02}.{rest % 1000:03}"


@dataclass(frozen=True)
class Excerpt:
    """The samples [start, end) that are wanted, counted at the original rate, and where to begin for them.

    All is counted from the start of the whole recording, of which a file may be a part.
    """

    start: int = 0
    end: int | None = None             # None: all to the end of the file
    first_segment: int = 0             # to decode
    num_segments: int | None = None    # to decode; None: all to the end of the file
    resampler_start: int = 0           # sample at the model's rate that the resampler begins with

    def later(self, count: int) -> "Excerpt":
        """Return the samples that are wanted, counted from another one `count` samples before."""
        return Excerpt(self.start + count, None if self.end is None else self.end + count)

    def part(self, position: int, length: int) -> slice:
        """Return what is wanted of `length` samples that begin at `position`."""
        end = length if self.end is None else min(length, max(0, self.end - position))
        return slice(min(end, max(0, self.start - position)), end)


@dataclass(frozen=True)
class Walk:
    """What the plan of an excerpt has to know of the way from codes to samples."""

    sample_rate: int        # Hz, of the original
    model_rate: int         # Hz
    hop: int                # samples per frame, at the model's rate
    look_back: int          # frames before a frame that the decoder network and the overlap need
    segment_frames: int
    chunk: int              # samples that the resampler takes at once, at the model's rate
    context: int            # samples before and after those that it looks at
    held: int               # samples that are held back until the file's length is known, at the original rate


def excerpt(start: Fraction | None, end: Fraction | None, sample_rate: int, num_samples: int | None) -> Excerpt:
    """Times in seconds -> samples, still to be decoded from the whole file. Raises NacError for an empty range."""
    if end is not None and end <= (start or 0):
        raise NacError(f"--end {format_time(end)} is not after --start {format_time(start or 0)}")
    first = round((start or 0) * sample_rate)
    if num_samples is not None and first and first >= num_samples:
        raise starts_late(start, num_samples, sample_rate)
    return Excerpt(first, None if end is None else round(end * sample_rate))


def starts_late(start: Fraction | float, num_samples: int, sample_rate: int) -> NacError:
    return NacError(f"--start {format_time(start)} is after the end, {format_time(num_samples / sample_rate)}")


def plan(wanted: Excerpt, walk: Walk, held: range) -> Excerpt:
    """Find the segments that the excerpt needs, among those that the file holds.

    Decoding begins at a segment early enough for the network, and the resampler at a border of its chunks: each then
    does the very same arithmetic as in the whole file, so the samples are the same to the last bit.
    """
    position = wanted.start * walk.model_rate // walk.sample_rate - walk.context
    resampler_start = max(0, position // walk.chunk * walk.chunk)
    first = max(held.start, (resampler_start // walk.hop - walk.look_back) // walk.segment_frames)
    count = None
    if wanted.end is not None:
        position = -(-(wanted.end + walk.held) * walk.model_rate // walk.sample_rate) + 1
        needed = (position // walk.chunk + 1) * walk.chunk + walk.context     # samples that complete the last chunk
        last = (needed // walk.hop + 2) // walk.segment_frames
        count = last + 1 - first if last + 1 < held.stop else None
    return Excerpt(wanted.start, wanted.end, first, count, resampler_start)


def cut(wanted: Excerpt, walk: Walk, held: range) -> range:
    """Find the segments that a file of this excerpt alone has to hold, to decode to the very same samples.

    They are fewer than `plan` has decoded: where a file ends, zeros complete the resampler's last chunk.
    """
    needed = -(-wanted.end * walk.model_rate // walk.sample_rate) + walk.context
    last = (needed // walk.hop + 2) // walk.segment_frames
    return range(plan(wanted, walk, held).first_segment, min(last + 1, held.stop))
