"""A loaded model: samples <-> codes, whole or in pieces of any size."""
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from audiocodec import few, rangecoder, weights
from audiocodec.entropy import BOOK_SIZE, EntropyConfig, EntropyModel
from audiocodec.errors import FormatError, ModelError, NacError
from audiocodec.levels import GROUPS, LevelModel
from audiocodec.model import Decoder, Encoder, ModelConfig
from audiocodec.paths import Paths
from audiocodec.quantizer import ResidualQuantizer
from audiocodec.threads import mapped
from audiocodec.whole import WholeLinear

DEFAULT_MODEL = "nac-24k"
_ENCODED, _DECODED = 1024, 512       # frames of all channels that go through a network at once: memory grows with them
_WORTH = 3                           # times the frames that a run has to begin with: fewer are not worth a thread


class Codec:
    """A model made ready for use on one device."""

    def __init__(self, source: weights.Weights, device: str = "auto"):
        self.weights = source
        self.device = choose_device(device)
        try:
            self.config = ModelConfig(**source.config["codec"])
            networks = _build_networks(self.config, source.codec(), self.device)
            self.entropy = EntropyModel(EntropyConfig(**source.config["entropy"]), source.part("entropy"))
            bands = self.config.level_bands
            self.levels = LevelModel(bands, source.part("levels")["tables"]) if bands else None
        except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{source.path}: the weights do not fit their configuration ({reason:.200})") from None
        if self.config.book_size != BOOK_SIZE:
            raise ModelError(f"{source.path}: books of {self.config.book_size} entries; expected {BOOK_SIZE}")
        # In float64 rounding decides neither between two entries nor between two samples, so neither codes nor samples
        # depend on the machine, or on how audio is cut.
        self.encoder, self.quantizer, self.decoder = (network.double() for network in networks)
        self.quantizer.freeze()
        for stack in (self.encoder.network, self.decoder.network):
            stack.replace_layers(WholeLinear)

    @cached_property
    def codebooks(self) -> list[np.ndarray]:
        """The entries of each book, float32 (V, D), D the latents that it codes; only encoding asks for them."""
        return [entries.float().cpu().numpy() for entries in self.quantizer.entries()]

    @classmethod
    def load(cls, name: str = DEFAULT_MODEL, device: str = "auto") -> "Codec":
        """Load a released model by name, or any by the path of its weights. Raises ModelError."""
        return cls(weights.load(name), device)

    def encode_codes(self, samples: np.ndarray, num_books: int) -> np.ndarray:
        """Samples float32 (B, 1, N) at the model's rate -> codes int64 (B, K, T), T = ceil(N / hop) + 1.

        Raises NacError for other shapes, and for a number of books that the model does not have.
        """
        if samples.ndim != 3 or samples.shape[1] != 1:
            raise NacError(f"samples of shape {samples.shape}; expected (batch, 1, samples)")
        self.check_books(num_books)
        samples = np.ascontiguousarray(samples, np.float32)
        encoder = StreamEncoder(self, len(samples), num_books)
        return np.concatenate([encoder.push(samples[:, 0]), encoder.flush()], 2)

    def decode_codes(self, codes: np.ndarray) -> np.ndarray:
        """Codes int64 (B, K, T) -> samples float32 (B, 1, (T - 1) * hop) at the model's rate.

        Raises NacError for other shapes, and for codes or books that the model does not have.
        """
        if codes.ndim != 3 or codes.dtype.kind not in "iu":
            raise NacError(f"codes of shape {codes.shape}, {codes.dtype}; expected integers of (batch, books, frames)")
        if codes.size and not 0 <= codes.min() <= codes.max() < BOOK_SIZE:
            raise NacError(f"codes from {codes.min()} to {codes.max()}; expected 0 to {BOOK_SIZE - 1}")
        self.check_books(codes.shape[1])
        codes = np.ascontiguousarray(codes, np.int64)
        return StreamDecoder(self, len(codes)).push(codes, np.full(len(codes), codes.shape[1]))[:, None]

    def check_books(self, num_books: int) -> None:
        """Raise NacError for a count of codebooks that the model does not have."""
        if not 1 <= num_books <= self.config.num_books:
            raise NacError(f"{num_books} codebooks; this model has 1 to {self.config.num_books}")

    def encode_blocks(self, blocks: Tensor, state: few.State,
                      level_frames: int = 0) -> tuple[Tensor, Tensor | None, few.State]:
        """Blocks of samples float64 (B, T, hop) -> what model.Encoder.forward gives."""
        encoder = self._few_encoder if self._suits_few(blocks) else self.encoder
        return encoder(blocks, state, level_frames)

    def decode_latents(self, latents: Tensor, num_books: Tensor, state: few.State,
                       levels: Tensor | None = None, level_frames: int = 0) -> tuple[Tensor, few.State]:
        """Latents float64 (B, T, D), books used (B, T), levels -> what model.Decoder.forward gives."""
        decoder = self._few_decoder if self._suits_few(latents) else self.decoder
        return decoder(latents, num_books, state, levels, level_frames)

    @cached_property
    def _few_encoder(self) -> few.Encoder:
        return few.Encoder(self.encoder)

    @cached_property
    def _few_decoder(self) -> few.Decoder:
        return few.Decoder(self.decoder)

    def _suits_few(self, rows: Tensor) -> bool:
        return rows.shape[1] <= few.MOST and not rows.is_cuda

    def coder(self, entropy_coded: bool, level_frames: int = 0) -> "rangecoder.RangeCoder | rangecoder.PackedCoder":
        """The coder of payloads that a file asks for. Raises FormatError for levels that there are no tables for."""
        if level_frames and self.levels is None:
            raise FormatError("a file that tells levels of bands; its model has none")
        if not entropy_coded:
            return rangecoder.PackedCoder(self.config.level_bands if level_frames else 0, level_frames)
        return rangecoder.RangeCoder(self.entropy, self.levels, level_frames)


def _build_networks(config: ModelConfig, tensors: dict[str, np.ndarray], device: str):
    parts = Encoder(config), ResidualQuantizer.fitting(config), Decoder(config)
    for part, name in zip(parts, ("encoder", "quantizer", "decoder")):
        prefix = f"{name}."
        part.load_state_dict({key.removeprefix(prefix): torch.from_numpy(value)
                              for key, value in tensors.items() if key.startswith(prefix)})
        part.eval().requires_grad_(False).to(device)
    return parts


def choose_device(device: str) -> str:
    """The device that "auto" means here. Raises NacError for one that is not here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise NacError("no CUDA device here; use --device cpu")
    return device


class StreamEncoder:
    """Samples in pieces of any size -> codes, the same as those of the whole, and levels where they are told.

    Rows of codes (B, K, t) are followed by rows of levels, (B, K + L, t), which are the same in groups of frames.
    """

    def __init__(self, codec: Codec, batch: int, num_books: int, level_frames: int = 0, paths: Paths | None = None):
        """level_frames: of a group; 0: no levels are told. paths: in place of codes, rows have these."""
        self._codec, self._num_books, self._level_frames, self._paths = codec, num_books, level_frames, paths
        self._waiting = np.zeros((batch, 0), np.float32)
        self._state = self._start = codec.encoder.start(torch.zeros(batch, 1, dtype=torch.float64, device=codec.device))
        self._lead = -(-codec.config.encoder_reach // max(GROUPS)) * max(GROUPS)
        num_rows = (paths.num_rows if paths else num_books) + codec.config.level_bands * bool(level_frames)
        self._empty = np.zeros((batch, num_rows, 0), np.uint16 if paths else np.int64)
        self._has_input = False

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Samples float32 (B, n) -> rows int64 (B, K, t) of the frames, or groups of frames, that they complete.

        Of paths they are uint16.
        """
        self._has_input |= bool(samples.shape[1])
        return self._push(samples, max(1, self._level_frames))

    def _push(self, samples: np.ndarray, at_once: int) -> np.ndarray:
        """The rows of as many times so many frames as there are."""
        hop = self._codec.config.hop
        self._waiting = np.concatenate([self._waiting, samples], 1)
        num_frames = self._waiting.shape[1] // (at_once * hop) * at_once
        blocks = self._waiting[:, :num_frames * hop].reshape(len(samples), num_frames, hop)
        self._waiting = self._waiting[:, num_frames * hop:]
        runs = self._runs(num_frames)
        encode = partial(self._encode_run, blocks, _ENCODED // max(1, len(runs)))
        found = mapped(encode, runs, len(runs)) if len(runs) > 1 else list(map(encode, runs))
        if found:
            self._state = found[-1][1]
        return np.concatenate([self._empty, *(rows for rows, _ in found)], 2)

    def _runs(self, num_frames: int) -> list[slice]:
        """Frames in equal parts, one for each thread, where these are much more than what a run has to begin with."""
        threads = 1 if self._codec.device == "cuda" else torch.get_num_threads()
        count = max(1, min(threads, num_frames // (_WORTH * self._lead)))
        size = -(-num_frames // (count * max(GROUPS))) * max(GROUPS)
        return [slice(at, min(at + size, num_frames)) for at in range(0, num_frames, size)] if size else []

    def flush(self) -> np.ndarray:
        """The last codes, which complete the last block and the overlap after it."""
        if not self._has_input:
            return self._empty
        padding = -self._waiting.shape[1] % self._codec.config.hop + self._codec.config.hop
        return self._push(np.zeros((len(self._waiting), padding), np.float32), 1)

    @torch.inference_mode()
    def _encode_run(self, blocks: np.ndarray, most: int, run: slice) -> tuple[np.ndarray, few.State]:
        """The rows of some of the blocks, so many at once, and the state after them.

        A later run than the first has no state to begin with, but all frames before it that the network sees.
        """
        lead, state = (self._lead, self._start) if run.start else (0, self._state)
        pieces = []
        for part in _passes(run, len(blocks), most):
            rows, state = self._encode(blocks[:, part.start - lead:part.stop], state, lead)
            pieces.append(rows)
            lead = 0
        return np.concatenate(pieces, 2), state

    def _encode(self, blocks: np.ndarray, state: few.State, lead: int) -> tuple[np.ndarray, few.State]:
        """The rows of blocks from the frame number `lead` on, and the state after them."""
        blocks = torch.from_numpy(blocks.astype(np.float64)).to(self._codec.device)
        latents, levels, state = self._codec.encode_blocks(blocks, state, self._level_frames)
        latents = latents[:, lead:].transpose(1, 2)
        if self._paths:
            rows = self._codec.quantizer.follow(latents, self._paths)
        else:
            rows = self._codec.quantizer.encode(latents, self._num_books).cpu().numpy()
        if levels is not None:
            rows = np.concatenate([rows, levels[:, lead:].transpose(1, 2).cpu().numpy().astype(rows.dtype)], 1)
        return rows, state


class StreamDecoder:
    """Codes in pieces of any size -> samples; those of the first frame, which precede the audio, are left out."""

    def __init__(self, codec: Codec, batch: int):
        self._codec = codec
        self._state = codec.decoder.start(torch.zeros(batch, 1, dtype=torch.float64, device=codec.device))
        self._started = False

    @torch.inference_mode()
    def push(self, codes: np.ndarray, num_books: np.ndarray, levels: np.ndarray | None = None,
             level_frames: int = 0) -> np.ndarray:
        """Codes int64 (B, K, t), books used (B,) or (B, t) -> samples float32 (B, n). Codes not used must be 0.

        levels: (B, L, t), -1 where none are told, the same in groups of so many frames, from the first one on.
        """
        num_frames, device = codes.shape[2], self._codec.device
        codes = torch.from_numpy(codes).to(device)
        num_books = torch.from_numpy(num_books).to(device).reshape(len(codes), -1).expand(-1, num_frames)
        passes = _passes(slice(0, num_frames), len(codes), _DECODED)
        is_told = levels is not None and (levels >= 0).any()
        told = torch.from_numpy(levels).to(device, torch.float64).transpose(1, 2) if is_told else None
        pieces = [self._decode(codes[:, :, part], num_books[:, part], told[:, part] if is_told else None, level_frames)
                  for part in passes]
        samples = np.concatenate([np.zeros((len(codes), 0), np.float32), *pieces], 1)
        skip = 0 if self._started or not num_frames else self._codec.config.hop
        self._started |= bool(num_frames)
        return samples[:, skip:]

    def _decode(self, codes: Tensor, num_books: Tensor, levels: Tensor | None, level_frames: int) -> np.ndarray:
        latents = self._codec.quantizer.decode(codes).transpose(1, 2)
        blocks, self._state = self._codec.decode_latents(latents, num_books, self._state, levels, level_frames)
        return blocks.flatten(1).float().cpu().numpy()


def _passes(frames: slice, batch: int, most: int) -> list[slice]:
    """Frames in parts, of so many in the whole batch if that does not divide groups that have levels in common."""
    size = max(1, most // max(1, batch) // max(GROUPS)) * max(GROUPS)
    return [slice(at, min(at + size, frames.stop)) for at in range(frames.start, frames.stop, size)]
