"""generated: write generated features into the run folder, as Parquet files like those a user would bring."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cleanscale.datasets.generated import (
    GeneratedFile,
    GeneratedSettings,
    generated_files,
    generated_rows,
    generated_verification,
)
from cleanscale.datasets.inputs import FRAGMENT_ROWS
from cleanscale.datasets.settings import DataSettings
from cleanscale.engine.tasks import map_shards
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import open_stage
from cleanscale.storage.tables import write_table

GROUP_ROWS = FRAGMENT_ROWS  # so that a fragment is read without what lies before it


@dataclass(frozen=True)
class Job:
    settings: GeneratedSettings
    seed: int
    folder: str


def run(place: Place, folder: str, settings: GeneratedSettings, data: DataSettings) -> DataSettings:
    """Write the data set and return where it is: the same data settings with places and columns filled in."""
    files = generated_files(settings)
    stage = open_stage(
        folder, "generated", {"generated": settings.model_dump(mode="json"), "run": {"seed": place.seed}}, {}
    )
    if not stage.complete:
        total = sum(f.stop - f.start for f in files)
        with place.timed("generated", total, folder=folder), place.progress.step("generate features", total) as step:
            there = {f.path for f in uris.list_files(folder)}
            missing = [f for f in files if f"{f.split}/{f.name}" not in there]
            step.advance(total - sum(f.stop - f.start for f in missing))
            for _, rows in map_shards(write_file, missing, Job(settings, place.seed, folder)):
                step.advance(rows)
            write_table(stage.path("verification.parquet"), generated_verification(settings, place.seed))
        stage.finish([{"file": f"{f.split}/{f.name}", "rows": f.stop - f.start} for f in files])
    return data.found_at(places(folder, settings))


def places(folder: str, settings: GeneratedSettings) -> dict[str, str | None]:
    """The data settings that find the data set written to `folder`."""
    return {
        "train": uris.join(folder, "train"),
        "test": uris.join(folder, "test") if settings.test_images else None,
        "clean": None,
        "verification": uris.join(folder, "verification.parquet"),
        "true_label": "true_label",
    }


def write_file(file: GeneratedFile, job: Job) -> int:
    table = generated_rows(job.settings, job.seed, file.split, file.start, file.stop)
    groups: list[pa.Table] = [table.slice(first, GROUP_ROWS) for first in range(0, table.num_rows, GROUP_ROWS)]
    write_table(uris.join(job.folder, file.split, file.name), groups)
    return table.num_rows
