"""Codes -> packets, as soon as they are complete; and packets -> samples, with something in place of missing ones."""
import bisect

import numpy as np

from audiocodec import audio, framecoder, packets, rate, tokens
from audiocodec.concealment import Concealer
from audiocodec.encoding import Source, Wish
from audiocodec.errors import FormatError, NacError
from audiocodec.fitting import added_energy
from audiocodec.stereo import from_mid_side
from audiocodec.tokens import Codec

_CREDIT = 0.25           # seconds' worth of bytes that packets may leave to those after them
_OVERHEAD = 6            # bytes of a packet besides its payload, roughly
_LATE = 64               # packets that one may be late, or another copy, and be known as such
_SETTLED = 64            # missing frames after which more of them change nothing: the decoder has long been silent


def resampled_at_once(sample_rate: int) -> int:
    """Samples: 5 ms."""
    return sample_rate // 200


class PacketWriter:
    """Codes (C, K, t) of one packet after another -> their bytes."""

    def __init__(self, codec: Codec, source: Source, wish: Wish, key_frames: int):
        self._codec, self._source, self._wish, self._key_frames = codec, source, wish, key_frames
        is_predicted, channels = wish.entropy, source.channels
        self._coder = framecoder.PredictedFrames(codec.entropy, channels) if is_predicted else framecoder.PackedFrames()
        self._num_packets = self._num_frames = 0
        self._since_key = 0          # frames from the last key packet on
        self._credit = 0.0           # bytes that packets so far have left
        self._bits_per_code = 10.0   # of the last packet

    def push(self, segments: list[np.ndarray]) -> bytes:
        return b"".join(map(self._pack, segments))

    def flush(self, segments: list[np.ndarray], num_samples: int) -> bytes:
        """The last packets; the very last one tells how many samples of it are padding."""
        if not segments:
            return b""
        num_frames = self._num_frames + sum(codes.shape[2] for codes in segments)
        made = -(-self._codec.config.hop * (num_frames - 1) * self._source.sample_rate
                 // self._codec.config.sample_rate)
        return self.push(segments[:-1]) + self._pack(segments[-1], made - num_samples)

    def _pack(self, codes: np.ndarray, surplus: int | None = None) -> bytes:
        num_frames = codes.shape[2]
        is_key = not (self._wish.entropy and self._num_packets and self._since_key + num_frames <= self._key_frames)
        self._since_key = num_frames if is_key else self._since_key + num_frames

        def code(books: tuple[int, ...]) -> bytes:
            payload = self._coder.encode([channel[:count].astype(np.int64) for channel, count in zip(codes, books)],
                                         is_key)
            return packets.pack(packets.Packet(self._num_packets % packets.SEQUENCE, num_frames, books, payload,
                                               self._wish.entropy, is_key, surplus))

        if self._wish.codebooks is None:
            data = self._fit(codes, code)
        else:
            data = code((self._wish.codebooks,) * self._source.channels)
        self._num_packets += 1
        self._num_frames += num_frames
        return data

    def _fit(self, codes: np.ndarray, code) -> bytes:
        """The packet of as many books as are likely to keep those so far below the ceiling, or fewer if they do not."""
        per_second = self._wish.kbps * 125
        frame = self._codec.config.hop / self._codec.config.sample_rate
        self._credit = min(self._credit, _CREDIT * per_second) + codes.shape[2] * frame * per_second
        rungs = rate.ladder(added_energy(self._codec, codes))
        sizes = [_OVERHEAD + self._bits_per_code * sum(books) * codes.shape[2] / 8 for books in rungs]
        at = max(0, bisect.bisect_right(sizes, self._credit) - 1)
        while len(data := code(rungs[at])) > self._credit and at:
            self._coder.undo()
            at -= 1
        self._bits_per_code = max(1.0, 8 * (len(data) - _OVERHEAD) / (sum(rungs[at]) * codes.shape[2]))
        self._credit -= len(data)
        return data


class PacketReader:
    """Packets -> samples float32 (C, n), in their order and without a break."""

    def __init__(self, codec: Codec, sample_rate: int, channels: int, packet_frames: int):
        self.sample_rate, self.channels = sample_rate, channels
        self._packet_frames = packet_frames      # of a missing packet
        self._decoder = tokens.StreamDecoder(codec, channels)
        self._concealer = Concealer(channels, codec.config.hop)
        model_rate = codec.config.sample_rate
        self._resampler = audio.Resampler(model_rate, sample_rate, chunk=resampled_at_once(model_rate))
        self._packed = framecoder.PackedFrames()
        self._predicted = framecoder.PredictedFrames(codec.entropy, channels)
        self._expected: int | None = None        # the next packet's number
        self._is_in_step = False                 # whether packets that are no key packets can be decoded
        self._last = np.zeros((channels, 1, 1), np.int64)     # codes of the last frame that came, ...
        self._books = np.ones(channels, np.int64)             # ... and the books they use
        self._hop = codec.config.hop
        self._has_ended = False

    def push(self, data: bytes) -> np.ndarray:
        """Whole packets -> the samples that are ready. Raises NacError for packets of other channels."""
        pieces = [self._silence(0)]
        try:
            for packet in packets.unpack(data):
                pieces += self._take(packet)
        except FormatError:
            pieces.append(self.conceal())
        return np.concatenate(pieces, 1)

    def conceal(self) -> np.ndarray:
        """Samples in place of the next packet."""
        if self._has_ended:
            return self._silence(0)
        if self._expected is not None:
            self._expected = (self._expected + 1) % packets.SEQUENCE
        self._is_in_step = False
        return self._resampled(self._missing(self._packet_frames))

    def flush(self) -> np.ndarray:
        """The last samples, which there are only if the last packet has not come."""
        if self._has_ended:
            return self._silence(0)
        self._has_ended = True
        return np.concatenate([self._resampler.push(self._silence(0)), self._resampler.flush()], 1)

    def _take(self, packet: packets.Packet) -> list[np.ndarray]:
        if len(packet.books) != self.channels:
            raise NacError(f"a packet of {len(packet.books)} channels; the decoder was made for {self.channels}")
        gap = 0 if self._expected is None else (packet.number - self._expected) % packets.SEQUENCE
        if self._has_ended or gap >= packets.SEQUENCE - _LATE:
            return []
        self._expected = (packet.number + 1) % packets.SEQUENCE
        pieces = []
        if gap:
            self._is_in_step = False
            pieces.append(self._missing(gap * self._packet_frames))
        codes = self._decoded(packet)
        pieces.append(self._missing(packet.num_frames) if codes is None else self._heard(codes))
        samples = [self._resampled(piece) for piece in pieces]
        if packet.surplus is None:
            self._packet_frames = packet.num_frames
            return samples
        whole = np.concatenate([*samples, self.flush()], 1)
        return [whole[:, :max(0, whole.shape[1] - packet.surplus)]]

    def _decoded(self, packet: packets.Packet) -> list[np.ndarray] | None:
        """The codes (K, t) of each channel; None for a packet that depends on one that is missing."""
        coder = self._predicted if packet.entropy_coded else self._packed
        can_decode = packet.is_key or self._is_in_step
        self._is_in_step = False
        if not can_decode:
            return None
        try:
            codes = coder.decode(packet)
        except FormatError:
            return None
        self._is_in_step = packet.entropy_coded
        return codes

    def _heard(self, codes: list[np.ndarray]) -> np.ndarray:
        self._books = np.array([len(channel) for channel in codes])
        whole = np.zeros((self.channels, self._books.max(), codes[0].shape[1]), np.int64)
        for row, channel in zip(whole, codes):
            row[:len(channel)] = channel
        self._last = whole[:, :, -1:]
        return self._concealer.follow(self._decoder.push(whole, self._books))

    def _missing(self, num_frames: int) -> np.ndarray:
        pieces = [self._concealer.fill(self._decoder.push(self._concealer.stand_in(self._last), self._books))
                  for _ in range(min(num_frames, _SETTLED))]
        return np.concatenate([*pieces, self._silence(max(0, num_frames - _SETTLED) * self._hop)], 1)

    def _resampled(self, samples: np.ndarray) -> np.ndarray:
        return self._resampler.push(from_mid_side(samples))

    def _silence(self, num_samples: int) -> np.ndarray:
        return np.zeros((self.channels, num_samples), np.float32)
