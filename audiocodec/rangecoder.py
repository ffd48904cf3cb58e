"""Codes <-> payload: two coders with the same two methods, plain 10-bit packing and range coding by a model.

Martin: "Range encoding: an algorithm for removing redundancy from a digitised message", 1979; Bamler: "Understanding
entropy coding with asymmetric numeral systems", 2022 (the constriction library).
"""
import constriction
import numpy as np

from audiocodec.entropy import ABSENT, BOOK_SIZE, MAX_FRAMES, MEMBERS, EntropyModel
from audiocodec.errors import FormatError

Categorical = constriction.stream.model.Categorical
RangeDecoder = constriction.stream.queue.RangeDecoder
RangeEncoder = constriction.stream.queue.RangeEncoder

CODE_BITS = 10
_STATE_BITS = 64               # of constriction's coder, whose words have 32
_ENCODED_TOGETHER = 8          # sequences at once: all their tables are in memory
_DECODED_TOGETHER = 16


class PackedCoder:
    """Each code as it is: frames in order, books in order, 10 bits, the highest first; zero bits fill the last byte."""

    def encode(self, codes: list[np.ndarray]) -> list[bytes]:
        """Codes (K, T) of each sequence -> payloads."""
        return [_pack(sequence) for sequence in codes]

    def decode(self, payloads: list[bytes], shapes: list[tuple[int, int]]) -> list[np.ndarray]:
        """Payloads and the shapes (K, T) of their codes -> codes, int64. Raises FormatError."""
        return [_unpack(payload, *shape) for payload, shape in zip(payloads, shapes, strict=True)]


class RangeCoder:
    """Each code by the tables of an entropy model: frames in order, books in order, class then member.

    A payload is the coder's words, each from its highest byte down, cut after the last byte that matters; a decoder
    reads zeros from there on.
    """

    def __init__(self, model: EntropyModel):
        self.model = model

    def encode(self, codes: list[np.ndarray]) -> list[bytes]:
        """Codes (K, T) of each sequence, at most 512 frames -> payloads."""
        groups = (codes[i:i + _ENCODED_TOGETHER] for i in range(0, len(codes), _ENCODED_TOGETHER))
        return [payload for group in groups for payload in self._encode(group)]

    def decode(self, payloads: list[bytes], shapes: list[tuple[int, int]]) -> list[np.ndarray]:
        """Payloads and the shapes (K, T) of their codes -> codes, int64.

        Raises FormatError for shapes that the model cannot have coded, and for words that no encoder writes. Other
        damage gives other codes: checksums are the container's task.
        """
        most = self.model.config.num_books
        for books, frames in shapes:
            if not (0 <= books <= most and 0 <= frames <= MAX_FRAMES):
                raise FormatError(f"{frames} frames of {books} codebooks; expected at most {MAX_FRAMES} of {most}")
        pairs = list(zip(payloads, shapes, strict=True))
        groups = (pairs[i:i + _DECODED_TOGETHER] for i in range(0, len(pairs), _DECODED_TOGETHER))
        return [codes for group in groups for codes in self._decode(*zip(*group))]

    def _encode(self, codes: list[np.ndarray]) -> list[bytes]:
        num_books, num_frames = np.array([sequence.shape for sequence in codes]).T
        padded = np.zeros((len(codes), num_books.max(), num_frames.max()), np.int64)
        for row, sequence in zip(padded, codes):
            row[:sequence.shape[0], :sequence.shape[1]] = sequence
        payloads = []
        for counts, symbols, books, frames in zip(*self.model.tables(padded, num_books), num_books, num_frames):
            counts = counts[:frames, :books].reshape(-1, counts.shape[-1])
            encoder = RangeEncoder()
            encoder.encode(symbols[:frames, :books].ravel(), Categorical(perfect=False), counts)
            payloads.append(_shortest(encoder))
        return payloads

    def _decode(self, payloads: list[bytes], shapes: list[tuple[int, int]]) -> list[np.ndarray]:
        num_books, num_frames = np.array(shapes).T
        places = np.zeros((len(shapes), num_books.max(), num_frames.max()), np.int64)
        decoders = [RangeDecoder(_words(payload)) for payload in payloads]
        spare = RangeDecoder(_words(b""))      # for codes that a sequence lacks, which are cut off in the end
        state = self.model.start(num_books)
        previous = np.full(places.shape[:2], ABSENT)
        for t in range(places.shape[2]):
            sums = self.model.contexts(state, previous[:, :, None])[:, 0]
            for k in range(places.shape[1]):
                line_up = [decoder if k < books and t < frames else spare
                           for decoder, (books, frames) in zip(decoders, shapes)]
                hidden = self.model.hidden(k, sums, previous[:, k])
                classes = _next(line_up, self.model.class_counts(k, hidden))
                members = _next(line_up, self.model.member_counts(k, hidden, classes))
                previous[:, k] = classes * MEMBERS + members
                self.model.add(k, sums, previous[:, k])
            places[:, :, t] = previous
        codes = self.model.codes(places)
        return [sequence[:books, :frames] for sequence, (books, frames) in zip(codes, shapes)]


def _pack(codes: np.ndarray) -> bytes:
    places = np.arange(CODE_BITS - 1, -1, -1)
    return np.packbits(codes.T[..., None] >> places & 1).tobytes()


def _unpack(payload: bytes, books: int, frames: int) -> np.ndarray:
    size = books * frames * CODE_BITS
    if len(payload) != (size + 7) // 8:
        raise FormatError(f"{len(payload)} bytes of packed codes; expected {(size + 7) // 8}")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8))
    if bits[size:].any():
        raise FormatError("bits that are not zero after the last packed code")
    codes = bits[:size].reshape(frames, books, CODE_BITS) @ (BOOK_SIZE >> np.arange(1, CODE_BITS + 1))
    return np.ascontiguousarray(codes.T)


def _next(decoders: list[RangeDecoder], counts: np.ndarray) -> np.ndarray:
    """Decode one symbol from each decoder, by its row of the counts (S, V) -> (S,)."""
    try:
        return np.array([decoder.decode(Categorical(row, lazy=True, perfect=False))
                         for decoder, row in zip(decoders, counts)])
    except AssertionError as error:            # constriction's answer to words that no encoder writes
        raise FormatError(f"a damaged payload ({error})") from None


def _words(payload: bytes) -> np.ndarray:
    """A payload as the coder's words, with zeros for the bytes that were cut off."""
    whole = payload + bytes(-len(payload) % 4)
    return np.frombuffer(whole, ">u4").astype(np.uint32)


def _shortest(encoder: RangeEncoder) -> bytes:
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
