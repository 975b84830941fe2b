"""Waiting for what other processes do, and ending them."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cleanscale.engine.memory import descendants

T = TypeVar("T")


def wait_until(
    look: Callable[[], T],
    what: str | Path,
    *,
    longest_s: float,
    by: subprocess.Popen | None = None,
    every_s: float = 0.02,
) -> T:
    """The first answer of `look` that is true; fails after a time, and at once when `by` has ended without it.

    what: what the failure is to say, or the file that says it.
    """
    deadline = time.monotonic() + longest_s
    while not (found := look()):
        ended = by is not None and by.poll() is not None
        if ended and (found := look()):
            break
        if ended or time.monotonic() > deadline:
            said = what.read_text() if isinstance(what, Path) else what
            raise AssertionError(f"{'its process ended' if ended else f'{longest_s:g} s passed'} before this: {said}")
        time.sleep(every_s)
    return found


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL for a process and everything that it started, Ray included: as when a machine goes down."""
    own = [*descendants(process.pid), process.pid]
    process.kill()
    for pid in own:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)
