"""Rows of scores: the table of metrics, a cache of rows, their summary, and comparisons of codecs on the same clips."""

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiocodec import metrics

Row = dict[str, str | float]  # clip, kind, codec, kbps, then one score for each metric that applies

_DRAWS = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Metric:
    """A column of the table."""

    title: str
    digits: int
    scores: dict[str, Callable[[np.ndarray, np.ndarray, int], float]]  # by kind of clip; "": all others
    is_distance: bool = False  # so that less is better


METRICS = {
    "mel": Metric("log-mel distance", 3, {"": metrics.log_mel_distance}, is_distance=True),
    "si_sdr": Metric("SI-SDR, dB", 1, {"": metrics.si_sdr}),
    "pesq": Metric("PESQ-wb", 2, {"speech": metrics.pesq_wb}),
    "stoi": Metric("STOI", 3, {"speech": metrics.stoi}),
    "visqol": Metric("ViSQOL", 2, {"speech": metrics.visqol_speech, "": metrics.visqol_audio}),
}
_COLUMNS = ("clip", "kind", "codec", "kbps", *METRICS, "clip_id", "identity")


class Cache:
    """Rows in a CSV file, found again by clip, codec and the identities of both: a run goes on where one stopped."""

    def __init__(self, path: Path):
        self._path = path
        self._rows: dict[tuple, Row] = {}
        if path.exists():
            with open(path, newline="") as file:
                for row in csv.DictReader(file):
                    if row["identity"] is not None:  # the last column, which an interrupted line lacks
                        self._remember(_parsed(row))
        write_csv(path, self._rows.values(), _COLUMNS)

    def find(self, clip_id: str, kind: str, codec: str, identity: str) -> Row | None:
        return self._rows.get((clip_id, kind, codec, identity))

    def add(self, rows: Iterable[Row]) -> None:
        """Keep rows, in the file at once."""
        with open(self._path, "a", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            for row in rows:
                self._remember(row)
                writer.writerow(self._rows[_key(row)])

    def _remember(self, row: Row) -> None:
        self._rows[_key(row)] = self._rows.get(_key(row), {}) | row


def _key(row: Row) -> tuple:
    return row["clip_id"], row["kind"], row["codec"], row["identity"]


def _parsed(row: dict[str, str]) -> Row:
    """A row of a CSV file; scores that it lacks stay out, those that do not apply are nan."""
    texts = ("clip", "kind", "codec", "clip_id", "identity")
    return {name: text if name in texts else float(text) for name, text in row.items() if text or name in texts}


def write_csv(path: Path, rows: Iterable[Row], columns: Iterable[str]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


# Means


def summarise(rows: list[Row]) -> list[Row]:
    """One row for each kind and codec: kind, codec, clips, and of each number the mean and 95 % interval.

    A score `x` becomes `x` and `x_interval`, half the interval's width (normal approximation, over clips).
    nan, a score that does not apply, is left out.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["codec"]), []).append(row)
    summary = []
    for (kind, codec), members in groups.items():
        line: Row = {"kind": kind, "codec": codec, "clips": len(members)}
        for name in ("kbps", *(name for name in METRICS if name in members[0])):
            values = np.array([member[name] for member in members], float)
            values = values[~np.isnan(values)]
            line[name] = float(values.mean()) if len(values) else math.nan
            spread = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            line[f"{name}_interval"] = float(1.96 * spread)
        summary.append(line)
    return summary


def markdown(summary: list[Row]) -> str:
    """The lines of `summarise` as a table: mean ± 95 % interval."""
    names = [name for name in METRICS if any(name in line for line in summary)]
    head = ["kind", "codec", "clips", "kbps", *(METRICS[name].title for name in names)]
    table = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for line in summary:
        scores = [_cell(line[name], line[f"{name}_interval"], METRICS[name].digits) for name in names]
        table.append([line["kind"], line["codec"], str(line["clips"]), f"{line['kbps']:.2f}", *scores])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _cell(mean: float, interval: float, digits: int) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.{digits}f}" if math.isnan(interval) else f"{mean:.{digits}f} ± {interval:.{digits}f}"


# Comparisons


def compare(rows: list[Row], pairs: Iterable[tuple[str, str]]) -> list[Row]:
    """Paired bootstrap over the clips that both codecs of a pair have: one row for each kind, pair and score.

    Rows: kind, first, second, metric, clips, difference (the mean of first - second), low and high, the ends of its
    95 % interval, nan for a single clip. Clips are drawn anew 10,000 times, the same ones for both codecs, always from
    the same seed. Scores that are not finite are left out.
    """
    by_codec: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        by_codec.setdefault((row["kind"], row["codec"]), {})[row["clip_id"]] = row
    found = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for first, second in pairs:
            ours, theirs = by_codec.get((kind, first), {}), by_codec.get((kind, second), {})
            shared = [clip for clip in ours if clip in theirs]
            for name in METRICS:
                values = np.array([ours[clip].get(name, math.nan) - theirs[clip].get(name, math.nan)
                                   for clip in shared])
                values = values[np.isfinite(values)]
                if len(values):
                    low, high = _bootstrap(values)
                    found.append({"kind": kind, "first": first, "second": second, "metric": name,
                                  "clips": len(values), "difference": float(values.mean()), "low": low, "high": high})
    return found


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of values (N,)."""
    if len(values) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(0, len(values), (_DRAWS, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return float(low), float(high)


def nearest_pairs(summary: list[Row]) -> list[tuple[str, str]]:
    """Each other codec with the nac before it whose true rate, over all kinds, is the nearest in ratio.

    Without other codecs, each nac with the one after it.
    """
    rates: dict[str, list[float]] = {}
    for line in summary:
        rates.setdefault(line["codec"], []).append(math.log(max(line["kbps"], 1e-3)))
    mean = {codec: float(np.mean(values)) for codec, values in rates.items()}
    ours = [codec for codec in mean if codec.startswith("nac ")]
    others = [codec for codec in mean if codec not in ours]
    if not others:
        return list(zip(ours, ours[1:]))
    return [(min(ours, key=lambda codec: abs(mean[codec] - mean[other])), other) for other in others if ours]


def comparison_table(comparisons: list[Row]) -> str:
    """The rows of `compare` as a table, one line for each kind and pair."""
    names = [name for name in METRICS if any(row["metric"] == name for row in comparisons)]
    lines: dict[tuple, dict[str, str]] = {}
    for row in comparisons:
        digits = METRICS[row["metric"]].digits
        cell = f"{row['difference']:+.{digits}f}"
        if not math.isnan(row["low"]):
            cell += f" ({row['low']:+.{digits}f} to {row['high']:+.{digits}f})"
        lines.setdefault((row["kind"], row["first"], row["second"]), {})[row["metric"]] = cell
    head = ["kind", "difference", *(METRICS[name].title for name in names)]
    table = [head, ["---", "---", *["---:"] * len(names)]]
    for (kind, first, second), cells in lines.items():
        table.append([kind, f"{first} - {second}", *(cells.get(name, "") for name in names)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)
