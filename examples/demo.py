"""Encode the example clips at 6 kbps, decode them, and print sizes, true rate, speed and scores.

The results stay in the folder demo/, to be listened to.
"""

import time
from pathlib import Path

import numpy as np

from audiocodec import audio, codec, metrics

EXAMPLES = Path(__file__).parent
OUTPUT = EXAMPLES.parent / "demo"
KBPS = 6
ROW = "{:<8} {:>9} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9}"


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    codec.decode(codec.encode(np.zeros((1, 24_000), np.float32), 24_000))     # load the weights before timing
    print(ROW.format("", "original", "nac", "true", "encoding", "decoding", "SI-SDR", "log-mel"))
    print(ROW.format("clip", "bytes", "bytes", "kbps", "x real t.", "x real t.", "dB", "distance"))
    for source in sorted(EXAMPLES.glob("*.flac")):
        print(ROW.format(*measure(source)))
    print(f"\nListen to examples/*.flac and demo/*.wav (at {KBPS} kbps).")


def measure(source: Path) -> tuple[str, ...]:
    """Take one clip there and back; return a row of the table."""
    small, restored = OUTPUT / f"{source.stem}.nac", OUTPUT / f"{source.stem}.wav"
    start = time.perf_counter()
    result = codec.encode_file(source, small, kbps=KBPS, force=True)
    middle = time.perf_counter()
    codec.decode_file(small, restored, subtype=None, force=True)
    end = time.perf_counter()
    original, rate = audio.read(source)
    decoded, _ = audio.read(restored)
    return (
        source.stem, f"{source.stat().st_size:,}", f"{result.num_bytes:,}", f"{result.kbps:.2f}",
        f"{result.seconds / (middle - start):.1f}", f"{result.seconds / (end - middle):.1f}",
        f"{mean_score(metrics.si_sdr, original, decoded, rate):.2f}",
        f"{mean_score(metrics.log_mel_distance, original, decoded, rate):.3f}",
    )


def mean_score(score, original: np.ndarray, decoded: np.ndarray, rate: int) -> float:
    """Average a score over the channels of (C, N)."""
    return float(np.mean([score(*pair, rate) for pair in zip(original, decoded)]))


if __name__ == "__main__":
    main()
