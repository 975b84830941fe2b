"""cleannet: CleanNet and its class folds, all fitted inside one Ray Train worker group (paper, section 3.3, step 2).

Every worker holds all verified images, which are few, and draws unverified ones from the class shards it owns.

# V verified images
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.engine.train import Worker, train_on_workers
from cleanscale.models.cleannet import CleanNet
from cleanscale.schema import UNSEEN
from cleanscale.stages import references as references_stage
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.tables import read_table, write_table
from cleanscale.training.cleannet import cross_fitted_relevance
from cleanscale.training.cleannet_settings import CleanNetSettings

# (steps done, rows of verified images, what CleanNets that saw no label of their class say of them; NaN: nothing yet)
OnCosines = Callable[[int, np.ndarray, np.ndarray], None]
MODEL, CROSS_FITTED = "model.safetensors", "cross_fitted.parquet"


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    references: str
    verification: pa.Table
    settings: CleanNetSettings
    seed: int
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
            "verification": fingerprint_of(verification),
        },
    )
    if stage.complete:
        return stage.complete
    fits = resolved.class_folds + 1
    total = fits * resolved.steps + (resolved.start_steps if resolved.fold_start == "unverified" else 0)
    with place.timed(name, folder=folder), place.progress.step(name, total, "steps") as step:
        train_on_workers(
            fit_loop,
            Job(features, references[0], verification, settings, place.seed, on_cosines, cosines_every),
            uri=folder,
            settings=place.engine,
            on_progress=place.follow(step, name),
        )
    return stage.finish(notes={"model": MODEL, "steps": total})


def fingerprint_of(verification: pa.Table) -> str:
    from cleanscale.storage.manifests import fingerprint

    return fingerprint({c: verification[c].to_pylist() for c in ("row", "label", "verified")})


def fit_loop(worker: Worker, job: Job) -> None:
    shards = job.features.deal(worker.world)[worker.rank]
    verified_rows = job.verification["row"].to_numpy()
    own = job.features.read_all(shards)
    own = own.take(~np.isin(own.row_N, verified_rows))
    checked = read_rows(job.features, job.verification)
    together = Features.concatenate([own, checked], job.features.width)
    place = np.searchsorted(verified_rows, checked.row_N)
    seen = job.verification["verified"].to_numpy()[place]
    verified_N = np.concatenate([np.full(len(own), UNSEEN, np.int8), seen.astype(np.int8)])
    labels = np.unique(together.label_N)
    ranges = [
        r for r in job.features.class_ranges() if ((labels >= r[0].label_start) & (labels < r[0].label_stop)).any()
    ]
    references = references_stage.read(job.references, ranges, job.features.width).select(labels)
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
            job.on_cosines(step, checked.row_N, cosine_N[len(own) :])

    fitted = cross_fitted_relevance(
        together.feature_ND.astype(np.float32),
        together.label_N,
        verified_N,
        references,
        job.settings,
        seed=job.seed,
        collectives=worker.collectives,
        on_step=on_step,
        on_cosines=on_cosines if job.on_cosines else None,
        cosines_every=job.cosines_every,
        device=worker.device,
    )
    if worker.rank == 0:
        uris.write_bytes(uris.join(worker.uri, MODEL), fitted.model.to_bytes())
        cosine = {"row": checked.row_N, "cosine": fitted.cosine_N[len(own) :]}
        write_table(uris.join(worker.uri, CROSS_FITTED), pa.table(cosine).sort_by("row"))


def read_rows(features: FeatureShards, verification: pa.Table) -> Features:
    """Features of all verified images, read by the worker itself: a shard without any is not opened."""
    row_V, label_V = verification["row"].to_numpy(), verification["label"].to_numpy()
    pieces = []
    for shard in features.shards:
        if shard.contains(label_V, row_V).any():
            piece = features.read(shard)
            pieces.append(piece.take(np.isin(piece.row_N, row_V)))
    return Features.concatenate(pieces, features.width).ordered()


def load(folder: str) -> CleanNet:
    return CleanNet.from_bytes(uris.read_bytes(uris.join(folder, MODEL)))


def cross_fitted(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows of verified images, sorted; their cross-fitted cosines)."""
    table = read_table(uris.join(folder, CROSS_FITTED))
    return table["row"].to_numpy(), table["cosine"].to_numpy()
