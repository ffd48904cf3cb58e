"""Work that is shared out to threads."""
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

Part, Result = TypeVar("Part"), TypeVar("Result")

# Whoever measures time puts something here that gives a call to make in its place, and knows meanwhile of the wait.
around: Callable[[Callable[[Part], Result]], AbstractContextManager[Callable[[Part], Result]]] = nullcontext


def mapped(call: Callable[[Part], Result], parts: Iterable[Part], threads: int) -> list[Result]:
    """The results of parts, so many at a time, a thread each: by itself torch would share out large products only.

    It shares nothing out in these threads. Many small steps that it did share out would wait for each other, and for
    whatever else keeps a core busy, each time.
    """
    if torch.get_num_threads() < 2:
        return list(map(call, parts))
    with (around(call) as wrapped,
          ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool):
        return list(pool.map(wrapped, parts))
