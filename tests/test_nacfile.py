"""audiocodec.open: reading at any place, against the whole decode."""
import numpy as np
import pytest

import audiocodec
from audiocodec import codec, container, info
from audiocodec.errors import FormatError, NacError

RATE = 24_000
SEGMENT = 512 * 320


def _write(path, seconds: int, rate: int = RATE, channels: int = 1) -> None:
    """A file of random codes, one book, without being encoded."""
    identity = codec.Codec.load(device="cpu").weights.identity
    frames = -(-seconds * RATE // 320) + 1
    rng = np.random.default_rng(seconds)
    header = container.Header(channels, rate, seconds * rate, identity, 1, entropy_coded=False)
    sizes = [512] * (frames // 512) + [frames % 512] * bool(frames % 512)
    segments = [container.Segment(size, (1,) * channels, tuple(
        np.packbits(np.pad(rng.integers(0, 2, size * 10), (0, -size * 10 % 8)).astype(np.uint8)).tobytes()
        for _ in range(channels))) for size in sizes]
    path.write_bytes(container.pack(header, (("TITLE", "Noise"),), segments, seconds * rate))


@pytest.fixture(scope="module", params=[(RATE, 1), (44_100, 2)])
def coded(request, tmp_path_factory):
    """A path, its rate, and its whole decode: 50 s."""
    rate, channels = request.param
    path = tmp_path_factory.mktemp("coded") / "a.nac"
    _write(path, 50, rate, channels)
    return path, rate, codec.decode(path.read_bytes())[0]


def test_facts(coded):
    path, rate, whole = coded
    with audiocodec.open(path) as file:
        assert (file.channels, file.num_samples) == whole.shape and file.sample_rate == rate
        assert file.info == info.describe_file(path)
        assert file.info["tags"] == {"TITLE": ["Noise"]} and file.info["model"] == "nac-24k"


def test_reads_are_exact(coded):
    path, rate, whole = coded
    rng = np.random.default_rng(0)
    with audiocodec.open(path) as file:
        for start, frames in [(0, 10), (10, 5), (15, rate), (0, 1), *rng.integers(0, 30 * rate, (4, 2)).tolist()]:
            samples = file.read(start, frames)
            assert samples.dtype == np.float32 and np.array_equal(samples, whole[:, start:start + frames])
            assert file.tell() == min(start + frames, whole.shape[1])


def test_reading_on(coded):
    path, rate, whole = coded
    with audiocodec.open(path) as file:
        file.seek(-12 * rate)
        assert file.tell() == 38 * rate
        pieces = [file.read(frames=7000), file.read(frames=3), file.read(frames=0), file.read()]
        assert np.array_equal(np.concatenate(pieces, 1), whole[:, 38 * rate:])
        assert [piece.shape[1] for piece in pieces[:3]] == [7000, 3, 0]
        assert file.read().shape == (len(whole), 0)


def test_blocks(coded):
    path, rate, whole = coded
    with audiocodec.open(path) as file:
        assert np.array_equal(np.concatenate([*file], 1), whole)
        file.seek(5)
        blocks = [*file.blocks(rate)]
    assert {block.shape[1] for block in blocks[:-1]} == {rate}
    assert np.array_equal(np.concatenate(blocks, 1), whole[:, 5:])


class _Counting:
    """A file that counts the bytes that are read of it."""

    def __init__(self, file):
        self._file, self.count = file, 0

    def __getattr__(self, name):
        return getattr(self._file, name)

    def read(self, size):
        data = self._file.read(size)
        self.count += len(data)
        return data


def test_what_is_read_does_not_grow_with_the_file(tmp_path):
    counts = {}
    for seconds in (60, 3600):
        _write(tmp_path / "a.nac", seconds)
        with audiocodec.open(tmp_path / "a.nac") as file:
            file._reader._file = counting = _Counting(file._file)
            for start in (0, 20, seconds - 11):
                counting.count = 0
                file.read(start * RATE, RATE)
                counts[seconds, start] = counting.count
    assert max(counts.values()) < 3 * 700                      # bytes: two segments and what is around them
    assert abs(counts[60, 20] - counts[3600, 20]) < 3


def test_errors(tmp_path, coded):
    path, rate, whole = coded
    with pytest.raises(NacError, match="no such file"):
        audiocodec.open(tmp_path / "none.nac")
    (tmp_path / "cut.nac").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError):
        audiocodec.open(tmp_path / "cut.nac")
    with audiocodec.open(path) as file:
        for sample in (whole.shape[1] + 1, -whole.shape[1] - 1):
            with pytest.raises(NacError, match="sample"):
                file.seek(sample)
        with pytest.raises(NacError, match="-2 samples"):
            file.read(0, -2)


def test_damage_is_met_where_it_is(tmp_path):
    _write(tmp_path / "a.nac", 50)
    whole, _ = codec.decode((tmp_path / "a.nac").read_bytes())
    data = bytearray((tmp_path / "a.nac").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.nac").write_bytes(data)
    with audiocodec.open(tmp_path / "a.nac") as file:
        for _ in range(2):
            assert np.array_equal(file.read(0, RATE), whole[:, :RATE])
            with pytest.raises(FormatError):
                file.read(20 * RATE)
        assert np.array_equal(file.read(-RATE), whole[:, -RATE:])
