"""The public calls: audio <-> .nac, in memory and from file to file; encoding.py and decoding.py have the walks."""
import io
from fractions import Fraction
from pathlib import Path

import numpy as np

from audiocodec import audio, container, decoding, encoding, loading, payloads, pcm, seek
from audiocodec.decoding import DecodeResult
from audiocodec.encoding import EncodeResult, Progress
from audiocodec.errors import AudioError, NacError
from audiocodec.limits import DEFAULT_KBPS, MAX_KBPS, MIN_KBPS
from audiocodec.tokens import DEFAULT_MODEL, Codec, StreamDecoder, StreamEncoder

__all__ = ["DEFAULT_KBPS", "DEFAULT_MODEL", "MAX_KBPS", "MIN_KBPS", "Codec", "DecodeResult", "EncodeResult",
           "StreamDecoder", "StreamEncoder", "decode", "decode_file", "encode", "encode_file", "verify_file"]

_READ, _READ_PIPE = 1 << 18, 1 << 16  # samples per channel read at once: many are quicker, few come sooner


# Audio -> .nac

def encode(samples: np.ndarray, sample_rate: int, kbps: float | None = DEFAULT_KBPS, *, codebooks: int | None = None,
           cbr: bool = False, best: bool = False, model: str = DEFAULT_MODEL, entropy: bool = True,
           device: str = "auto") -> bytes:
    """Compress samples to the bytes of a .nac file.

    samples: float32 (C, N) in [-1, 1], one or two channels. sample_rate: Hz, 8000 to 192000.
    kbps: a ceiling for the whole file, unless a count of codebooks per channel is given instead; a file that cannot
    meet it has the smallest count. Frames differ in how many codebooks they use, unless cbr is set. best: search
    longer for codes that say more in as many bits. model: weights by name or path. entropy: False packs codes plainly.
    device: "auto", "cpu" or "cuda", for the networks.
    Raises AudioError for samples it does not take, NacError for a rate it cannot meet, ModelError.
    """
    samples = np.asarray(samples)
    if samples.ndim != 2 or samples.dtype.kind != "f":
        raise AudioError(f"samples of shape {samples.shape}, {samples.dtype}; expected floats of (channels, samples)")
    samples, sample_rate = np.ascontiguousarray(samples, np.float32), int(sample_rate)
    audio.check_layout(sample_rate, len(samples))
    if not np.isfinite(samples).all():
        raise AudioError("samples that are infinite or not numbers")
    target, source = io.BytesIO(), encoding.Source(sample_rate, len(samples), samples.shape[1])
    wish = encoding.Wish(kbps, codebooks, entropy, not cbr, best)
    encoding.encode(loading.load(model, device), [samples], source, target, wish, lambda share: None)
    return target.getvalue()


def encode_file(source: Path, target: Path, *, kbps: float | None = DEFAULT_KBPS, codebooks: int | None = None,
                cbr: bool = False, best: bool = False, model: str = DEFAULT_MODEL, mono: bool = False,
                entropy: bool = True, device: str = "auto", raw: pcm.RawFormat | None = None,
                tags: container.Tags = (), no_tags: bool = False, live: bool = False, force: bool = False,
                progress: Progress | None = None) -> EncodeResult:
    """Compress one audio file to one .nac file, with its tags. Arguments and errors are those of `encode`.

    source, target: "-" is standard input or output. To standard output segments go as soon as they are complete;
    with kbps each then takes what keeps the file so far below the ceiling, while cbr waits for the end. raw: the
    layout of a source without a header. tags: put in place of the source's tags of the same names. no_tags: leave
    the source's tags out. live: take from a pipe what has come, and write short segments, each at once.
    """
    wish = encoding.Wish(kbps, codebooks, entropy, not cbr, best)
    with pcm.open_reader(source, raw, live) as reader, pcm.open_output(target, force) as file:
        total = (reader.num_samples or 0) / reader.sample_rate
        blocks = reader.blocks(_READ_PIPE if pcm.is_pipe(source) else _READ)
        if mono:
            blocks = (block.mean(0, keepdims=True) for block in blocks)
        subtype = audio.restored_subtype(reader.subtype, Path("a.wav"))
        channels = 1 if mono else reader.channels
        layout = encoding.Source(reader.sample_rate, channels, reader.num_samples, subtype,
                                 audio.replace_tags(() if no_tags else reader.tags, tags))
        return encoding.encode(loading.load(model, device), blocks, layout, file, wish,
                               lambda share: progress(share * total, total) if progress else None,
                               live or pcm.is_pipe(target),
                               encoding.LIVE_SEGMENT_FRAMES if live else None)


# .nac -> audio

def decode(data: bytes, *, model: str | None = None, device: str = "auto") -> tuple[np.ndarray, int]:
    """Decode the bytes of a .nac file to samples float32 (C, N) and their rate in Hz.

    model: the weights, by name or path, where they are none of the released ones.
    Raises FormatError for damage, ModelError when the weights it was made with are not here.
    """
    reader = container.Reader(io.BytesIO(data))
    codec = loading.load_for(reader.header, model, device)
    pieces = [np.zeros((reader.header.channels, 0), np.float32)]
    pieces += decoding.decode(reader, codec, [], decoding.find_excerpt(reader, codec, None, None, False))
    return np.concatenate(pieces, 1), reader.header.sample_rate


def decode_file(source: Path, target: Path, *, subtype: str | None = None, salvage: bool = False,
                start: Fraction | None = None, end: Fraction | None = None, codebooks: int | None = None,
                raw: pcm.RawFormat | None = None, model: str | None = None, device: str = "auto",
                force: bool = False, progress: Progress | None = None) -> DecodeResult:
    """Decode one .nac file to one WAV or FLAC file, with its tags.

    source, target: "-" is standard input or output; what ends early on a pipe is decoded to its last whole segment,
    and reported. subtype: of the samples, as "PCM_24"; None restores the original's. salvage: put silence where
    segments are damaged, stop where nothing sound follows, and report it. start, end: seconds, of what is wanted.
    codebooks: use no more of each channel than these first ones. raw: write samples so, without a header.
    Raises as `decode`, and NacError for the target.
    """
    if codebooks is not None and codebooks < 1:
        raise NacError(f"{codebooks} codebooks; at least 1 is needed")
    is_partial = pcm.is_pipe(source) or pcm.is_pipe(target)
    group = payloads.paced if is_partial else payloads.batches
    with pcm.open_input(source) as file:
        reader = container.Reader(file, salvage=salvage)
        header = reader.header
        codec = loading.load_for(header, model, device)
        subtype = subtype or audio.restored_subtype(header.subtype, target)
        excerpt = decoding.find_excerpt(reader, codec, start, end, not salvage and file.seekable())
        num_samples = decoding.length(excerpt, header, decoding.announced_samples(reader, file.seekable()))
        damaged: list[str] = []
        done, total = 0, (num_samples or 0) / header.sample_rate
        with pcm.open_writer(target, header.sample_rate, header.channels, subtype, reader.tags,
                             num_samples=num_samples, force=force, raw=raw) as writer:
            for samples in decoding.decode(reader, codec, damaged, excerpt, codebooks,
                                           is_partial=is_partial, group=group):
                writer.write(samples)
                done += samples.shape[1]
                if progress:
                    progress(done / header.sample_rate, total)
            if start and not done and not damaged:
                raise seek.starts_late(start, reader.trailer.num_samples, header.sample_rate)
    return DecodeResult(done / header.sample_rate, header.sample_rate, header.channels, tuple(damaged))


def verify_file(source: Path, *, model: str | None = None) -> None:
    """Check every checksum of a .nac file and decode every code. Raises FormatError, ModelError."""
    with pcm.open_input(source) as file:
        reader = container.Reader(file)
        codec = loading.load_for(reader.header, model, "cpu")
        for _ in decoding.read_codes(reader, codec, [], decoding.find_excerpt(reader, codec, None, None, False)):
            pass
