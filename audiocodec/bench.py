"""Run codecs over clips of a folder of recordings, score what comes back, and sum it up.

    python -m audiocodec.bench corpus/valid --kbps 1.5,3,6,12,24 --peers opus:6,12 --clips 40 --csv scores.csv
"""

import csv
import math
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import soundfile
from tqdm import tqdm

from audiocodec import metrics
from audiocodec.errors import NacError

SAMPLE_RATE = 24_000  # Hz, of all clips
KINDS = ("speech", "music", "sfx")  # names of folders that say what is in them
MIN_SECONDS, MAX_SECONDS = 8, 12
_SILENCE = 1e-3  # RMS under which a clip is left out: 60 dB under full scale
_ENDINGS = {".wav", ".flac", ".ogg", ".opus", ".mp3"}

Row = dict[str, str | float]  # clip, kind, codec, kbps, then one score for each metric that applies


@dataclass(frozen=True)
class Clip:
    """A piece of a reference recording."""

    name: str
    kind: str  # one of KINDS, or "other"
    samples: np.ndarray  # float32 (N,) at SAMPLE_RATE


@dataclass(frozen=True)
class Codec:
    """A codec at one rate: both directions as plain functions, which worker processes can be sent."""

    name: str
    encode: Callable[[np.ndarray], bytes]  # samples float32 (N,) at SAMPLE_RATE
    decode: Callable[[bytes], np.ndarray]  # samples float32 (N,) again, of the same length


@dataclass(frozen=True)
class Metric:
    """A column of the table."""

    title: str
    digits: int
    scores: dict[str, Callable[[np.ndarray, np.ndarray, int], float]]  # by kind of clip; "": all others


METRICS = {
    "mel": Metric("log-mel distance", 3, {"": metrics.log_mel_distance}),
    "si_sdr": Metric("SI-SDR, dB", 1, {"": metrics.si_sdr}),
    "pesq": Metric("PESQ-wb", 2, {"speech": metrics.pesq_wb}),
    "stoi": Metric("STOI", 3, {"speech": metrics.stoi}),
    "visqol": Metric("ViSQOL", 2, {"speech": metrics.visqol_speech, "": metrics.visqol_audio}),
}


# Clips


def choose_clips(folder: Path, kind: str, count: int) -> list[Clip]:
    """Up to `count` clips of 8 to 12 s from the files of one kind in a tree, the same ones every time.

    A file's kind is its nearest folder's whose name is in KINDS, else "other". Files under 8 s are joined
    with others of their folder; of longer ones the middle 10 s are taken. Folders take turns, and near-silent
    clips are passed over.
    """
    groups: dict[Path, list[Path]] = {}
    for path in sorted(folder.resolve().rglob("*")):
        if path.suffix.lower() in _ENDINGS and _kind(path) == kind:
            groups.setdefault(path.parent, []).append(path)
    turns = [part for parts in zip_longest(*map(_plan_clips, groups.values())) for part in parts if part]
    clips = []
    for parts in turns:
        if len(clips) == count:
            break
        try:
            samples = _load_clip(parts)
        except soundfile.LibsndfileError as error:
            _skip(parts, error)
            continue
        if np.sqrt(np.mean(np.square(samples))) >= _SILENCE:
            clips.append(Clip(f"{parts[0].parent.name}/{parts[0].stem}", kind, samples))
    return clips


def _kind(path: Path) -> str:
    return next((name for name in reversed(path.parent.parts) if name in KINDS), "other")


def _plan_clips(paths: list[Path]) -> list[list[Path]]:
    """The files of one folder -> the files of each clip, in an order that mixes the folder's files."""
    plans, short, total = [], [], 0.0
    for path in paths:
        try:
            seconds = soundfile.info(path).duration
        except soundfile.LibsndfileError as error:
            _skip([path], error)
            continue
        if seconds >= MIN_SECONDS:
            plans.append([path])
            continue
        short.append(path)
        total += seconds
        if total >= MIN_SECONDS:
            plans.append(short)
            short, total = [], 0.0
    random.Random(0).shuffle(plans)
    return plans


def _skip(paths: list[Path], error: soundfile.LibsndfileError) -> None:
    click.echo(f"{', '.join(map(str, paths))}: skipped: {error.error_string}", err=True)


def _load_clip(paths: list[Path]) -> np.ndarray:
    """Samples (N,) at SAMPLE_RATE, mono: the middle of one file, or several files one after another."""
    parts = [_load_middle(path, 10) for path in paths]
    return np.concatenate(parts)[:MAX_SECONDS * SAMPLE_RATE]


def _load_middle(path: Path, seconds: float) -> np.ndarray:
    with soundfile.SoundFile(path) as file:
        wanted = min(file.frames, round(seconds * file.samplerate))
        file.seek((file.frames - wanted) // 2)
        samples = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
        return metrics.resample(samples, file.samplerate, SAMPLE_RATE)


# Codecs


def nac(kbps: float, model: str) -> Codec:
    """nac itself, at a ceiling in kbps, with weights given by name or path."""
    return Codec(f"nac {kbps:g}", partial(_nac_encode, model, kbps=kbps), partial(_nac_decode, model))


def nac_books(codebooks: int, model: str) -> Codec:
    """nac with a fixed count of codebooks."""
    return Codec(f"nac {codebooks} books", partial(_nac_encode, model, codebooks=codebooks),
                 partial(_nac_decode, model))


def _nac_encode(model: str, samples: np.ndarray, **rate) -> bytes:
    from audiocodec import codec

    return codec.encode(samples[None], SAMPLE_RATE, model=model, **rate)


def _nac_decode(model: str, data: bytes) -> np.ndarray:
    from audiocodec import codec

    samples, _ = codec.decode(data, model=model)
    return samples[0]


def opus(kbps: float) -> Codec:
    """Opus by the programs opusenc and opusdec, at a target in kbps; its bytes are those of the Ogg file."""
    return Codec(f"opus {kbps:g}", partial(_opus_encode, kbps), _opus_decode)


def _opus_encode(kbps: float, samples: np.ndarray) -> bytes:
    options = ["--comp", "10", "--bitrate", f"{kbps:g}", "--padding", "0"]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.wav"), Path(folder, "target.opus")
        soundfile.write(source, samples, SAMPLE_RATE, subtype="FLOAT")
        _run("opusenc", "--quiet", *options, str(source), str(target))
        return target.read_bytes()


def _opus_decode(data: bytes) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.opus"), Path(folder, "target.wav")
        source.write_bytes(data)
        _run("opusdec", "--quiet", "--float", "--rate", str(SAMPLE_RATE), str(source), str(target))
        return soundfile.read(target, dtype="float32")[0]


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NacError(f"{command[0]}: not installed; it comes with opus-tools") from None
    except subprocess.CalledProcessError as error:
        raise NacError(f"{command[0]}: {(error.stderr.strip() or str(error)).splitlines()[-1]}") from None


# Scores


def score_clips(clips: list[Clip], codecs: list[Codec], names: list[str], jobs: int = 1) -> Iterator[Row]:
    """Yield one row for each clip and codec, in order; names are keys of METRICS.

    With jobs > 1, so many processes share the clips.
    """
    score = partial(_score_clip, codecs, names)
    if jobs == 1:
        for clip in clips:
            yield from score(clip)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the workers; processes are the better threads here
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for rows in pool.map(score, clips):
            yield from rows


def _score_clip(codecs: list[Codec], names: list[str], clip: Clip) -> list[Row]:
    rows = []
    for codec in codecs:
        data = codec.encode(clip.samples)
        decoded = _fit(codec.decode(data), len(clip.samples))
        row: Row = {"clip": clip.name, "kind": clip.kind, "codec": codec.name}
        row["kbps"] = len(data) * 8 / 1000 / (len(clip.samples) / SAMPLE_RATE)
        for name in names:
            score = METRICS[name].scores.get(clip.kind) or METRICS[name].scores.get("")
            row[name] = score(clip.samples, decoded, SAMPLE_RATE) if score else math.nan
        rows.append(row)
    return rows


def _fit(samples: np.ndarray, length: int) -> np.ndarray:
    """Cut off, or fill up with silence, what a codec got wrong about the length."""
    return np.pad(samples[:length], (0, max(0, length - len(samples)))).astype(np.float32)


# Results


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


def write_csv(path: Path, rows: list[Row]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# Command


def _numbers(context, parameter, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",") if number]
    except ValueError:
        raise click.BadParameter(f"{text!r}; expected numbers with commas between them") from None


def _counts(context, parameter, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",") if number]
    except ValueError:
        raise click.BadParameter(f"{text!r}; expected whole numbers with commas between them") from None


def _peers(context, parameter, texts: tuple[str, ...]) -> list[Codec]:
    codecs = []
    for text in texts:
        name, _, rates = text.partition(":")
        if name != "opus":
            raise click.BadParameter(f"{text!r}; expected opus:KBPS,KBPS,...")
        codecs += [opus(kbps) for kbps in _numbers(context, parameter, rates)]
    return codecs


def _names(allowed, context, parameter, text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r}; expected some of {','.join(allowed)}")
    return names


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--kbps", default="1.5,3,6,12,24", show_default=True, callback=_numbers, help="Rates of nac.")
@click.option("--codebooks", default="", callback=_counts, help="Fixed counts of codebooks of nac, besides.")
@click.option("--peers", multiple=True, callback=_peers, help="Other codecs: opus:KBPS,KBPS,...")
@click.option("--model", default="nac-24k", show_default=True, help="Weights, by name or path.")
@click.option("--kinds", default="speech,music", show_default=True,
              callback=partial(_names, (*KINDS, "other")), help="Kinds of clips: folders' names, or other.")
@click.option("--clips", default=20, show_default=True, type=click.IntRange(1), help="Clips of each kind.")
@click.option("--metrics", "names", default="mel,si_sdr,pesq,stoi", show_default=True,
              callback=partial(_names, tuple(METRICS)), help=f"Scores, of {','.join(METRICS)}.")
@click.option("--csv", "target", type=click.Path(dir_okay=False, path_type=Path), help="Keep all rows.")
@click.option("-j", "--jobs", default=1, show_default=True, type=click.IntRange(1), help="Worker processes.")
def main(folder, kbps, codebooks, peers, model, kinds, clips, names, target, jobs):
    """Score nac, and other codecs beside it, on clips of the recordings in FOLDER; print a table."""
    codecs = [nac(rate, model) for rate in kbps] + [nac_books(count, model) for count in codebooks] + peers
    if not codecs:
        raise click.UsageError("No codecs; give --kbps, --codebooks or --peers.")
    chosen = [clip for kind in kinds for clip in choose_clips(folder, kind, clips)]
    if not chosen:
        raise click.ClickException(f"{folder}: no audio of 8 s under folders named {' or '.join(kinds)}")
    try:
        total = len(chosen) * len(codecs)
        rows = list(tqdm(score_clips(chosen, codecs, names, jobs), total=total, unit="run", disable=None))
    except NacError as error:
        raise click.ClickException(str(error)) from None
    if target:
        write_csv(target, rows)
    click.echo(markdown(summarise(rows)))


if __name__ == "__main__":
    main()
