"""Where the time of the two walks goes: every stage counts its own, for `nac bench`."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from inspect import isfunction, isgenerator

from audiocodec import audio, container, entropy, pcm, quantizer, rangecoder, threads, tokens

REST = "rest"  # all time that no stage has: converting, joining, choosing the rate
ENCODE = ("read audio", "resample", "encoder network", "quantizer search", "entropy model", "range coder", "write .nac",
          REST)
DECODE = ("read .nac", "range coder", "entropy model", "codebook look-up", "decoder network", "resample", "write audio",
          REST)

# A stage is what happens in the public methods of a class, or in some of them: of their names nothing more is known.
_CLASSES = [
    ("read audio", audio.AudioReader, None),
    ("read audio", pcm.PcmReader, None),
    ("resample", audio.Resampler, None),
    ("encoder network", tokens.Codec, ("encode_blocks",)),
    ("quantizer search", quantizer.ResidualQuantizer, ("encode", "follow")),
    ("entropy model", entropy.EntropyModel, None),
    ("range coder", rangecoder.RangeCoder, None),
    ("range coder", rangecoder.PackedCoder, None),
    ("write .nac", container.Writer, None),
    ("read .nac", container.Reader, None),
    ("codebook look-up", quantizer.ResidualQuantizer, ("decode",)),
    ("decoder network", tokens.Codec, ("decode_latents",)),
    ("write audio", audio.AudioWriter, None),
    ("write audio", pcm.PcmWriter, None),
]
_SPECIAL = ("__init__", "__iter__", "__enter__", "__exit__")


def _calls() -> list[tuple[type, str, str]]:
    """Class, name of a method, stage."""
    return [(owner, name, stage) for stage, owner, names in _CLASSES for name, value in vars(owner).items()
            if isfunction(value) and (name in names if names else name in _SPECIAL or not name.startswith("_"))]


class Stages:
    """The seconds that each stage takes for itself, without those that it calls.

    settle() waits until a device has done what it was told. Threads count side by side, each for the stage that waits
    for it until another begins; waiting counts for nothing.
    """

    def __init__(self, settle: Callable[[], None] = lambda: None):
        self.seconds: dict[str, float] = {}
        self._settle = settle
        self._thread = threading.local()  # its `running` stages, innermost last, and `since` when that one runs
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Count within; outside nothing is slowed."""
        plain = [(owner, name, vars(owner)[name], stage) for owner, name, stage in _calls()]
        for owner, name, call, stage in plain:
            setattr(owner, name, self.wrapped(call, stage))
        threads.around = self._awaited
        self._enter(REST)
        try:
            yield
        finally:
            self._leave()
            threads.around = contextlib.nullcontext
            for owner, name, call, _ in plain:
                setattr(owner, name, call)

    @contextlib.contextmanager
    def _awaited(self, call: Callable) -> Iterator[Callable]:
        """The call as one for threads, while this one waits."""
        stage = self._switch()[-1]
        self._enter(None)
        try:
            yield self.wrapped(call, stage)
        finally:
            self._leave()

    def wrapped(self, call: Callable, stage: str) -> Callable:
        """The same call, its time, or that of every step of the generator it returns, counted."""
        @functools.wraps(call)
        def timed(*args, **options):
            self._enter(stage)
            try:
                result = call(*args, **options)
            finally:
                self._leave()
            return self._steps(result, stage) if isgenerator(result) else result

        return timed

    def _steps(self, steps: Iterator, stage: str) -> Iterator:
        while True:
            self._enter(stage)
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            finally:
                self._leave()
            yield step

    def _enter(self, stage: str | None) -> None:
        self._switch().append(stage)

    def _leave(self) -> None:
        self._switch().pop()

    def _switch(self) -> list[str | None]:
        """Give the stage that runs what it took up to now; return all that run in this thread, None where it waits."""
        self._settle()
        now = time.perf_counter()
        running = vars(self._thread).setdefault("running", [])
        if running and running[-1]:
            with self._lock:
                self.seconds[running[-1]] = self.seconds.get(running[-1], 0) + now - self._thread.since
        self._thread.since = now
        return running
