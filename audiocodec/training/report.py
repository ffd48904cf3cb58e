"""How a run is doing, to look at: RUN/report.png, drawn from RUN/metrics.jsonl, and a TensorBoard log.

Both need packages of the extra "train", and do nothing without them.
"""
import functools
import json
import math
import os
import warnings
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_PLACE = {"stage", "updates", "total", "seconds", "hours", "time", "valid"}    # of a line; what else it has are curves
_TITLES = {
    "mel": "log-mel distance ↓", "si_sdr": "SI-SDR, dB ↑", "pesq": "PESQ-wb ↑",
    "perplexity": "perplexity of books ↑", "use": "entries in use ↑",
    "loudness": "loudness distance ↓", "spectrum": "spectrum distance ↓",
    "structure": "structure distance ↓", "waveform": "waveform distance ↓",
    "adversarial": "adversarial loss", "matching": "distance of features ↓", "critic": "critic's loss",
    "commitment": "commitment ↓",
    "bits": "entropy stage: bits per code ↓",
    "gradient": "gradient norm", "rate": "learning rate", "waiting": "time waiting for data",
}
_FIRST = "mel", "si_sdr", "pesq", "perplexity", "use"
_LAST = "bits", "gradient", "rate", "waiting"
_SHADES = "#e8f0fa", "#fdeee0", "#e9f5e6", "#f3e8f7"                      # of the stages, in turn
_SHARES = "use", "waiting"
_OF_ONE_BOOK = "perplexity", "use"
_FROM_ZERO = "perplexity", "use", "rate", "waiting"
_COLUMNS = 4
_LINE = "#27557f"
_RED = "#d62728"

Curve = dict[str, list[tuple[float, float]]]     # of one label: for each stage, (time, value)


# RUN/metrics.jsonl


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file in order, each with `hours`; lines that are torn or have no place are left out.

    A resumed run repeats what came after its last checkpoint: the later line counts.
    """
    kept: dict[tuple[int, int, bool], dict] = {}
    stages: list[str] = []
    last = (0, 0)
    for line in filter(None, map(_parse, path.read_bytes().splitlines())):
        if line["stage"] not in stages:
            stages.append(line["stage"])
        place = stages.index(line["stage"]), line["updates"]
        if place < last:
            kept = {key: value for key, value in kept.items() if key[:2] <= place}
        kept[*place, "valid" in line] = line
        last = place
    return _with_hours([kept[key] for key in sorted(kept)])


def _parse(text: bytes) -> dict | None:
    try:
        line = json.loads(text)
        return line if isinstance(line["stage"], str) and isinstance(line["updates"], int) else None
    except (ValueError, KeyError, TypeError):
        return None


def _with_hours(lines: list[dict]) -> list[dict]:
    """Fill in `hours` where a line tells only the seconds in its stage, or nothing."""
    stage, before, hours, timed = None, 0.0, 0.0, []
    for line in lines:
        if line["stage"] != stage:
            stage, before = line["stage"], hours
        hours = line.get("hours", before + line["seconds"] / 3600 if "seconds" in line else hours)
        timed.append(line | {"hours": hours})
    return timed


def _timed(lines: list[dict]) -> tuple[list[dict], str]:
    """Lines with their `time` in the unit that suits the run's length, and this unit."""
    per_hour, unit = (1, "hours") if not lines or lines[-1]["hours"] >= 2 else (60, "minutes")
    return [line | {"time": line["hours"] * per_hour} for line in lines], unit


def _curves(lines: list[dict]) -> dict[str, dict[str, Curve]]:
    """What to draw of timed lines: by panel and label, "8" of "mel@8", "training" or "validation"."""
    panels: dict[str, dict[str, Curve]] = {}
    for line in lines:
        for panel, label, value in _values(line):
            curve = panels.setdefault(panel, {}).setdefault(label, {})
            curve.setdefault(line["stage"], []).append((line["time"], float(value)))
    order = [*_FIRST, *(name for name in panels if name not in _FIRST + _LAST), *_LAST]
    return {name: panels[name] for name in order if name in panels}


def _values(line: dict) -> Iterator[tuple[str, str, float]]:
    for name, value in line.items():
        if name not in _PLACE and isinstance(value, (int, float)):
            yield name, "training", value
    for name, value in (line.get("valid") or {}).items():
        panel, _, label = name.partition("@")
        if name == "score":
            yield "mel", "mean", value
        elif name != "frames" and isinstance(value, (int, float)):
            yield panel, label or "validation", value


# RUN/report.png


def draw(run: Path) -> Path | None:
    """Draw RUN/report.png anew from RUN/metrics.jsonl; returns its path.

    None, with a warning, where matplotlib is missing or drawing failed; None where there is nothing to draw yet.
    """
    try:
        from matplotlib.figure import Figure     # takes a second, and no window: Agg draws it
    except ImportError:
        _hint()
        return None
    try:
        path = run / "metrics.jsonl"
        lines, unit = _timed(read_metrics(path) if path.exists() else [])
        panels = _curves(lines)
        if not panels:
            return None
        rows = -(-len(panels) // _COLUMNS)
        figure = Figure(figsize=(4.2 * _COLUMNS, 0.7 + 2.5 * rows), layout="constrained")
        _head(figure, run.resolve().name, lines, unit)
        _draw_panels(figure, panels, _stage_spans(lines), unit)
        target, partial = run / "report.png", run / "report.part"
        figure.savefig(partial, format="png", dpi=100)
        os.replace(partial, target)
        return target
    except Exception as error:                   # whatever it is, training is worth more than its picture
        warnings.warn(f"{run}: report.png was not drawn: {type(error).__name__}: {error}", stacklevel=2)
        return None


@functools.cache
def _hint() -> None:
    """Say once what is missing."""
    warnings.warn('report.png needs matplotlib: pip install "nac-audiocodec[train]"', stacklevel=3)


def _head(figure, name: str, lines: list[dict], unit: str) -> None:
    """Where the run stands, and which stage has which shade."""
    from matplotlib.patches import Patch

    last = lines[-1]
    total = f" ({last['total']:,} in all)" if last.get("total", last["updates"]) != last["updates"] else ""
    figure.suptitle(f"{name}: {last['stage']} stage, {last['updates']:,} updates{total}, {last['time']:.1f} {unit}",
                    x=0.01, ha="left", fontweight="bold", fontsize=12)
    patches = [Patch(facecolor=shade, edgecolor="#bbb", label=stage)
               for stage, shade in zip(_stage_spans(lines), cycle(_SHADES))]
    figure.legend(handles=patches, loc="outside upper right", ncols=len(patches), frameon=False, fontsize=10)


def _draw_panels(figure, panels: dict[str, dict[str, Curve]], spans: dict[str, tuple[float, float]],
                 unit: str) -> None:
    grid = list(figure.subplots(-(-len(panels) // _COLUMNS), _COLUMNS, squeeze=False).flat)
    for axes in grid[len(panels):]:
        axes.set_axis_off()
    for axes, (name, curves) in zip(grid, panels.items()):
        drawn = {stage for curve in curves.values() for stage in curve}
        # A panel spans the stages it has something to show of: the entropy stage would be a sliver of the whole.
        left, right = min(spans[stage][0] for stage in drawn), max(spans[stage][1] for stage in drawn)
        for span, shade in zip(spans.values(), cycle(_SHADES)):
            axes.axvspan(*span, color=shade, linewidth=0, zorder=0)
        if right > left:
            axes.set_xlim(left, right + 0.01 * (right - left))
        _draw_panel(axes, name, curves, unit)


def _stage_spans(lines: list[dict]) -> dict[str, tuple[float, float]]:
    """When each stage begins and ends."""
    spans, start = {}, 0.0
    for stage in dict.fromkeys(line["stage"] for line in lines):
        stop = max(line["time"] for line in lines if line["stage"] == stage)
        spans[stage] = start, stop
        start = stop
    return spans


def _draw_panel(axes, name: str, curves: dict[str, Curve], unit: str) -> None:
    counts = sorted((label for label in curves if label.isdecimal()), key=int)
    for i, label in enumerate(counts):
        words = label if i else f"book {label}" if name in _OF_ONE_BOOK else f"{label} books"
        _draw_scores(axes, curves[label], _rate_colour(i, len(counts)), words)
    if "mean" in curves:
        _draw_scores(axes, curves["mean"], "#222", "mean", linestyle="--")
        _mark_best(axes, curves["mean"], unit)
    if "training" in curves:
        _draw_training(axes, curves["training"])
    if "validation" in curves:
        _draw_scores(axes, curves["validation"], _RED, "validation")
    axes.grid(color="white", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(unit, fontsize=8, labelpad=1)
    _scale(axes, name, curves)
    axes.tick_params(labelsize=8, which="both")
    if len(curves) > 1:                          # in a row between title and curves, where it hides none
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=8, fontsize=7.5, frameon=False,
                    handlelength=1.4, columnspacing=1.0, borderpad=0.2)
    _title(axes, name, curves)


def _title(axes, name: str, curves: dict[str, Curve]) -> None:
    """The panel's name and the last value, or in red how many values are not finite."""
    place = {"fontsize": 9.5, "pad": 18 if len(curves) > 1 else 6}
    axes.set_title(("" if "training" in curves else "validation: ") + _TITLES.get(name, name), loc="left", **place)
    broken = sum(not math.isfinite(value) for curve in curves.values() for value in _values_of(curve))
    last = curves.get("mean") or curves.get("validation") or curves.get("training")
    if broken:
        axes.set_title(f"{broken} not finite!", loc="right", color=_RED, fontweight="bold", **place)
    elif last:
        digits = ".1%" if name in _SHARES else ".4g"
        axes.set_title(f"{_values_of(last)[-1]:{digits}}", loc="right", color="#555", **place)


def _draw_training(axes, curve: Curve) -> None:
    """Every line faintly, a moving mean on top; stages apart, for a loss may jump between them."""
    for points in curve.values():
        axes.plot(*zip(*points), color=_LINE, alpha=0.25, linewidth=0.8)
    for i, points in enumerate(curve.values()):
        axes.plot(*zip(*_smooth(points)), color=_LINE, linewidth=1.6, label=None if i else "training",
                  marker="" if len(points) > 1 else ".")


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each point's mean with its neighbours, about a twenty-fifth of all, what is not finite left out."""
    times, values = np.array(points).T
    finite = np.isfinite(values)
    sums = np.concatenate([[0], np.cumsum(np.where(finite, values, 0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    at, reach = np.arange(len(values)), len(values) // 50
    start, stop = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    with np.errstate(invalid="ignore"):
        means = (sums[stop] - sums[start]) / (counts[stop] - counts[start])
    return list(zip(times.tolist(), means.tolist()))


def _draw_scores(axes, curve: Curve, colour, label: str, linestyle: str = "-") -> None:
    points = [point for points in curve.values() for point in points]
    axes.plot(*zip(*points), color=colour, label=label, linestyle=linestyle, linewidth=1.4, marker=".",
              markersize=max(1, 5 - len(points) / 40))


def _mark_best(axes, curve: Curve, unit: str) -> None:
    points = [point for points in curve.values() for point in points if math.isfinite(point[1])]
    if points:
        time, score = min(points, key=lambda point: point[1])
        axes.plot([time], [score], marker="*", color=_RED, markersize=9, linestyle="", label=f"best, {time:.1f} {unit}")


def _rate_colour(index: int, count: int):
    """Light green for the first, dark blue for the last."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.85 - 0.75 * index / max(1, count - 1))


def _scale(axes, name: str, curves: dict[str, Curve]) -> None:
    """Limits that show the present: the first values, far from what follows, may leave the panel at its top."""
    from matplotlib.ticker import LogFormatter, PercentFormatter

    values = []
    for whole in map(_values_of, curves.values()):
        values += filter(math.isfinite, whole[len(whole) // 30:])
    if not values:
        return
    low, high = min(values), max(values)
    if name == "gradient" and low > 0:           # its outliers are the news
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(low / 1.3, high * 1.3)
        return
    if name in _SHARES:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        high = max(high, 0.05)
    low = min(low, 0) if name in _FROM_ZERO else low
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low if name in _FROM_ZERO else low - margin, high + margin)


def _values_of(curve: Curve) -> list[float]:
    return [value for points in curve.values() for _, value in points]


# TensorBoard


def open_board(run: Path, step: int = 0) -> "Board | NoBoard":
    """A log in RUN/tensorboard that begins, or goes on, after `step`; one that does nothing without tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return NoBoard()
    # What an interrupted run had drawn after its last checkpoint is drawn again.
    return Board(SummaryWriter(run / "tensorboard", purge_step=step + 1 if step else None))


class Board:
    """TensorBoard; steps are updates over all stages."""

    def __init__(self, writer):
        self.writer, self.has_reference = writer, False

    def scalars(self, values: dict, step: int) -> None:
        """Draw the numbers among `values`; "mel@8" becomes mel/8, so that the rates of a score lie side by side."""
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(name.replace("@", "/"), value, step)

    def codebooks(self, use: np.ndarray, perplexity: np.ndarray, step: int) -> None:
        """Draw use and perplexity (K,), see validation.codebook_use, of each book, their spread, and the least ones."""
        for name, values in (("use", use), ("perplexity", perplexity)):
            for number, value in enumerate(values, 1):
                self.writer.add_scalar(f"{name}_of_book/{number:02}", float(value), step)
            self.writer.add_histogram(f"codebooks/{name}", np.asarray(values), step)
            self.writer.add_scalar(f"codebooks/least_{name}", float(np.min(values)), step)

    def examples(self, reference: Tensor, decoded: dict[int, Tensor], step: int, sample_rate: int) -> None:
        """Play samples (B, N) beside what came back from so many books, and show their spectrograms.

        Each image has the reference on top, below it the decoded ones, from the most books to the fewest. A clip takes
        2 bytes for each sample and number of books, so this is for now and then.
        """
        for i, clip in enumerate(reference):
            made = {books: decoded[books][i] for books in sorted(decoded, reverse=True)}
            if not self.has_reference:
                self.writer.add_audio(f"clip_{i + 1}/reference", clip[None].clamp(-1, 1), step, sample_rate)
            for books, samples in made.items():
                self.writer.add_audio(f"clip_{i + 1}/{books:02}_books", samples[None].clamp(-1, 1), step, sample_rate)
            names = "_".join(["reference", *map(str, made)])
            image = torch.cat([_spectrogram(samples) for samples in (clip, *made.values())], dim=1)
            self.writer.add_image(f"spectrograms_{i + 1}/{names}", image, step)
        self.has_reference = True
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class NoBoard:
    """In place of Board where tensorboard is not installed."""

    def scalars(self, values: dict, step: int) -> None:
        pass

    def codebooks(self, use: np.ndarray, perplexity: np.ndarray, step: int) -> None:
        pass

    def examples(self, reference: Tensor, decoded: dict[int, Tensor], step: int, sample_rate: int) -> None:
        pass

    def close(self) -> None:
        pass


# Black, violet, red, orange, pale yellow: grows evenly in brightness.
_FLAMES = torch.tensor([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]]) / 255


def _spectrogram(samples: Tensor) -> Tensor:
    """Samples (N,) -> image (3, 257, frames), low frequencies below; from 100 dB under full scale to full scale."""
    samples = samples.float().cpu()
    spectrum = torch.stft(samples, 512, 256, window=torch.hann_window(512), pad_mode="constant", return_complex=True)
    level = 20 * torch.log10(spectrum.abs() / 128 + 1e-5)                # a full-scale sine is about 0 dB
    at = ((level.flip(0) / 100 + 1).clamp(0, 1) * (len(_FLAMES) - 1)).nan_to_num()
    below = at.long().clamp(max=len(_FLAMES) - 2)
    share = (at - below)[..., None]
    return (_FLAMES[below] * (1 - share) + _FLAMES[below + 1] * share).permute(2, 0, 1)
