"""A .nac file -> another one, without the original audio: a part of it, or the same at a lower rate."""
import contextlib
import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from audiocodec import container, decoding, loading, payloads, pcm, rate, seek
from audiocodec.encoding import EncodeResult, Progress, Wish, check_kbps, to_bandwidth
from audiocodec.errors import NacError
from audiocodec.fitting import Count, Fitted, Fitter
from audiocodec.paths import Codes
from audiocodec.tokens import Codec


def cut_file(source: Path, target: Path, *, start: Fraction | None, end: Fraction | None, model: str | None = None,
             force: bool = False) -> EncodeResult:
    """Copy a range of one .nac file to another, with its tags; it decodes to the very same samples.

    start, end: seconds; None: from the start, to the end. Payloads are copied as they are, of whole segments: those
    that the range touches, and what the network looks back on. source, target: "-" is standard input or output.
    model: the weights, by name or path, where they are none of the released ones.
    Raises NacError for an empty range and for what cannot be read or written, FormatError for damage, ModelError.
    """
    with _open_seekable(source) as file:
        reader = container.Reader(file)
        header, before = reader.header, reader.header.before
        trailer = reader.find_trailer()
        wanted = seek.excerpt(start, end, header.sample_rate, trailer.num_samples)
        part = wanted.part(0, trailer.num_samples)
        num_samples, position = part.stop - part.start, before.samples + part.start
        if trailer.num_samples and not num_samples:
            raise NacError(f"no sample lies between {seek.format_time(start or 0)} and {seek.format_time(end)}")
        held = decoding.held_segments(header, trailer)
        segments = held
        if num_samples < trailer.num_samples:
            walk = decoding.find_walk(header, loading.load_for(header, model, "cpu"))
            segments = seek.cut(seek.Excerpt(position, position + num_samples), walk, held)
            header = dataclasses.replace(header, num_samples=num_samples,
                                         origin=container.Origin(segments.start, position))
        reader.seek(segments.start - held.start)
        with pcm.open_output(target, force) as output:
            writer = container.Writer(output, header, reader.tags)
            for segment in itertools.islice(reader, len(segments)):
                writer.write(segment)
            writer.close(num_samples)
    return EncodeResult(writer.size, num_samples / header.sample_rate)


def truncate_file(source: Path, target: Path, *, kbps: float | None = None, codebooks: int | None = None,
                  model: str | None = None, force: bool = False, progress: Progress | None = None) -> EncodeResult:
    """Lower the rate of a .nac file by leaving codebooks out, and code the others anew; tags stay.

    kbps: a ceiling for the whole file, as in codec.encode_file; or codebooks: no more of each channel than these, and
    decoding gives the very samples that decoding the source with so many does. Other arguments and errors are those
    of `cut_file`.
    """
    if codebooks is None:
        check_kbps(kbps)
    elif codebooks < 1:
        raise NacError(f"{codebooks} codebooks; at least 1 is needed")
    with pcm.open_input(source) as file, pcm.open_output(target, force) as output:
        reader = container.Reader(file)
        codec = loading.load_for(reader.header, model, "cpu")
        excerpt = decoding.find_excerpt(reader, codec, None, None, False)
        is_live = pcm.is_pipe(source) or pcm.is_pipe(target)
        held = decoding.read_codes(reader, codec, [], excerpt, codebooks,
                                   group=payloads.paced if is_live else payloads.batches)
        held = _watched(held, reader.header, codec, progress)
        if codebooks is None:
            fitted = _fit(output, reader, codec, held, kbps)
        else:
            fitted = _leave_out(output, reader, codec, held, codebooks, is_live)
        seconds = reader.trailer.num_samples / reader.header.sample_rate
    return EncodeResult(fitted.num_bytes, seconds, fitted.books)


def _leave_out(output, reader: container.Reader, codec: Codec, held: Iterator[payloads.Unpacked], codebooks: int,
               is_live: bool) -> Fitted:
    """Write segment by segment."""
    coder = codec.coder(reader.header.entropy_coded, reader.header.level_frames)
    header = dataclasses.replace(reader.header, bandwidth=0, codebooks=min(codebooks, reader.header.codebooks))
    writer = container.Writer(output, header, reader.tags)
    count = Count(header.channels)
    for batch in ([segment] for segment in held) if is_live else payloads.batches(held):
        depths = [segment.depths for segment in batch]
        for segment in payloads.pack_depths(coder, [segment.rows for segment in batch], depths, header.has_depths):
            writer.write(segment)
        count.add(depths)
    writer.close(reader.trailer.num_samples)
    return Fitted(writer.size, count.mean)


def _fit(output, reader: container.Reader, codec: Codec, held: Iterator[payloads.Unpacked], kbps: float) -> Fitted:
    """Write what the whole decides about."""
    told = Wish(kbps, None, reader.header.entropy_coded).level_frames(codec, reader.header.channels)
    header = dataclasses.replace(reader.header, bandwidth=to_bandwidth(kbps), has_depths=True,
                                 level_frames=reader.header.level_frames if told else 0)
    with rate.Spool() as segments:
        for segment in held:
            missing = header.codebooks - segment.codes.shape[1]
            segment = segment._replace(codes=np.pad(segment.codes, ((0, 0), (0, missing), (0, 0))))
            segments.append((segment.rows if told else segment.codes).astype(np.uint16))
        num_samples = reader.trailer.num_samples
        budget = kbps * 125 * num_samples / header.sample_rate
        form = Codes(codec.codebooks[:header.codebooks])
        fitter = Fitter(codec, form, header, reader.tags, segments, num_samples, budget)
        return fitter.write(output)


def _watched(held: Iterator[payloads.Unpacked], header: container.Header, codec: Codec,
             progress: Progress | None) -> Iterator[payloads.Unpacked]:
    """The same, with progress told in seconds."""
    done, total = 0, (header.num_samples or 0) / header.sample_rate
    for segment in held:
        yield segment
        done += segment.codes.shape[2] * codec.config.hop / codec.config.sample_rate
        if progress:
            progress(done, total)


@contextlib.contextmanager
def _open_seekable(path: Path) -> Iterator[BinaryIO]:
    """Yield a file's bytes; those of a pipe are kept in a temporary file first."""
    with pcm.open_input(path) as file:
        if file.seekable():
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            yield copy
