import dataclasses
import io
import random
import re
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocodec import container
from audiocodec.container import Damage, Header, Reader, Segment, Trailer, Writer, pack, unpack
from audiocodec.errors import FormatError

DOCS = Path(__file__).parents[1] / "docs" / "format.md"


def bit_packed(codes: list[int]) -> bytes:
    """Codes, in the order of docs/format.md; written apart from the program's own packing."""
    bits = "".join(f"{code:010b}" for code in codes)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i:i + 8], 2) for i in range(0, len(bits), 8))


# The worked example of docs/format.md: one book, 19 frames in segments of 16.
TINY_HEADER = Header(
    channels=1, sample_rate=24_000, num_samples=5_760, weights_id=bytes.fromhex("0123456789ab"),
    codebooks=1, entropy_coded=False, segment_frames=16,
)
TINY_TAGS = (("TITLE", "Tiny"),)
TINY_SEGMENTS = [
    Segment(16, (1,), (bit_packed(list(range(16))),)),
    Segment(3, (1,), (bit_packed([16, 17, 1023]),)),
]
TINY = pack(TINY_HEADER, TINY_TAGS, TINY_SEGMENTS, 5_760)

STEREO_HEADER = Header(
    channels=2, sample_rate=44_100, num_samples=None, weights_id=b"\x00\x01\x02\xfd\xfe\xff",
    codebooks=8, bandwidth=6_000, subtype="PCM_24", segment_frames=32,
)
STEREO_SEGMENTS = [
    Segment(32, (8, 4), (b"mid of 0", b"side")),
    Segment(32, (8, 0), (b"", b"")),
    Segment(32, (2, 8), (b"SLT" * 8, b"mid and side of 2")),
    Segment(1, (1, 1), (b"m", b"s")),
]
STEREO = pack(STEREO_HEADER, (), STEREO_SEGMENTS, 41_000)

DEPTHS_HEADER = dataclasses.replace(TINY_HEADER, channels=2, num_samples=6_000, codebooks=2, has_depths=True)
DEPTHS_SEGMENTS = [
    Segment(16, (2, 1), (bytes(10), bytes(30))),  # depths alone, and all codes
    Segment(3, (1, 0), (bytes(3), b"")),
]
DEPTHS = pack(DEPTHS_HEADER, (), DEPTHS_SEGMENTS, 6_000)

EMPTY_HEADER = dataclasses.replace(TINY_HEADER, num_samples=0)
EMPTY = pack(EMPTY_HEADER, (), [], 0)


def borders(data: bytes) -> list[int]:
    """Where the segments begin, and last the trailer."""
    reader = Reader(io.BytesIO(data))
    sizes = reader.find_trailer().sizes
    return [reader._first + sum(sizes[:index]) for index in range(len(sizes) + 1)]


def records(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """The header and tags, each segment, the trailer."""
    starts = borders(data)
    return data[:starts[0]], [data[a:b] for a, b in zip(starts, starts[1:])], data[starts[-1]:]


def salvage(data: bytes) -> list[Segment | Damage]:
    return list(Reader(io.BytesIO(data), salvage=True))


def sound(found: list[Segment | Damage]) -> list[Segment]:
    return [item for item in found if isinstance(item, Segment)]


def lost(found: list[Segment | Damage]) -> list[tuple[int, int | None]]:
    return [(item.index, item.count) for item in found if isinstance(item, Damage)]


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time, and cannot seek; written to, it keeps the bytes."""

    def __init__(self, data: bytes = b""):
        self.data = data

    def read(self, size=-1):
        assert size > 0
        part, self.data = self.data[:min(size, 7)], self.data[min(size, 7):]
        return part

    def write(self, data):
        self.data += data

    def seek(self, *_):
        raise io.UnsupportedOperation("seek")

    tell = seek


# Fixed bytes


def test_bytes_of_an_empty_file():
    assert EMPTY.hex(" ") == (
        "ce 41 43 0a 01 00 c0 5d 00 00 00 00 00 00 00 00 00 00 01 23 45 67 89 ab 00 00 01 01 71 80 f9 41 "
        "54 00 00 0b 00 00 00 db 95 f7 9d"
    )


def test_worked_example_in_the_docs():
    dump = re.search(r"```hexdump\n(.*?)```", DOCS.read_text(), re.S).group(1)
    lines = [re.fullmatch(r"([0-9a-f]{4})  ([0-9a-f ]{47})  (.{1,16})", line) for line in dump.splitlines()]
    assert b"".join(bytes.fromhex(line[2]) for line in lines) == TINY
    assert [int(line[1], 16) for line in lines] == list(range(0, len(TINY), 16))


def test_overhead_of_a_short_mono_clip():
    header = dataclasses.replace(TINY_HEADER, num_samples=None, segment_frames=512)
    assert len(pack(header, (), [Segment(76, (1,), (bytes(95),))], 24_000)) - 95 <= 32 + 9 + 16
    segments = [Segment(512, (1,), (bytes(640),))] * 200
    assert len(pack(header, (), segments, 1)) <= 32 + 200 * (640 + 10 + 2) + 21


# Frames of different depths


def test_bytes_of_a_file_with_depths():
    assert DEPTHS[:28].hex(" ") == (
        "ce 41 43 0a 01 41 c0 5d 00 00 70 17 00 00 00 00 00 00 01 23 45 67 89 ab 00 00 02 01")
    assert DEPTHS[32:38] == b"S\x00\x02\x0a\x01\x1e"
    assert unpack(DEPTHS) == (DEPTHS_HEADER, (), DEPTHS_SEGMENTS, 6_000)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("books, shortest, longest", [(1, 10, 30), (2, 10, 50), (32, 10, 650)])
def test_payload_lengths_with_depths(entropy, books, shortest, longest):
    """Of 16 frames: at least 5 bits each, at most 10 more for each code; entropy-coded five times that and 64."""
    header = dataclasses.replace(DEPTHS_HEADER, channels=1, num_samples=1, codebooks=32, entropy_coded=entropy)
    low, high = (0, 5 * longest + 64) if entropy else (shortest, longest)
    for length in (low, high):
        data = pack(header, (), [Segment(16, (books,), (bytes(length),))], 1)
        assert unpack(data)[2][0].payloads == (bytes(length),)
    for length in {low - 1, high + 1} - {-1}:
        with pytest.raises(FormatError, match=f"payload length is {length}; expected {low} to {high}"):
            pack(header, (), [Segment(16, (books,), (bytes(length),))], 1)
        head = container._pack_header(header, False)
        record = b"S\x00" + bytes([books]) + container._varint(length) + bytes(length)
        with pytest.raises(FormatError, match="payload length in segment 0"):
            unpack(head + with_checksum(record))


def test_a_silent_side_has_no_depths():
    with pytest.raises(FormatError, match="payload length is 2; expected 0"):
        pack(DEPTHS_HEADER, (), [Segment(3, (1, 0), (bytes(3), bytes(2)))], 6_000)


# Parts of longer files


PART_HEADER = dataclasses.replace(TINY_HEADER, num_samples=300, origin=container.Origin(300, 2**40))
PART = pack(PART_HEADER, (), TINY_SEGMENTS[:1], 300)


def test_bytes_of_a_part():
    assert PART[:28].hex(" ") == (
        "ce 41 43 0a 01 20 c0 5d 00 00 2c 01 00 00 00 00 00 00 01 23 45 67 89 ab 00 00 01 01")
    assert PART[28:36].hex(" ") == "ac 02 80 80 80 80 80 20"       # 300 segments, 2**40 samples
    assert PART[36:40] == zlib.crc32(PART[:36]).to_bytes(4, "little")
    assert unpack(PART) == (PART_HEADER, (), TINY_SEGMENTS[:1], 300)
    assert PART_HEADER.before == PART_HEADER.origin and TINY_HEADER.before == container.Origin(0, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (b"\xff\xff\xff\xff\x10\x00", "segments before the first in the header is 4563402751; expected 0 to 429496729"),
        (b"\x00" + b"\xff" * 9 + b"\x01", "samples before the first in the header is 18446744073709551615"),
        (b"\x80\x00\x00", "shortest form"),
    ],
)
def test_part_fields_out_of_range(fields, message):
    with pytest.raises(FormatError, match=message):
        unpack(with_checksum(PART[:28] + fields) + PART[40:])


@pytest.mark.parametrize("num_samples", [0, None])
def test_a_part_has_a_known_length(num_samples):
    with pytest.raises(FormatError, match="a part of"):
        dataclasses.replace(PART_HEADER, num_samples=num_samples)
    size = (2**64 - 1 if num_samples is None else 0).to_bytes(8, "little")
    with pytest.raises(FormatError, match="a part of"):
        unpack(with_checksum(PART[:10] + size + PART[18:36]) + PART[40:])


@pytest.mark.parametrize(("segments", "samples"), [(-1, 0), (2**32, 0), (0, -1), (0, 2**64 - 1)])
def test_an_origin_checks_itself(segments, samples):
    with pytest.raises(FormatError, match="before the first"):
        container.Origin(segments, samples)


def test_size_with():
    """What a file will have in the end is known before its last segments are written."""
    file = io.BytesIO()
    writer = Writer(file, STEREO_HEADER)
    for at, segment in enumerate(STEREO_SEGMENTS):
        assert writer.size_with(STEREO_SEGMENTS[at:], 41_000) == len(STEREO)
        writer.write(segment)
    assert writer.size_with([], 41_000) == len(STEREO) and file.getvalue() == STEREO[:writer.size]


# Round trips


@st.composite
def files(draw):
    header = Header(
        channels=draw(st.integers(1, 2)),
        sample_rate=draw(st.integers(8_000, 192_000)),
        num_samples=None,
        weights_id=draw(st.binary(min_size=6, max_size=6)),
        codebooks=draw(st.integers(1, 32)),
        bandwidth=draw(st.integers(0, 65_535)) * 10,
        entropy_coded=draw(st.booleans()),
        subtype=draw(st.sampled_from(container.SUBTYPES)),
        segment_frames=draw(st.integers(1, 255)) * 16,
        has_depths=draw(st.booleans()),
    )
    header = dataclasses.replace(header, level_frames=draw(st.sampled_from([0, 2, 4])))
    name = st.text([chr(code) for code in range(0x20, 0x7E) if code != ord("=")], min_size=1, max_size=9)
    tags = tuple(draw(st.lists(st.tuples(name, st.text(max_size=20)), max_size=4)))
    num_segments = draw(st.integers(0, 4))
    seed = random.Random(draw(st.integers(0, 2**32)))
    segments = []
    for index in range(num_segments):
        frames = header.segment_frames
        if index == num_segments - 1:
            frames = draw(st.integers(1, header.segment_frames))
        books = tuple(draw(st.integers(1 - channel, header.codebooks)) for channel in range(header.channels))
        lengths = [(count * frames * 10 + 7) // 8 for count in books]
        if header.has_depths:
            depths = [draw(st.integers(0, count)) for count in books]
            lengths = [(frames * (5 + 10 * depth) + 7) // 8 if count else 0 for depth, count in zip(depths, books)]
        if header.entropy_coded:
            lengths = [min(length, draw(st.integers(0, 300))) for length in lengths]
        segments.append(Segment(frames, books, tuple(map(seed.randbytes, lengths))))
    num_samples = draw(st.integers(1, 2**64 - 2)) if segments else 0
    if draw(st.booleans()):
        header = dataclasses.replace(header, num_samples=num_samples)
        if segments and draw(st.booleans()):
            origin = container.Origin(draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**64 - 2)))
            header = dataclasses.replace(header, origin=origin)
    return header, tags, segments, num_samples


@settings(max_examples=60, deadline=None)
@given(files())
def test_round_trip(file):
    data = pack(*file)
    assert unpack(data) == file
    assert pack(*file) == data
    assert salvage(data) == file[2]


@settings(max_examples=200, deadline=None)
@given(files(), st.data())
def test_damaged_anywhere(file, data):
    """A change of up to 32 bits in a row: always noticed, and what salvage returns is what was written."""
    packed = bytearray(pack(*file))
    start = data.draw(st.integers(0, len(packed) - 1))
    burst = data.draw(st.binary(min_size=1, max_size=4))[:len(packed) - start]
    if not any(burst):
        return
    for offset, flips in enumerate(burst):
        packed[start + offset] ^= flips
    with pytest.raises(FormatError):
        unpack(bytes(packed))
    if start >= len(container._pack_header(file[0], bool(file[1]))):
        found = salvage(bytes(packed))
        assert lost(found)
        assert all(segment in file[2] for segment in sound(found))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100))
def test_anything_after_a_header(data):
    for header in (TINY_HEADER, STEREO_HEADER):
        segment = Segment(1, (1,) * header.channels, (bytes(2),) * header.channels)
        packed = pack(header, (), [segment], 5_760)[:32] + data
        with pytest.raises(FormatError):
            unpack(packed)
        assert all(isinstance(item, Damage) for item in salvage(packed))


def test_stream_that_cannot_seek():
    pipe = Pipe()
    writer = Writer(pipe, STEREO_HEADER)
    for segment in STEREO_SEGMENTS:
        writer.write(segment)
    writer.close(41_000)
    assert pipe.data == STEREO and writer.size == len(STEREO)
    reader = Reader(pipe)
    assert list(reader) == STEREO_SEGMENTS
    assert reader.trailer.num_samples == 41_000
    assert len(reader.trailer.sizes) == 4


def test_a_segment_is_read_before_the_next_arrives():
    starts = borders(STEREO)
    pipe = Pipe(STEREO[:starts[1]])
    segments = iter(Reader(pipe))
    assert next(segments) == STEREO_SEGMENTS[0]
    pipe.data = STEREO[starts[1]:starts[2]]
    assert next(segments) == STEREO_SEGMENTS[1]


def test_no_audio():
    reader = Reader(io.BytesIO(EMPTY))
    assert list(reader) == []
    assert reader.trailer == reader.find_trailer() == Trailer(0, ())


# Wrong input, read strictly


@pytest.mark.parametrize("data", [TINY, STEREO, EMPTY, PART, DEPTHS],
                         ids=["mono", "stereo", "empty", "part", "depths"])
def test_every_prefix(data):
    starts = borders(data)
    for length in range(len(data)):
        with pytest.raises(FormatError, match="the file ends after"):
            unpack(data[:length])
        if length >= starts[0]:
            found = salvage(data[:length])
            whole = sum(start <= length for start in starts[1:])
            assert found[:-1] == unpack(data)[2][:whole]
            assert lost(found) == [(whole, None)]


@pytest.mark.parametrize("data", [TINY, STEREO, EMPTY, PART, DEPTHS],
                         ids=["mono", "stereo", "empty", "part", "depths"])
def test_every_flipped_bit(data):
    starts = borders(data)
    segments = unpack(data)[2]
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError) as error:
            unpack(bytes(flipped))
        assert "\n" not in str(error.value)
        if bit // 8 >= starts[0]:  # one segment is lost at most
            hit = sum(start <= bit // 8 for start in starts) - 1
            found = salvage(bytes(flipped))
            assert lost(found) == [(hit, 1 if hit < len(segments) else None)]
            assert sound(found) == segments[:hit] + segments[hit + 1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, a, b, c, d, t: h + a + c + b + d + t, "segment 2 found; expected segment 1"),
        (lambda h, a, b, c, d, t: h + a + c + d + t, "segment 2 found; expected segment 1"),
        (lambda h, a, b, c, d, t: h + a + b + b + c + d + t, "segment 1 found; expected segment 2"),
        (lambda h, a, b, c, d, t: h + a + b + c + t, "trailer of 4 segments found; expected segment 3"),
        (lambda h, a, b, c, d, t: h + a + b + c + d + d + t, "segment 3 after one that is not full"),
        (lambda h, a, b, c, d, t: h + a + b + c + d + t + t, "the trailer ends at byte"),
        (lambda h, a, b, c, d, t: h + a + b + b"?" + c + d + t, r"b'\?' at byte .*expected segment 2"),
        (lambda h, a, b, c, d, t: h + a + b + c + d, "the file ends after 4 segments"),
        (lambda h, a, b, c, d, t: h + t, "trailer of 4 segments found; expected segment 0"),
    ],
)
def test_rearranged(change, message):
    start, segments, end = records(STEREO)
    with pytest.raises(FormatError, match=message):
        unpack(change(start, *segments, end))


def test_trailer_that_does_not_fit_the_segments():
    start, segments, _ = records(STEREO)
    sizes = tuple(map(len, segments))
    end = container._pack_trailer(Trailer(41_000, sizes[::-1]))
    data = start + b"".join(segments) + end
    with pytest.raises(FormatError, match="index does not fit"):
        unpack(data)
    assert salvage(data)[:-1] == STEREO_SEGMENTS
    start, segments, _ = records(TINY)
    end = container._pack_trailer(Trailer(5_761, tuple(map(len, segments))))
    with pytest.raises(FormatError, match="number of samples in the trailer is 5761; expected 5760"):
        unpack(start + b"".join(segments) + end)


def test_samples_without_segments():
    with pytest.raises(FormatError, match="7 samples in 0 segments"):
        pack(dataclasses.replace(TINY_HEADER, num_samples=None), (), [], 7)
    with pytest.raises(FormatError, match="0 samples in 2 segments"):
        pack(EMPTY_HEADER, (), TINY_SEGMENTS, 0)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF....WAVEfmt ", b"\0" * 100])
def test_not_a_nac_file(data):
    with pytest.raises(FormatError, match="the file ends after" if len(data) < 5 else "not a .nac file"):
        unpack(data)


def test_newer_version_is_named():
    with pytest.raises(FormatError, match="format version 3; this program reads versions 1 and 2"):
        unpack(container.MAGIC + b"\x03")  # whatever follows


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: bytes(byte & 127 for byte in data),
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.decode("latin-1").encode(),
        lambda data: data.decode(errors="replace").encode(),
    ],
)
def test_transfer_as_text(spoil):
    with pytest.raises(FormatError, match="transfer as text"):
        unpack(spoil(STEREO))


def with_checksum(data: bytes) -> bytes:
    return data + zlib.crc32(data).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (5, 0x80, "flags are 0x80"),
        (6, (7_999).to_bytes(4, "little"), "sample rate is 7999; expected 8000 to 192000"),
        (6, (192_001).to_bytes(4, "little"), "sample rate is 192001"),
        (26, 0, "number of codebooks is 0; expected 1 to 32"),
        (26, 33, "number of codebooks is 33"),
        (27, 0, "frames per segment is 0"),
    ],
)
def test_header_fields_out_of_range(offset, value, message):
    value = bytes([value]) if isinstance(value, int) else value
    data = TINY[:offset] + value + TINY[offset + len(value):28]
    with pytest.raises(FormatError, match=message):
        unpack(with_checksum(data) + TINY[32:])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"S\x80\x00\x01\x00", "shortest form"),
        (b"S\x00\x00\x00", "number of codebooks in segment 0 is 0; expected 1"),
        (b"S\x00\x02\x00", "number of codebooks in segment 0 is 2; expected 1"),
        (b"S\x00\x01\x13" + bytes(19), "payload length in segment 0 is 19; expected 20"),
        (b"S\x00\x01\xff\xff\x7f", "payload length in segment 0 is over 20"),
        (b"L\x00\x10\x01\x14" + bytes(20), "number of frames in segment 0 is 16; expected 1 to 15"),
        (b"L\x00\x00\x01\x00", "number of frames in segment 0 is 0"),
        (b"T\x80\x2d\xff\xff\xff\xff\xff\x01", "number of segments in the trailer is over 1024"),
        (b"T\x80\x2d\x01\x07", "segment size in the trailer is 7"),
    ],
)
def test_segment_fields_out_of_range(record, message):
    head = pack(TINY_HEADER, (), TINY_SEGMENTS, 5_760)[:32]
    with pytest.raises(FormatError, match=message):
        unpack(head + with_checksum(record))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"\x04A=\xff\xfe", "not UTF-8"),
        (b"\x03ABC", "expected NAME=value"),
        (b"\x03=BC", "expected NAME=value"),
        (b"\x09A=", "inside a tag"),
        (b"\x01A", "length in a tag is 1"),
    ],
)
def test_tags_that_are_not_tags(block, message):
    data = TINY[:32] + with_checksum(bytes([len(block)]) + block)
    with pytest.raises(FormatError, match=message):
        unpack(data)


# Wrong values, written


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", 0), ("channels", 3), ("sample_rate", 7_999), ("sample_rate", 192_001),
        ("num_samples", -1),
        ("num_samples", 2**64 - 1), ("weights_id", b"12345"), ("codebooks", 0), ("codebooks", 33),
        ("bandwidth", 15), ("bandwidth", 655_360), ("bandwidth", -10), ("subtype", "VORBIS"),
        ("segment_frames", 0), ("segment_frames", 24), ("segment_frames", 4_096),
    ],
)
def test_header_checks_itself(field, value):
    with pytest.raises(FormatError):
        dataclasses.replace(TINY_HEADER, **{field: value})


@pytest.mark.parametrize(
    "segments",
    [
        [Segment(0, (1,), (b"",))],
        [Segment(17, (1,), (bytes(22),))],
        [Segment(16, (2,), (bytes(40),))],
        [Segment(16, (0,), (b"",))],
        [Segment(16, (1,), (bytes(21),))],
        [Segment(16, (1, 1), (bytes(20), bytes(20)))],
        [Segment(16, (1,), (bytes(20), bytes(20)))],
        [Segment(3, (1,), (bytes(4),)), Segment(3, (1,), (bytes(4),))],
    ],
)
def test_segments_that_cannot_be_written(segments):
    with pytest.raises(FormatError):
        pack(TINY_HEADER, (), segments, 5_760)


@pytest.mark.parametrize("tags", [(("", "x"),), (("A=B", "x"),), (("Ä", "x"),), (("A", "\ud800"),)])
def test_tags_that_cannot_be_written(tags):
    with pytest.raises(FormatError):
        pack(TINY_HEADER, tags, TINY_SEGMENTS, 5_760)


def test_tags_are_bounded():
    fits = (("A", "x" * (65_536 - 3 - 2)),)
    assert unpack(pack(TINY_HEADER, fits, TINY_SEGMENTS, 5_760))[1] == fits
    with pytest.raises(FormatError, match="tags of 65,537 bytes; expected at most 65,536"):
        pack(TINY_HEADER, (("A", "x" * (65_536 - 3 - 1)),), TINY_SEGMENTS, 5_760)


# Salvage and seeking


def test_salvage_of_damaged_tags():
    start, segments, end = records(TINY)
    found = salvage(start[:-6] + b"??" + start[-4:] + b"".join(segments) + end)
    assert found[0].index == found[0].count == 0 and "the tags" in found[0].reason
    assert found[1:] == TINY_SEGMENTS


def test_salvage_of_a_long_hole():
    frames = [Segment(16, (1,), (bit_packed([index] * 16),)) for index in range(100)]
    header = dataclasses.replace(TINY_HEADER, num_samples=None)
    data = bytearray(pack(header, (), frames, 1))
    starts = borders(bytes(data))
    data[starts[10] + 5:starts[60] + 3] = b"SLT" * 300  # neither the length nor the places fit any more
    found = salvage(bytes(data))
    assert sound(found) == frames[:10] + frames[61:]
    assert lost(found)[0] == (10, 51)


def test_salvage_of_rearranged_segments():
    start, (a, b, c, d), end = records(STEREO)
    first, second, third, fourth = STEREO_SEGMENTS
    found = salvage(start + a + c + b + d + end)
    assert sound(found) == [first, third, fourth]
    assert lost(found) == [(1, 1), (3, 0)]
    found = salvage(start + a + b + b"!!" + c + c + d + end + b"rest")
    assert sound(found) == STEREO_SEGMENTS
    assert lost(found) == [(2, 0), (3, 0), (4, 0)]
    found = salvage(start + a + b + c + end)
    assert found[:-1] == [first, second, third] and lost(found) == [(3, 1)]


def test_seek():
    reader = Reader(io.BytesIO(STEREO))
    assert next(iter(reader)) == STEREO_SEGMENTS[0]
    assert reader.find_trailer().num_samples == 41_000
    assert list(reader) == STEREO_SEGMENTS[1:]
    for index in (2, 0, 4, 3):
        reader.seek(index)
        assert list(reader) == STEREO_SEGMENTS[index:]
        assert reader.trailer.num_samples == 41_000
    with pytest.raises(FormatError, match="segment index is 5; expected 0 to 4"):
        reader.seek(5)


def test_seek_reads_no_more_than_it_needs():
    class Counted(io.BytesIO):
        num_bytes = 0

        def read(self, size=-1):
            data = super().read(size)
            self.num_bytes += len(data)
            return data

    header = dataclasses.replace(TINY_HEADER, num_samples=None, segment_frames=4080)
    file = Counted(pack(header, (), [Segment(4080, (1,), (bytes(5100),))] * 50, 1))
    reader = Reader(file)
    reader.seek(40)
    next(iter(reader))
    assert file.num_bytes < 5_500


def test_find_trailer_in_a_file_cut_short():
    for length in range(borders(TINY)[0], len(TINY)):
        with pytest.raises(FormatError):
            Reader(io.BytesIO(TINY[:length])).find_trailer()


def test_find_trailer_in_a_damaged_file():
    for position in range(borders(TINY)[-1], len(TINY)):
        data = bytearray(TINY)
        data[position] ^= 255
        with pytest.raises(FormatError):
            Reader(io.BytesIO(data)).find_trailer()


# Memory and time


@pytest.mark.parametrize("salvaging", [False, True])
def test_false_lengths_claim_no_memory(salvaging):
    header = dataclasses.replace(STEREO_HEADER, codebooks=32, segment_frames=4080)
    head = pack(header, (), [], 0)[:32]
    tagged = bytearray(head[:28])
    tagged[5] |= 4
    hostile = [
        head + b"S\x00\x20\xff\xff\x13\x20\xff\xff\x13" + bytes(100),
        head + b"T\x01\xff\x07" + b"\xff\x07" * 100,
        head + b"S\x00\x20\xff\xff\x13\x20\xff\xff\x13" * 1_000,
        with_checksum(bytes(tagged)) + b"\x80\x80\x04" + bytes(100),
    ]
    tracemalloc.start()
    for data in hostile:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        if salvaging:
            assert len(salvage(data)) == 1
        else:
            with pytest.raises(FormatError):
                unpack(data)
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < 100_000
    tracemalloc.stop()


def test_memory_while_reading_a_long_file():
    class Endless(io.RawIOBase):
        """A header, then many segments made while reading."""

        def __init__(self, header, num_segments):
            self.buffer = bytearray()
            self.parts = self.make(Writer(self, header), num_segments)

        def make(self, writer, num_segments):
            for _ in range(num_segments):
                yield writer.write(Segment(512, (8,), (bytes(5_120),)))
            yield writer.close(1)

        def write(self, data):
            self.buffer += data

        def read(self, size=-1):
            while len(self.buffer) < size and next(self.parts, self) is not self:
                pass
            data = bytes(self.buffer[:size])
            del self.buffer[:size]
            return data

    header = dataclasses.replace(TINY_HEADER, num_samples=None, codebooks=8, segment_frames=512)
    tracemalloc.start()
    reader = Reader(Endless(header, 2_000))
    assert sum(1 for _ in reader) == 2_000  # 10 MB
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_500_000


def test_salvage_gives_up_in_time(monkeypatch):
    monkeypatch.setattr(container, "_MAX_EFFORT", 1_000_000)
    header = dataclasses.replace(STEREO_HEADER, channels=1, segment_frames=4080)
    data = pack(header, (), [], 0)[:32] + b"S\x00\x01\xff\x4f" * 50_000
    reader = Reader(io.BytesIO(data), salvage=True)
    assert [item.count for item in reader] == [None]
    assert reader._effort < 1_100_000
