"""The nac command: read options, make one call for each file, print one line; imports are late for speed."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from audiocodec import __version__, batch, limits, memory, options, seek
from audiocodec.errors import NacError

# numpy's products here are small: its own threads only get in the way of ours, and of torch's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

DEFAULT_MODEL = "nac-24k"    # as in tokens.py, which would load torch; a test ties them together
KBPS = click.FloatRange(limits.MIN_KBPS, limits.MAX_KBPS)
CODEBOOKS = click.IntRange(1, limits.MAX_BOOKS)
INTERRUPTED, TERMINATED = 130, 143   # exit statuses, as shells have them

Convert = Callable[[Path, Path, bool, Callable], tuple[float, str]]   # source, target, force, progress


def _check_time(context, parameter, text: str | None):
    try:
        return None if text is None else seek.parse_time(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}; expected SECONDS, M:S or H:M:S.") from None


def _check_raw(context, parameter, text: str | None):
    if text is None:
        return None
    from audiocodec import pcm
    try:
        return pcm.RawFormat.parse(text)
    except NacError as error:
        raise click.BadParameter(f"{error}.") from None


def _check_tags(context, parameter, texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    tags = tuple(text.partition("=")[::2] for text in texts)
    for text, (name, _) in zip(texts, tags):
        if not name or "=" not in text or not (name.isascii() and name.isprintable()) or "~" in name:
            raise click.BadParameter(f"{text!r}; expected KEY=VALUE with a KEY of printable ASCII.")
    return tuple((name.upper(), text) for name, text in tags)


def _check_stages(context, parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    from audiocodec.training.config import STAGES
    for stage in text.split(","):
        if stage not in STAGES:
            raise click.BadParameter(f"{stage!r} is none of {', '.join(STAGES)}.")
    return tuple(stage for stage in STAGES if stage in text.split(","))


_path = click.Path(path_type=Path)
_sources = click.argument("sources", metavar="IN...", nargs=-1, required=True, type=_path)
_output = click.option(
    "-o", "--output", metavar="OUT", type=click.Path(),    # a Path would lose the slash
    help="Output file; a folder if it is one, ends in a slash, or if IN is a folder or several; - is standard output.  "
         "[default: beside each input]")
_raw = click.option(
    "--raw", metavar="RATE,CHANNELS,FORMAT", callback=_check_raw,
    help="Samples have no header; FORMAT is s16le, s24le, s32le or f32le.")
_processes = click.option(
    "-j", "--jobs", "processes", type=click.IntRange(1, 256), default=1, show_default=True,
    help="Files to work on at a time, each in a process of its own.")
_update = click.option(
    "--update", is_flag=True, help="Skip outputs that are newer than their inputs, and overwrite the others.")
_device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where the networks run.")
_decoding_model = click.option(
    "--model", metavar="NAME|FILE", help="Weights to decode with.  [default: the released ones]")
_force = click.option("-f", "--force", is_flag=True, help="Overwrite outputs that exist.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nac", message="nac %(version)s")
def cli():
    """Compress speech and music with a learned codec, and bring them back."""


@cli.command()
@_sources
@_output
@click.option("-k", "--kbps", type=KBPS, help=f"Most kbit/s that a file may take.  [default: {limits.DEFAULT_KBPS:g}]")
@click.option("--codebooks", type=CODEBOOKS, help="A fixed number of codebooks per channel, instead of -k.")
@click.option("--cbr", is_flag=True, help="With -k: the same number of codebooks in all frames.")
@click.option("--best", is_flag=True, help="Search longer for codes: better sound at the same rate, in twice the time.")
@click.option("--model", metavar="NAME|FILE", default=DEFAULT_MODEL, show_default=True, help="Weights.")
@click.option("--mono", is_flag=True, help="Mix stereo down to one channel.")
@click.option("--no-entropy", is_flag=True, help="Pack codes plainly: a larger file, in less time.")
@_device
@click.option("--verify", is_flag=True, help="Read every output back and check it.")
@click.option("--delete-input", is_flag=True, help="Delete every input whose output was read back and is sound.")
@_raw
@click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True, callback=_check_tags,
              help="Put this tag in place of the input's; may be repeated. KEY= takes it out.")
@click.option("--no-tags", is_flag=True, help="Leave the input's tags out.")
@click.option("--live", is_flag=True,
              help="Take from a pipe what has come, and send it on every 0.2 s, as for a microphone. Ctrl-C ends it.")
@_processes
@_update
@_force
def encode(sources, output, kbps, codebooks, verify, delete_input, processes, update, force, no_entropy, **settings):
    """Compress audio files (WAV, FLAC, Ogg, MP3 and others), or all in a folder, into .nac files.

    IN and OUT may be -, for standard input and output.
    """
    if kbps is not None and codebooks is not None:
        raise click.UsageError("-k and --codebooks exclude each other.")
    if settings["cbr"] and codebooks is not None:
        raise click.UsageError("--cbr and --codebooks exclude each other.")
    if settings["cbr"] and settings["live"]:
        raise click.UsageError("--cbr looks at the whole first, which --live cannot; use --codebooks.")
    if kbps is None and codebooks is None:
        kbps = limits.DEFAULT_KBPS
    output = _check_pipes(sources, output, cannot=verify or delete_input, processes=processes)
    settings |= {"kbps": kbps, "codebooks": codebooks, "entropy": not no_entropy}
    convert = functools.partial(_encode_one, settings, verify or delete_input, delete_input)
    _convert_all(sources, output, ".nac", batch.AUDIO_ENDINGS, convert, processes, update, force)


def _end_input(*_) -> None:
    """Let Ctrl-C end a live input, so that what was recorded is kept; a second one does not wait."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())


def _encode_one(settings: dict, is_verified: bool, is_deleted: bool, source: Path, target: Path,
                force: bool, progress: Callable) -> tuple[float, str]:
    from audiocodec import codec

    if settings["live"]:
        signal.signal(signal.SIGINT, _end_input)
    result = codec.encode_file(source, target, force=force, progress=progress, **settings)
    if is_verified:
        codec.verify_file(target, model=settings["model"])
    if is_deleted:
        with open(target, "rb") as file:
            os.fsync(file.fileno())     # the only copy must have reached the disk
        source.unlink()
    return result.seconds, _coded(result, settings["kbps"])


def _coded(result, kbps: float | None = None) -> str:
    """Return a summary of an EncodeResult; kbps: the ceiling, if there was one."""
    said = [f"{result.num_bytes:,} bytes"]
    if result.seconds:
        said.append(f"{result.kbps:.2f} kbps")
    if kbps and result.kbps > kbps:
        said.append(f"more than {kbps:g}, which this clip cannot meet")
    if result.codebooks:                # of mid and side, where there are two
        said.append("+".join(f"{count:.3g}" for count in result.codebooks) + " codebooks")
    return ", ".join(said)


@cli.command()
@_sources
@_output
@click.option("--start", metavar="TIME", callback=_check_time,
              help="Begin there: seconds, M:S or H:M:S, with fractions.")
@click.option("--end", metavar="TIME", callback=_check_time, help="End there.")
@click.option("--codebooks", type=CODEBOOKS, help="Use only the first N codebooks of each channel.")
@click.option("--subtype", type=click.Choice(["PCM_16", "PCM_24", "FLOAT"]),
              help="How to store samples.  [default: as in the original]")
@_raw
@click.option("--salvage", is_flag=True, help="Decode what damage has left, and report what is missing.")
@_decoding_model
@_device
@_processes
@_update
@_force
def decode(sources, output, processes, update, force, **settings):
    """Bring .nac files, or all in a folder, back as WAV, or as FLAC if OUT ends so.

    IN and OUT may be -, for standard input and output.
    """
    if settings["raw"] and settings["subtype"]:
        raise click.UsageError("--raw and --subtype exclude each other.")
    if settings["end"] is not None and settings["end"] <= (settings["start"] or 0):
        raise click.UsageError("--end has to be after --start.")
    output = _check_pipes(sources, output, processes=processes)
    convert = functools.partial(_decode_one, settings)
    _convert_all(sources, output, ".raw" if settings["raw"] else ".wav", (".nac",), convert, processes, update, force)


def _decode_one(settings: dict, source: Path, target: Path, force: bool, progress: Callable) -> tuple[float, str]:
    from audiocodec import codec

    result = codec.decode_file(source, target, force=force, progress=progress, **settings)
    summary = f"{result.sample_rate} Hz, {'stereo' if result.channels == 2 else 'mono'}"
    if result.damaged:
        if settings["salvage"]:
            click.echo(f"{target}: {summary}, salvaged", err=True)
        raise NacError("; ".join(result.damaged))
    return result.seconds, summary


@cli.command()
@click.argument("source", metavar="IN", type=_path)
@click.option("-o", "--output", metavar="OUT", required=True, type=click.Path(),
              help="Output file, or a folder if it is one or ends in a slash; - is standard output.")
@click.option("--start", metavar="TIME", callback=_check_time,
              help="Begin there: seconds, M:S or H:M:S, with fractions.")
@click.option("--end", metavar="TIME", callback=_check_time, help="End there.")
@_decoding_model
@_force
def cut(source, output, start, end, model, force):
    """Copy a range of a .nac file into a new one, without decoding it.

    It decodes to the very same samples. Segments of 6.8 s are copied whole, so the new file is longer by some seconds
    than what is heard of it. IN and OUT may be -, for standard input and output.
    """
    if start is None and end is None:
        raise click.UsageError("Give --start, --end or both.")
    if end is not None and end <= (start or 0):
        raise click.UsageError("--end has to be after --start.")
    _check_pipes((source,), output, processes=1)
    convert = functools.partial(_cut_one, {"start": start, "end": end, "model": model})
    _convert_all((source,), output, ".nac", (".nac",), convert, 1, False, force)


def _cut_one(settings: dict, source: Path, target: Path, force: bool, progress: Callable) -> tuple[float, str]:
    from audiocodec import editing

    result = editing.cut_file(source, target, force=force, **settings)
    return result.seconds, _coded(result)


@cli.command()
@_sources
@_output
@click.option("-k", "--kbps", type=KBPS, help="Most kbit/s that a file may take.")
@click.option("--codebooks", type=CODEBOOKS, help="Keep only the first N codebooks of each channel.")
@_decoding_model
@_processes
@_update
@_force
def truncate(sources, output, kbps, codebooks, model, processes, update, force):
    """Lower the rate of .nac files, or of all in a folder, without the original audio.

    IN and OUT may be -, for standard input and output.
    """
    if (kbps is None) == (codebooks is None):
        raise click.UsageError("Give either -k or --codebooks.")
    output = _check_pipes(sources, output, processes=processes)
    convert = functools.partial(_truncate_one, {"kbps": kbps, "codebooks": codebooks, "model": model})
    _convert_all(sources, output, ".nac", (".nac",), convert, processes, update, force)


def _truncate_one(settings: dict, source: Path, target: Path, force: bool, progress: Callable) -> tuple[float, str]:
    from audiocodec import editing

    result = editing.truncate_file(source, target, force=force, progress=progress, **settings)
    return result.seconds, _coded(result, settings["kbps"])


def _check_pipes(sources: tuple[Path, ...], output: str | None, processes: int, cannot: bool = False) -> str | None:
    """Return the output, which is standard output for standard input. UsageError for what pipes cannot do."""
    if Path("-") in sources:
        if len(sources) > 1:
            raise click.UsageError("Standard input is the only input, where it is one.")
        output = output or "-"
        if sys.stdin.isatty():
            raise click.UsageError("Standard input is a terminal.")
        if cannot and output == "-":
            raise click.UsageError("--verify and --delete-input need files.")
    if output == "-":
        if len(sources) > 1 or sources[0].is_dir() or processes > 1 or cannot:
            raise click.UsageError("Standard output takes one file, and no -j, --verify or --delete-input.")
        if sys.stdout.isatty():
            raise click.UsageError("Standard output is a terminal; -o names a file.")
    return output


@cli.command()
@click.argument("file", required=False, type=_path)
@click.option("--model", metavar="NAME|FILE", help="Describe a model instead.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def info(file, model, as_json):
    """Describe a .nac FILE, or a model."""
    if (file is None) == (model is None):
        raise click.UsageError("Give either a FILE or --model.")
    from audiocodec import info as about

    failures = _Failures()
    with failures.caught(file or model):
        facts = about.describe_file(file) if file else about.describe_model(model)
        click.echo(json.dumps(facts, indent=2) if as_json else _table(facts, facts["tags"] if file else {}))
    failures.exit()


@cli.command()
@_sources
@_decoding_model
def verify(sources, model):
    """Check .nac files: every checksum, and that every code decodes."""
    from audiocodec import codec

    failures = _Failures()
    for source in sources:
        with failures.caught(source):
            codec.verify_file(source, model=model)
            click.echo(f"{source}: sound", err=True)
    failures.exit()


@cli.command()
@click.argument("sources", metavar="FOLDER...", nargs=-1, required=True,
                type=click.Path(exists=True, path_type=Path))
@click.option("--out", "run", metavar="RUN", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="Folder of the run: checkpoints, metrics, report, and in the end model.safetensors.")
@click.option("--config", metavar="NAME|FILE", default="nac-24k", show_default=True,
              help="Settings: a preset (nac-24k, nac-24k-gpu, tiny), or a TOML file that lists what differs.")
@click.option("--valid", metavar="FOLDER", multiple=True, type=click.Path(exists=True, path_type=Path),
              help="Audio to validate on.  [default: about one in a hundred of the files]")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True),
              help="How long to train, the entropy model included.  [default: 90]")
@click.option("--updates", type=click.IntRange(min=1), help="How long to train, in updates, instead of --minutes.")
@click.option("--stages", metavar="STAGE,...", callback=_check_stages,
              help="Only these of reconstruction, adversarial, polish and entropy.")
@click.option("--seed", type=click.IntRange(min=0), help="Another random start.  [default: the configuration's]")
@click.option("--init", metavar="NAME|FILE", help="Begin from these weights, to fit them to other audio.")
@click.option("--resume", is_flag=True, help="Go on with the run in RUN, to its own end unless a new one is given.")
@click.option("--licence", default="", help="What to say of the weights' licence, in the weights file.")
@click.option("--origin", help="What to say of the training audio, in the weights file.  [default: the FOLDERs]")
@_device
def train(sources, run, config, valid, minutes, updates, stages, seed, init, resume, licence, origin, device):
    """Train a model on folders of audio (WAV, FLAC, Ogg, Opus, MP3), or on packed shards (.npy).

    Ctrl-C saves, and --resume goes on. On several GPUs: torchrun --nproc_per_node N -m audiocodec train ...
    """
    if minutes and updates:
        raise click.UsageError("--minutes and --updates exclude each other.")
    if resume and init:
        raise click.UsageError("--resume and --init exclude each other.")
    from audiocodec.training import config as configs
    from audiocodec.training import distributed
    from audiocodec.training import run as training

    failures = _Failures()
    with failures.caught():
        settings = configs.load(config)
        if seed is not None:
            settings = dataclasses.replace(settings, seed=seed)
        plan = None
        if not resume or minutes or updates or stages:
            plan = training.Plan(None if updates else minutes or 90, updates, stages or configs.STAGES)
        try:
            made = training.train(
                training.Material(list(sources), list(valid)), run, settings, plan, device=device, resume=resume,
                init=init, about={"licence": licence, "origin": origin or ", ".join(map(str, sources))})
        except KeyboardInterrupt:
            if (run / "last.pt").exists():
                _complain(f"{run}: saved; the same command with --resume goes on")
            raise
        if made and made.suffix == ".pt":
            click.echo(f"{made}: done; --resume --stages entropy makes model.safetensors of it", err=True)
        elif made:
            click.echo(f"{made}: done; nac encode --model {made} ...", err=True)
        else:
            distributed.leave()
    failures.exit()


@cli.command("eval", cls=options.EvalCommand)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--kbps", metavar="KBPS,...", default="1.5,3,6,12,24", show_default=True, callback=options.optional_rates,
              help="Rates of nac.")
@click.option("--codebooks", metavar="N,...", default="", callback=options.counts,
              help="Fixed numbers of codebooks of nac, besides.")
@click.option("--best", is_flag=True, help="Score nac encode --best, too.")
@click.option("--peers", metavar="opus:KBPS,... mp3:KBPS,...", multiple=True, callback=options.peers,
              help="Other codecs, by their programs opusenc and lame.")
@click.option("--model", metavar="NAME|FILE", default=DEFAULT_MODEL, show_default=True, help="Weights.")
@click.option("--kinds", metavar="KIND,...", default="speech,music,other", show_default=True, callback=options.kinds,
              help="Kinds of clips: folders named speech, music or sfx, and other, which is all the rest.")
@click.option("--clips", metavar="N", default=20, show_default=True, type=click.IntRange(1),
              help="Most clips of each kind.")
@click.option("--metrics", "names", metavar="NAME,...", callback=options.metrics,
              help=f"Scores, of {','.join(options.METRICS)}.  [default: all that are installed]")
@click.option("--out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
              help="Keep rows, tables, curves and report.html there; the same command again goes on there.")
@click.option("-j", "--jobs", metavar="N", default=1, show_default=True, type=click.IntRange(1), help="Processes.")
def evaluate(folder, kbps, codebooks, best, peers, model, kinds, clips, names, out, jobs):
    """Score nac, and other codecs beside it, on clips of the recordings in FOLDER; print tables."""
    if not (kbps or codebooks or peers):
        raise click.UsageError("No codecs; give --kbps, --codebooks or --peers.")
    from tqdm import tqdm

    from audiocodec import clips as recordings
    from audiocodec import evaluate as evaluation

    failures = _Failures()
    with failures.caught():
        codecs = evaluation.choose_codecs(kbps, codebooks, peers, model, best)
        chosen = [clip for kind in kinds for clip in recordings.choose_clips(folder, kind, clips, but=out)]
        if not chosen:
            raise NacError(f"{folder}: no audio of 8 s or more of {' or '.join(kinds)}")
        names = evaluation.choose_metrics(names, {clip.kind for clip in chosen}, _complain)
        try:
            results = evaluation.run(
                chosen, codecs, names, jobs=jobs, out=out, hint=_complain,
                progress=lambda rows: tqdm(rows, total=len(chosen) * len(codecs), unit="run", disable=None))
        except KeyboardInterrupt:
            if out:
                _complain(f"{out}: kept what is done; the same command goes on")
            raise
        click.echo(results.text())
        if out:
            click.echo(f"{out / 'report.html'}: to listen and compare", err=True)
    failures.exit()


@cli.command()
@click.option("--model", metavar="NAME|FILE", default=DEFAULT_MODEL, show_default=True, help="Weights.")
@_device
@click.option("--threads", metavar="N", type=click.IntRange(1), help="Threads.  [default: as the system has it]")
@click.option("--seconds", "lengths", metavar="S,...", default="60", show_default=True, callback=options.lengths,
              help="Lengths of the audio.")
@click.option("-k", "--kbps", metavar="KBPS,...", default=f"{limits.DEFAULT_KBPS:g}", show_default=True,
              callback=options.rates, help="Bit rates.")
@click.option("--repeats", metavar="N", type=click.IntRange(1), default=5, show_default=True,
              help="Runs of each, after a warm-up.")
@click.option("--input", "source", metavar="FILE", type=_path,
              help="Audio to take, repeated to the length.  [default: synthetic]")
@click.option("--compare", type=click.Choice(["encodec"]),
              help="Time this architecture too, from its package and with random weights.")
@click.option("--plot", metavar="FILE.png", type=_path, callback=options.picture,
              help="Draw the stages' times, and speed against length and bit rate.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def bench(model, device, threads, lengths, kbps, repeats, source, compare, plot, as_json):
    """Time encoding, decoding, streaming and start-up on this machine."""
    if threads:
        os.environ.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))     # read as torch loads
    from audiocodec import bench as timing
    from audiocodec import bench_report

    failures = _Failures()
    with failures.caught(source or model):
        result = timing.run(
            model_name=model, device=device, lengths=lengths, rates=kbps, repeats=repeats, source=source,
            compare=bool(compare), progress=lambda what: sys.stderr.isatty() and click.echo(what, err=True))
        if plot:
            bench_report.draw(result, plot)
        click.echo(json.dumps(result, indent=2) if as_json else bench_report.markdown(result))
    failures.exit()


class _Failures:
    """Says in one line what went wrong with a file, and lets the next file have its turn."""

    def __init__(self):
        self.status = 0

    @contextlib.contextmanager
    def caught(self, name: Path | str | None = None) -> Iterator[None]:
        """name: of the file that errors are about; None if they say so themselves."""
        try:
            yield
        except BrokenPipeError:
            raise
        except (NacError, OSError) as error:
            _complain(_named(name, error))
            self.status = 1

    def exit(self) -> None:
        sys.exit(self.status)


def _named(name: Path | str | None, error: Exception) -> str:
    """Return the error's message with the file's name in front."""
    message = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
    if name is None:
        name = getattr(error, "filename", None)
    return message if name is None or message.startswith(f"{name}: ") else f"{name}: {message}"


def _complain(message: str) -> None:
    click.echo(f"nac: {message}", err=True)


@dataclasses.dataclass(frozen=True)
class _Outcome:
    seconds: float = 0.0     # of audio
    has_failed: bool = False
    is_skipped: bool = False


def _convert_all(sources: tuple[Path, ...], output: str | None, ending: str, endings: tuple[str, ...],
                 convert: Convert, processes: int, update: bool, force: bool) -> None:
    """Convert every file, print a summary for each, and one for all; exit with status 1 if any failed."""
    todo = batch.plan(sources, output, ending, endings)
    work = functools.partial(_convert_one, convert, update, force or update, processes > 1)
    outcomes = []
    with _progress_bar("", "file", processes == 1) as progress:
        for outcome in batch.run(work, todo, processes):
            outcomes.append(outcome)
            progress(len(outcomes), len(todo))
    num_failed = sum(outcome.has_failed for outcome in outcomes)
    if len(todo) > 1:
        num_skipped = sum(outcome.is_skipped for outcome in outcomes)
        rest = f", {num_skipped} skipped" * bool(num_skipped) + f", {num_failed} failed" * bool(num_failed)
        duration = _duration(sum(outcome.seconds for outcome in outcomes))
        click.echo(f"{len(todo)} files, {duration} of audio{rest}", err=True)
    sys.exit(1 if num_failed else 0)


def _convert_one(convert: Convert, update: bool, force: bool, is_quiet: bool, job: batch.Job) -> _Outcome:
    failures = _Failures()
    seconds = 0.0
    with failures.caught(job.source):
        if job.problem:
            raise NacError(job.problem)
        if update and batch.is_done(job):
            return _Outcome(is_skipped=True)
        if job.has_folder:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with _progress_bar(job.source.name, "s", is_quiet) as progress:
            seconds, summary = convert(job.source, job.target, force, progress)
        speed = seconds / max(time.monotonic() - start, 1e-3)
        click.echo(f"{job.target}: {summary}, {seconds:.2f} s, {speed:.0f}x real time", err=True)
    return _Outcome(seconds, bool(failures.status))


def _duration(seconds: float) -> str:
    """
    >>> _duration(184.4), _duration(7384), _duration(9.96)
    ('3 min 4 s', '2 h 3 min 4 s', '10 s')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours} h " if hours else "") + (f"{minutes} min " if hours or minutes else "") + f"{seconds} s"


@contextlib.contextmanager
def _progress_bar(label: str, unit: str, is_hidden: bool) -> Iterator[Callable[[float, float | None], None]]:
    """Yield progress(done, total), which draws a bar if the work takes over a second."""
    from tqdm import tqdm

    is_hidden |= not sys.stderr.isatty()
    with tqdm(desc=label or None, unit=unit, unit_scale=True, delay=1, leave=False, disable=is_hidden) as bar:
        def progress(done: float, total: float | None) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        yield progress


def _table(facts: dict, tags: dict[str, list[str]]) -> str:
    """Return one line for each tag and each fact that is known and no list or table itself."""
    rows = [(name.replace("_", " "), _text(value)) for name, value in facts.items()]
    rows += [(name, text) for name, texts in tags.items() for text in texts]
    rows = [(_printable(name), _printable(text)) for name, text in rows if text]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _text(value) -> str:
    if value is None or isinstance(value, dict | list):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def _printable(text: str) -> str:
    r"""Escape what a terminal would not show, or would obey.

    >>> print(_printable("Ein Lied\n\x1b[31m"))
    Ein Lied\n\x1b[31m
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def main() -> None:
    """Run the command. Whatever can be foreseen ends in one line on stderr and an exit status."""
    sys.stdout.reconfigure(errors="backslashreplace")    # for names and tags that its encoding does not have
    warnings.showwarning = lambda message, *_: _complain(str(message).splitlines()[0])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))    # so that temporary files are removed
    memory.keep_freed()
    try:
        status = cli.main(prog_name="nac", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        _complain(f"{error.format_message().rstrip('.')}. Try 'nac --help'.")
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())    # or the last flush would complain
        status = 1
    sys.exit(status)
