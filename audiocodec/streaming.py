"""Audio in pieces of any size -> bytes as soon as they are ready, and back: .nac bytes, or packets that may get lost.

docs/streaming.md says what a packet looks like, what it costs, and how it sounds when some are missing.
"""
import io
from collections.abc import Iterator

import numpy as np

from audiocodec import audio, container, decoding, loading, packets
from audiocodec.encoding import Analysis, Running, Source, Wish, constant_packing, make_header, suitable_frames
from audiocodec.entropy import MAX_FRAMES
from audiocodec.errors import AudioError, NacError
from audiocodec.limits import DEFAULT_KBPS
from audiocodec.packet_stream import PacketReader, PacketWriter, resampled_at_once
from audiocodec.tokens import DEFAULT_MODEL, Codec


class StreamEncoder:
    """Samples in pieces of any size -> the bytes of a .nac file, or packets.

    sample_rate: Hz. channels: 1 or 2. codebooks: per channel, or kbps: a ceiling for what has gone out so far.
    packet_frames: None for a .nac file, whose bytes come a segment at a time, and are those that `nac encode` writes
    to a pipe; 1 to 8 for packets of so many frames (1/75 s).
    key_frames: packets are coded by those before them for so many frames, 512 at most, then begins a new chain; with
    few, every packet can be decoded alone.
    segment_frames: frames of a segment of a .nac file, a multiple of 16, at most 512; None for what `nac encode`
    takes. num_samples (per channel, if known), subtype, tags: what the file notes of the original.
    entropy: False packs codes plainly. model, device: as of `audiocodec.encode`.
    Raises AudioError for a layout that nac does not take, NacError for other arguments, ModelError.
    """

    def __init__(self, sample_rate: int = 24_000, channels: int = 1, *, codebooks: int | None = None,
                 kbps: float | None = None, packet_frames: int | None = None, key_frames: int = 1,
                 segment_frames: int | None = None, num_samples: int | None = None, subtype: str = "FLOAT",
                 tags: container.Tags = (), entropy: bool = True, model: str = DEFAULT_MODEL, device: str = "auto"):
        audio.check_layout(sample_rate, channels)
        _check("packet_frames", 1 if packet_frames is None else packet_frames, 1, packets.MAX_PACKET_FRAMES)
        _check("key_frames", key_frames, 1, MAX_FRAMES)
        wish = Wish(kbps or DEFAULT_KBPS if codebooks is None else None, codebooks, entropy)
        codec = loading.load(model, device)
        source = Source(sample_rate, channels, num_samples, subtype, tags)
        segment_frames = suitable_frames(codec, source) if segment_frames is None else segment_frames
        _check("segment_frames", segment_frames, 16, MAX_FRAMES)
        if packet_frames:
            frames, chunk = packet_frames, resampled_at_once(sample_rate)
            self._start_writing = lambda: PacketWriter(codec, source, wish, key_frames)
        else:
            frames, chunk = segment_frames, audio.chunk_for(segment_frames)
            self._start_writing = lambda: _FileWriter(codec, source, wish, segment_frames)
        told = () if packet_frames else (wish.level_frames(codec, channels), wish.paths(codec))
        books = wish.most_books(codec)
        self._start_analysis = lambda: Analysis(codec, sample_rate, channels, books, frames, chunk, *told)
        self.sample_rate, self.channels = sample_rate, channels
        self.reset()

    def reset(self) -> None:
        """Begin anew, as if just made."""
        self._analysis, self._writer = self._start_analysis(), self._start_writing()
        self._has_ended = False

    def push(self, samples: np.ndarray) -> bytes:
        """Samples float (channels, n) -> the bytes that are ready: of packets, none or some, one after another."""
        samples = np.asarray(samples)
        if samples.ndim != 2 or len(samples) != self.channels or samples.dtype.kind != "f":
            found = f"samples of shape {samples.shape}, {samples.dtype}"
            raise AudioError(f"{found}; expected floats of ({self.channels}, samples)")
        if not np.isfinite(samples).all():
            raise AudioError("samples that are infinite or not numbers")
        self._check_open()
        return self._writer.push(self._analysis.push(np.ascontiguousarray(samples, np.float32)))

    def flush(self) -> bytes:
        """End the stream: the last bytes. Only `reset` begins another."""
        self._check_open()
        self._has_ended = True
        return self._writer.flush(self._analysis.flush(), self._analysis.num_samples)

    def _check_open(self) -> None:
        if self._has_ended:
            raise NacError("the stream has ended; reset() begins another")


class StreamDecoder:
    """The bytes of a StreamEncoder, in pieces -> samples.

    packet_frames: None for a .nac file, in pieces of any size, which give the samples that `nac decode` gives; for
    packets the number that the encoder was made with, and its sample_rate, channels and model: packets do not tell.
    Of a file they need not be given: `sample_rate` and `channels` are right once its header has come.
    Raises AudioError, NacError, ModelError.
    """

    def __init__(self, sample_rate: int = 24_000, channels: int = 1, *, packet_frames: int | None = None,
                 model: str | None = None, device: str = "auto"):
        audio.check_layout(sample_rate, channels)
        _check("packet_frames", 1 if packet_frames is None else packet_frames, 1, packets.MAX_PACKET_FRAMES)
        if packet_frames:
            codec = loading.load(model or DEFAULT_MODEL, device)
            self._start = lambda: PacketReader(codec, sample_rate, channels, packet_frames)
        else:
            self._start = lambda: _FileReader(sample_rate, channels, model, device)
        self.reset()

    @property
    def sample_rate(self) -> int:
        """Hz, of the samples."""
        return self._reader.sample_rate

    @property
    def channels(self) -> int:
        return self._reader.channels

    def reset(self) -> None:
        """Begin anew, as if just made."""
        self._reader = self._start()

    def push(self, data: bytes | None) -> np.ndarray:
        """Bytes -> the samples that are ready, float32 (channels, n). Of packets: whole ones; None for a missing one.

        A packet that is damaged counts as missing. One that comes late, or twice, gives nothing.
        Raises FormatError for damage in a .nac file, ModelError when the weights it was made with are not here.
        """
        return self.conceal() if data is None else self._reader.push(data)

    def conceal(self) -> np.ndarray:
        """Samples in place of a packet that is missing; NacError for a .nac file."""
        return self._reader.conceal()

    def flush(self) -> np.ndarray:
        """The last samples. Raises FormatError for a .nac file that is not complete."""
        return self._reader.flush()


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise NacError(f"{name} is {value}; expected {low} to {high}")


class _FileWriter:
    """Codes of one segment after another -> .nac bytes."""

    def __init__(self, codec: Codec, source: Source, wish: Wish, segment_frames: int):
        self._file = io.BytesIO()
        self._writer = container.Writer(self._file, make_header(codec, source, wish, segment_frames), source.tags)
        if wish.codebooks is None:
            self._packed = Running(codec, wish, source).pack
        else:
            self._packed = constant_packing(codec, wish, source)

    def push(self, segments: list[np.ndarray]) -> bytes:
        for segment in self._packed(segments):
            self._writer.write(segment)
        return self._taken()

    def flush(self, segments: list[np.ndarray], num_samples: int) -> bytes:
        data = self.push(segments)
        self._writer.close(num_samples)
        return data + self._taken()

    def _taken(self) -> bytes:
        data = self._file.getvalue()
        self._file.seek(0)
        self._file.truncate()
        return data


class _FileReader:
    """.nac bytes in pieces of any size -> samples float32 (C, n)."""

    def __init__(self, sample_rate: int, channels: int, model: str | None, device: str):
        self.sample_rate, self.channels = sample_rate, channels     # until the header comes
        self._model, self._device = model, device
        self._pipe = _Pipe()
        self._reader: container.Reader | None = None
        self._is_complete = False

    def push(self, data: bytes) -> np.ndarray:
        if self._reader:
            self._pipe.forget()
        self._pipe.write(data)
        pieces = []
        try:
            if self._reader is None:
                self._open()
            for record in self._reader:
                pieces += self._decoded(record)
            self._unpacking.check_length()
            self._is_complete = True
            pieces.append(self._synthesis.flush(self._reader.trailer.num_samples))
        except _Starved:
            pass
        return np.concatenate([np.zeros((self.channels, 0), np.float32), *pieces], 1)

    def flush(self) -> np.ndarray:
        self._pipe.is_closed = True
        return np.zeros((self.channels, 0), np.float32) if self._is_complete else self.push(b"")

    def conceal(self) -> np.ndarray:
        raise NacError("only packets can be missing; a .nac file has to come whole")

    def _open(self) -> None:
        self._pipe.rewind()
        reader = container.Reader(self._pipe)
        codec = loading.load_for(reader.header, self._model, self._device)
        excerpt = decoding.find_excerpt(reader, codec, None, None, False)
        self._unpacking = decoding.Unpacking(reader, codec, excerpt)
        self._synthesis = decoding.Synthesis(codec, reader.header, excerpt)
        self.sample_rate, self.channels = reader.header.sample_rate, reader.header.channels
        self._reader = reader

    def _decoded(self, segment: container.Segment) -> Iterator[np.ndarray]:
        return map(self._synthesis.push, self._unpacking.push([segment]))


class _Starved(Exception):
    """More is to be read, but not yet."""


class _Pipe:
    """Bytes that are written at one time and read at another."""

    def __init__(self):
        self._held = bytearray()
        self._position = 0
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self._held += data

    def read(self, size: int) -> bytes:
        """At most so many bytes; none only after the end. Raises _Starved when there are none yet."""
        data = bytes(self._held[self._position:self._position + size])
        if not data and not self.is_closed:
            raise _Starved
        self._position += len(data)
        return data

    def rewind(self) -> None:
        """Read what is held again."""
        self._position = 0

    def forget(self) -> None:
        """Hold nothing that was read."""
        del self._held[:self._position]
        self._position = 0
