"""references: the vectors that stand for each class, made shard by shard (CleanNet, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.engine.tasks import map_shards
from cleanscale.errors import StageError
from cleanscale.maths.references import ReferenceSets, make_references, reservoir
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.settings import ReferencesSettings
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.rows import JoinedRows, Rows, empty_rows, in_memory
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table

FORM = 3  # of the tables


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
    values = settings.model_dump(mode="json") | {"per_class": per_class, "form": FORM}
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


def file_name(shards: Sequence[Shard]) -> str:
    return f"classes-{shards[0].label_start:09d}.parquet"


def make_shard(shards: list[Shard], job: Job) -> None:
    settings = job.settings
    most = max(settings.max_images, job.per_class)
    # Of a huge class in several parts, each gives those of its images that could be among the chosen ones.
    parts, labels = [], []
    for shard in shards:
        part = job.features.read(shard)
        labels.append(part.label_N)
        taken = reservoir(part.label_N, part.row_N, most, job.seed)[0]
        parts.append(part.take(taken))
    chosen = Features.concatenate(parts, job.features.width)
    references = make_references(
        chosen.feature_ND,
        chosen.label_N,
        chosen.row_N,
        per_class=job.per_class,
        method=settings.method,
        iterations=settings.iterations,
        max_images=most,
        seed=job.seed,
    )
    images_C = np.unique(np.concatenate(labels), return_counts=True)[1]
    stored_C = ~of_all_images(references, images_C) if len(shards) == 1 else None
    write_table(uris.join(job.folder, file_name(shards)), to_table(references, stored_C))


def to_table(references: ReferenceSets, stored_C: np.ndarray | None = None) -> pa.Table:
    """label, and of each class as many vectors, counts and nearest rows as it has: ragged, never padded.

    stored_C: classes whose vectors are here (None: all); the references of the others are their images, in order.
    """
    stored_C = np.ones(len(references), bool) if stored_C is None else stored_C
    width = references.vector_MD.shape[1]
    size_C = np.diff(references.offset_C1)
    vector_C1 = np.concatenate([[0], np.cumsum(np.where(stored_C, size_C, 0))]).astype(np.int32)
    stored_MD = references.vector_MD[np.repeat(stored_C, size_C)].astype(np.float16)
    offsets = pa.array(references.offset_C1.astype(np.int32))
    flat = pa.array(stored_MD.reshape(-1))
    assert references.nearest_row_M is not None
    return pa.table(
        {
            "label": pa.array(references.label_C, pa.int32()),
            "of_images": pa.array(~stored_C),
            "vectors": pa.ListArray.from_arrays(pa.array(vector_C1), pa.FixedSizeListArray.from_arrays(flat, width)),
            "counts": pa.ListArray.from_arrays(offsets, pa.array(references.count_M, pa.int32())),
            "nearest_rows": pa.ListArray.from_arrays(offsets, pa.array(references.nearest_row_M, pa.int64())),
        }
    )


def of_all_images(references: ReferenceSets, images_C: np.ndarray) -> np.ndarray:
    """bool [C]: each reference of the class stands for one image, which it then is, and there are no others."""
    alone_M = (references.count_M == 1).astype(np.int64)
    return np.add.reduceat(alone_M, references.offset_C1[:-1]) == images_C


@dataclass(frozen=True)
class StoredReferences:
    """References of some ranges of classes as they are stored: vectors where a class has centroids, else its images."""

    label_C: np.ndarray
    offset_C1: np.ndarray  # int64, into what follows
    count_M: np.ndarray
    row_M: np.ndarray
    stored_C: np.ndarray  # bool: the class has vectors; otherwise they are the features of its images
    vector_VD: Rows  # float16, of the classes that have vectors

    def with_vectors(self, label_N: np.ndarray, row_N: np.ndarray, feature_ND: Rows) -> ReferenceSets:
        """The sets. Features, by label and row, must hold all images of the classes whose references they are."""
        size_C = np.diff(self.offset_C1)
        stored_M = np.repeat(self.stored_C, size_C)
        # References that are images come in the order of their rows: they are the class's features one after the other.
        shift_C = np.searchsorted(label_N, self.label_C) - self.offset_C1[:-1]
        pointer_M = np.arange(len(self.row_M)) + np.repeat(shift_C, size_C)
        pointer_M[stored_M] = -1 - np.arange(int(stored_M.sum()))
        images_M = ~stored_M
        if not np.array_equal(row_N[pointer_M[images_M]], self.row_M[images_M]):
            raise StageError(
                "the reference sets name images that are not among the features; expected those that they were made "
                "of; remove the folder of the references and run again"
            )
        vector_MD: Any = JoinedRows(feature_ND, self.vector_VD, pointer_M)
        return ReferenceSets(self.label_C, self.offset_C1, vector_MD, self.count_M, self.row_M)


def stored(folder: str, ranges: Sequence[Sequence[Shard]], width: int, scratch: str | None = None) -> StoredReferences:
    """What is stored of these ranges of classes. More vectors than fit in memory lie in a file of this node."""
    files = [uris.join(folder, file_name(shards)) for shards in ranges]
    tables = [read_table(file, ["label", "of_images", "counts", "nearest_rows"]) for file in files]
    table = pa.concat_tables(tables).combine_chunks()
    counts = table["counts"].combine_chunks()
    size_C = np.asarray(counts.value_lengths()).astype(np.int64)
    stored_C = ~table["of_images"].to_numpy()
    vector_VD = empty_rows(int(size_C[stored_C].sum()), width, np.float16, scratch)
    start = 0
    for file in files:
        vectors = read_table(file, ["vectors"])["vectors"].combine_chunks().flatten().flatten()
        part_XD = vectors.to_numpy(zero_copy_only=False).reshape(-1, width)
        vector_VD[slice(start, start + len(part_XD))] = part_XD
        start += len(part_XD)
    return StoredReferences(
        table["label"].to_numpy(),
        np.concatenate([[0], np.cumsum(size_C)]).astype(np.int64),
        counts.flatten().to_numpy(),
        table["nearest_rows"].combine_chunks().flatten().to_numpy(),
        stored_C,
        vector_VD,
    )


def read(folder: str, shards: list[Shard], features: FeatureShards) -> ReferenceSets:
    """The reference sets of one range of classes, as `FeatureShards.class_ranges` has them, in memory."""
    return of_shard(folder, shards[0], features.read(shards[0]))


def of_shard(folder: str, shard: Shard, features: Features) -> ReferenceSets:
    """The reference sets of the classes of a shard whose features are at hand, in memory."""
    found = stored(folder, [[shard]], features.feature_ND.shape[1])
    sets = found.with_vectors(features.label_N, features.row_N, features.feature_ND)
    return replace(sets, vector_MD=in_memory(sets.vector_MD))


def means(folder: str, features: FeatureShards) -> tuple[np.ndarray, np.ndarray]:
    """(classes that have references, their mean vectors [C, D]): for as few classes as fit in memory."""
    found = [read(folder, shards, features) for shards in features.class_ranges()]
    return np.concatenate([sets.label_C for sets in found]), np.concatenate([sets.mean_CD() for sets in found])
