"""Progress of long steps, with rate and time left: a bar on a terminal, a log line now and then elsewhere.

progress = Progress()
with progress.step("features", total=50_000, unit="images") as step:
    step.advance(128)
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console

from cleanscale.reporting import formats

logger = logging.getLogger("cleanscale.progress")

SECONDS_BETWEEN_LINES = 10.0
# The rate is that of the last half minute: a slow first batch does not spoil it for long.
_RATE_WINDOW_S, _SAMPLE_S, _REDRAW_S = 30.0, 0.5, 0.1


class Step:
    """One long step. Any thread may advance it."""

    def __init__(self, name: str, total: int | None, unit: str, progress: Progress):
        self.name, self.total, self.unit, self.done, self.note = name, total, unit, 0, ""
        self._progress, self._clock, self._lock = progress, progress.clock, progress.lock
        self.began = self._clock()
        self._samples: deque[tuple[float, int]] = deque([(self.began, 0)])

    def advance(self, number: int = 1, *, note: str | None = None) -> None:
        """`number` more are done; `note` is a word about now, for example "loss 2.31"."""
        with self._lock:
            self.done += int(number)
            self.note = self.note if note is None else note
            now = self._clock()
            if now - self._samples[-1][0] >= _SAMPLE_S:
                self._samples.append((now, self.done))
                while len(self._samples) > 2 and now - self._samples[1][0] > _RATE_WINDOW_S:
                    self._samples.popleft()
            self._progress.show(self)

    def set_total(self, total: int | None) -> None:
        """The total became known, or changed."""
        with self._lock:
            self.total = total
            self._progress.show(self)

    @property
    def seconds(self) -> float:
        """Since the step began."""
        return self._clock() - self.began

    @property
    def rate(self) -> float | None:
        """Units per second of late; None while nothing is known."""
        with self._lock:
            then, before = self._samples[0]
            passed = self._clock() - then
            return (self.done - before) / passed if passed > 0 and self.done > before else None

    @property
    def seconds_left(self) -> float | None:
        rate = self.rate
        return max(self.total - self.done, 0) / rate if self.total is not None and rate else None

    def amount(self) -> str:
        """`12,800/50,000 images`"""
        of = "" if self.total is None else f"/{self.total:,}"
        return f"{self.done:,}{of} {self.unit}"

    def pace(self) -> str:
        """`410 images/s, 1 min 31 s left, loss 2.31`: what is known of it."""
        rate, left = self.rate, self.seconds_left
        known = [formats.rate(rate, self.unit)] if rate else []
        known += [f"{formats.duration(left)} left"] if left else []
        return ", ".join([*known, self.note] if self.note else known)

    def summary(self) -> str:
        """`features 50,000 images in 2 min 02 s, 410 images/s`, when the step is over."""
        seconds = self.seconds
        parts = [f"{self.name}: {self.done:,} {self.unit} in {formats.duration(seconds)}"]
        parts += [formats.rate(self.done / seconds, self.unit)] if self.done and seconds > 0 else []
        return ", ".join([*parts, self.note] if self.note else parts)


class Progress:
    """Shows steps, which may be nested and advanced from several threads.

    Args:
        console: where bars are drawn; by default standard error. Bars appear only when it is a terminal. Where bars
            are, log through this console too, so that lines go above them:
            `rich.logging.RichHandler(console=progress.console)`.
        silent: show nothing at all, for use in memory.
        clock: seconds, for tests.
    """

    def __init__(
        self, console: Console | None = None, *, silent: bool = False, clock: Callable[[], float] = time.monotonic
    ):
        self.console = console or Console(file=sys.stderr)
        self.clock = clock
        self.lock = threading.RLock()  # one for all steps: bars and steps can then not wait for each other
        self._silent = silent
        self._bars: rich_progress.Progress | None = None
        self._tasks: dict[Step, rich_progress.TaskID] = {}
        self._shown: dict[Step, float] = {}

    @contextmanager
    def step(self, name: str, total: int | None = None, unit: str = "images") -> Iterator[Step]:
        """A step under way for as long as the block runs. `total` may be unknown."""
        step = Step(name, total, unit, self)
        nested = self._open(step)
        finished = False
        try:
            yield step
            finished = True
        finally:
            self._close(step, finished, nested)

    @property
    def on_terminal(self) -> bool:
        """Bars are drawn, rather than lines logged."""
        return not self._silent and self.console.is_terminal and not self.console.is_dumb_terminal

    def show(self, step: Step) -> None:
        """Show how far a step is, if that is due."""
        with self.lock:
            if self._silent or step not in self._shown:
                return
            now = self.clock()
            if now - self._shown[step] < (SECONDS_BETWEEN_LINES if self._bars is None else _REDRAW_S):
                return
            self._shown[step] = now
            if self._bars is None:
                logger.info("%s", ", ".join(filter(None, [f"{step.name} {step.amount()}", step.pace()])))
            else:
                shown = {"total": step.total, "amount": step.amount(), "pace": step.pace()}
                self._bars.update(self._tasks[step], completed=step.done, **shown)

    def _open(self, step: Step) -> bool:
        """Start showing a step; true when others are under way."""
        with self.lock:
            nested = bool(self._shown)
            self._shown[step] = step.began
            if self.on_terminal:
                if self._bars is None:
                    self._bars = _bars(self.console)
                    self._bars.start()
                self._tasks[step] = self._bars.add_task(step.name, total=step.total, amount=step.amount(), pace="")
            elif not (self._silent or nested):
                logger.info("%s: %s", step.name, "started" if step.total is None else f"{step.total:,} {step.unit}")
            return nested

    def _close(self, step: Step, finished: bool, nested: bool) -> None:
        """Stop showing a step, and leave one line about it; nested steps leave one only when they took long."""
        with self.lock:
            del self._shown[step]
            if self._bars is not None:
                self._bars.remove_task(self._tasks.pop(step))
                if not self._tasks:
                    self._bars.stop()
                    self._bars = None
            if self._silent or (finished and nested and step.seconds < SECONDS_BETWEEN_LINES):
                return
            logger.info("%s", step.summary() if finished else f"{step.name} stopped at {step.amount()}")


def _bars(console: Console) -> rich_progress.Progress:
    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", style="bold"),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.TextColumn("{task.fields[amount]}"),
        rich_progress.TextColumn("{task.fields[pace]}", style="cyan"),
        console=console,
        transient=True,
        refresh_per_second=5,
    )
