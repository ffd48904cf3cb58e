"""Segments of coded audio <-> .nac bytes, format versions 1 and 2; docs/format.md describes every byte.

A file is a header, tags if there are any, segments and a trailer, each with its own CRC-32. Writing never
seeks, and reading only in `Reader.seek` and `Reader.find_trailer`, so both work on pipes. Nothing here knows
how payloads are coded, nor how many samples a frame stands for.
"""

import io
import re
import struct
import zlib
from dataclasses import dataclass

from audiocodec.errors import FormatError
from audiocodec.limits import MAX_LEVEL_BANDS

MAGIC = b"\xceAC\n"  # "NAC", its first bit set, and a line end: transfers as text spoil one or the other
VERSIONS = 1, 2  # that are read; files are written as the first that has what they need
SUBTYPES = ("PCM_16", "PCM_24", "PCM_32", "FLOAT")  # of the original's samples, in libsndfile's words
MAX_TAGS = 65_536  # bytes of the whole tags block, lengths included
MAX_SEGMENTS = 2**32 - 1

Tags = tuple[tuple[str, str], ...]  # names and values; names may repeat

_PREFIX = struct.Struct("<4sB")  # magic, version: the part that no later version may change
_FIELDS = struct.Struct("<BIQ6sHBB")  # flags, then the fields of Header in the order of the file
_CRC = struct.Struct("<I")
_ENDING = struct.Struct("<II")  # the trailer's size and CRC-32, the last bytes of a file
_CODE_BITS, _DEPTH_BITS, _LEVEL_BITS = 10, 5, 6
_STEREO, _ENTROPY, _TAGS, _SUBTYPE_SHIFT, _PART, _DEPTHS, _PAIRS = 1, 2, 4, 3, 32, 64, 128  # flags
_UNKNOWN = 2**64 - 1  # num_samples, when the header was written before the length was known

_FULL, _SHORT, _TRAILER = b"S", b"L", b"T"  # first byte of a record; "L" is a last segment that is not full
_KINDS = re.compile(b"[SLT]")
_MIN_SEGMENT = 8  # bytes of a segment whose payload is empty
_CHUNK = 65_536  # bytes read at once
_MAX_GAP = 1024  # segments that salvage believes to be missing in one place
_MAX_EFFORT = 2**28  # bytes that salvage checks in vain before it gives a file up
_KEY = re.compile(r"[ -<>-}]+")  # as in Vorbis comments: printable ASCII but "=" and "~"
_AS_TEXT = (b"NAC\n", b"\xceAC\r", b"\xc3\x8eAC", b"\xef\xbf\xbdA")  # MAGIC after 7 bits, CRLF, UTF-8


def _check(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise FormatError(f"{what} is {value}; expected {f'{low} to {high}' if low < high else low}")


@dataclass(frozen=True)
class Origin:
    """Where a part of a longer file comes from. FormatError if a field is outside its limits."""

    segments: int  # of the whole, before the first one that is here
    samples: int  # of the whole, per channel at the original rate, before the first one that is wanted

    def __post_init__(self):
        _check("number of segments before the first", self.segments, 0, MAX_SEGMENTS)
        _check("number of samples before the first", self.samples, 0, _UNKNOWN - 1)


@dataclass(frozen=True)
class Header:
    """What a decoder has to know before the first segment. FormatError if a field is outside its limits."""

    channels: int  # 1, or 2: mid and side
    sample_rate: int  # Hz, of the original
    num_samples: int | None  # per channel at sample_rate; None: not known yet, the trailer says it
    weights_id: bytes  # 6 bytes, start of the SHA-256 of the weights file
    codebooks: int  # the largest count that a segment may use, per channel
    bandwidth: int = 0  # bit/s that were asked for, in steps of 10; 0: a codebook count was asked for
    entropy_coded: bool = True  # else bit-packed
    subtype: str = "PCM_16"  # one of SUBTYPES
    segment_frames: int = 512  # frames in every segment but the last, a multiple of 16
    origin: Origin | None = None  # of a part; None: the file is a whole
    has_depths: bool = False  # frames differ in how many of their segment's codebooks they use; payloads tell
    level_frames: int = 0  # of groups of which payloads tell levels of bands, too: 2 or 4; 0: they do not

    def __post_init__(self):
        _check("number of channels", self.channels, 1, 2)
        _check("sample rate", self.sample_rate, 8_000, 192_000)
        _check("number of samples", self.num_samples or 0, 0, _UNKNOWN - 1)
        _check("length of the weights identity", len(self.weights_id), 6, 6)
        _check("number of codebooks", self.codebooks, 1, 32)
        _check("bandwidth", self.bandwidth, 0, 655_350)
        _check("bandwidth modulo 10", self.bandwidth % 10, 0, 0)
        _check("frames per segment", self.segment_frames, 16, 4080)
        _check("frames per segment modulo 16", self.segment_frames % 16, 0, 0)
        if self.subtype not in SUBTYPES:
            raise FormatError(f"sample format {self.subtype!r}; expected one of {', '.join(SUBTYPES)}")
        if self.level_frames not in (0, 2, 4):
            raise FormatError(f"levels of groups of {self.level_frames} frames; expected 2 or 4")
        if self.origin and not self.num_samples:
            raise FormatError(f"a part of {self.num_samples or 'unknown'} samples; expected at least 1")

    @property
    def version(self) -> int:
        """Of the format."""
        return VERSIONS[self.level_frames > 0]

    @property
    def before(self) -> Origin:
        """What of the whole recording comes before the file; nothing, unless it is a part."""
        return self.origin or Origin(0, 0)


@dataclass(frozen=True)
class Segment:
    """The codes of some frames, coded independently of all other segments."""

    num_frames: int  # header.segment_frames, or less in the last segment; never 0
    books: tuple[int, ...]  # codebooks used, per channel; 0 only for the side: it is silent
    payloads: tuple[bytes, ...]  # per channel


@dataclass(frozen=True)
class Trailer:
    """What is known once all segments are written."""

    num_samples: int  # per channel, at the original sample rate
    sizes: tuple[int, ...]  # bytes of each segment in the file

    def __post_init__(self):
        if bool(self.num_samples) != bool(self.sizes):
            what = f"{self.num_samples} samples in {len(self.sizes)} segments"
            raise FormatError(f"{what}; expected both or none to be 0")


@dataclass(frozen=True)
class Damage:
    """Stands in salvaged audio for what could not be read; the segments after it are sound again."""

    index: int  # of the first segment concerned
    count: int | None  # segments that are missing here, of header.segment_frames each; None: all to the end
    reason: str


# Header and tags


def _pack_header(header: Header, has_tags: bool) -> bytes:
    flags = (
        _STEREO * (header.channels == 2)
        | _ENTROPY * header.entropy_coded
        | _TAGS * has_tags
        | SUBTYPES.index(header.subtype) << _SUBTYPE_SHIFT
        | _PART * (header.origin is not None)
        | _DEPTHS * header.has_depths
        | _PAIRS * (header.level_frames == 2)
    )
    num_samples = _UNKNOWN if header.num_samples is None else header.num_samples
    data = _PREFIX.pack(MAGIC, header.version) + _FIELDS.pack(
        flags, header.sample_rate, num_samples, header.weights_id,
        header.bandwidth // 10, header.codebooks, header.segment_frames // 16,
    )
    if header.origin:
        data += _varint(header.origin.segments) + _varint(header.origin.samples)
    return data + _CRC.pack(zlib.crc32(data))


def _read_header(window: "_Window") -> tuple[Header, bool]:
    """Returns the header, and whether tags follow."""
    magic, version = _PREFIX.unpack(window.take(_PREFIX.size))
    if magic in _AS_TEXT:
        raise FormatError("a .nac file spoiled by a transfer as text; expected an unchanged copy")
    if magic != MAGIC:
        raise FormatError("not a .nac file")
    if version not in VERSIONS:
        raise FormatError(f"format version {version}; this program reads versions {' and '.join(map(str, VERSIONS))}")
    flags, rate, num_samples, weights_id, bandwidth, codebooks, segment_frames = _FIELDS.unpack(
        window.take(_FIELDS.size)
    )
    if version == 1 and flags & _PAIRS:
        window.take_checksum()  # which tells damage from a flag that is out of place
        raise FormatError(f"flags are {flags:#04x}; expected the highest bit to be 0")
    origin = None
    if flags & _PART:
        before = window.take_varint("number of segments before the first", 0, MAX_SEGMENTS)
        origin = Origin(before, window.take_varint("number of samples before the first", 0, _UNKNOWN - 1))
    window.take_checksum()
    header = Header(
        channels=1 + bool(flags & _STEREO),
        sample_rate=rate,
        num_samples=None if num_samples == _UNKNOWN else num_samples,
        weights_id=weights_id,
        codebooks=codebooks,
        bandwidth=bandwidth * 10,
        entropy_coded=bool(flags & _ENTROPY),
        subtype=SUBTYPES[flags >> _SUBTYPE_SHIFT & 3],
        segment_frames=segment_frames * 16,
        origin=origin,
        has_depths=bool(flags & _DEPTHS),
        level_frames=0 if version == 1 else 2 if flags & _PAIRS else 4,
    )
    return header, bool(flags & _TAGS)


def _pack_tags(tags: Tags) -> bytes:
    block = bytearray()
    for key, value in tags:
        if not _KEY.fullmatch(key):
            raise FormatError(f"tag name {key!r}; expected printable ASCII without '=' and '~'")
        try:
            entry = f"{key}={value}".encode()
        except UnicodeEncodeError:
            raise FormatError(f"tag {key} holds half a surrogate pair; expected Unicode text") from None
        block += _varint(len(entry)) + entry
    if len(block) > MAX_TAGS:
        raise FormatError(f"tags of {len(block):,} bytes; expected at most {MAX_TAGS:,}")
    data = _varint(len(block)) + block
    return data + _CRC.pack(zlib.crc32(data))


def _read_tags(window: "_Window") -> Tags:
    window.inside = "the tags"
    data = window.take(window.take_varint("length", 1, MAX_TAGS))
    block = _Window(io.BytesIO(data), "a tag", window.position)
    window.take_checksum()
    tags = []
    while block.more():
        entry = block.take(block.take_varint("length", 2, MAX_TAGS))
        try:
            key, equals, value = entry.decode().partition("=")
        except UnicodeDecodeError:
            raise FormatError("a tag is not UTF-8") from None
        if not equals or not _KEY.fullmatch(key):
            raise FormatError(f"a tag is {entry[:40]!r}; expected NAME=value")
        tags.append((key, value))
    return tuple(tags)


# Segments and trailer


def _payload_limits(header: Header, books: int, num_frames: int) -> tuple[int, int]:
    """The smallest and the largest payload, in bytes, that these codes, and depths if there are any, may take."""
    if not books:
        return 0, 0
    depths = _DEPTH_BITS * num_frames * header.has_depths
    groups = -(-num_frames // header.level_frames) if header.level_frames else 0
    levels = _LEVEL_BITS * groups * MAX_LEVEL_BANDS  # or less: how many bands there are the model knows
    packed = (depths + books * num_frames * _CODE_BITS + 7) // 8
    most = (depths + books * num_frames * _CODE_BITS + levels + 7) // 8
    if header.entropy_coded:
        return 0, 5 * most + 64  # no code takes more than twice 24 bits, no depth or level more than 24
    return (depths + 7) // 8 if depths else packed, most


def _pack_segment(header: Header, index: int, segment: Segment) -> bytes:
    _check("segment index", index, 0, MAX_SEGMENTS - 1)
    _check("number of frames", segment.num_frames, 1, header.segment_frames)
    _check("number of channels", len(segment.books), header.channels, header.channels)
    _check("number of payloads", len(segment.payloads), header.channels, header.channels)
    full = segment.num_frames == header.segment_frames
    data = _FULL + _varint(index) if full else _SHORT + _varint(index) + _varint(segment.num_frames)
    for channel, (books, payload) in enumerate(zip(segment.books, segment.payloads)):
        _check("number of codebooks", books, 1 - channel, header.codebooks)
        _check("payload length", len(payload), *_payload_limits(header, books, segment.num_frames))
        data += bytes([books]) + _varint(len(payload))
    data += b"".join(segment.payloads)
    return data + _CRC.pack(zlib.crc32(data))


def _read_segment(window: "_Window", header: Header, is_short: bool, max_index: int) -> tuple[int, Segment]:
    """Returns the segment's index in the file, and the segment."""
    index = window.take_varint("index", 0, min(max_index, MAX_SEGMENTS - 1))
    num_frames = header.segment_frames
    if is_short:
        num_frames = window.take_varint("number of frames", 1, header.segment_frames - 1)
    books, lengths = [], []
    for channel in range(header.channels):
        books.append(window.take_varint("number of codebooks", 1 - channel, header.codebooks))
        lengths.append(window.take_varint("payload length", *_payload_limits(header, books[-1], num_frames)))
    payloads = tuple(window.take(length) for length in lengths)
    window.take_checksum()
    return index, Segment(num_frames, tuple(books), payloads)


def _pack_trailer(trailer: Trailer) -> bytes:
    data = _TRAILER + _varint(trailer.num_samples) + _varint(len(trailer.sizes))
    data += b"".join(map(_varint, trailer.sizes))
    data += _CRC.pack(len(data) + _ENDING.size)
    return data + _CRC.pack(zlib.crc32(data))


def _read_trailer(window: "_Window", header: Header, max_segments: int) -> Trailer:
    num_samples = window.take_varint("number of samples", 0, _UNKNOWN - 1)
    num_segments = window.take_varint("number of segments", 0, max_segments)
    sizes = tuple(window.take_varint("segment size", _MIN_SEGMENT, 2**21 - 1) for _ in range(num_segments))
    size = window.offset + _ENDING.size
    (found,) = _CRC.unpack(window.take(_CRC.size))
    window.take_checksum()
    _check("size of the trailer", found, size, size)
    if header.num_samples is not None:
        _check("number of samples in the trailer", num_samples, header.num_samples, header.num_samples)
    return Trailer(num_samples, sizes)


class Writer:
    """Writes one .nac file, front to back.

    file: anything with write(bytes); it is left open.
    tags: (name, value) pairs; names may repeat.
    FormatError for what the format cannot hold.
    """

    def __init__(self, file, header: Header, tags: Tags = ()):
        self._file = file
        self.header = header
        self._sizes: list[int] = []
        self._ended = False  # no segment may follow
        self.size = 0  # bytes written so far
        self._write(_pack_header(header, bool(tags)) + (_pack_tags(tags) if tags else b""))

    def write(self, segment: Segment) -> None:
        if self._ended:
            raise FormatError("a segment follows the trailer or a segment that is not full; expected none")
        data = _pack_segment(self.header, len(self._sizes), segment)
        self._ended = segment.num_frames < self.header.segment_frames
        self._sizes.append(len(data))
        self._write(data)

    def close(self, num_samples: int) -> None:
        """Write the trailer.

        num_samples: per channel at the original rate, and the header's, where that has one.
        """
        known = self.header.num_samples
        low, high = (known, known) if known is not None else (0, _UNKNOWN - 1)
        _check("number of samples", num_samples, low, high)
        self._write(_pack_trailer(Trailer(num_samples, tuple(self._sizes))))
        self._ended = True

    def size_with(self, segments: list[Segment], num_samples: int) -> int:
        """How many bytes the finished file would have with these segments as its last."""
        sizes = [len(_pack_segment(self.header, len(self._sizes) + at, segment)) for at, segment in enumerate(segments)]
        return self.size + sum(sizes) + len(_pack_trailer(Trailer(num_samples, (*self._sizes, *sizes))))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)


class Reader:
    """Reads one .nac file; iterating gives its segments, one at a time, in bounded memory.

    file: anything with read(size), at its first byte; only find_trailer and seek need it to be seekable.
    salvage: yield a Damage for each stretch that is not sound, and go on after it; else FormatError there.

    It has a header; tags, as (name, value) pairs; and a trailer, None until the iteration has reached it.
    FormatError if the header is not sound, in salvage too.
    """

    def __init__(self, file, salvage: bool = False):
        self._file = file
        self._salvage = salvage
        self._window = _Window(file, "the header")
        self._index = 0  # of the next segment
        self._sizes: dict[int, int] = {}  # bytes of each segment that was read
        self._ended = False  # the last segment was read
        self._effort = 0  # bytes that salvage checked in vain
        self.header, has_tags = _read_header(self._window)
        self._window.accept()
        self.tags: Tags = ()
        self.trailer: Trailer | None = None
        self._found: Trailer | None = None  # the same, found from the file's end
        self._problem = ""  # damage before the next record, to be told by the iteration
        if has_tags:
            try:
                self.tags = _read_tags(self._window)
                self._window.accept()
            except FormatError as error:
                if not salvage:
                    raise
                self._problem = str(error)
        self._first = self._window.position

    def __iter__(self):
        """Yields Segment, and Damage if salvaging."""
        while self.trailer is None:
            index, record, problem = self._next()
            if problem:
                count = None if record is None else max(0, index - self._index)
                yield Damage(self._index, count, problem)
            if record is None:
                return
            size = self._window.accept()
            if isinstance(record, Trailer):
                self.trailer = record
            elif index >= self._index and not self._ended:
                self._index = index + 1
                self._ended = record.num_frames < self.header.segment_frames
                self._sizes[index] = size
                yield record
        problem = self._problem_at_end()
        if problem:
            yield Damage(self._index, 0, problem)

    def find_trailer(self) -> Trailer:
        """The trailer of a seekable file, found from the file's end; the iteration is not disturbed."""
        self._found = self._found or self._find_trailer()
        return self._found

    def _find_trailer(self) -> Trailer:
        before = self._file.tell()
        end = self._file.seek(0, io.SEEK_END)
        try:
            window = self._window_at(max(self._first, end - _ENDING.size))
            size, _ = _ENDING.unpack(window.take(_ENDING.size))
            _check("size of the trailer, as the file's end has it,", size, 0, end - self._first)
            window = self._window_at(end - size)
            if window.take(1) != _TRAILER:
                raise FormatError("the file does not end with a trailer")
            trailer = _read_trailer(window, self.header, (end - size - self._first) // _MIN_SEGMENT)
        finally:
            self._file.seek(before)
        _check("size of the trailer", window.offset, size, size)
        _check("size of all segments", end - size - self._first, sum(trailer.sizes), sum(trailer.sizes))
        return trailer

    def seek(self, index: int) -> None:
        """Go on with segment `index` of a seekable file; with the trailer, if it has no more segments."""
        trailer = self.find_trailer()
        _check("segment index", index, 0, len(trailer.sizes))
        self._window = self._window_at(self._first + sum(trailer.sizes[:index]))
        self._index = index
        self._ended = False
        self.trailer = None

    def _window_at(self, position: int) -> "_Window":
        self._file.seek(position)
        return _Window(self._file, "the trailer", position)

    def _next(self) -> "tuple[int, Segment | Trailer | None, str]":
        """The next sound record's index, the record (None at the end), and the problem on the way to it.

        The record stays in the window. The index of a trailer is its number of segments.
        """
        problem, self._problem = self._problem, ""
        try:
            if problem:
                raise FormatError(problem)
            index, record = self._parse()
            problem = self._misplaced(index, record)
            if problem and not self._salvage:
                raise FormatError(problem)
            return index, record, problem
        except FormatError as error:
            if not self._salvage:
                raise
            return *self._search(), str(error)

    def _parse(self) -> tuple[int, Segment | Trailer]:
        """One record from the start of the window, where it stays, and its index."""
        window = self._window
        window.offset = 0
        window.inside = f"segment {self._index}"
        if not window.more():
            raise FormatError(f"the file ends after {self._index} segments; expected more, or the trailer")
        kind = window.take(1)
        if kind == _TRAILER:
            window.inside = "the trailer"
            trailer = _read_trailer(window, self.header, self._index + _MAX_GAP)
            return len(trailer.sizes), trailer
        if kind not in (_FULL, _SHORT):
            what = f"{kind!r} at byte {window.position}"
            raise FormatError(f"{what}; expected segment {self._index} or the trailer")
        return _read_segment(window, self.header, kind == _SHORT, self._index + _MAX_GAP)

    def _misplaced(self, index: int, record: Segment | Trailer) -> str:
        """Why this sound record should not come next, or nothing."""
        if isinstance(record, Segment) and self._ended:
            return f"segment {index} after one that is not full; expected the trailer"
        if index == self._index:
            return ""
        what = f"segment {index}" if isinstance(record, Segment) else f"the trailer of {index} segments"
        return f"{what} found; expected segment {self._index}"

    def _search(self) -> tuple[int, Segment | Trailer | None]:
        """Find the next sound record after a damaged one; (0, None) if there is none."""
        while self._effort <= _MAX_EFFORT and self._window.find(_KINDS):
            try:
                return self._parse()
            except FormatError:
                self._effort += self._window.offset
        return 0, None

    def _problem_at_end(self) -> str:
        """What can only be noticed after the trailer, or nothing."""
        sizes = self.trailer.sizes
        problem = ""
        if any(index >= len(sizes) or sizes[index] != size for index, size in self._sizes.items()):
            problem = "the trailer's index does not fit the segments"
        elif self._window.more():
            problem = f"the trailer ends at byte {self._window.position}; expected the file to end there too"
        if problem and not self._salvage:
            raise FormatError(problem)
        return problem


def pack(header: Header, tags: Tags, segments: list[Segment], num_samples: int) -> bytes:
    """One whole file in memory."""
    file = io.BytesIO()
    writer = Writer(file, header, tags)
    for segment in segments:
        writer.write(segment)
    writer.close(num_samples)
    return file.getvalue()


def unpack(data: bytes) -> tuple[Header, Tags, list[Segment], int]:
    """The inverse of pack."""
    reader = Reader(io.BytesIO(data))
    segments = list(reader)
    return reader.header, reader.tags, segments, reader.trailer.num_samples


# Bytes


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the high bit says that more follow."""
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes(data + bytes([value]))


class _Window:
    """The unread bytes of a file, which may be parsed more than once before they are accepted."""

    def __init__(self, file, inside: str, position: int = 0):
        self.inside = inside  # what is being parsed, for messages
        self.position = position  # of the first unread byte, in the file
        self.offset = 0  # bytes parsed, from there on
        self._file = file
        self._buffer = bytearray()

    def take(self, size: int) -> bytes:
        end = self.offset + size
        if not self._fill(end):
            held = self.position + len(self._buffer)
            raise FormatError(f"the file ends after {held} bytes, inside {self.inside}")
        data = bytes(self._buffer[self.offset:end])
        self.offset = end
        return data

    def take_varint(self, what: str, low: int, high: int) -> int:
        """A number from low to high in its shortest form."""
        value = 0
        for shift in range(0, max(1, high.bit_length()), 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                break
        if byte > 127 or shift and not byte:
            raise FormatError(f"{what} in {self.inside} is over {high}, or not in its shortest form")
        _check(f"{what} in {self.inside}", value, low, high)
        return value

    def take_checksum(self) -> None:
        """Four bytes that must be the CRC-32 of all that was parsed before them."""
        wanted = zlib.crc32(self._buffer[:self.offset])
        (found,) = _CRC.unpack(self.take(_CRC.size))
        if found != wanted:
            raise FormatError(f"{self.inside}: checksum {wanted:08x}; expected {found:08x}")

    def more(self) -> bool:
        """Whether anything follows what was parsed."""
        return self._fill(self.offset + 1)

    def accept(self) -> int:
        """Drop what was parsed, and return its size."""
        size = self.offset
        self._drop(size)
        return size

    def find(self, pattern: re.Pattern) -> bool:
        """Drop at least one byte, and all up to the next match of one byte; False if there is none."""
        self.offset = 0
        if not self.more():
            return False
        self._drop(1)
        while self.more():
            match = pattern.search(self._buffer)
            if match:
                self._drop(match.start())
                return True
            self._drop(len(self._buffer))
            self._fill(_CHUNK)
        return False

    def _fill(self, size: int) -> bool:
        """Hold size bytes, if the file has them; read in chunks, so that a false length claims no memory."""
        while len(self._buffer) < size:
            data = self._file.read(min(size - len(self._buffer), _CHUNK))
            if not data:
                return False
            self._buffer += data
        return True

    def _drop(self, size: int) -> None:
        del self._buffer[:size]
        self.position += size
        self.offset = 0
