"""Out-of-fold heads of the evidence stage: trained in one worker group, dense or sharded by class, and read again.

# N images of this worker, C classes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cleanscale.engine.train import Worker, train_on_workers
from cleanscale.maths.evidence import OutOfFold
from cleanscale.maths.keyed_random import folds_of_rows
from cleanscale.models.heads import FrozenHead
from cleanscale.stages import head_files
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.sharded_training import fit_or_go_on
from cleanscale.stages.vector_index import read_neighbours
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array
from cleanscale.storage.rows import in_memory
from cleanscale.training.head_settings import HeadPlan
from cleanscale.training.heads import fit_out_of_fold_heads


@dataclass(frozen=True)
class HeadsJob:
    """weights: URI of the images' weights by row. folds: of rows. neighbours: folder of an index of the classes, whose
    nearest other classes are hard negatives of sharded heads; None where there is none."""

    features: FeatureShards
    num_classes: int
    plan: HeadPlan
    folds: int
    weights: str | None
    neighbours: str | None
    seed: int


def run(place: Place, folder: str, job: HeadsJob) -> None:
    """The heads into `folder`, unless they are there."""
    if all(head_files.exists(uris.join(folder, head_name(fold))) for fold in range(job.folds)):
        return
    with place.progress.step("out-of-fold heads", job.folds * job.plan.epochs, "epochs") as step:
        train_on_workers(heads_loop, job, uri=folder, settings=place.engine, on_progress=place.follow(step, "evidence"))


def head_name(fold: int) -> str:
    """Without the ending: see `head_files`."""
    return f"head-{fold}"


def heads_loop(worker: Worker, job: HeadsJob) -> None:
    own = job.features.read_share(worker.rank, worker.world, worker.scratch)
    weight_N = np.ones(len(own), np.float32)
    if job.weights is not None:
        weight_N = np.nan_to_num(read_array(job.weights)[own.row_N])
    if job.plan.sharded == "on":
        fit_sharded(worker, job, own, weight_N)
    else:
        fit_dense(worker, job, own, weight_N)


def said_epochs(worker: Worker, total: int) -> Callable[[int, float], None]:
    """Tells of every epoch that ends, of whichever head."""
    history: list[dict[str, float]] = []

    def on_epoch(_: int, loss: float) -> None:
        history.append({"step": len(history) + 1, "loss": loss})
        worker.say(len(history), total, "epochs", history)

    return on_epoch


def fit_dense(worker: Worker, job: HeadsJob, own: Features, weight_N: np.ndarray) -> None:
    """Every worker ends with all heads; rank 0 writes them."""
    heads = fit_out_of_fold_heads(
        in_memory(own.feature_ND).astype(np.float32),
        own.label_N.astype(np.int64),
        weight_N,
        own.row_N,
        job.num_classes,
        job.plan,
        seed=job.seed,
        folds=job.folds,
        collectives=worker.collectives,
        device=worker.device,
        on_epoch=said_epochs(worker, job.folds * job.plan.epochs),
    )
    if worker.rank == 0:
        for fold, head in enumerate(heads):
            head_files.write_dense(uris.join(worker.uri, head_name(fold)), head)


def fit_sharded(worker: Worker, job: HeadsJob, own: Features, weight_N: np.ndarray) -> None:
    """One head after the other, each of them written before the next is begun: a lost worker costs the last epoch."""
    fold_N = folds_of_rows(job.seed, own.row_N, job.folds)
    total = job.folds * job.plan.epochs
    neighbour_CK = None
    if job.neighbours is not None and job.plan.hard_negatives:
        neighbour_CK = read_neighbours(job.neighbours, 0, job.num_classes)
    seen = [head_files.exists(uris.join(worker.uri, head_name(fold))) for fold in range(job.folds)]
    there = worker.collectives.maximum(torch.tensor(seen, dtype=torch.int64)).tolist()  # a disk may show some later
    for fold in range(job.folds):
        if there[fold]:
            continue

        def on_progress(epochs: float, before: int = fold * job.plan.epochs) -> None:
            worker.say(before + epochs, total, "epochs")

        fit_or_go_on(
            worker,
            uris.join(worker.uri, head_name(fold)),
            own.feature_ND,
            own.label_N,
            weight_N,
            job.num_classes,
            job.plan,
            seed=job.seed * job.folds + fold,
            used_N=fold_N != fold,
            neighbour_CK=neighbour_CK,
            on_progress=on_progress,
        )


def heads_of(folder: str, row_folds: int, seed: int) -> OutOfFold:
    """The out-of-fold heads of a finished evidence stage."""
    return OutOfFold(row_fold_heads(folder, row_folds), seed)


def row_fold_heads(folder: str, folds: int) -> list[FrozenHead]:
    """The heads of the folds of rows, as scoring takes them."""
    return [head_files.load_frozen(uris.join(folder, head_name(fold))) for fold in range(folds)]
