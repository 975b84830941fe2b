"""cache: images resized once (`--data.cache_size`). Decoding originals is what every pass pays most for.

Rows keep their positions: a row that cannot be decoded has no image here, and is rejected where features are made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from cleanscale.datasets.fragments import Fragment, plan_fragments
from cleanscale.datasets.images import UnreadableImage, decode_resized, encode_cached
from cleanscale.datasets.settings import DataSettings
from cleanscale.engine.tasks import map_shards
from cleanscale.stages.images import encoded
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import open_stage
from cleanscale.storage.tables import write_table

ROWS_PER_FILE = 2048


@dataclass(frozen=True)
class Job:
    data: DataSettings
    size: int
    folder: str


def run(place: Place, folder: str, data: Ingested, size: int) -> Ingested:
    """Copy all images with their shorter side at `size`; returns the same rows, read from the copies."""
    stage = open_stage(folder, "cache", {"data": {"cache_size": size}}, {"ingest": data.fingerprint})
    if not stage.complete:
        plan = data.plan()
        with (
            place.timed("cache", data.num_rows, folder=folder),
            place.progress.step("resized copies", data.num_rows) as step,
        ):
            ranges = [(a, min(a + ROWS_PER_FILE, data.num_rows)) for a in range(0, data.num_rows, ROWS_PER_FILE)]
            there = {f.path for f in uris.list_files(folder)}
            missing = [r for r in ranges if f"images/{file_name(r)}" not in there]
            step.advance(data.num_rows - sum(b - a for a, b in missing))
            items = [(r, [f for f, _ in plan.fragments_of(np.arange(*r))]) for r in missing]
            for _, rows in map_shards(copy_images, items, Job(data.settings, size, folder)):
                step.advance(rows)
        copies = plan_fragments(uris.join(folder, "images"), reading(data.settings), uris.join(folder, "listing"))
        uris.write_bytes(stage.path("plan.json"), json.dumps(copies.to_json()).encode())
        stage.finish([{"file": f"images/{file_name(r)}", "rows": r[1] - r[0]} for r in ranges])
    return reading_copies(folder, data, size)


def reading_copies(folder: str, data: Ingested, size: int) -> Ingested:
    """The rows of `data`, read from the copies in `folder`."""
    return replace(
        data,
        settings=reading(data.settings),
        plan_uri=uris.join(folder, "plan.json"),
        fingerprint=f"{data.fingerprint}-{size}",
    )


def reading(data: DataSettings) -> DataSettings:
    """How the copies are read."""
    return data.model_copy(
        update={
            "format": "parquet",
            "image": "image",
            "id": "id",
            "label": "label",
            "true_label": None,
            "verified": None,
        }
    )


def file_name(rows: tuple[int, int]) -> str:
    return f"{rows[0]:012d}.parquet"


def copy_images(item: tuple[tuple[int, int], list[Fragment]], job: Job) -> int:
    rows, fragments = item
    row_M = np.arange(*rows)
    copies: dict[int, bytes] = {}
    for fragment in fragments:
        for row, content in encoded(fragment, job.data, row_M):
            try:
                copies[row] = encode_cached(decode_resized(content, job.size))
            except UnreadableImage:
                copies[row] = content  # kept as it is: it is rejected, with its reason, where features are made
    table = {
        "id": pa.array([str(row) for row in row_M.tolist()], pa.string()),
        "label": pa.array(np.zeros(len(row_M), np.int32)),
        "image": pa.array([copies.get(row) for row in row_M.tolist()], pa.binary()),
    }
    write_table(uris.join(job.folder, "images", file_name(rows)), pa.table(table))
    return len(row_M)
