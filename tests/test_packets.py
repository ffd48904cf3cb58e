"""packets.py and framecoder.py: the bytes of packets, their damage, and their two payload coders."""
import zlib

import numpy as np
import pytest

from audiocodec import framecoder, packets
from audiocodec.errors import FormatError
from audiocodec.rangecoder import Frames, RangeCoder
from audiocodec.tokens import Codec


@pytest.fixture(scope="module")
def model():
    return Codec.load(device="cpu").entropy


def packet(**fields) -> packets.Packet:
    return packets.Packet(**{"number": 0, "num_frames": 1, "books": (1,), "payload": b"", **fields})


def random_codes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1024, shape)


def test_bytes_of_the_documents_example():
    data = packets.pack(packet(number=258, num_frames=2, books=(8,), payload=b"\x01\x02\x03", is_key=True))
    fields = bytes.fromhex("02 61 27 03 01 02 03")       # key, entropy, 258; 2 frames of 8 books; 3 bytes
    assert data == fields + bytes([zlib.crc32(fields) & 255])


@pytest.mark.parametrize("fields", [
    {}, {"number": 4095, "num_frames": 8, "books": (32,), "payload": bytes(200)}, {"books": (5, 0)},
    {"books": (32, 32), "entropy_coded": False}, {"is_key": False}, {"surplus": 0},
    {"surplus": 5000, "books": (1, 32)}])
def test_packets_come_back(fields):
    assert list(packets.unpack(packets.pack(packet(**fields)))) == [packet(**fields)]


def test_packets_in_a_row_can_be_told_apart():
    made = [packets.pack(packet(number=i, payload=bytes(i))) for i in range(5)]
    assert packets.split(b"".join(made)) == made
    assert [found.number for found in packets.unpack(b"".join(made))] == list(range(5))


def test_cut_and_damaged_packets_are_refused():
    data = packets.pack(packet(payload=b"abc", books=(3, 2), surplus=300))
    for size in range(1, len(data)):
        with pytest.raises(FormatError):
            list(packets.unpack(data[:size]))
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            list(packets.unpack(bytes(flipped)))


def test_noise_never_does_more_than_be_refused():
    rng = np.random.default_rng(1)
    for _ in range(2000):
        try:
            list(packets.unpack(rng.bytes(int(rng.integers(0, 40)))))
        except FormatError:
            pass


@pytest.mark.parametrize("shapes", [[(8, 4)], [(3, 2), (5, 2)], [(4, 1), (0, 1)]])
@pytest.mark.parametrize("entropy", [True, False])
def test_codes_come_back_from_packet_to_packet(model, shapes, entropy):
    sender, receiver = (framecoder.PredictedFrames(model, len(shapes)) if entropy else framecoder.PackedFrames()
                        for _ in range(2))
    books = tuple(count for count, _ in shapes)
    for number in range(4):
        codes = [random_codes(4, *shape)[number] for shape in shapes]
        payload = sender.encode(codes, number % 3 == 0)
        found = receiver.decode(packet(number=number, num_frames=shapes[0][1], books=books, payload=payload,
                                       entropy_coded=entropy, is_key=number % 3 == 0))
        assert all(np.array_equal(*pair) for pair in zip(found, codes, strict=True))


def test_the_number_of_books_may_change_between_packets(model):
    sender, receiver = framecoder.PredictedFrames(model, 1), framecoder.PredictedFrames(model, 1)
    for number, count in enumerate((4, 2, 7, 1)):
        codes = random_codes(count, 2)
        sent = packet(num_frames=2, books=(count,), payload=sender.encode([codes], not number), is_key=not number)
        assert np.array_equal(receiver.decode(sent)[0], codes)


def test_a_key_packet_is_coded_as_a_segment_is(model):
    codes = random_codes(6, 5)
    whole, = RangeCoder(model).encode([Frames.whole(codes)])
    assert framecoder.PredictedFrames(model, 1).encode([codes], True) == whole


def test_what_is_undone_leaves_no_trace(model):
    codes = random_codes(3, 4, 2)
    once, twice = framecoder.PredictedFrames(model, 1), framecoder.PredictedFrames(model, 1)
    for number in range(3):
        twice.encode([codes[(number + 1) % 3, :2]], number == 0)
        twice.undo()
        assert once.encode([codes[number]], number == 0) == twice.encode([codes[number]], number == 0)


def test_more_frames_than_the_model_has_are_refused(model):
    receiver = framecoder.PredictedFrames(model, 1)
    with pytest.raises(FormatError):
        for _ in range(65):
            receiver.decode(packet(num_frames=8, is_key=False))
