"""Codes <-> payload: two coders with the same two methods, plain 10-bit packing and range coding by a model.

Martin: "Range encoding: an algorithm for removing redundancy from a digitised message", 1979; Bamler: "Understanding
entropy coding with asymmetric numeral systems", 2022 (the constriction library).
"""
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import constriction
import numpy as np
import torch

from audiocodec.entropy import ABSENT, MAX_FRAMES, MEMBERS, UNTOLD, EntropyModel
from audiocodec.errors import FormatError
from audiocodec.levels import LevelModel
from audiocodec.model import NUM_LEVELS
from audiocodec.threads import mapped

Categorical = constriction.stream.model.Categorical
RangeDecoder = constriction.stream.queue.RangeDecoder
RangeEncoder = constriction.stream.queue.RangeEncoder

BY_COUNTS = Categorical(perfect=False)     # whose counts come with each call
CODE_BITS = 10
DEPTH_BITS = 5
LEVEL_BITS = 6
_STATE_BITS = 64               # of constriction's coder, whose words have 32
_ENCODED_TOGETHER = 8          # sequences at once: all their tables are in memory
_DECODED_TOGETHER = 32         # each adds little to a step


class Frames(NamedTuple):
    """What a payload holds: codes int64 (K, T), of which each frame uses the first depths (T,); the others are 0.

    is_told: whether depths are in the payload; else all are K. levels: (L, groups of frames), if the coder tells them.
    """

    codes: np.ndarray
    depths: np.ndarray
    is_told: bool = False
    levels: np.ndarray | None = None

    @classmethod
    def whole(cls, codes: np.ndarray) -> "Frames":
        """Codes (K, T) that are all used."""
        return cls(codes, np.full(codes.shape[1], len(codes)))


class Shape(NamedTuple):
    """What has to be known of a payload before it can be decoded."""

    num_books: int
    num_frames: int
    is_told: bool = False


class PackedCoder:
    """Each number as it is: levels of bands in 6 bits if they are told, band by band; then, frame by frame, the depth
    in 5 bits if it is told, and codes in 10; highest bits first. Zero bits fill the last byte.
    """

    def __init__(self, num_bands: int = 0, level_frames: int = 0):
        """num_bands: whose levels are told, one for each group of so many frames; 0: none are."""
        self.num_bands, self.level_frames = num_bands, level_frames

    def encode(self, sequences: Sequence[Frames]) -> list[bytes]:
        """Sequences -> payloads."""
        return list(map(_pack, sequences))

    def decode(self, payloads: Sequence[bytes], shapes: Sequence[Shape]) -> list[Frames]:
        """Payloads and their shapes -> sequences. Raises FormatError."""
        return [_unpack(payload, shape, (self.num_bands, groups(shape.num_frames, self.level_frames)))
                for payload, shape in zip(payloads, shapes, strict=True)]


class RangeCoder:
    """Each number by tables: first levels of bands, if they are told; then, by an entropy model, frame by frame, the
    depth if it is told, and codes.

    A code is two symbols, its class and its member; of books that are predicted side by side all classes come first.
    A payload is the coder's words, each from its highest byte down, cut after the last byte that matters; a decoder
    reads zeros from there on.
    """

    def __init__(self, model: EntropyModel, levels: LevelModel | None = None, level_frames: int = 0):
        """levels: by which they are told, one for each band and group of so many frames; of 0 frames: they are not."""
        self.model, self.levels, self.level_frames = model, levels, level_frames
        self.num_bands = levels.num_bands if level_frames else 0

    def encode(self, sequences: Sequence[Frames]) -> list[bytes]:
        """Sequences of at most 512 frames -> payloads."""
        threads = torch.get_num_threads()
        size = max(1, min(_ENCODED_TOGETHER, -(-len(sequences) // threads)))
        groups = [sequences[i:i + size] for i in range(0, len(sequences), size)]
        return [payload for payloads in mapped(self._encode, groups, threads) for payload in payloads]

    def decode(self, payloads: Sequence[bytes], shapes: Sequence[Shape]) -> list[Frames]:
        """Payloads and their shapes -> sequences.

        Raises FormatError for shapes that the model cannot have coded, and for what no encoder writes. Other damage
        gives other codes: checksums are the container's task.
        """
        most = self.model.config.num_books
        for books, frames, _ in shapes:
            if not (0 <= books <= most and 0 <= frames <= MAX_FRAMES):
                raise FormatError(f"{frames} frames of {books} codebooks; expected at most {MAX_FRAMES} of {most}")
        pairs = list(zip(payloads, shapes, strict=True))
        groups = (pairs[i:i + _DECODED_TOGETHER] for i in range(0, len(pairs), _DECODED_TOGETHER))
        return [frames for found in mapped(lambda group: self._decode(*zip(*group)), groups, 1) for frames in found]

    def _encode(self, group: Sequence[Frames]) -> list[bytes]:
        is_told = np.array([frames.is_told for frames in group])
        payloads = []
        for frames, (tables, symbols) in zip(group, self.model.tables(*_together(group), is_told)):
            encoder = RangeEncoder()
            if self.level_frames:
                counts, steps = self.levels.tables(frames.levels, self.level_frames)
                encoder.encode(steps, BY_COUNTS, counts)
            encoder.encode(symbols, BY_COUNTS, tables)
            payloads.append(shortest(encoder))
        return payloads

    def _decode(self, payloads: Sequence[bytes], shapes: Sequence[Shape]) -> list[Frames]:
        num_books, num_frames, is_told = np.array(shapes).T
        is_told = is_told.astype(bool)
        places = np.full((len(shapes), num_books.max(), num_frames.max()), ABSENT)
        depths = np.zeros((len(shapes), num_frames.max()), np.int64)
        decoders = [RangeDecoder(words(payload)) for payload in payloads]
        levels = self._levels(decoders, num_frames.tolist())
        spare = RangeDecoder(words(b""))       # for what a sequence lacks
        state = self.model.start(len(shapes))
        last, last_told = np.full(places.shape[:2], ABSENT), np.full(len(shapes), UNTOLD)
        for t in range(places.shape[2]):
            sums = self.model.contexts(state, last[:, :, None], last_told[:, None])[:, 0]
            depth = num_books * (t < num_frames)
            if is_told.any():
                line_up = [decoder if told else spare for decoder, told in zip(decoders, is_told & (depth > 0))]
                found = _next(line_up, self.model.depth_counts(sums, last_told)[None], np.ones_like(depth))[0]
                told = np.where(is_told, found, depth)
                if (told[depth > 0] > depth[depth > 0]).any():
                    raise FormatError("a damaged payload (a frame of more codebooks than there are)")
                depth = np.minimum(told, depth)
            last_told = np.where(is_told, depth, UNTOLD)
            self.model.add_depth(sums, last_told)
            before, last = last, np.full_like(last, ABSENT)
            for turn in self.model.config.books(depth.max(initial=0)):
                here = np.flatnonzero(depth > turn.start)
                sizes = np.minimum(depth[here] - turn.start, len(turn))
                line_up = [decoders[i] for i in here]
                inputs = sums[here]
                hidden = self.model.hidden(turn, inputs, before[here, turn.start:turn.stop].T)
                classes = _next(line_up, self.model.class_counts(turn, hidden), sizes)
                members = _next(line_up, self.model.member_counts(turn, hidden, classes), sizes)
                found = classes * MEMBERS + members
                self.model.add(turn, inputs, found)
                sums[here] = inputs
                is_there = np.arange(len(turn)) < sizes[:, None]
                last[here, turn.start:turn.stop] = np.where(is_there, found.T, ABSENT)
            places[:, :, t], depths[:, t] = last, depth
        is_there = np.arange(places.shape[1])[:, None] < depths[:, None]
        codes = np.where(is_there, self.model.codes(np.where(is_there, places, 0)), 0)
        return [Frames(found[:books, :frames], depth[:frames], told, told_levels)
                for found, depth, told_levels, (books, frames, told) in zip(codes, depths, levels, shapes)]

    def _levels(self, decoders: list[RangeDecoder], num_frames: list[int]) -> list[np.ndarray | None]:
        """The levels that payloads begin with, if this coder tells any; those of equal lengths are decoded together."""
        levels: list[np.ndarray | None] = [None] * len(decoders)
        for length in set(num_frames) - {0} if self.level_frames else ():
            here = [i for i, frames in enumerate(num_frames) if frames == length]
            take = partial(_next_of_each, [decoders[i] for i in here])
            found = self.levels.decode(len(here), groups(length, self.level_frames), self.level_frames, take)
            for i, of_one in zip(here, found):
                levels[i] = of_one
        return levels


def groups(num_frames: int, level_frames: int) -> int:
    """How many groups of frames have levels."""
    return -(-num_frames // level_frames) if level_frames else 0


def _together(group: Sequence[Frames]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences -> codes (S, K, T) and depths (S, T); 0 and -1 where a sequence has no more."""
    shape = np.max([frames.codes.shape for frames in group], 0)
    codes, depths = np.zeros((len(group), *shape), np.int64), np.full((len(group), shape[1]), -1)
    for row, depth, frames in zip(codes, depths, group):
        books, num_frames = frames.codes.shape
        row[:books, :num_frames] = frames.codes
        depth[:num_frames] = frames.depths
    return codes, depths


def _pack(frames: Frames) -> bytes:
    books, num_frames = frames.codes.shape
    levels = _bits(np.zeros(0, int) if frames.levels is None else frames.levels, LEVEL_BITS).ravel()
    codes = _bits(frames.codes.T, CODE_BITS).reshape(num_frames, books * CODE_BITS)
    if frames.is_told:
        used = np.repeat(np.arange(books), CODE_BITS) < frames.depths[:, None]
        bits = np.concatenate([_bits(frames.depths, DEPTH_BITS), codes], 1)
        codes = bits[np.pad(used, ((0, 0), (DEPTH_BITS, 0)), constant_values=True)]
    return np.packbits(np.concatenate([levels, codes.ravel()])).tobytes()


def _unpack(payload: bytes, shape: Shape, shape_of_levels: tuple[int, int]) -> Frames:
    bits, at = np.unpackbits(np.frombuffer(payload, np.uint8)), LEVEL_BITS * math.prod(shape_of_levels)
    levels = None
    if at:
        if at > len(bits):
            raise FormatError(f"{len(payload)} bytes of packed levels; expected more")
        levels = _number(bits[:at].reshape(*shape_of_levels, LEVEL_BITS))
        if levels.max() >= NUM_LEVELS:
            raise FormatError(f"a packed level of {levels.max()}; expected at most {NUM_LEVELS - 1}")
    codes = np.zeros((shape.num_frames, shape.num_books), np.int64)
    depths = np.full(shape.num_frames, shape.num_books)
    for t in range(shape.num_frames if shape.is_told else 0):
        depths[t] = _number(bits[at:at + DEPTH_BITS])
        if depths[t] > shape.num_books:
            raise FormatError(f"a frame of {depths[t]} packed codes; expected at most {shape.num_books}")
        end = at + DEPTH_BITS + depths[t] * CODE_BITS
        if end > len(bits):
            raise FormatError(f"{len(payload)} bytes of packed codes; expected more")
        codes[t, :depths[t]] = _number(bits[at + DEPTH_BITS:end].reshape(-1, CODE_BITS))
        at = end
    if not shape.is_told:
        start, at = at, at + codes.size * CODE_BITS
        if len(payload) == (at + 7) // 8:
            codes = _number(bits[start:at].reshape(shape.num_frames, shape.num_books, CODE_BITS))
    if len(payload) != (at + 7) // 8:
        raise FormatError(f"{len(payload)} bytes of packed codes; expected {(at + 7) // 8}")
    if bits[at:].any():
        raise FormatError("bits that are not zero after the last packed code")
    return Frames(np.ascontiguousarray(codes.T), depths, shape.is_told, levels)


def _bits(numbers: np.ndarray, width: int) -> np.ndarray:
    """Numbers (...) -> their bits, highest first, uint8 (..., width)."""
    return (numbers[..., None] >> np.arange(width - 1, -1, -1) & 1).astype(np.uint8)


def _number(bits: np.ndarray) -> np.ndarray:
    """Bits (..., width), highest first -> numbers, int64 (...)."""
    return bits @ (1 << np.arange(bits.shape[-1])[::-1])


def _next(decoders: list[RangeDecoder], counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Decode the first sizes (S,) of G symbols from each decoder, by its counts (G, S, V) -> (G, S), and zeros."""
    try:
        if len(counts) == 1:
            return np.array([[decoder.decode(Categorical(row, lazy=True, perfect=False))
                              for decoder, row in zip(decoders, counts[0])]])
        found = np.zeros(counts.shape[:2], np.int64)
        for symbols, decoder, rows, size in zip(found.T, decoders, counts.swapaxes(0, 1).copy(), sizes.tolist()):
            symbols[:size] = decoder.decode(BY_COUNTS, rows[:size])
        return found
    except AssertionError as error:            # constriction's answer to words that no encoder writes
        raise FormatError(f"a damaged payload ({error})") from None


def _next_of_each(decoders: list[RangeDecoder], counts: np.ndarray) -> np.ndarray:
    """Decode G symbols from each decoder, by its counts (S, G, V) -> (S, G)."""
    return _next(decoders, counts.swapaxes(0, 1), np.full(len(decoders), counts.shape[1])).T


def words(payload: bytes) -> np.ndarray:
    """A payload as the coder's words, with zeros for the bytes that were cut off."""
    whole = payload + bytes(-len(payload) % 4)
    return np.frombuffer(whole, ">u4").astype(np.uint32)


def shortest(encoder: RangeEncoder) -> bytes:
    """The fewest bytes that decode, with zeros after them, to what went into the encoder.

    What it has left to say is any one number of its interval, from `low` on and `width` wide: take the roundest.
    """
    written, (low, width) = encoder.pos()
    size = written * 4 + _STATE_BITS // 8
    number = int.from_bytes(encoder.get_compressed().astype(">u4").tobytes().ljust(size, b"\0"), "big")
    lowest = number - (number - low) % (1 << _STATE_BITS)
    for kept in range(written * 4, size + 1):
        unit = 1 << 8 * (size - kept)
        rounded = -(-lowest // unit) * unit
        if rounded < lowest + width:
            break
    return rounded.to_bytes(size, "big").rstrip(b"\0")
