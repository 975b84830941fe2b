"""Everything in the calling process: how a trial of a sweep runs its shards and training loops.

A worker group takes seconds to start and a trial holds the cores that its tasks would wait for; trials run beside each
other instead. The loops and shards are the same functions, so they give the numbers of a worker group of one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Here:
    """Torch threads of loops, and the device that they compute on."""

    threads: int = 1
    device: str = "cpu"


_here: ContextVar[Here | None] = ContextVar("here", default=None)


def here() -> Here | None:
    """How to compute in this process; None: on tasks and worker groups, as ever."""
    return _here.get()


@contextlib.contextmanager
def in_this_process(how: Here) -> Iterator[None]:
    """Shards and training loops started in a `with` run where they are called, one after the other."""
    token = _here.set(how)
    try:
        yield
    finally:
        _here.reset(token)
