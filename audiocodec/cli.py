"""The nac command: read options, make one call for each file, print one line; imports are late for speed."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from audiocodec import __version__
from audiocodec.errors import NacError

# These four repeat what codec.py, tokens.py and container.py say, since importing codec.py would load torch; a test
# ties them together.
DEFAULT_MODEL = "nac-24k"
DEFAULT_KBPS = 6
KBPS = click.FloatRange(0.75, 48)
CODEBOOKS = click.IntRange(1, 32)
_AUDIO_ENDINGS = {".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"}
INTERRUPTED, TERMINATED = 130, 143   # exit statuses, as shells have them

Convert = Callable[[Path, Path, Callable], tuple[float, str]]   # source, target, progress -> seconds, summary


def _check_output(context, parameter, text: str | None) -> str | None:
    if text == "-":
        raise click.BadParameter("pipes are not supported yet.")
    return text


def _check_stages(context, parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    known = ("reconstruction", "adversarial", "polish", "entropy")
    for stage in text.split(","):
        if stage not in known:
            raise click.BadParameter(f"{stage!r} is none of {', '.join(known)}.")
    return tuple(stage for stage in known if stage in text.split(","))


_path = click.Path(path_type=Path)
_sources = click.argument("sources", metavar="IN...", nargs=-1, required=True, type=_path)
_output = click.option(
    "-o", "--output", metavar="OUT", type=click.Path(), callback=_check_output,    # a Path would lose the slash
    help="Output file; a folder if it is one, ends in a slash, or if there are several inputs.  "
         "[default: beside each input]")
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
@click.option("-k", "--kbps", type=KBPS, help=f"Most kbit/s that a file may take.  [default: {DEFAULT_KBPS}]")
@click.option("--codebooks", type=CODEBOOKS, help="A fixed number of codebooks per channel, instead of -k.")
@click.option("--model", metavar="NAME|FILE", default=DEFAULT_MODEL, show_default=True, help="Weights.")
@click.option("--mono", is_flag=True, help="Mix stereo down to one channel.")
@click.option("--no-entropy", is_flag=True, help="Pack codes plainly: a larger file, in less time.")
@_device
@click.option("--verify", is_flag=True, help="Read every output back and check it.")
@_force
def encode(sources, output, kbps, codebooks, model, mono, no_entropy, device, verify, force):
    """Compress audio files (WAV, FLAC, Ogg, MP3 and others) into .nac files."""
    if kbps is not None and codebooks is not None:
        raise click.UsageError("-k and --codebooks exclude each other.")
    if kbps is None and codebooks is None:
        kbps = DEFAULT_KBPS
    from audiocodec import codec

    def convert(source, target, progress):
        result = codec.encode_file(
            source, target, kbps=kbps, codebooks=codebooks, model=model, mono=mono, entropy=not no_entropy,
            device=device, force=force, progress=progress)
        if verify:
            codec.verify_file(target, model=model)
        rate = f"{result.kbps:.2f} kbps, " if result.seconds else ""
        if kbps and result.kbps > kbps:
            rate += f"more than {kbps:g}, which this clip cannot meet, "
        books = "+".join(map(str, result.codebooks))     # mid and side, where there are two
        return result.seconds, f"{result.num_bytes:,} bytes, {rate}{books} codebooks"

    _convert_all(sources, output, ".nac", convert)


@cli.command()
@_sources
@_output
@click.option("--subtype", type=click.Choice(["PCM_16", "PCM_24", "FLOAT"]),
              help="How to store samples.  [default: as in the original]")
@click.option("--salvage", is_flag=True, help="Decode what damage has left, and report what is missing.")
@_decoding_model
@_device
@_force
def decode(sources, output, subtype, salvage, model, device, force):
    """Bring .nac files back as WAV, or as FLAC if OUT ends so."""
    from audiocodec import codec

    def convert(source, target, progress):
        result = codec.decode_file(
            source, target, subtype=subtype, salvage=salvage, model=model, device=device, force=force,
            progress=progress)
        summary = f"{result.sample_rate} Hz, {'stereo' if result.channels == 2 else 'mono'}"
        if result.damaged:
            click.echo(f"{target}: {summary}, salvaged", err=True)
            raise NacError("; ".join(result.damaged))
        return result.seconds, summary

    _convert_all(sources, output, ".wav", convert)


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
@click.option("--origin", default="", help="What to say of the training audio, in the weights file.")
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
    from audiocodec.training import run as training

    failures = _Failures()
    with failures.caught(run):
        settings = configs.load(config)
        if seed is not None:
            settings = dataclasses.replace(settings, seed=seed)
        plan = None
        if not resume or minutes or updates or stages:
            plan = training.Plan(None if updates else minutes or 90, updates, stages or configs.STAGES)
        try:
            made = training.train(
                training.Material(list(sources), list(valid)), run, settings, plan, device=device, resume=resume,
                init=init, about={"licence": licence, "origin": origin})
        except KeyboardInterrupt:
            if (run / "last.pt").exists():
                _complain(f"{run}: saved; the same command with --resume goes on")
            raise
        if made and made.suffix == ".pt":
            click.echo(f"{made}: done; --resume --stages entropy makes model.safetensors of it", err=True)
        elif made:
            click.echo(f"{made}: done; nac encode --model {made} ...", err=True)
    failures.exit()


class _Failures:
    """Says in one line what went wrong with a file, and lets the next file have its turn."""

    def __init__(self):
        self.status = 0

    @contextlib.contextmanager
    def caught(self, name: Path | str) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except (NacError, OSError) as error:
            _complain(_named(name, error))
            self.status = 1

    def exit(self) -> None:
        sys.exit(self.status)


def _named(name: Path | str, error: Exception) -> str:
    """Return the error's message with the file's name in front."""
    message = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
    return message if message.startswith(f"{name}: ") else f"{name}: {message}"


def _complain(message: str) -> None:
    click.echo(f"nac: {message}", err=True)


def _convert_all(sources: list[Path], output: str | None, ending: str, convert: Convert) -> None:
    """Convert every source, print a summary for each, and exit with status 1 if any failed."""
    is_folder = output is not None and (len(sources) > 1 or output.endswith(os.sep) or os.path.isdir(output))
    failures = _Failures()
    written = {}
    for source in sources:
        with failures.caught(source):
            target = _target(source, None if output is None else Path(output), ending, is_folder)
            if target in written:
                raise NacError(f"{target}: made from {written[target]} already")
            written[target] = source
            start = time.monotonic()
            with _progress_bar(source.name) as progress:
                seconds, summary = convert(source, target, progress)
            speed = seconds / max(time.monotonic() - start, 1e-3)
            click.echo(f"{target}: {summary}, {seconds:.2f} s, {speed:.0f}x real time", err=True)
    failures.exit()


def _target(source: Path, output: Path | None, ending: str, is_folder: bool) -> Path:
    """Return where the result for source goes. Raises NacError if that is the source itself, or cannot be meant."""
    if source.is_dir():
        raise NacError(f"{source}: is a folder")
    if output is None:
        target = source.with_suffix(ending)
    elif is_folder:
        target = output / source.with_suffix(ending).name
        if output.exists() and not output.is_dir():
            raise NacError(f"{output}: is no folder")
        output.mkdir(parents=True, exist_ok=True)
    else:
        target = output
    if target.exists() and source.exists() and target.samefile(source):
        raise NacError(f"{target}: is the input itself; -o names another output")
    if ending == ".nac" and target.suffix.lower() in _AUDIO_ENDINGS:
        raise NacError(f"{target}: is named as audio; encode writes .nac files")
    return target


@contextlib.contextmanager
def _progress_bar(label: str) -> Iterator[Callable[[float, float | None], None]]:
    """Yield progress(done, total), in seconds of audio, which draws a bar if the work takes over a second."""
    from tqdm import tqdm

    is_hidden = not sys.stderr.isatty()
    with tqdm(desc=label, unit="s", unit_scale=True, delay=1, leave=False, disable=is_hidden) as bar:
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
    try:
        status = cli.main(prog_name="nac", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        _complain(f"{error.format_message()} Try 'nac --help'.")
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())    # or the last flush would complain
        status = 1
    sys.exit(status)
