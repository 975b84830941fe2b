"""references: the vectors that stand for each class, made shard by shard (CleanNet, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.engine.tasks import map_shards
from cleanscale.maths.references import ReferenceSets, make_references
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.settings import ReferencesSettings
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    settings: ReferencesSettings
    per_class: int
    seed: int
    folder: str


def run(
    place: Place, folder: str, features: FeatureShards, settings: ReferencesSettings, *, per_class: int
) -> Manifest:
    """Reference sets of every class, one file per range of classes. per_class: vectors of a class at most."""
    values = settings.model_dump(mode="json") | {"per_class": per_class}
    stage = open_stage(
        folder, "references", {"references": values, "run": {"seed": place.seed}}, {"features": features.fingerprint}
    )
    if stage.complete:
        return stage.complete
    ranges = features.class_ranges()
    written: list[dict[str, Any]] = [{} for _ in ranges]
    there = {f.path for f in uris.list_files(folder)}
    missing = [k for k, shards in enumerate(ranges) if file_name(shards) not in there]
    with place.timed("references", features.num_images, folder=folder):
        with place.progress.step("references", len(ranges), "shards") as step:
            step.advance(len(ranges) - len(missing))
            job = Job(features, settings, per_class, place.seed, folder)
            for _ in map_shards(make_shard, [ranges[k] for k in missing], job):
                step.advance(1)
        for k, shards in enumerate(ranges):
            classes = read_table(stage.path(file_name(shards)), ["label"]).num_rows
            written[k] = {"file": file_name(shards), "rows": classes, "label_start": shards[0].label_start}
    return stage.finish(written, {"classes": sum(w["rows"] for w in written)})


def file_name(shards: list[Shard]) -> str:
    return f"classes-{shards[0].label_start:09d}.parquet"


def make_shard(shards: list[Shard], job: Job) -> None:
    features = job.features.read_all(shards)
    references = make_references(
        features.feature_ND,
        features.label_N,
        features.row_N,
        per_class=job.per_class,
        method=job.settings.method,
        iterations=job.settings.iterations,
        max_images=max(job.settings.max_images, job.per_class),
        seed=job.seed,
    )
    write_table(uris.join(job.folder, file_name(shards)), to_table(references))


def to_table(references: ReferenceSets) -> pa.Table:
    """label, and of each class as many vectors, counts and nearest rows as it has: ragged, never padded."""
    width = references.vector_MD.shape[1]
    offsets = pa.array(references.offset_C1.astype(np.int32))
    flat = pa.array(references.vector_MD.astype(np.float16).reshape(-1))
    nearest = references.nearest_row_M if references.nearest_row_M is not None else np.full(len(references.count_M), -1)
    return pa.table(
        {
            "label": pa.array(references.label_C, pa.int32()),
            "vectors": pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(flat, width)),
            "counts": pa.ListArray.from_arrays(offsets, pa.array(references.count_M, pa.int32())),
            "nearest_rows": pa.ListArray.from_arrays(offsets, pa.array(nearest, pa.int64())),
        }
    )


def of_table(table: pa.Table, width: int) -> ReferenceSets:
    counts = table["counts"].combine_chunks()
    vectors = table["vectors"].combine_chunks().flatten().flatten()
    return ReferenceSets(
        table["label"].to_numpy(),
        np.concatenate([[0], np.cumsum(counts.value_lengths().to_numpy())]).astype(np.int64),
        vectors.to_numpy(zero_copy_only=False).reshape(-1, width).astype(np.float32),
        counts.flatten().to_numpy(),
        table["nearest_rows"].combine_chunks().flatten().to_numpy(),
    )


def read(folder: str, ranges: list[list[Shard]], width: int) -> ReferenceSets:
    """The reference sets of these ranges of classes."""
    tables = [read_table(uris.join(folder, file_name(shards))) for shards in ranges]
    return ReferenceSets.concatenate([of_table(t, width) for t in tables])
