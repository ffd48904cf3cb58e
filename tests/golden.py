"""Golden files: small .nac files, and the SHA-256 of the codes in them and of the samples that come of these.

    python tests/golden.py            # makes them anew, with the released weights; needed only when these change
    python tests/golden.py --check    # whether they come out the same here, by whatever the environment has set
"""
import hashlib
import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from audiocodec import audio, container
from audiocodec.codec import Codec, decode, encode
from audiocodec.rangecoder import Shape

FOLDER = Path(__file__).parent / "data"
HASHES = FOLDER / "golden.json"
_EXAMPLE = FOLDER.parent.parent / "examples" / "music.flac"


def codes_hash(data: bytes, codec: Codec) -> str:
    """The SHA-256 of a .nac file's codes (K, T), depths (T,) and levels (L, P), if it tells any, little-endian uint16.

    Segments and their channels in order.
    """
    digest = hashlib.sha256()
    reader = container.Reader(io.BytesIO(data))
    coder = codec.coder(reader.header.entropy_coded, reader.header.level_frames)
    for segment in reader:
        shapes = [Shape(count, segment.num_frames, reader.header.has_depths) for count in segment.books if count]
        for frames in coder.decode([payload for payload in segment.payloads if payload], shapes):
            digest.update(frames.codes.astype("<u2").tobytes())
            digest.update(frames.depths.astype("<u2").tobytes())
            if frames.levels is not None:
                digest.update(frames.levels.astype("<u2").tobytes())
    return digest.hexdigest()


def samples_hash(data: bytes) -> str:
    """The SHA-256 of the samples (C, N) that a .nac file decodes to, little-endian float32."""
    return hashlib.sha256(decode(data, device="cpu")[0].astype("<f4").tobytes()).hexdigest()


def hashes_of(name: str, codec: Codec) -> dict[str, str]:
    """What is kept of a golden file."""
    data = (FOLDER / name).read_bytes()
    return {"codes": codes_hash(data, codec), "samples": samples_hash(data)}


def check() -> None:
    """Exit with an error if a golden file comes out otherwise than it was."""
    codec = Codec.load(device="cpu")
    changed = [name for name, kept in json.loads(HASHES.read_text()).items() if hashes_of(name, codec) != kept]
    sys.exit(f"changed: {', '.join(changed)}" if changed else 0)


def make() -> None:
    samples, rate = audio.read(_EXAMPLE)
    codec, hashes = Codec.load(device="cpu"), {}
    for kbps, channels, entropy in itertools.product((1.5, 6, 24), (1, 2), (True, False)):
        seconds = 8 if kbps == 1.5 else 2                # the longest has two segments
        name = f"{kbps:g}-kbps-{'stereo' if channels == 2 else 'mono'}-{'entropy' if entropy else 'packed'}.nac"
        clip = samples[:, :seconds * rate] if channels == 2 else samples[:, :seconds * rate].mean(0, keepdims=True)
        data = encode(np.ascontiguousarray(clip), rate, kbps, cbr=kbps == 6, entropy=entropy)
        (FOLDER / name).write_bytes(data)
        hashes[name] = hashes_of(name, codec)
    HASHES.write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    check() if sys.argv[1:] == ["--check"] else make()
