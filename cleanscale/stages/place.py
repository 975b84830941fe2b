"""Where a run lives and whom it tells: what every stage is given besides its settings and inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cleanscale.engine.memory import PeakMemory
from cleanscale.engine.settings import EngineSettings
from cleanscale.reporting.progress import Progress, Step
from cleanscale.storage import uris

Report = Callable[[str, dict[str, Any], int | None], None]


@dataclass(frozen=True)
class Place:
    """uri: the run folder. report(stage, numbers, step): metrics as they come; tracking listens."""

    uri: str
    seed: int
    engine: EngineSettings
    progress: Progress
    report: Report = lambda stage, numbers, step: None
    seconds: dict[str, float] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    memory: PeakMemory = field(default_factory=PeakMemory)
    started: float = field(default_factory=time.monotonic)

    def path(self, *parts: str) -> str:
        return uris.join(self.uri, *parts)

    def round_path(self, number: int, *parts: str) -> str:
        return self.path("rounds", f"{number:02d}", *parts)

    def of_round(self, number: int) -> Place:
        """The same place; what is reported there belongs to the round."""

        def report(stage: str, numbers: dict[str, Any], step: int | None = None) -> None:
            self.report(f"round_{number}/{stage}", numbers, step)

        return replace(self, report=report)

    @contextmanager
    def timed(self, stage: str, images: int = 0) -> Iterator[None]:
        """Add the time of a `with` to the stage's seconds, and what it went through to its images."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started
            self.images[stage] = self.images.get(stage, 0) + images

    def follow(self, step: Step, stage: str) -> Callable[[dict[str, Any]], None]:
        """What `train_on_workers` tells of its progress, as a progress step and as reported numbers."""
        done, reported = 0.0, 0

        def hear(said: dict[str, Any]) -> None:
            nonlocal done, reported
            # A group that lost a worker goes on from further back: the progress waits until it is there again.
            step.advance(max(0, int(said["done"]) - int(done)))
            done = max(done, said["done"])
            for numbers in said["history"][reported:]:
                self.report(stage, {k: v for k, v in numbers.items() if k != "step"}, int(numbers["step"]))
            reported = max(reported, len(said["history"]))

        return hear
