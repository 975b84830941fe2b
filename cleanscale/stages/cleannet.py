"""cleannet: CleanNet and its class folds, all fitted inside one Ray Train worker group (paper, section 3.3, step 2).

Every worker holds all verified images, which are few, and draws unverified ones from the class shards it owns, which
it reads where they lie: features and references of unverified classes are gathered for one step at a time. Of a small
collection every worker has everything: among a part of few classes it would learn to tell only those apart.

# V verified images
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.engine.tasks import map_shards
from cleanscale.engine.train import Worker, train_on_workers
from cleanscale.maths.references import ReferenceSets
from cleanscale.models.cleannet import CleanNet
from cleanscale.schema import UNSEEN
from cleanscale.stages import references as references_stage
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.rows import JoinedRows
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import fingerprint_columns, read_table, write_table
from cleanscale.training.cleannet import cross_fitted_relevance
from cleanscale.training.cleannet_settings import CleanNetSettings

# (steps done, rows of verified images, what CleanNets that saw no label of their class say of them; NaN: nothing yet)
OnCosines = Callable[[int, np.ndarray, np.ndarray], None]
MODEL, CROSS_FITTED, VERIFIED = "model.safetensors", "cross_fitted.parquet", "verified"


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    references: str
    verification: pa.Table
    settings: CleanNetSettings
    seed: int
    folder: str
    on_cosines: OnCosines | None = None
    cosines_every: int = 100


def run(
    place: Place,
    folder: str,
    features: FeatureShards,
    references: tuple[str, str],
    verification: pa.Table,
    settings: CleanNetSettings,
    *,
    name: str = "cleannet",
    on_cosines: OnCosines | None = None,
    cosines_every: int = 100,
) -> Manifest:
    """Fit CleanNet into `folder`: its weights, and cosines of verified images from models that did not see their class.

    references: (folder, fingerprint). verification: row, label, verified. on_cosines hears how the fits come along,
    about every `cosines_every` steps; only in a trial (`engine.here`), where the loop runs in the caller's process.
    """
    resolved = settings.resolved()
    stage = open_stage(
        folder,
        name,
        {"cleannet": resolved.model_dump(mode="json"), "run": {"seed": place.seed}},
        {
            "features": features.fingerprint,
            "references": references[1],
            "verification": fingerprint_columns(verification),
        },
    )
    if stage.complete:
        return stage.complete
    fits = resolved.class_folds + 1
    total = fits * resolved.steps + (resolved.start_steps if resolved.fold_start == "unverified" else 0)
    job = Job(features, references[0], verification, settings, place.seed, folder, on_cosines, cosines_every)
    with place.timed(name, folder=folder), place.progress.step(name, total, "steps") as step:
        for _ in map_shards(extract_verified, verified_ranges(features, verification["label"].to_numpy()), job):
            pass
        train_on_workers(
            fit_loop,
            job,
            uri=folder,
            settings=place.engine,
            on_progress=place.follow(step, name),
        )
    return stage.finish(notes={"model": MODEL, "steps": total})


def shards_of(features: FeatureShards, rank: int, world: int) -> list[Shard]:
    """What a worker draws unverified images from: its share, or all of what fits in memory or has too few shards."""
    if features.fit_in_memory or len(features.shards) < world:
        return list(features.shards)
    return features.deal(world)[rank]


def extract_verified(shards: list[Shard], job: Job) -> None:
    """The verified images of a range of classes, and the reference sets of their classes, in two small files."""
    row_V, label_V = job.verification["row"].to_numpy(), job.verification["label"].to_numpy()
    pieces, sets = [], None
    for shard in shards:
        if shard.contains(label_V, row_V).any():
            piece = job.features.read(shard)
            pieces.append(piece.take(np.isin(piece.row_N, row_V)))
            sets = sets or references_stage.of_shard(job.references, shard, piece)
    checked = Features.concatenate(pieces, job.features.width).ordered()
    flat = pa.array(np.ascontiguousarray(checked.feature_ND, np.float16).reshape(-1))
    feature = pa.FixedSizeListArray.from_arrays(flat, job.features.width)
    table = pa.table({"row": checked.row_N, "label": checked.label_N, "feature": feature})
    name = references_stage.file_name(shards)
    write_table(uris.join(job.folder, VERIFIED, "features", name), table)
    if sets is not None:
        kept = references_stage.to_table(sets.select(checked.label_N))
        write_table(uris.join(job.folder, VERIFIED, "references", name), kept)


def verified_ranges(features: FeatureShards, label_V: np.ndarray) -> list[list[Shard]]:
    """The ranges of classes in which somebody verified something."""
    label_V = np.unique(label_V)
    return [
        shards
        for shards in features.class_ranges()
        if np.searchsorted(label_V, shards[0].label_start) < np.searchsorted(label_V, shards[0].label_stop)
    ]


@dataclass(frozen=True)
class Drawn:
    """What a worker draws its queries from: its own unverified images, then all verified ones."""

    features: Features
    verified_N: np.ndarray  # int8
    own_N: np.ndarray  # bool: of the worker's shards; the others are verified ones
    references: ReferenceSets
    unverified: int

    @classmethod
    def of(cls, job: Job, shards: list[Shard], scratch: str | None) -> Drawn:
        own = job.features.read_all(shards, scratch)
        checked_shards = verified_ranges(job.features, job.verification["label"].to_numpy())
        folder = uris.join(job.folder, VERIFIED)
        files = [uris.join(folder, "features", references_stage.file_name(s)) for s in checked_shards]
        pieces = [Features.of_table(read_table(file), job.features.width) for file in files]
        checked = Features.concatenate(pieces, job.features.width)
        row_V = job.verification["row"].to_numpy()
        seen_V = job.verification["verified"].to_numpy()
        place = np.searchsorted(row_V, checked.row_N)
        kept = np.flatnonzero(~np.isin(own.row_N, row_V))
        pointer_N = np.concatenate([kept, -1 - np.arange(len(checked))])
        together: Any = JoinedRows(own.feature_ND, checked.feature_ND, pointer_N)
        features = Features(
            np.concatenate([own.row_N[kept], checked.row_N]),
            np.concatenate([own.label_N[kept], checked.label_N]),
            together,
        )
        verified_N = np.concatenate([np.full(len(kept), UNSEEN, np.int8), seen_V[place].astype(np.int8)])
        own_N = np.concatenate([np.ones(len(kept), bool), np.isin(checked.row_N, own.row_N)])
        references = worker_references(job, own, shards, checked_shards, scratch)
        return cls(features, verified_N, own_N, references, len(kept))


def worker_references(
    job: Job, own: Features, shards: list[Shard], checked_shards: list[list[Shard]], scratch: str | None
) -> ReferenceSets:
    """Reference sets of the worker's own classes and of all verified ones, gathered where a step asks for them."""
    mine = list({shard.label_start: [shard] for shard in shards}.values())
    others = [s for s in checked_shards if s[0].label_start not in {m[0].label_start for m in mine}]
    found = []
    if mine:
        sets = references_stage.stored(job.references, mine, job.features.width, scratch)
        found.append(sets.with_vectors(own.label_N, own.row_N, own.feature_ND))
    if others:
        folder = uris.join(job.folder, VERIFIED, "references")
        sets = references_stage.stored(folder, others, job.features.width)
        nothing = Features.empty(job.features.width)
        found.append(sets.with_vectors(nothing.label_N, nothing.row_N, nothing.feature_ND))
    return found[0] if len(found) == 1 else joined(*found)


def joined(own: ReferenceSets, others: ReferenceSets) -> ReferenceSets:
    """Two collections of sets as one, sorted by class; their vectors stay where they are."""
    label_C = np.concatenate([own.label_C, others.label_C])
    size_C = np.concatenate([np.diff(own.offset_C1), np.diff(others.offset_C1)])
    start_C = np.concatenate([own.offset_C1[:-1], -1 - others.offset_C1[:-1]])
    order_C = np.argsort(label_C)
    size_C, start_C = size_C[order_C], start_C[order_C]
    offset_C1 = np.concatenate([[0], np.cumsum(size_C)]).astype(np.int64)
    within_M = np.arange(offset_C1[-1]) - np.repeat(offset_C1[:-1], size_C)
    pointer_M = np.repeat(start_C, size_C)
    pointer_M += np.where(pointer_M >= 0, within_M, -within_M)
    vector_MD: Any = JoinedRows(own.vector_MD, others.vector_MD, pointer_M)
    count_M = np.concatenate([own.count_M, others.count_M])
    at_M = np.where(pointer_M >= 0, pointer_M, len(own.count_M) - 1 - pointer_M)
    return ReferenceSets(label_C[order_C], offset_C1, vector_MD, count_M[at_M])


def fit_loop(worker: Worker, job: Job) -> None:
    drawn = Drawn.of(job, shards_of(job.features, worker.rank, worker.world), worker.scratch)
    checked = np.arange(drawn.unverified, len(drawn.features))
    settings = job.settings.resolved()
    total = (settings.class_folds + 1) * settings.steps
    total += settings.start_steps if settings.fold_start == "unverified" else 0
    done = 0
    history: list[dict[str, float]] = []

    def on_step(step: int, losses: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        if done % 50 == 0 or done == total:
            history.append({"step": done, **{k: round(float(v), 5) for k, v in losses.items()}})
            worker.say(done, total, "steps", history)

    def on_cosines(step: int, cosine_N: np.ndarray) -> None:
        if job.on_cosines is not None:
            job.on_cosines(step, drawn.features.row_N[checked], cosine_N[checked])

    fitted = cross_fitted_relevance(
        drawn.features.feature_ND,
        drawn.features.label_N,
        drawn.verified_N,
        drawn.references,
        job.settings,
        seed=job.seed,
        collectives=worker.collectives,
        own_N=drawn.own_N,
        on_step=on_step,
        on_cosines=on_cosines if job.on_cosines else None,
        cosines_every=job.cosines_every,
        device=worker.device,
    )
    if worker.rank == 0:
        uris.write_bytes(uris.join(worker.uri, MODEL), fitted.model.to_bytes())
        cosine = {"row": drawn.features.row_N[checked], "cosine": fitted.cosine_N[checked]}
        write_table(uris.join(worker.uri, CROSS_FITTED), pa.table(cosine).sort_by("row"))


def load(folder: str) -> CleanNet:
    return CleanNet.from_bytes(uris.read_bytes(uris.join(folder, MODEL)))


def cross_fitted(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows of verified images, sorted; their cross-fitted cosines)."""
    table = read_table(uris.join(folder, CROSS_FITTED))
    return table["row"].to_numpy(), table["cosine"].to_numpy()
