"""Files made once keep decoding to the same codes."""
import json

import pytest
from golden import FOLDER, HASHES, codes_hash

from audiocodec.codec import Codec, decode

NAMES = json.loads(HASHES.read_text()) if HASHES.exists() else {}


@pytest.fixture(scope="module")
def codec():
    return Codec.load(device="cpu")


def test_there_are_files_of_every_sort():
    assert len(NAMES) >= 6
    for word in ("1.5-kbps", "6-kbps", "24-kbps", "mono", "stereo", "entropy", "packed"):
        assert any(word in name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_codes_have_not_changed(name, codec):
    assert codes_hash((FOLDER / name).read_bytes(), codec) == NAMES[name]


@pytest.mark.parametrize("name", NAMES)
def test_audio_has_its_length(name):
    samples, rate = decode((FOLDER / name).read_bytes())
    seconds = 8 if name.startswith("1.5") else 2
    assert rate == 44_100 and samples.shape == (2 if "stereo" in name else 1, seconds * rate)
