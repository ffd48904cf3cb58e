"""The codes of segments <-> the container's segments, many at once: that is what the coders are quick at."""
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from audiocodec import container
from audiocodec.errors import FormatError
from audiocodec.levels import GROUPS
from audiocodec.rangecoder import Frames, Shape

BATCH = 16           # segments that are coded side by side, where the next ones wait for what comes of them;
MOST = 2 * BATCH     # else so many: decoding takes a third less for each then
_PATIENCE = 0.1      # seconds that a segment on a pipe may take to come without being waited for

Record = container.Segment | container.Damage


def pack(coder, segments: Sequence[np.ndarray], books: Sequence[int]) -> list[container.Segment]:
    """Rows (C, K + L, t) of each segment -> segments with so many books of each channel, the same in all frames."""
    constant = np.array(books)[:, None]
    return pack_depths(coder, segments, [constant.repeat(codes.shape[2], 1) for codes in segments], False)


def pack_depths(coder, segments: Sequence[np.ndarray], depths: Sequence[np.ndarray],
                is_told: bool) -> list[container.Segment]:
    """Rows (C, K + L, t) and depths (C, t) of each segment -> segments with the first books of each frame.

    Rows are codes, and levels if the coder tells these. is_told: whether depths are coded too, as they must be where
    frames differ.
    """
    books = [[max(count, 1 - channel) for channel, count in enumerate(depth.max(1).tolist())] for depth in depths]
    streams = [Frames(np.where(np.arange(count)[:, None] < depth, channel[:count], 0).astype(np.int64), depth, is_told,
                      channel[-coder.num_bands:, ::coder.level_frames] if coder.level_frames else None)
               for rows, frames, counts in zip(segments, depths, books)
               for channel, depth, count in zip(rows, frames, counts) if count]
    payloads = iter(coder.encode(streams))
    return [container.Segment(rows.shape[2], tuple(counts),
                              tuple(next(payloads) if count else b"" for count in counts))
            for rows, counts in zip(segments, books)]


class Unpacked(NamedTuple):
    """What a segment holds: codes int64 (C, K, t), the books its frames use (C, t), levels (C, L, t), -1 for none.

    Zeros stand for codes that are missing.
    """

    codes: np.ndarray
    depths: np.ndarray
    levels: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """(C, K + L, t), as `pack` takes them."""
        return np.concatenate([self.codes, np.maximum(self.levels, 0)], 1)


def unpack(coder, batch: Sequence[Record], header: container.Header) -> Iterator[Unpacked]:
    """Yield what each segment holds, and silence for those that are damaged."""
    used = [(segment, channel) for segment in batch if isinstance(segment, container.Segment)
            for channel in range(header.channels) if segment.books[channel]]
    decoded = iter(coder.decode(
        [segment.payloads[channel] for segment, channel in used],
        [Shape(segment.books[channel], segment.num_frames, header.has_depths) for segment, channel in used]))
    for record in batch:
        if isinstance(record, container.Damage):
            for _ in range(record.count or 0):
                codes = np.zeros((header.channels, header.codebooks, header.segment_frames), np.int64)
                levels = np.full((header.channels, coder.num_bands, header.segment_frames), -1)
                yield Unpacked(codes, np.full_like(codes[:, 0], header.codebooks), levels)
            continue
        codes = np.zeros((header.channels, max(record.books), record.num_frames), np.int64)
        depths = np.zeros_like(codes[:, 0])
        levels = np.full((header.channels, coder.num_bands, record.num_frames), -1)
        for channel, count in enumerate(record.books):
            if count:
                frames = next(decoded)
                codes[channel, :count], depths[channel] = frames.codes, frames.depths
                if coder.level_frames:
                    levels[channel] = frames.levels.repeat(coder.level_frames, 1)[:, :record.num_frames]
        yield Unpacked(codes, depths, levels)


def joined(pieces: Iterable[Unpacked], most: int) -> Iterator[Unpacked]:
    """The same, several at a time where they have no more than so many frames: networks are quicker at these.

    What came before damage comes before its FormatError.
    """
    held: list[Unpacked] = []
    try:
        for piece in pieces:
            frames = [one.codes.shape[2] for one in held]
            if held and (sum(frames) + piece.codes.shape[2] > most or frames[-1] % max(GROUPS)):
                yield _join(held)
                held = []
            held.append(piece)
    except FormatError:
        if held:
            yield _join(held)
        raise
    if held:
        yield _join(held)


def _join(pieces: list[Unpacked]) -> Unpacked:
    books = max(piece.codes.shape[1] for piece in pieces)
    codes = [np.pad(piece.codes, ((0, 0), (0, books - piece.codes.shape[1]), (0, 0))) for piece in pieces]
    _, depths, levels = zip(*pieces)
    return Unpacked(np.concatenate(codes, 2), np.concatenate(depths, 1), np.concatenate(levels, 2))


def batches(items: Iterable) -> Iterator[tuple]:
    """Group items as they are best coded."""
    items = iter(items)
    while batch := tuple(itertools.islice(items, MOST)):
        yield batch


def foreseen(records: Iterable[Record], count: int | None) -> Iterator[tuple[Record, ...]]:
    """Group records of which `count` are wanted (None: all), and more only if the reader goes on."""
    records, size = iter(records), 1
    yield from batches(itertools.islice(records, count))
    while batch := tuple(itertools.islice(records, size)):
        yield batch
        size = min(2 * size, BATCH)


def paced(records: Iterable[Record]) -> Iterator[tuple[Record, ...]]:
    """Group what comes through a pipe, no more at once than it has ready.

    A segment that had to be waited for is decoded alone; while none has to be, batches grow. What came before
    damage comes before its FormatError.
    """
    records, size = iter(records), 1
    while True:
        batch, problem, start = [], None, time.monotonic()
        try:
            for record in itertools.islice(records, size):
                batch.append(record)
        except FormatError as error:
            problem = error
        size = min(2 * size, BATCH) if time.monotonic() - start < _PATIENCE else 1
        if batch:
            yield tuple(batch)
        if problem:
            raise problem
        if not batch:
            return
