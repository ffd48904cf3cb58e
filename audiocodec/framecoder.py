"""The codes of a packet <-> its payload: two coders with the same methods, plain packing and coding by prediction."""
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from audiocodec.entropy import ABSENT, MAX_FRAMES, MEMBERS, UNTOLD, EntropyModel
from audiocodec.errors import FormatError
from audiocodec.packets import Packet
from audiocodec.rangecoder import (
    CODE_BITS, Categorical, Frames, PackedCoder, RangeDecoder, RangeEncoder, Shape, shortest, words)


class PackedFrames:
    """Codes as they are, 10 bits each, of one channel after the other; every packet can be decoded alone."""

    def encode(self, codes: list[np.ndarray], is_key: bool) -> bytes:
        """Codes (K, T) of each channel -> payload."""
        return b"".join(PackedCoder().encode(list(map(Frames.whole, codes))))

    def undo(self) -> None:
        """Take the last packet that was encoded back: no packet depends on it."""

    def decode(self, packet: Packet) -> list[np.ndarray]:
        """Codes int64 (K, T) of each channel. Raises FormatError."""
        shapes = [Shape(books, packet.num_frames) for books in packet.books]
        end = (packet.books[0] * packet.num_frames * CODE_BITS + 7) // 8
        payloads = packet.payload[:end], packet.payload[end:]
        return [frames.codes for frames in PackedCoder().decode(payloads[:len(shapes)], shapes)]


class PredictedFrames:
    """Codes by the tables of an entropy model that goes on from packet to packet and begins anew in key packets.

    A payload is that of rangecoder.RangeCoder; of two channels, book by book: classes of both, then members of both.
    """

    def __init__(self, model: EntropyModel, channels: int):
        self._model, self._channels = model, channels
        self._begin()

    def _begin(self) -> None:
        books = self._model.config.num_books
        self._state = self._model.start(self._channels)
        self._previous = np.full((self._channels, books), ABSENT)       # the places of the frame before

    def undo(self) -> None:
        """Take the last packet that was encoded back."""
        self._state, self._state.frame, self._previous = self._before

    def encode(self, codes: list[np.ndarray], is_key: bool) -> bytes:
        """Codes (K, T) of each channel -> payload."""
        self._before = self._state, self._state.frame, self._previous
        if is_key:
            self._begin()
        books, num_frames = [len(channel) for channel in codes], codes[0].shape[1]
        symbols, tables = iter(self._symbols(codes)), []

        def take(counts: np.ndarray) -> int:
            tables.append((next(symbols), counts))
            return tables[-1][0]

        self._walk(books, num_frames, take)
        taken, counts = zip(*tables)
        encoder = RangeEncoder()
        encoder.encode(np.array(taken, np.int32), Categorical(perfect=False), np.stack(counts))
        return shortest(encoder)

    def decode(self, packet: Packet) -> list[np.ndarray]:
        """Codes int64 (K, T) of each channel. Raises FormatError."""
        if packet.is_key:
            self._begin()
        if self._state.frame + packet.num_frames > MAX_FRAMES or max(packet.books) > self._model.config.num_books:
            raise FormatError("a packet of more frames or codebooks than the entropy model has")
        decoder = RangeDecoder(words(packet.payload))
        try:
            places = self._walk(packet.books, packet.num_frames,
                                lambda counts: decoder.decode(Categorical(counts, lazy=True, perfect=False)))
        except AssertionError as error:          # constriction's answer to words that no encoder writes
            raise FormatError(f"a damaged payload ({error})") from None
        return [channel[:count] for channel, count in zip(self._model.codes(places), packet.books)]

    def _symbols(self, codes: list[np.ndarray]) -> Iterator[int]:
        """Classes and members in the order in which they are coded."""
        most, num_frames = max(map(len, codes)), codes[0].shape[1]
        places = [np.stack(np.divmod(self._model.places(channel[None])[0], MEMBERS)) for channel in codes]
        for t in range(num_frames):
            for k in range(most):
                for level in range(2):
                    yield from (int(channel[level, k, t]) for channel in places if channel.shape[1] > k)

    def _walk(self, books: Sequence[int], num_frames: int, code: Callable[[np.ndarray], int]) -> np.ndarray:
        """Go on by some frames: `code` is given the counts (V,) of one symbol after another, and returns the symbol.

        Returns the places (C, K, T); 0 for books that a channel lacks.
        """
        model, most = self._model, max(books)
        places = np.zeros((self._channels, most, num_frames), np.int64)
        untold = np.full(self._channels, UNTOLD)
        for t in range(num_frames):
            sums = model.contexts(self._state, self._previous[:, :, None], untold[:, None])[:, 0]
            model.add_depth(sums, untold)
            for k in range(most):
                present = [channel for channel, count in enumerate(books) if count > k]
                hidden = model.hidden(k, sums, self._previous[:, k])
                symbols = np.zeros((2, self._channels), np.int64)
                counts = model.class_counts(k, hidden)
                for channel in present:
                    symbols[0, channel] = code(counts[channel])
                counts = model.member_counts(k, hidden, symbols[0])
                for channel in present:
                    symbols[1, channel] = code(counts[channel])
                places[:, k, t] = symbols[0] * MEMBERS + symbols[1]
                model.add(k, sums, places[:, k, t])
            self._previous = np.full_like(self._previous, ABSENT)
            for channel, count in enumerate(books):
                self._previous[channel, :count] = places[channel, :count, t]
        return places
