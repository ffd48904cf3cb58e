"""The two walks: audio -> samples -> latents -> codes -> payload -> .nac bytes, and back."""
import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audiocodec import audio, container, rangecoder, weights
from audiocodec.entropy import EntropyConfig, EntropyModel
from audiocodec.errors import AudioError, FormatError, ModelError, NacError
from audiocodec.model import Decoder, Encoder, ModelConfig
from audiocodec.quantizer import ResidualQuantizer

DEFAULT_MODEL = "nac-24k"
DEFAULT_KBPS = 6.0
MIN_KBPS, MAX_KBPS = 0.75, 48.0      # from one book of one channel to every book of two

_SEGMENT_FRAMES = 512
_BATCH = 16                          # segments that are range-coded side by side
_PASS = 1024                         # frames that go through a network at once
_READ = 1 << 18                      # samples per channel read from a file at once

Progress = Callable[[float, float], None]     # seconds done, seconds in all


@dataclass(frozen=True)
class EncodeResult:
    """What became of one recording."""

    num_bytes: int
    seconds: float
    codebooks: tuple[int, ...]       # per channel; two channels are mid and side

    @property
    def kbps(self) -> float:
        """The true bit rate, of every byte in the file."""
        return self.num_bytes * 8e-3 / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class DecodeResult:
    seconds: float
    sample_rate: int
    channels: int
    damaged: tuple[str, ...]         # what was wrong, where damage was to be passed over


class Codec:
    """A model made ready: samples <-> codes. The entropy coders are `range_coder` and `packed_coder`."""

    def __init__(self, source: weights.Weights, device: str = "auto"):
        self.weights = source
        self.device = _choose_device(device)
        try:
            self.config = ModelConfig(**source.config["codec"])
            parts = _build_networks(self.config, source.part("codec"))
            self.entropy = EntropyModel(EntropyConfig(**source.config["entropy"]), source.part("entropy"))
        except (KeyError, TypeError, RuntimeError) as error:
            raise ModelError(f"{source.path}: the weights do not fit their configuration ({_line(error)})") from None
        # In float64 rounding never decides between two entries, so codes do not depend on how audio is cut.
        self.encoder, self.quantizer = (part.double().to(self.device) for part in parts[:2])
        self.decoder = parts[2].to(self.device)

    @classmethod
    def load(cls, name: str = DEFAULT_MODEL, device: str = "auto") -> "Codec":
        """Load a released model by name, or any by the path of its weights. Raises ModelError."""
        return cls(weights.load(name), device)

    def encode_codes(self, samples: np.ndarray, num_books: int) -> np.ndarray:
        """Samples float32 (B, 1, N) at the model's rate -> codes int64 (B, K, T), T = ceil(N / hop) + 1."""
        encoder = StreamEncoder(self, len(samples), num_books)
        return np.concatenate([encoder.push(samples[:, 0]), encoder.flush()], 2)

    def decode_codes(self, codes: np.ndarray) -> np.ndarray:
        """Codes int64 (B, K, T) -> samples float32 (B, 1, (T - 1) * hop) at the model's rate."""
        return StreamDecoder(self, len(codes)).push(codes, np.full(len(codes), codes.shape[1]))[:, None]

    def coder(self, entropy_coded: bool) -> "rangecoder.RangeCoder | rangecoder.PackedCoder":
        """The coder of payloads that a file asks for."""
        return rangecoder.RangeCoder(self.entropy) if entropy_coded else rangecoder.PackedCoder()


def _build_networks(config: ModelConfig, tensors: dict[str, np.ndarray]):
    parts = Encoder(config), ResidualQuantizer(config.num_books, config.book_size, config.latent_dim), Decoder(config)
    for part, name in zip(parts, ("encoder", "quantizer", "decoder")):
        prefix = f"{name}."
        part.load_state_dict({key.removeprefix(prefix): torch.from_numpy(value.astype(np.float32))
                              for key, value in tensors.items() if key.startswith(prefix)})
        part.eval().requires_grad_(False)
    return parts


def _choose_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise NacError("no CUDA device here; use --device cpu")
    return device


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


class StreamEncoder:
    """Samples in pieces of any size -> codes, the same as those of the whole."""

    def __init__(self, codec: Codec, batch: int, num_books: int):
        self._codec, self._num_books = codec, num_books
        self._waiting = torch.zeros(batch, 0, dtype=torch.float64)
        self._state = codec.encoder.start(torch.zeros(batch, 1, dtype=torch.float64, device=codec.device))
        self._empty = np.zeros((batch, num_books, 0), np.int64)
        self.has_input = False

    @torch.inference_mode()
    def push(self, samples: np.ndarray) -> np.ndarray:
        """Samples float32 (B, n) -> codes int64 (B, K, t) of the frames they complete."""
        self.has_input |= bool(samples.shape[1])
        hop = self._codec.config.hop
        self._waiting = torch.cat([self._waiting, torch.from_numpy(samples).double()], 1)
        whole = self._waiting.shape[1] // hop * hop
        blocks = self._waiting[:, :whole].reshape(len(samples), -1, hop)
        self._waiting = self._waiting[:, whole:]
        return np.concatenate([self._empty, *map(self._encode, blocks.split(_PASS, 1))], 2)

    def flush(self) -> np.ndarray:
        """The last codes, which complete the last block and the overlap after it."""
        if not self.has_input:
            return self._empty
        padding = -self._waiting.shape[1] % self._codec.config.hop + self._codec.config.hop
        return self.push(np.zeros((len(self._waiting), padding), np.float32))

    def _encode(self, blocks: Tensor) -> np.ndarray:
        if not blocks.shape[1]:
            return self._empty
        latents, self._state = self._codec.encoder(blocks.to(self._codec.device), self._state)
        return self._codec.quantizer.encode(latents.transpose(1, 2), self._num_books).cpu().numpy()


class StreamDecoder:
    """Codes in pieces of any size -> samples; those of the first frame, which precede the audio, are left out."""

    def __init__(self, codec: Codec, batch: int):
        self._codec = codec
        self._state = codec.decoder.start(torch.zeros(batch, 1, device=codec.device))
        self._started = False

    @torch.inference_mode()
    def push(self, codes: np.ndarray, num_books: np.ndarray) -> np.ndarray:
        """Codes int64 (B, K, t), books used (B,) -> samples float32 (B, n). Codes of unused books must be 0."""
        pieces = [self._decode(piece, torch.from_numpy(num_books)) for piece in torch.from_numpy(codes).split(_PASS, 2)]
        samples = torch.cat(pieces, 1).numpy()
        skip = 0 if self._started or not codes.shape[2] else self._codec.config.hop
        self._started |= bool(codes.shape[2])
        return samples[:, skip:]

    def _decode(self, codes: Tensor, num_books: Tensor) -> Tensor:
        codes, num_books = codes.to(self._codec.device), num_books.to(self._codec.device)
        latents = self._codec.quantizer.decode(codes).transpose(1, 2).float()
        blocks, self._state = self._codec.decoder(latents, num_books, self._state)
        return blocks.flatten(1).cpu()


# Mid and side

def to_mid_side(samples: np.ndarray) -> np.ndarray:
    """Left and right (2, N) -> mid and side (2, N); one channel stays as it is."""
    return samples if len(samples) == 1 else np.stack([samples[0] + samples[1], samples[0] - samples[1]]) / 2


def from_mid_side(samples: np.ndarray) -> np.ndarray:
    """Mid and side (2, N) -> left and right (2, N); one channel stays as it is."""
    return samples if len(samples) == 1 else np.stack([samples[0] + samples[1], samples[0] - samples[1]])


# Audio -> .nac

@dataclass(frozen=True)
class _Source:
    """What a file remembers of the audio it was made from."""

    sample_rate: int
    channels: int
    subtype: str = "FLOAT"
    tags: container.Tags = ()


def encode(samples: np.ndarray, sample_rate: int, kbps: float | None = DEFAULT_KBPS, *, codebooks: int | None = None,
           model: str = DEFAULT_MODEL, entropy: bool = True, device: str = "auto") -> bytes:
    """Compress samples to the bytes of a .nac file.

    samples: float32 (C, N) in [-1, 1], one or two channels. sample_rate: Hz, 8000 to 192000.
    kbps: a ceiling for the whole file; or None, with a count of codebooks per channel instead.
    Raises AudioError for samples it does not take, NacError for a rate it cannot meet, ModelError.
    """
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 2:
        raise AudioError(f"samples of shape {samples.shape}; expected (channels, samples)")
    audio.check_layout(sample_rate, len(samples))
    if not np.isfinite(samples).all():
        raise AudioError("samples that are infinite or not numbers")
    target = io.BytesIO()
    source = _Source(sample_rate, len(samples))
    _encode(_load(model, device), [samples], source, target, _Rate.of(kbps, codebooks), entropy, None)
    return target.getvalue()


def encode_file(source: Path, target: Path, *, kbps: float | None = DEFAULT_KBPS, codebooks: int | None = None,
                model: str = DEFAULT_MODEL, mono: bool = False, entropy: bool = True, device: str = "auto",
                force: bool = False, progress: Progress | None = None) -> EncodeResult:
    """Compress one audio file to one .nac file, with its tags. Arguments and errors are those of `encode`."""
    rate = _Rate.of(kbps, codebooks)
    with audio.AudioReader(source) as reader, audio.atomic_output(target, force) as file:
        codec = _load(model, device)
        channels = 1 if mono else reader.channels
        blocks = reader.blocks(_READ)
        if mono:
            blocks = (block.mean(0, keepdims=True) for block in blocks)
        total = (reader.num_samples or 0) / reader.sample_rate
        subtype = audio.restored_subtype(reader.subtype, Path("a.wav"))
        layout = _Source(reader.sample_rate, channels, subtype, reader.tags)
        return _encode(codec, blocks, layout, file, rate, entropy, progress and (lambda done: progress(done, total)))


@dataclass(frozen=True)
class _Rate:
    """What was asked for: a ceiling in kbps, or a count of codebooks."""

    kbps: float | None
    codebooks: int | None

    @classmethod
    def of(cls, kbps: float | None, codebooks: int | None) -> "_Rate":
        if codebooks is not None:
            return cls(None, codebooks)
        if kbps is None or not MIN_KBPS <= kbps <= MAX_KBPS:
            raise NacError(f"{kbps} kbps; nac codes at {MIN_KBPS:g} to {MAX_KBPS:g}")
        return cls(kbps, None)


def _encode(codec: Codec, blocks: Iterable[np.ndarray], source: _Source, file, rate: _Rate, entropy: bool,
            progress: Callable[[float], None] | None) -> EncodeResult:
    limit = codec.config.num_books
    if rate.codebooks is not None and not 1 <= rate.codebooks <= limit:
        raise NacError(f"{rate.codebooks} codebooks; this model has 1 to {limit}")
    if rate.codebooks is None:       # no more than could pay if two thirds of the bits were saved
        nominal = rate.kbps * 1000 / (codec.config.sample_rate / codec.config.hop * math.log2(codec.config.book_size))
        limit = min(limit, math.ceil(3 * nominal))
    codes, num_samples = _analyse(codec, blocks, source, rate.codebooks or limit, progress)
    segments = [codes[:, :, at:at + _SEGMENT_FRAMES] for at in range(0, codes.shape[2], _SEGMENT_FRAMES)]
    coder = codec.coder(entropy)
    seconds = num_samples / source.sample_rate

    def attempt(books: tuple[int, ...]) -> bytes:
        header = container.Header(source.channels, source.sample_rate, num_samples, codec.weights.identity,
                                  max(books), round((rate.kbps or 0) * 100) * 10, entropy, source.subtype,
                                  _SEGMENT_FRAMES)
        return container.pack(header, source.tags, _pack_segments(coder, segments, books), num_samples)

    if rate.codebooks is not None:
        books = (rate.codebooks,) * source.channels
        data = attempt(books)
    else:
        ladder = _ladder(codec, codes, limit)
        budget = rate.kbps * 125 * seconds
        books, data = _largest(attempt, ladder, budget, start=_guess(codec, segments, ladder, budget, entropy))
    file.write(data)
    return EncodeResult(len(data), seconds, books)


def _analyse(codec: Codec, blocks: Iterable[np.ndarray], source: _Source, num_books: int,
             progress: Callable[[float], None] | None) -> tuple[np.ndarray, int]:
    """Blocks of samples (C, n) -> codes uint16 (C, K, T), and the number of samples."""
    resampler = audio.Resampler(source.sample_rate, codec.config.sample_rate)
    encoder = StreamEncoder(codec, source.channels, num_books)
    codes, num_samples = [np.zeros((source.channels, num_books, 0), np.uint16)], 0
    for block in blocks:
        num_samples += block.shape[1]
        codes.append(encoder.push(resampler.push(to_mid_side(block))).astype(np.uint16))
        if progress:
            progress(num_samples / source.sample_rate)
    if num_samples:
        codes.append(encoder.push(resampler.flush()).astype(np.uint16))
        codes.append(encoder.flush().astype(np.uint16))
    return np.concatenate(codes, 2), num_samples


def _pack_segments(coder, segments: list[np.ndarray], books: tuple[int, ...]) -> Iterator[container.Segment]:
    for at in range(0, len(segments), _BATCH):
        batch = segments[at:at + _BATCH]
        streams = [segment[channel, :count].astype(np.int64)
                   for segment in batch for channel, count in enumerate(books) if count]
        payloads = iter(coder.encode(streams))
        for segment in batch:
            yield container.Segment(segment.shape[2], books, tuple(next(payloads) if k else b"" for k in books))


def _ladder(codec: Codec, codes: np.ndarray, limit: int) -> list[tuple[int, ...]]:
    """The counts of books per channel to choose from, in order: each gives one more book to where it helps most.

    What helps is judged by what the books so far have left over. A silent side channel never gets a book.
    """
    if len(codes) == 1:
        return [(count,) for count in range(1, limit + 1)]
    gains = [_gains(codec, channel) for channel in codes]          # energy that each book takes away
    mid, side = 1, 0
    ladder = [(mid, side)]
    while mid < limit or (side < limit and gains[1].any()):
        left = [g[count:].sum() if count < limit else -1.0 for g, count in zip(gains, (mid, side))]
        if left[1] > left[0]:
            side += 1
        elif mid < limit:
            mid += 1
        else:
            break
        ladder.append((mid, side))
    return ladder


def _gains(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Codes (K, T) -> energy of what each book adds, in all (K,)."""
    energies = codec.quantizer.codebooks.square().sum(-1).cpu().numpy()
    return np.array([energy[index].sum() for energy, index in zip(energies, codes)])


def _guess(codec: Codec, segments: list[np.ndarray], ladder, budget: float, entropy: bool) -> int:
    """The rung whose estimated size is nearest below the budget (bytes); coding then tells the truth."""
    totals = np.zeros((len(ladder[0]), max(max(rung) for rung in ladder)))
    for segment in segments:
        for channel, codes in enumerate(segment[:, :totals.shape[1]].astype(np.int64)):
            totals[channel] += codec.entropy.cost(codes[None])[0] if entropy else codes.shape[1] * 10.0
    bytes_up_to = np.concatenate([np.zeros((len(totals), 1)), np.cumsum(totals, 1)], 1) / 8
    sizes = [sum(bytes_up_to[channel, count] for channel, count in enumerate(rung)) for rung in ladder]
    return max(0, int(np.searchsorted(sizes, budget - 60 - 12 * len(segments), "right")) - 1)


def _largest(attempt, ladder: list[tuple[int, ...]], budget: float, start: int) -> tuple[tuple[int, ...], bytes]:
    """The highest rung whose bytes stay within the budget, and those bytes; the lowest rung if none does."""
    at, data = start, attempt(ladder[start])
    while len(data) > budget and at > 0:
        at -= 1
        data = attempt(ladder[at])
    while at + 1 < len(ladder) and len(data) <= budget:
        more = attempt(ladder[at + 1])
        if len(more) > budget:
            break
        at, data = at + 1, more
    return ladder[at], data


# .nac -> audio

def decode(data: bytes, *, model: str | None = None, device: str = "auto") -> tuple[np.ndarray, int]:
    """Decode the bytes of a .nac file to samples float32 (C, N) and their rate in Hz.

    model: the weights, by name or path, where they are none of the released ones.
    Raises FormatError for damage, ModelError when the weights it was made with are not here.
    """
    reader = container.Reader(io.BytesIO(data))
    pieces = [np.zeros((reader.header.channels, 0), np.float32)]
    pieces += _decode(reader, _codec_for(reader.header, model, device), [])
    return np.concatenate(pieces, 1), reader.header.sample_rate


def decode_file(source: Path, target: Path, *, subtype: str | None = None, salvage: bool = False,
                model: str | None = None, device: str = "auto", force: bool = False,
                progress: Progress | None = None) -> DecodeResult:
    """Decode one .nac file to one WAV or FLAC file, with its tags.

    subtype: of the samples, as "PCM_24"; None restores the original's. salvage: put silence where segments are
    damaged, stop where nothing sound follows, and report it. Raises as `decode`, and NacError for the target.
    """
    with _open(source) as file:
        reader = container.Reader(file, salvage=salvage)
        header = reader.header
        codec = _codec_for(header, model, device)
        subtype = subtype or audio.restored_subtype(header.subtype, target)
        damaged: list[str] = []
        done, total = 0, (header.num_samples or 0) / header.sample_rate
        with audio.AudioWriter(target, header.sample_rate, header.channels, subtype, reader.tags,
                               num_samples=header.num_samples, force=force) as writer:
            for samples in _decode(reader, codec, damaged):
                writer.write(samples)
                done += samples.shape[1]
                if progress:
                    progress(done / header.sample_rate, total)
    return DecodeResult(done / header.sample_rate, header.sample_rate, header.channels, tuple(damaged))


def verify_file(source: Path, *, model: str | None = None) -> None:
    """Check every checksum of a .nac file and decode every code. Raises FormatError, ModelError."""
    with _open(source) as file:
        reader = container.Reader(file)
        codec = _codec_for(reader.header, model, "cpu")
        num_frames = sum(codes.shape[2] for codes, _ in _codes(reader, codec, []))
        _check_frames(codec, reader, num_frames)


def _decode(reader: container.Reader, codec: Codec, damaged: list[str]) -> Iterator[np.ndarray]:
    """The samples (C, n) of a file, piece by piece, at the original rate and of the original length."""
    header = reader.header
    decoder = StreamDecoder(codec, header.channels)
    resampler = audio.Resampler(codec.config.sample_rate, header.sample_rate)
    held = np.zeros((header.channels, 0), np.float32)
    num_frames, num_written = 0, 0
    for codes, books in _codes(reader, codec, damaged):
        num_frames += codes.shape[2]
        held = np.concatenate([held, resampler.push(from_mid_side(decoder.push(codes, books)))], 1)
        ready = held[:, :max(0, held.shape[1] - _tail(codec, header))]
        held = held[:, ready.shape[1]:]
        num_written += ready.shape[1]
        yield ready
    if num_frames:
        held = np.concatenate([held, resampler.flush()], 1)
    if reader.trailer and not damaged:
        _check_frames(codec, reader, num_frames)
    if reader.trailer or header.num_samples is not None:
        num_samples = reader.trailer.num_samples if reader.trailer else header.num_samples
        held = held[:, :max(0, num_samples - num_written)]
    yield held


def _tail(codec: Codec, header: container.Header) -> int:
    """Samples that padding may have added; they are held back until the true length is known."""
    return -(-2 * codec.config.hop * header.sample_rate // codec.config.sample_rate)


def _check_frames(codec: Codec, reader: container.Reader, num_frames: int) -> None:
    num_samples = -(-reader.trailer.num_samples * codec.config.sample_rate // reader.header.sample_rate)
    if num_frames != codec.config.frames(num_samples):
        raise FormatError(f"{num_frames} frames; {codec.config.frames(num_samples)} expected for "
                          f"{reader.trailer.num_samples} samples")


def _codes(reader: container.Reader, codec: Codec, damaged: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The codes (C, K, t) of each segment and the books they use (C,); codes 0, which is silence, for damage."""
    coder = codec.coder(reader.header.entropy_coded)
    batch: list[container.Segment | container.Damage] = []
    for record in reader:
        if isinstance(record, container.Damage):
            damaged.append(record.reason)
        batch.append(record)
        if len(batch) == _BATCH:
            yield from _unpack(batch, coder, reader.header)
            batch = []
    yield from _unpack(batch, coder, reader.header)


def _unpack(batch: list, coder, header: container.Header) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    used = [(segment, channel) for segment in batch if isinstance(segment, container.Segment)
            for channel in range(header.channels) if segment.books[channel]]
    decoded = iter(coder.decode([segment.payloads[channel] for segment, channel in used],
                                [(segment.books[channel], segment.num_frames) for segment, channel in used]))
    for record in batch:
        if isinstance(record, container.Damage):
            for _ in range(record.count or 0):
                yield (np.zeros((header.channels, header.codebooks, header.segment_frames), np.int64),
                       np.full(header.channels, header.codebooks))
            continue
        codes = np.zeros((header.channels, max(record.books), record.num_frames), np.int64)
        for channel, count in enumerate(record.books):
            if count:
                codes[channel, :count] = next(decoded)
        yield codes, np.array(record.books)


def _open(source: Path):
    try:
        return open(source, "rb")
    except OSError as error:
        raise NacError(f"{source}: {(error.strerror or str(error)).lower()}") from None


@lru_cache(maxsize=4)
def _load(model: str, device: str) -> Codec:
    return Codec.load(model, device)


def _codec_for(header: container.Header, model: str | None, device: str) -> Codec:
    """The codec whose weights a file was made with."""
    candidates = [weights.find(model)] if model else weights.released()
    for path in candidates:
        if weights.identity(path) == header.weights_id:
            return _load(str(path), device)
    known = ", ".join(f"{path.stem} {weights.identity(path).hex()}" for path in candidates) or "none"
    raise ModelError(f"made with the weights {header.weights_id.hex()}; here are: {known}; --model FILE names others")
