"""evidence: what out-of-fold heads and prototypes say about every image and its label, relative to its class.

The heads train in one Ray Train worker group; the signals are computed shard by shard, exchanging sums only.

# N images of a shard, C classes, D feature width, M candidate classes
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.detectors.settings import EvidenceSettings
from cleanscale.engine.class_index import ClassIndex
from cleanscale.engine.tasks import map_shards
from cleanscale.engine.train import Worker, train_on_workers
from cleanscale.maths.evidence import (
    ClassSums,
    Compared,
    OutOfFold,
    class_signals,
    class_statistics,
    class_sums,
    denoised_prototypes,
    image_signals,
    other_class_signals,
    own_log_probability,
)
from cleanscale.models.heads import FrozenHead, head_from_bytes, head_to_bytes
from cleanscale.stages import candidates
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.settings import ClassIndexSettings
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array, write_array
from cleanscale.storage.manifests import Manifest, fingerprint, open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table
from cleanscale.training.heads import HeadSettings, fit_out_of_fold_heads


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    num_classes: int
    heads: HeadSettings
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
    search = {"index": index.model_dump(mode="json", exclude={"recall", "shard_bytes"})} if among_candidates else {}
    stage = open_stage(
        folder,
        "evidence",
        {
            "heads": heads.model_dump(mode="json"),
            "evidence": settings.model_dump(mode="json", exclude={"class_folds"}),
            "run": {"seed": place.seed},
            **search,
        },
        {"features": features.fingerprint, "references": references[1]} | ({"weights": weights[1]} if weights else {}),
    )
    if stage.complete:
        return stage.complete
    job = Job(features, num_classes, heads, settings, weights[0] if weights else None, place.seed, folder)
    with place.timed("evidence", features.num_images, folder=folder), contextlib.ExitStack() as opened:
        if among_candidates:
            made = fingerprint(stage.key)
            how: Any = {"seed": place.seed, "use_gpu": place.engine.use_gpu}
            candidates.make(folder, made, features, references[0], settings, index, **how)
        if not uris.exists(stage.path(head_name(settings.row_folds - 1))):
            with place.progress.step("out-of-fold heads", settings.row_folds * heads.epochs, "epochs") as step:
                train_on_workers(
                    heads_loop, job, uri=folder, settings=place.engine, on_progress=place.follow(step, "evidence")
                )
        with place.progress.step("evidence", features.num_images) as step:
            among = None
            if among_candidates:
                among = opened.enter_context(candidates.candidate_index(folder, use_gpu=place.engine.use_gpu))
            prototypes(job, among)
            shards = list(features.shards)
            for position, _ in map_shards(image_shard, shards, job, among):
                step.advance(shards[position].rows)
            for _ in map_shards(class_shard, features.class_ranges(), job):
                pass
    written = [{"file": f"{s.name}.parquet", "rows": s.rows} for s in features.shards]
    return stage.finish(written)


def head_name(fold: int) -> str:
    return f"head-{fold}.safetensors"


def heads_loop(worker: Worker, job: Job) -> None:
    own = job.features.read_all(job.features.deal(worker.world)[worker.rank])
    weight_N = np.ones(len(own), np.float32)
    if job.weights_uri is not None:
        weight_N = np.nan_to_num(read_array(job.weights_uri)[own.row_N])
    done, total = 0, job.settings.row_folds * job.heads.epochs
    history: list[dict[str, float]] = []

    def on_epoch(epoch: int, loss: float) -> None:
        nonlocal done
        done += 1
        history.append({"step": done, "loss": loss})
        worker.say(done, total, "epochs", history)

    heads = fit_out_of_fold_heads(
        own.feature_ND.astype(np.float32),
        own.label_N.astype(np.int64),
        weight_N,
        own.row_N,
        job.num_classes,
        job.heads,
        seed=job.seed,
        folds=job.settings.row_folds,
        collectives=worker.collectives,
        device=worker.device,
        on_epoch=on_epoch,
    )
    if worker.rank == 0:
        for fold, head in enumerate(heads):
            uris.write_bytes(uris.join(worker.uri, head_name(fold)), head_to_bytes(head))


def out_of_fold(job: Job) -> OutOfFold:
    return heads_of(job.folder, job.settings.row_folds, job.seed)


def heads_of(folder: str, row_folds: int, seed: int) -> OutOfFold:
    """The out-of-fold heads of a finished evidence stage."""
    return OutOfFold(row_fold_heads(folder, row_folds), seed)


def row_fold_heads(folder: str, folds: int) -> list[FrozenHead]:
    """The heads of the folds of rows, as scoring takes them."""
    contents = [uris.read_bytes(uris.join(folder, head_name(fold))) for fold in range(folds)]
    return [head_from_bytes(content).frozen() for content in contents]


def prototypes(job: Job, among: ClassIndex | None) -> None:
    """Mean feature of all images, then prototypes of classes: sums over shards, added up here."""
    # Added in the order of the shards, so that rounding does not depend on which task was first.
    parts: dict[int, np.ndarray] = dict(map_shards(feature_sum, list(job.features.shards), job))
    total_D = sum((parts[k] for k in sorted(parts)), np.zeros(job.features.width))
    centre_D = (total_D / max(job.features.num_images, 1)).astype(np.float32)
    sums = ClassSums.zeros(job.num_classes, job.features.width)
    found: dict[int, ClassSums] = dict(map_shards(sums_of_shard, list(job.features.shards), job, centre_D, among))
    for position in sorted(found):
        sums += found[position]
    write_array(uris.join(job.folder, "centre.npy"), centre_D)
    write_array(uris.join(job.folder, "prototypes.npy"), denoised_prototypes(sums))
    write_array(uris.join(job.folder, "statistics.npy"), class_statistics(sums))


def feature_sum(shard: Shard, job: Job) -> np.ndarray:
    return job.features.read(shard).feature_ND.astype(np.float64).sum(axis=0)


def compared(job: Job, feature_ND: np.ndarray, among: ClassIndex | None) -> Compared:
    """All classes when there are few; otherwise those whose mean references are nearest, and a sampled tail."""
    if among is None:
        return Compared(job.num_classes)
    candidate_NM = candidates.nearest_classes(feature_ND, among, job.settings.candidates)
    return Compared.candidates(candidate_NM, job.num_classes, tail=job.settings.tail, seed=job.seed)


def sums_of_shard(shard: Shard, job: Job, centre_D: np.ndarray, among: ClassIndex | None) -> ClassSums:
    features = job.features.read(shard)
    feature_ND = features.feature_ND.astype(np.float32)
    class_N = features.label_N.astype(np.int64)
    log_probability_N = own_log_probability(
        out_of_fold(job), feature_ND, class_N, features.row_N, compared(job, feature_ND, among)
    )
    return class_sums(feature_ND, class_N, log_probability_N, centre_D)


def image_shard(shard: Shard, job: Job, among: ClassIndex | None) -> None:
    features = job.features.read(shard)
    feature_ND = features.feature_ND.astype(np.float32)
    found = image_signals(
        out_of_fold(job),
        read_array(uris.join(job.folder, "prototypes.npy")),
        feature_ND,
        features.label_N.astype(np.int64),
        features.row_N,
        read_array(uris.join(job.folder, "centre.npy")),
        compared(job, feature_ND, among),
    )
    columns: dict[str, Any] = {"row": features.row_N, "label": features.label_N} | found.signals
    columns |= {"best_other": found.best_other_N.astype(np.int32)}
    columns |= {"best_other_log_probability": found.best_other_log_probability_N}
    write_table(uris.join(job.folder, "images", f"{shard.name}.parquet"), pa.table(columns))


def class_shard(shards: list[Shard], job: Job) -> None:
    """The signals relative to the class, for all parts of a range of classes together."""
    tables = [read_table(uris.join(job.folder, "images", f"{s.name}.parquet")) for s in shards]
    table = pa.concat_tables(tables)
    signals = {name: table[name].to_numpy() for name in table.column_names}
    found = class_signals(signals, signals["label"], signals["best_other"])
    statistic_C2 = read_array(uris.join(job.folder, "statistics.npy"))
    found |= other_class_signals(statistic_C2, signals["label"], signals["best_other"])
    for name, value_N in found.items():
        table = table.append_column(name, pa.array(value_N, pa.float32()))
    start = 0
    for shard, part in zip(shards, tables, strict=True):
        write_table(uris.join(job.folder, f"{shard.name}.parquet"), table.slice(start, part.num_rows))
        start += part.num_rows
