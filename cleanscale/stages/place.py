"""Where a run lives and whom it tells: what every stage is given besides its settings and inputs."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cleanscale.engine.memory import PeakMemory
from cleanscale.engine.settings import EngineSettings
from cleanscale.errors import CleanscaleError
from cleanscale.reporting.progress import Progress, Step
from cleanscale.storage import uris
from cleanscale.storage.manifests import read_json, write_json

TIME = "time.json"  # in a stage's folder
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
    def timed(self, stage: str, images: int = 0, *, folder: str | None = None) -> Iterator[None]:
        """Add the time of a `with` to the stage's seconds, and what it went through to its images.

        folder: where the stage keeps its time for a run that goes on later; a stage that is redone loses both.
        """
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
            self.images[stage] = self.images.get(stage, 0) + images
            if folder is not None:
                with contextlib.suppress(CleanscaleError):  # a place that cannot be written is told of elsewhere
                    keep_time(folder, stage, seconds, images)

    def took(self, newest_round: int) -> tuple[dict[str, float], dict[str, int]]:
        """(seconds, images) by stage of what this run folder was made in, by this invocation and those before it.

        newest_round: rounds above it are left over from other settings.
        """
        seconds, images = dict(self.seconds), dict(self.images)
        kept = [file for file in uris.list_files(self.uri, (f"/{TIME}",)) if round_of(file.path) <= newest_round]
        times = [read_json(file.uri) or {} for file in kept]
        for stage in {stage for time_of in times for stage in time_of}:
            found = [time_of[stage] for time_of in times if stage in time_of]
            seconds[stage] = sum(one["seconds"] for one in found)
            images[stage] = sum(one["images"] for one in found)
        return seconds, images

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


def keep_time(folder: str, stage: str, seconds: float, images: int) -> None:
    """Add to the stage's time; its images are those of the whole stage, however many attempts it took."""
    kept = read_json(uris.join(folder, TIME)) or {}
    before = kept.get(stage, {"seconds": 0.0})["seconds"]
    write_json(uris.join(folder, TIME), kept | {stage: {"seconds": before + seconds, "images": images}})


def round_of(path: str) -> int:
    """The round of a stage folder's path in the run folder; 0 for what is before all rounds."""
    found = re.match(r"rounds/(\d+)/", path)
    return int(found[1]) if found else 0
