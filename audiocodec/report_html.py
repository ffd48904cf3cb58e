"""The results of `nac eval` as one HTML file that needs nothing else: sounds and pictures are inside."""

import base64
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from audiocodec import plots
from audiocodec.peers import SAMPLE_RATE
from audiocodec.scores import METRICS, Row, nearest_pairs

_TEMPLATE = Path(__file__).parent / "report.html"
_MOST_BYTES = 20_000_000  # of sounds and pictures, before base64 makes a third more of them


@dataclass(frozen=True)
class Sound:
    """One version of a clip."""

    name: str
    samples: np.ndarray  # float32 (N,) at SAMPLE_RATE
    scores: Row | None  # None for the reference


@dataclass(frozen=True)
class Played:
    """A clip, the reference first."""

    name: str
    kind: str
    sounds: list[Sound]


def render(summary: list[Row], comparisons: list[Row], clips: list[Played], curves: bytes | None) -> str:
    """The page. Clips are left out from the last on until it stays under 30 MB or so.

    summary and comparisons: rows of scores.summarise and scores.compare. curves: a PNG, if there is one.
    """
    used, shown = len(curves or b""), []
    for clip in sorted(clips, key=_turn(clips)):
        described, size = _describe(clip)
        if used + size > _MOST_BYTES:
            break
        used += size
        shown.append((clips.index(clip), described))
    data = {
        "metrics": [{"name": name, "title": metric.title, "digits": metric.digits, "lower": metric.is_distance}
                    for name, metric in METRICS.items() if any(name in line for line in summary)],
        "summary": [_plain(line) for line in summary],
        "comparisons": [_plain(line) for line in comparisons],
        "nearest": _first_pair(summary),
        "clips": [described for _, described in sorted(shown, key=lambda pair: pair[0])],
        "curves": _data_url(curves, "image/png"),
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")  # so no name ends the script
    return _TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", text)


def _first_pair(summary: list[Row]) -> list[str]:
    """The pair of codecs that is compared first: in the middle of those that are near in rate."""
    pairs = nearest_pairs(summary)
    return list(pairs[(len(pairs) - 1) // 2]) if pairs else []


def _turn(clips: list[Played]):
    """A sort key by which kinds take turns, so that none is left out alone."""
    turns, seen = {}, {}
    for clip in clips:
        turns[id(clip)] = seen[clip.kind] = seen.get(clip.kind, -1) + 1
    return lambda clip: turns[id(clip)]


def _describe(clip: Played) -> tuple[dict, int]:
    """A clip for the page's script, and the bytes of what it holds."""
    sounds, size = [], 0
    for sound in clip.sounds:
        audio, picture = _flac(sound.samples), plots.spectrogram(sound.samples, SAMPLE_RATE)
        size += len(audio) + len(picture or b"")
        sounds.append({"name": sound.name, "scores": _plain(sound.scores or {}),
                       "audio": _data_url(audio, "audio/flac"), "picture": _data_url(picture, "image/png")})
    seconds = len(clip.sounds[0].samples) / SAMPLE_RATE
    return {"name": clip.name, "kind": clip.kind, "seconds": seconds, "sounds": sounds}, size


def _flac(samples: np.ndarray) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, np.clip(samples, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return target.getvalue()


def _data_url(data: bytes | None, kind: str) -> str | None:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}" if data else None


def _plain(row: Row) -> dict:
    """A row for JSON, which has no nan and no infinity."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()}
