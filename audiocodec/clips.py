"""Clips of a folder of recordings, for `nac eval`: a few seconds of each, always the same ones."""

import hashlib
import random
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import click
import numpy as np
import soundfile

from audiocodec import audio, metrics
from audiocodec.peers import SAMPLE_RATE

KINDS = ("speech", "music", "sfx")  # names of folders that say what is in them
MIN_SECONDS, MAX_SECONDS = 8, 12
_PIECE = 10  # seconds taken of a long file at once
_MIDDLE, *_QUARTERS = 1 / 2, 1 / 4, 3 / 4  # of a long file, where pieces are taken
_SILENCE = 1e-3  # RMS under which a clip is left out: 60 dB under full scale
_ENDINGS = {".wav", ".flac", ".ogg", ".opus", ".mp3"}


@dataclass(frozen=True)
class Clip:
    """A piece of a reference recording."""

    name: str
    kind: str  # one of KINDS, or "other"
    samples: np.ndarray  # float32 (N,) at SAMPLE_RATE

    @cached_property
    def identity(self) -> str:
        """The start of the SHA-256 of its samples."""
        return hashlib.sha256(self.samples.tobytes()).hexdigest()[:12]


@dataclass(frozen=True)
class _Plan:
    """Where a clip comes from: several short files, or around one place, a share of the length, of a long one."""

    paths: tuple[Path, ...]
    place: float = _MIDDLE

    @property
    def name(self) -> str:
        where = "" if self.place == _MIDDLE else f", {self.place:.0%} in"
        return f"{self.paths[0].parent.name}/{self.paths[0].stem}{where}"

    def load(self) -> np.ndarray:
        """Samples (N,) at SAMPLE_RATE, mono."""
        parts = [_load_piece(path, self.place) for path in self.paths]
        return np.concatenate(parts)[:MAX_SECONDS * SAMPLE_RATE]


def choose_clips(folder: Path, kind: str, count: int, but: Path | None = None) -> list[Clip]:
    """Up to `count` clips of 8 to 12 s from the files of one kind in a tree, the same ones every time.

    A file's kind is its nearest folder's whose name is in KINDS, else "other". Files under 8 s are joined with others
    of their folder; of longer ones 10 s are taken from the middle, and when a folder has nothing else, of those over
    40 s also around the first and the third quarter. Folders take turns, and near-silent clips are passed over.
    but: a folder to leave out.
    """
    groups: dict[Path, list[Path]] = {}
    for path in sorted(folder.resolve().rglob("*")):
        is_left_out = but is not None and path.is_relative_to(but.resolve())
        if path.suffix.lower() in _ENDINGS and _kind(path) == kind and path.is_file() and not is_left_out:
            groups.setdefault(path.parent, []).append(path)
    clips = []
    for plan in (plan for plans in zip_longest(*map(_plan, groups.values())) for plan in plans if plan):
        if len(clips) == count:
            break
        samples = plan.load()
        if len(samples) >= MIN_SECONDS * SAMPLE_RATE and np.sqrt(np.mean(np.square(samples))) >= _SILENCE:
            clips.append(Clip(plan.name, kind, samples))
    return clips


def _kind(path: Path) -> str:
    return next((name for name in reversed(path.parent.parts) if name in KINDS), "other")


def _plan(paths: list[Path]) -> list[_Plan]:
    """The files of one folder -> its clips, in an order that mixes the folder's files."""
    plans, lengths, short, total = [], {}, [], 0.0
    for path in paths:
        try:
            seconds = lengths[path] = soundfile.info(path).duration
        except soundfile.LibsndfileError as error:
            _skip(path, error)
            continue
        if seconds >= MIN_SECONDS:
            plans.append(_Plan((path,)))
            continue
        short.append(path)
        total += seconds
        if total >= MIN_SECONDS:
            plans.append(_Plan(tuple(short)))
            short, total = [], 0.0
    random.Random(0).shuffle(plans)
    return plans + [_Plan(plan.paths, place) for place in _QUARTERS for plan in plans
                    if lengths[plan.paths[0]] >= 4 * _PIECE]


def _skip(path: Path, error: soundfile.LibsndfileError) -> None:
    click.echo(f"nac: {path}: left out: {audio.reason(error)}", err=True)


def _load_piece(path: Path, place: float) -> np.ndarray:
    """Samples (N,) at SAMPLE_RATE, mono; none of a file that turns out to be damaged."""
    try:
        with soundfile.SoundFile(path) as file:
            wanted = min(file.frames, round(_PIECE * file.samplerate))
            file.seek(int(min(max(0, file.frames * place - wanted / 2), file.frames - wanted)))
            samples = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
            return metrics.resample(samples, file.samplerate, SAMPLE_RATE)
    except soundfile.LibsndfileError as error:
        _skip(path, error)
        return np.zeros(0, np.float32)
