"""evidence: what out-of-fold heads and prototypes say about every image and its label, relative to its class.

The heads train in one Ray Train worker group; the signals are computed shard by shard, exchanging sums only.

# N images of a shard, C classes, D feature width, M candidate classes
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.detectors.settings import EvidenceSettings
from cleanscale.engine.class_index import ClassIndex
from cleanscale.engine.tasks import map_shards, shared_value
from cleanscale.maths.evidence import (
    ClassSums,
    Compared,
    OutOfFold,
    class_signals,
    class_statistics,
    class_sums,
    cosine_signals,
    denoised_prototypes,
    logit_signals,
    other_class_signals,
)
from cleanscale.stages import candidates, evidence_heads
from cleanscale.stages.evidence_heads import HeadsJob, heads_of
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.settings import ClassIndexSettings
from cleanscale.storage import arrays, class_arrays, uris
from cleanscale.storage.arrays import read_array, write_array
from cleanscale.storage.manifests import Manifest, fingerprint, open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table
from cleanscale.training.head_settings import HeadSettings

PROTOTYPES, STATISTICS, CENTRE = "prototypes", "statistics", "centre.npy"
CLASS_ARRAYS = (PROTOTYPES, STATISTICS)
FORM = 4  # of what the stage leaves
# What one pass leaves for the next; removed at the end.
LOGITS, CANDIDATES, SUMS, IMAGES = "logits", "candidates", "sums", "images"
PASSES = 3  # over all images: what heads say, what prototypes say, what is relative to the class


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    num_classes: int
    settings: EvidenceSettings
    weights_uri: str | None
    seed: int
    folder: str


def run(
    place: Place,
    folder: str,
    features: FeatureShards,
    num_classes: int,
    heads: HeadSettings,
    settings: EvidenceSettings,
    index: ClassIndexSettings,
    *,
    references: tuple[str, str],
    weights: tuple[str, str] | None,
) -> Manifest:
    """Heads and signals of all images, a file per class shard. weights: (URI by row, fingerprint) for the heads."""
    among_candidates = num_classes > settings.exact_classes
    index_content = {name: value for name, value in index.content().items() if name != "recall"}  # it has its own
    search = {"index": index_content} if among_candidates else {}
    stage = open_stage(
        folder,
        "evidence",
        {
            "heads": heads.relevant(num_classes),
            "evidence": settings.model_dump(mode="json", exclude={"class_folds"}) | {"form": FORM},
            "run": {"seed": place.seed},
            **search,
        },
        {"features": features.fingerprint, "references": references[1]} | ({"weights": weights[1]} if weights else {}),
    )
    if stage.complete:
        return stage.complete
    plan = heads.resolved(num_classes)
    job = Job(features, num_classes, settings, weights[0] if weights else None, place.seed, folder)
    with place.timed("evidence", features.num_images, folder=folder), contextlib.ExitStack() as opened:
        among, neighbours = None, None
        if among_candidates:
            neighbours = uris.join(folder, candidates.FOLDER)
            made, use_gpu = fingerprint(stage.key), place.engine.use_gpu
            candidates.make(folder, made, features, references[0], settings, index, seed=place.seed, use_gpu=use_gpu)
        evidence_heads.run(
            place,
            folder,
            HeadsJob(features, num_classes, plan, settings.row_folds, job.weights_uri, neighbours, place.seed),
        )
        if among_candidates:
            among = opened.enter_context(candidates.candidate_index(folder, use_gpu=place.engine.use_gpu))
        with place.progress.step("evidence", PASSES * features.num_images, "image passes") as step:
            shards, ranges = list(features.shards), features.class_ranges()
            centre_D = centre_of(job)
            scorers = shared_value(heads_of, folder, settings.row_folds, place.seed)
            asks = among is not None
            each_missing(logit_shard, shards, job, LOGITS, scorers, among, centre_D, heard=step.advance, waits=asks)
            each_missing(prototype_range, ranges, job, PROTOTYPES)
            prototypes = shared_value(class_arrays.read_classes, stage.path(PROTOTYPES), PROTOTYPES, num_classes)
            each_missing(cosine_shard, shards, job, IMAGES, prototypes, centre_D, heard=step.advance)
            statistics = shared_value(class_arrays.read_classes, stage.path(STATISTICS), STATISTICS, num_classes)
            for position, _ in map_shards(class_shard, ranges, job, statistics):
                step.advance(sum(shard.rows for shard in ranges[position]))
        for passing in (LOGITS, CANDIDATES, SUMS, IMAGES):
            uris.remove_tree(stage.path(passing))
    written = [{"file": f"{s.name}.parquet", "rows": s.rows} for s in features.shards]
    return stage.finish(written)


def each_missing(
    function: Callable[..., Any],
    items: Sequence[Any],
    job: Job,
    kind: str,
    *shared: Any,
    heard: Callable[[int], None] = lambda _: None,
    waits: bool = False,
) -> None:
    """A pass over shards, or over ranges of classes: those whose file an interrupted run has left to do.

    heard(images): of each shard that is done.
    """
    there = {file.path for file in uris.list_files(uris.join(job.folder, kind), missing_is_error=False)}
    missing = [item for item in items if file_of(kind, item) not in there]
    heard(images_of(items) - images_of(missing))
    for position, _ in map_shards(function, missing, job, *shared, waits=waits):
        heard(images_of([missing[position]]))


def images_of(items: Sequence[Any]) -> int:
    """Of shards; ranges of classes count none: their pass looks at sums."""
    return sum(item.rows for item in items if isinstance(item, Shard))


def file_of(kind: str, item: Shard | list[Shard]) -> str:
    """The file that a pass writes last for a shard, or for a range of classes."""
    if isinstance(item, Shard):
        return f"{item.name}.parquet"
    return class_arrays.file_name(kind, item[0].label_start)


def centre_of(job: Job) -> np.ndarray:
    """float32 [D]: mean feature of all images, added in the order of the shards: rounding is always the same."""
    parts: dict[int, np.ndarray] = dict(map_shards(feature_sum, list(job.features.shards), job))
    total_D = sum((parts[k] for k in sorted(parts)), np.zeros(job.features.width))
    centre_D = (total_D / max(job.features.num_images, 1)).astype(np.float32)
    write_array(uris.join(job.folder, CENTRE), centre_D)
    return centre_D


def feature_sum(shard: Shard, job: Job) -> np.ndarray:
    return job.features.read(shard).feature_ND.sum(axis=0, dtype=np.float64)


def compared(job: Job, candidate_NM: np.ndarray | None) -> Compared:
    """All classes when there are few; otherwise candidates (`stages/candidates.py`) and a sampled tail."""
    if candidate_NM is None:
        return Compared(job.num_classes)
    return Compared.candidates(candidate_NM, job.num_classes, tail=job.settings.tail, seed=job.seed)


def logit_shard(shard: Shard, job: Job, heads: OutOfFold, among: ClassIndex | None, centre_D: np.ndarray) -> None:
    """What the out-of-fold heads say of a shard's images, and what they add to the prototypes."""
    features = job.features.read(shard)
    feature_ND = features.feature_ND.astype(np.float32)
    candidate_NM = None
    if among is not None:
        most = job.settings.candidates
        candidate_NM = candidates.nearest_classes(feature_ND, features.label_N, among, most)
        write_array(uris.join(job.folder, CANDIDATES, f"{shard.name}.npy"), candidate_NM)
    class_N = features.label_N.astype(np.int64)
    found = logit_signals(heads, feature_ND, class_N, features.row_N, compared(job, candidate_NM))
    sums = class_sums(feature_ND, class_N, found.signals["log_probability"], centre_D)
    content = {"images": sums.images_C, "weight": sums.weight_C, "direction": sums.direction_CD, "first": sums.first}
    uris.write_bytes(uris.join(job.folder, SUMS, f"{shard.name}.npz"), arrays.to_npz(content))
    columns: dict[str, Any] = {"row": features.row_N, "label": features.label_N} | found.signals
    columns |= {"best_other": found.best_other_N.astype(np.int32)}
    columns |= {"best_other_log_probability": found.best_other_log_probability_N}
    write_table(uris.join(job.folder, LOGITS, f"{shard.name}.parquet"), pa.table(columns))


def prototype_range(shards: list[Shard], job: Job) -> None:
    """Prototypes and statistics of a range of classes, from the sums of all its parts in their order."""
    first = shards[0].label_start
    sums = ClassSums.zeros(shards[0].label_stop - first, job.features.width, first)
    for shard in shards:
        part = arrays.of_npz(uris.read_bytes(uris.join(job.folder, SUMS, f"{shard.name}.npz")))
        if len(part["images"]):  # features of a whole shard may have been rejected
            sums += ClassSums(part["images"], part["weight"], part["direction"], int(part["first"]))
    class_arrays.write_range(uris.join(job.folder, STATISTICS), STATISTICS, first, class_statistics(sums))
    class_arrays.write_range(uris.join(job.folder, PROTOTYPES), PROTOTYPES, first, denoised_prototypes(sums))


def cosine_shard(shard: Shard, job: Job, prototype_CD: np.ndarray, centre_D: np.ndarray) -> None:
    """IMAGE_SIGNALS of a shard: what the heads said of its images, and how near prototypes are."""
    features = job.features.read(shard)
    candidate_NM = None
    if job.num_classes > job.settings.exact_classes:
        candidate_NM = read_array(uris.join(job.folder, CANDIDATES, f"{shard.name}.npy"))
    class_N = features.label_N.astype(np.int64)
    feature_ND = features.feature_ND.astype(np.float32)
    found = cosine_signals(prototype_CD, feature_ND, class_N, centre_D, compared(job, candidate_NM))
    table = read_table(uris.join(job.folder, LOGITS, f"{shard.name}.parquet"))
    for name, value_N in found.signals.items():
        table = table.append_column(name, pa.array(value_N, pa.float32()))
    table = table.append_column("nearest_other", pa.array(found.nearest_other_N, pa.int32()))
    write_table(uris.join(job.folder, IMAGES, f"{shard.name}.parquet"), table)


def class_shard(shards: list[Shard], job: Job, statistic_C2: np.ndarray) -> None:
    """The signals relative to the class, for all parts of a range of classes together."""
    tables = [read_table(uris.join(job.folder, IMAGES, f"{s.name}.parquet")) for s in shards]
    table = pa.concat_tables(tables)
    signals = {name: table[name].to_numpy() for name in table.column_names}
    found = class_signals(signals, signals["label"], signals["best_other"])
    found |= other_class_signals(statistic_C2, signals["label"], signals["best_other"])
    for name, value_N in found.items():
        table = table.append_column(name, pa.array(value_N, pa.float32()))
    start = 0
    for shard, part in zip(shards, tables, strict=True):
        write_table(uris.join(job.folder, f"{shard.name}.parquet"), table.slice(start, part.num_rows))
        start += part.num_rows


def read_prototypes(folder: str, num_classes: int) -> dict[str, np.ndarray]:
    """What a finished stage knows of all classes: `centre`, `prototypes` and `statistics`."""
    found = {name: class_arrays.read_classes(uris.join(folder, name), name, num_classes) for name in CLASS_ARRAYS}
    return found | {"centre": read_array(uris.join(folder, CENTRE))}
