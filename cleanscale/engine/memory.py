"""Peak memory of a run on this node: the driver's, and of all processes of the run together."""

from __future__ import annotations

import abc
import contextlib
import os
import threading
from pathlib import Path
from typing import Self


class Sampler(abc.ABC):
    """Calls `look` now and then while a `with` lasts, in a thread of its own."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @abc.abstractmethod
    def look(self) -> None: ...

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.look()
            if self._stop.wait(self.interval_s):
                return


class PeakMemory(Sampler):
    """Proportional set size counts a shared page once, over all who share it, in bytes.

    Only this node is seen, and only on Linux.
    """

    def __init__(self, interval_s: float = 2.0) -> None:
        super().__init__(interval_s)
        self.driver = 0
        self.total = 0

    def look(self) -> None:
        mine = pss_bytes(os.getpid())
        others = sum(pss_bytes(pid) for pid in descendants(os.getpid()))
        self.driver, self.total = max(self.driver, mine), max(self.total, mine + others)


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process; 0 when it is gone or the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def descendants(pid: int) -> list[int]:
    """Processes that this one started, and those that they started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = entry.read_text().rsplit(")", 1)[1].split()
            children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (below := children.get(waiting.pop(), []))
        found += below
    return found
