"""Run codecs over clips, score what comes back, and sum it up: the room behind `nac eval`."""

import hashlib
import math
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile

from audiocodec import metrics, peers, plots, report_html, scores
from audiocodec.clips import Clip
from audiocodec.errors import NacError
from audiocodec.peers import SAMPLE_RATE, Codec
from audiocodec.scores import METRICS, Row

_HEARD = 3  # clips of each kind that the report plays


# Scores


@dataclass(frozen=True)
class Results:
    """What `nac eval` found: rows of each clip and codec, their means, and comparisons of pairs of codecs."""

    rows: list[Row]
    summary: list[Row]
    comparisons: list[Row]

    def text(self) -> str:
        """Two tables in Markdown: means, and differences of the pairs nearest in rate."""
        pairs = scores.nearest_pairs(self.summary)
        near = [row for row in self.comparisons if (row["first"], row["second"]) in pairs]
        tables = [scores.markdown(self.summary)]
        if near:
            tables.append("Differences on the same clips, with 95 % intervals (paired bootstrap):")
            tables.append(scores.comparison_table(near))
        return "\n\n".join(tables)


def choose_metrics(wanted: list[str] | None, kinds: set[str], hint: Callable[[str], None]) -> list[str]:
    """The metrics asked for, or all, that can be computed here of these kinds of clips; hint hears of the others.

    Raises NacError where one that was asked for needs a package.
    """
    names = []
    for name in wanted or METRICS:
        if not {"", *kinds} & METRICS[name].scores.keys():
            hint(f"{METRICS[name].title} is left out; it is for {' and '.join(METRICS[name].scores)}, which is told by "
                 "a folder of that name")
            continue
        package = metrics.missing_package(name)
        if package and wanted:
            raise NacError(f"{METRICS[name].title} needs a package: pip install '{package}'")
        if package:
            hint(f"{METRICS[name].title} is left out; it needs a package: pip install '{package}'")
        else:
            names.append(name)
    return names


def choose_codecs(kbps: list[float], codebooks: list[int], others: list[tuple[str, float]], model: str,
                  best: bool = False) -> list[Codec]:
    """nac at every rate and count of codebooks, then its peers. Raises NacError, and ModelError.

    best: besides, nac with a longer search at every rate.
    """
    return ([peers.nac(rate, model) for rate in kbps] + [peers.nac(rate, model, best=True) for rate in kbps if best]
            + [peers.nac_books(count, model) for count in codebooks]
            + [peers.PEERS[name](rate) for name, rate in others])


def run(clips: list[Clip], codecs: list[Codec], names: list[str], *, jobs: int = 1, out: Path | None = None,
        progress: Callable[[Iterator[Row]], Iterator[Row]] = iter, hint: Callable[[str], None] = print) -> Results:
    """Score clips, and keep everything in the folder `out`: rows, tables, curves, and the report.

    Rows that scores.csv there has already are not computed again. progress: wraps the iterator of rows.
    hint: hears what is left out.
    """
    cache = None
    if out:
        out.mkdir(parents=True, exist_ok=True)
        cache = scores.Cache(out / "scores.csv")
    heard = _heard(clips)
    rows = list(progress(score_clips(clips, codecs, names, jobs, cache, out and _Shelf(out / "audio", heard))))
    summary = scores.summarise(rows)
    codec_names = [codec.name for codec in codecs]
    pairs = [(a, b) for at, a in enumerate(codec_names) for b in codec_names[at + 1:]]
    results = Results(rows, summary, scores.compare(rows, pairs))
    if out:
        _write_tables(results, out)
        curves = plots.rate_curves(summary, names)
        if curves:
            (out / "curves.png").write_bytes(curves)
        else:
            hint("curves and spectrograms are left out; they need a package: pip install matplotlib")
        shelf = _Shelf(out / "audio", heard)
        played = [_played(clip, codecs, rows, shelf) for clip in clips if clip.identity in heard]
        (out / "report.html").write_text(
            report_html.render(summary, results.comparisons, played, curves), encoding="utf-8")
    return results


def _played(clip: Clip, codecs: list[Codec], rows: list[Row], shelf: "_Shelf") -> report_html.Played:
    """A clip with what every codec made of it, as the report plays and shows it."""
    sounds = [report_html.Sound("reference", clip.samples, None)]
    for codec in codecs:
        row = next(row for row in rows if (row["clip_id"], row["codec"]) == (clip.identity, codec.name))
        samples, _ = soundfile.read(shelf.path(clip, codec), dtype="float32")
        sounds.append(report_html.Sound(codec.name, samples, row))
    return report_html.Played(clip.name, clip.kind, sounds)


def _write_tables(results: Results, out: Path) -> None:
    (out / "summary.md").write_text(results.text() + "\n")
    scores.write_csv(out / "summary.csv", results.summary, results.summary[0])
    if results.comparisons:
        scores.write_csv(out / "comparisons.csv", results.comparisons, results.comparisons[0])


def _heard(clips: list[Clip]) -> set[str]:
    """The identities of the clips that the report plays."""
    return {clip.identity for kind in {clip.kind for clip in clips}
            for clip in [clip for clip in clips if clip.kind == kind][:_HEARD]}


@dataclass(frozen=True)
class _Shelf:
    """Where decoded samples are kept for the report, of some clips."""

    folder: Path
    heard: set[str]  # identities of clips

    def path(self, clip: Clip, codec: Codec) -> Path | None:
        """The file of what a codec made of a clip, or None for a clip that is not heard."""
        if clip.identity not in self.heard:
            return None
        codec_id = hashlib.sha256(f"{codec.name} {codec.identity}".encode()).hexdigest()[:12]
        return self.folder / f"{clip.identity}-{codec_id}.flac"


def score_clips(clips: list[Clip], codecs: list[Codec], names: list[str], jobs: int = 1,
                cache: scores.Cache | None = None, shelf: _Shelf | None = None) -> Iterator[Row]:
    """Yield one row for each clip and codec, in order; names are keys of METRICS.

    With jobs > 1, so many processes share the work. What the cache has is taken from there, and new rows go into it.
    """
    tasks = [(clip, codec) for clip in clips for codec in codecs]
    known = [_cached(clip, codec, names, cache, shelf) for clip, codec in tasks]
    made = _score_all([task for task, row in zip(tasks, known) if row is None], names, jobs, shelf)
    for row in known:
        if row is None:
            row = next(made)
            if cache:
                cache.add([row])
        yield row


def _cached(clip: Clip, codec: Codec, names: list[str], cache: scores.Cache | None, shelf: _Shelf | None) -> Row | None:
    row = cache.find(clip.identity, clip.kind, codec.name, codec.identity) if cache else None
    path = shelf.path(clip, codec) if shelf else None
    if row is None or not all(name in row for name in names) or path and not path.exists():
        return None
    about = {name: row[name] for name in ("kind", "codec", "kbps", *names, "clip_id", "identity")}
    return {"clip": clip.name} | about


def _score_all(tasks: list[tuple[Clip, Codec]], names: list[str], jobs: int, shelf: _Shelf | None) -> Iterator[Row]:
    score = partial(_score, names, shelf)
    if jobs == 1:
        yield from map(score, tasks)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the workers; processes are the better threads here
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_the_parent)
    try:
        yield from pool.map(score, tasks)
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _score(names: list[str], shelf: _Shelf | None, task: tuple[Clip, Codec]) -> Row:
    clip, codec = task
    data = codec.encode(clip.samples)
    decoded = _fit(codec.decode(data), len(clip.samples))
    row: Row = {"clip": clip.name, "kind": clip.kind, "codec": codec.name}
    row["kbps"] = len(data) * 8 / 1000 / (len(clip.samples) / SAMPLE_RATE)
    for name in names:
        score = METRICS[name].scores.get(clip.kind) or METRICS[name].scores.get("")
        row[name] = score(clip.samples, decoded, SAMPLE_RATE) if score else math.nan
    if path := shelf.path(clip, codec) if shelf else None:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, decoded, SAMPLE_RATE, subtype="PCM_16")
    return row | {"clip_id": clip.identity, "identity": codec.identity}


def _fit(samples: np.ndarray, length: int) -> np.ndarray:
    """Cut off, or fill up with silence, what a codec got wrong about the length."""
    return np.pad(samples[:length], (0, max(0, length - len(samples)))).astype(np.float32)
