"""The codes of a packet <-> its payload: two coders with the same methods, plain packing and coding by prediction."""
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from audiocodec.entropy import ABSENT, MAX_FRAMES, MEMBERS, UNTOLD, EntropyModel
from audiocodec.errors import FormatError
from audiocodec.packets import Packet
from audiocodec.rangecoder import (
    BY_COUNTS, CODE_BITS, Frames, PackedCoder, RangeDecoder, RangeEncoder, Shape, shortest, words)


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

    A payload is that of rangecoder.RangeCoder; of two channels, turn by turn: classes of both, then members of both.
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
        symbols, encoder = self._symbols(codes), RangeEncoder()

        def take(counts: np.ndarray) -> np.ndarray:
            taken = next(symbols)
            encoder.encode(taken, BY_COUNTS, counts)
            return taken

        self._walk(books, num_frames, take)
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
                                lambda counts: decoder.decode(BY_COUNTS, counts))
        except AssertionError as error:          # constriction's answer to words that no encoder writes
            raise FormatError(f"a damaged payload ({error})") from None
        return [channel[:count] for channel, count in zip(self._model.codes(places), packet.books)]

    def _symbols(self, codes: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Classes, then members, int32 (n,), of each frame's turns in the order in which they are coded."""
        most, num_frames = max(map(len, codes)), codes[0].shape[1]
        places = [np.stack(np.divmod(self._model.places(channel[None])[0], MEMBERS)) for channel in codes]
        for t in range(num_frames):
            for turn in self._model.config.books(most):
                for level in range(2):
                    taken = [channel[level, turn.start:turn.stop, t] for channel in places]
                    yield np.concatenate(taken, dtype=np.int32)

    def _walk(self, books: Sequence[int], num_frames: int, code: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Go on by some frames: `code` is given the counts (n, V) of symbols, and returns these (n,), time after time.

        Returns the places (C, K, T); 0 for books that a channel lacks.
        """
        model, most = self._model, max(books)
        places = np.zeros((self._channels, most, num_frames), np.int64)
        untold = np.full(self._channels, UNTOLD)
        for t in range(num_frames):
            sums = model.contexts(self._state, self._previous[:, :, None], untold[:, None])[:, 0]
            model.add_depth(sums, untold)
            for turn in model.config.books(most):
                sizes = [min(max(count - turn.start, 0), len(turn)) for count in books]
                hidden = model.hidden(turn, sums, self._previous[:, turn.start:turn.stop].T)
                classes = _coded(code, model.class_counts(turn, hidden), sizes)
                found = classes * MEMBERS + _coded(code, model.member_counts(turn, hidden, classes), sizes)
                model.add(turn, sums, found)
                places[:, turn.start:turn.stop, t] = found.T
            self._previous = np.full_like(self._previous, ABSENT)
            for channel, count in enumerate(books):
                self._previous[channel, :count] = places[channel, :count, t]
        return places


def _coded(code: Callable[[np.ndarray], np.ndarray], counts: np.ndarray, sizes: list[int]) -> np.ndarray:
    """The symbols (G, C) that `code` gives for the first `sizes` of each channel's counts (G, C, V), and zeros."""
    found = np.zeros(counts.shape[:2], np.int64)
    is_there = np.arange(len(found)) < np.array(sizes)[:, None]
    found.T[is_there] = code(counts.swapaxes(0, 1)[is_there])
    return found
