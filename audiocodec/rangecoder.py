"""Codes <-> payload, by two coders with the same two methods: plain 10-bit packing, and range coding with a model's tables.

Range coding: Martin: "Range encoding: an algorithm for removing redundancy from a digitised message", 1979, as in the
constriction library (Bamler, 2022).
"""
import constriction
import numpy as np

from audiocodec.entropy import ABSENT, BOOK_SIZE, MAX_FRAMES, EntropyModel
from audiocodec.errors import FormatError

Categorical = constriction.stream.model.Categorical
RangeDecoder, RangeEncoder = constriction.stream.queue.RangeDecoder, constriction.stream.queue.RangeEncoder

CODE_BITS = 10
_TABLES = Categorical(perfect=False)     # counts that sum to 2**24 less one each are then taken as they are
_STATE_BITS = 64                         # of constriction's coder, which writes words of 32 bits
_TOGETHER = 16                           # sequences coded at once


class PackedCoder:
    """Each code as it is: frames in order, books in order, 10 bits each, the highest first; zero bits fill the last byte."""

    def encode(self, codes: list[np.ndarray]) -> list[bytes]:
        """Codes (K, T) of each sequence -> payloads."""
        return [_pack(sequence) for sequence in codes]

    def decode(self, payloads: list[bytes], shapes: list[tuple[int, int]]) -> list[np.ndarray]:
        """Payloads and the shapes (K, T) of their codes -> codes int64. Raises FormatError."""
        return [_unpack(payload, *shape) for payload, shape in zip(payloads, shapes, strict=True)]


class RangeCoder:
    """Each code by the tables of an entropy model, class then member, frames in order, books in order.

    A payload is the coder's words from the highest byte down, cut after the last byte that matters: a decoder reads
    zeros after its end.
    """

    def __init__(self, model: EntropyModel):
        self.model = model

    def encode(self, codes: list[np.ndarray]) -> list[bytes]:
        """Codes (K, T) of each sequence, at most 512 frames -> payloads."""
        return [payload for start in range(0, len(codes), _TOGETHER)
                for payload in self._encode(codes[start:start + _TOGETHER])]

    def decode(self, payloads: list[bytes], shapes: list[tuple[int, int]]) -> list[np.ndarray]:
        """Payloads and the shapes (K, T) of their codes -> codes int64.

        Raises FormatError where a payload cannot be of that shape. Not every damage shows: checksums are the container's
        task.
        """
        for books, frames in shapes:
            if not 1 <= books <= self.model.config.num_books or not 0 <= frames <= MAX_FRAMES:
                raise FormatError(f"{books} codebooks of {frames} frames; the entropy model reads 1 to "
                                  f"{self.model.config.num_books} of at most {MAX_FRAMES}")
        return [codes for start in range(0, len(payloads), _TOGETHER)
                for codes in self._decode(payloads[start:start + _TOGETHER], shapes[start:start + _TOGETHER])]

    def _encode(self, codes: list[np.ndarray]) -> list[bytes]:
        num_books, num_frames = np.array([sequence.shape for sequence in codes]).T
        padded = np.zeros((len(codes), num_books.max(), num_frames.max()), np.int64)
        for row, sequence in zip(padded, codes):
            row[:sequence.shape[0], :sequence.shape[1]] = sequence
        payloads = []
        for counts, symbols, sequence in zip(*self.model.tables(padded, num_books), codes):
            books, frames = sequence.shape
            encoder = RangeEncoder()
            encoder.encode(symbols[:frames, :books].ravel(), _TABLES, counts[:frames, :books].reshape(-1, counts.shape[-1]))
            payloads.append(_shortest(encoder))
        return payloads

    def _decode(self, payloads: list[bytes], shapes: list[tuple[int, int]]) -> list[np.ndarray]:
        num_books, num_frames = np.array(shapes).T
        codes = np.zeros((len(shapes), num_books.max(), num_frames.max()), np.int64)
        decoders = [RangeDecoder(_words(payload)) for payload in payloads]
        spare = RangeDecoder(_words(b""))      # decodes the codes that a sequence lacks, to be cut off again
        state = self.model.start(num_books)
        previous = np.full(codes.shape[:2], ABSENT)
        try:
            for t in range(codes.shape[2]):
                sums = self.model.contexts(state, previous[:, :, None])[:, 0]
                for k in range(codes.shape[1]):
                    lineup = [decoder if k < books and t < frames else spare
                              for decoder, (books, frames) in zip(decoders, shapes)]
                    hidden = self.model.hidden(k, sums, previous[:, k])
                    classes = _next(lineup, self.model.class_counts(k, hidden))
                    members = _next(lineup, self.model.member_counts(k, hidden, classes))
                    codes[:, k, t] = previous[:, k] = found = self.model.join(k, classes, members)
                    self.model.add(k, sums, found)
        except AssertionError as error:        # what constriction raises for words that no encoder writes
            raise FormatError(f"a payload is damaged ({error})") from None
        return [sequence[:books, :frames] for sequence, (books, frames) in zip(codes, shapes)]


def _pack(codes: np.ndarray) -> bytes:
    places = np.arange(CODE_BITS - 1, -1, -1)
    return np.packbits(codes.T[..., None] >> places & 1).tobytes()


def _unpack(payload: bytes, books: int, frames: int) -> np.ndarray:
    bits = books * frames * CODE_BITS
    if len(payload) != -(-bits // 8):
        raise FormatError(f"{len(payload)} bytes of packed codes; expected {-(-bits // 8)}")
    found = np.unpackbits(np.frombuffer(payload, np.uint8))
    if found[bits:].any():
        raise FormatError("packed codes go on after the last code")
    values = found[:bits].reshape(frames, books, CODE_BITS) @ (BOOK_SIZE >> np.arange(1, CODE_BITS + 1))
    return np.ascontiguousarray(values.T)


def _next(decoders: list[RangeDecoder], counts: np.ndarray) -> np.ndarray:
    """Decode one symbol from each decoder with its row of counts (S, V) -> (S,)."""
    return np.array([decoder.decode(Categorical(row, lazy=True, perfect=False)) for decoder, row in zip(decoders, counts)])


def _words(payload: bytes) -> np.ndarray:
    """A payload as the coder's words, with zeros for the bytes cut off."""
    return np.frombuffer(payload.ljust(-(-len(payload) // 4) * 4, b"\0"), ">u4").astype(np.uint32)


def _shortest(encoder: RangeEncoder) -> bytes:
    """The fewest bytes that decode, zeros after them, to what went into the encoder.

    Any number from `low` to `low + width` does, where these follow the words already written; take the roundest.
    """
    words = encoder.get_compressed()
    written, (low, width) = encoder.pos()
    size = written * 4 + _STATE_BITS // 8
    number = int.from_bytes(words.astype(">u4").tobytes().ljust(size, b"\0"), "big")
    lowest = number - (number - low) % (1 << _STATE_BITS)
    for kept in range(written * 4, size + 1):
        unit = 1 << 8 * (size - kept)
        rounded = -(-lowest // unit) * unit
        if rounded < lowest + width:
            break
    return rounded.to_bytes(size, "big").rstrip(b"\0")
