"""Packets <-> bytes, for transports that may lose some; docs/streaming.md describes every byte.

How payloads are coded is framecoder.py's business, when to send which packet is packet_stream.py's.
"""
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from audiocodec.errors import FormatError

MAX_PACKET_FRAMES = 8
MAX_PAYLOAD = 5 * (2 * 32 * 10 * MAX_PACKET_FRAMES // 8) + 64     # bytes; a code never takes five times its 10 bits
SEQUENCE = 1 << 12                # numbers of packets go up to here and begin anew

_STEREO, _ENTROPY, _KEY, _LAST = (1 << bit for bit in (12, 13, 14, 15))
_START = struct.Struct("<HB")     # flags and number; frames and books
_BOOK_BITS = 5


@dataclass(frozen=True)
class Packet:
    """Some frames of each channel."""

    number: int                   # modulo SEQUENCE, one more than that of the packet before
    num_frames: int               # 1 to MAX_PACKET_FRAMES
    books: tuple[int, ...]        # codebooks used, per channel; 0 only for the side: it is silent
    payload: bytes
    entropy_coded: bool = True    # else bit-packed
    is_key: bool = True           # whether it can be decoded without the packets before it
    surplus: int | None = None    # in the last packet: samples at the end of all that are padding


def pack(packet: Packet) -> bytes:
    """A packet's bytes: fields, payload, and one byte to check them by."""
    flags = (_STEREO * (len(packet.books) == 2) | _ENTROPY * packet.entropy_coded | _KEY * packet.is_key
             | _LAST * (packet.surplus is not None))
    data = _START.pack(flags | packet.number, packet.num_frames - 1 << _BOOK_BITS | packet.books[0] - 1)
    data += bytes(packet.books[1:])
    if packet.surplus is not None:
        data += _varint(packet.surplus)
    data += _varint(len(packet.payload)) + packet.payload
    return data + _check(data)


def unpack(data: bytes) -> Iterator[Packet]:
    """Yield the packets that follow one another in the data. Raises FormatError at one that is damaged or cut."""
    at = 0
    while at < len(data):
        packet, at = _read(data, at)
        yield packet


def split(data: bytes) -> list[bytes]:
    """Cut the bytes of several packets into those of each, for a transport that sends them one by one."""
    ends = [0]
    while ends[-1] < len(data):
        ends.append(_read(data, ends[-1])[1])
    return [data[start:end] for start, end in zip(ends, ends[1:])]


def _read(data: bytes, start: int) -> tuple[Packet, int]:
    """The packet at this place, and where it ends."""
    try:
        flags, shape = _START.unpack_from(data, start)
        at = start + _START.size
        books = [(shape & (1 << _BOOK_BITS) - 1) + 1]
        if flags & _STEREO:
            books.append(data[at])
            at += 1
        surplus = None
        if flags & _LAST:
            surplus, at = _take_varint(data, at)
        size, at = _take_varint(data, at)
        end = at + size
        found = data[end]
    except (struct.error, IndexError):
        raise FormatError(f"a packet is cut after {len(data) - start} bytes") from None
    if found != _check(data[start:end])[0]:
        raise FormatError("a packet's check byte does not fit")
    if books[-1] > 32 or size > MAX_PAYLOAD:
        raise FormatError(f"a packet of {books[-1]} codebooks and {size} bytes; expected at most 32 and {MAX_PAYLOAD}")
    packet = Packet(flags % SEQUENCE, (shape >> _BOOK_BITS) + 1, tuple(books), data[at:end],
                    bool(flags & _ENTROPY), bool(flags & _KEY), surplus)
    return packet, end + 1


def _check(data: bytes) -> bytes:
    """The lowest byte of the CRC-32."""
    return bytes([zlib.crc32(data) & 255])


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the high bit says that another follows, which is the last: up to 16383."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])


def _take_varint(data: bytes, at: int) -> tuple[int, int]:
    if data[at] < 128:
        return data[at], at + 1
    return data[at] & 127 | data[at + 1] << 7, at + 2
