"""Which files to convert, where each result goes, and several at a time in processes of their own; needs no torch."""
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from audiocodec import memory
from audiocodec.errors import NacError

AUDIO_ENDINGS = (".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
_TERMINATED = 143     # exit status, as shells have it


@dataclass(frozen=True)
class Job:
    source: Path
    target: Path | None    # None: there is no such place, for the reason that `problem` gives
    problem: str = ""
    has_folder: bool = False    # the target's, which may have to be made


def plan(sources: Sequence[Path], output: str | None, ending: str, endings: Sequence[str]) -> list[Job]:
    """Return a job for every file in sources, and for every file with one of the endings in their folders.

    ending: of the results, which go beside their sources unless there is an output: a file, or a folder if it is
    one, ends in a slash, or has to hold several. A folder's tree is kept; below its own name, if it is not alone.
    """
    is_folder = output is not None and (
        len(sources) > 1 or sources[0].is_dir() or output.endswith(os.sep) or os.path.isdir(output))
    jobs, made = [], {}
    for source in sources:
        if source.is_dir() and output is not None and output.endswith(ending) and not os.path.isdir(output):
            jobs.append(Job(source, None, f"{source}: is a folder, and -o names a file"))
            continue
        for path, relative in _files(source, endings, is_alone=len(sources) == 1):
            try:
                target = _target(path, relative, None if output is None else Path(output), ending, is_folder)
                if target in made:
                    raise NacError(f"{target}: made from {made[target]} already")
                made[target] = path
                jobs.append(Job(path, target, has_folder=is_folder))
            except (NacError, OSError) as error:
                jobs.append(Job(path, None, str(error)))
    return jobs


def _files(source: Path, endings: Sequence[str], is_alone: bool) -> Iterator[tuple[Path, Path]]:
    """Yield each file of a source, and its place below an output folder."""
    if not source.is_dir():
        yield source, Path(source.name)
        return
    root = Path() if is_alone else Path(source.resolve().name)
    found = [Path(folder, name) for folder, _, names in os.walk(source) for name in names
             if Path(name).suffix.lower() in endings]
    for path in sorted(found):
        yield path, root / path.relative_to(source)
    if not found:
        yield source, Path(source.name)     # which _target refuses


def _target(source: Path, relative: Path, output: Path | None, ending: str, is_folder: bool) -> Path:
    """Return where the result for source goes. Raises NacError if that is the source itself, or cannot be meant."""
    if source.is_dir():
        raise NacError(f"{source}: is a folder without files to convert")
    if output is None:
        target = source.with_suffix(ending)
    elif is_folder:
        target = output / relative.with_suffix(ending)
        if output.exists() and not output.is_dir():
            raise NacError(f"{output}: is no folder")
    else:
        target = output
    if target.exists() and source.exists() and target.samefile(source):
        raise NacError(f"{target}: is the input itself; -o names another output")
    if ending == ".nac" and target.suffix.lower() in AUDIO_ENDINGS:
        raise NacError(f"{target}: is named as audio; this command writes .nac files")
    return target


def is_done(job: Job) -> bool:
    """Whether the target is there and no older than the source."""
    try:
        return job.target.stat().st_mtime_ns >= job.source.stat().st_mtime_ns
    except OSError:
        return False


def run(work: Callable[[Job], object], jobs: Iterable[Job], processes: int) -> Iterator:
    """Yield work(job) for each job: in order for one process, as they are done for more; work must be picklable."""
    if processes == 1:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _prepare)
    try:
        for done in as_completed([pool.submit(_guarded, work, job) for job in jobs]):
            yield done.result()
    except BaseException:
        for process in list(pool._processes.values()):     # whose SIGTERM removes what is half-made
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


_is_ending = False


def _prepare() -> None:
    """Make a new process ready: one thread, and the parent alone decides about Ctrl-C."""
    os.environ["OMP_NUM_THREADS"] = "1"     # before torch loads
    memory.keep_freed()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    warnings.showwarning = lambda message, *_: print(f"nac: {str(message).splitlines()[0]}", file=sys.stderr)


def _end(*_) -> None:
    global _is_ending
    _is_ending = True
    sys.exit(_TERMINATED)


def _guarded(work: Callable[[Job], object], job: Job):
    if _is_ending:
        sys.exit(_TERMINATED)
    import torch     # late: this runs in a process that will need it, unlike the rest of the module
    torch.set_num_threads(1)
    return work(job)
