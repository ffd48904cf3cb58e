"""Files made once keep decoding to the same codes and samples, whatever the CPU can do."""
import json
import os
import subprocess
import sys

import golden
import pytest
from golden import FOLDER, HASHES, hashes_of

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
def test_codes_and_samples_have_not_changed(name, codec):
    assert hashes_of(name, codec) == NAMES[name]


@pytest.mark.parametrize("settings", [
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_CBWR": "COMPATIBLE"},
    {"OMP_NUM_THREADS": "1"},
], ids=str)
def test_they_are_the_same_on_other_processors(settings):
    """The libraries are told to use the instructions of older CPUs, some of which cannot multiply bytes."""
    result = subprocess.run([sys.executable, golden.__file__, "--check"], env=os.environ | settings,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_audio_has_its_length(name):
    samples, rate = decode((FOLDER / name).read_bytes())
    seconds = 8 if name.startswith("1.5") else 2
    assert rate == 44_100 and samples.shape == (2 if "stereo" in name else 1, seconds * rate)
