"""Training a sharded head inside a worker group: written by ranges of classes, with a checkpoint after every epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cleanscale.engine.train import Worker
from cleanscale.stages import head_files
from cleanscale.storage import uris
from cleanscale.training.head_settings import HeadPlan
from cleanscale.training.sharded_heads import HeadPart, fit_sharded_head


def fit_or_go_on(
    worker: Worker,
    uri: str,
    feature_ND: Any,
    target_N: np.ndarray,
    weight_N: np.ndarray,
    num_classes: int,
    plan: HeadPlan,
    *,
    seed: int,
    used_N: np.ndarray | None = None,
    neighbour_CK: np.ndarray | None = None,
    start: str | None = None,
    on_progress: Callable[[float], None] | None = None,
    on_loss: Callable[[int, float], None] | None = None,
) -> None:
    """The head into `uri` (as `head_files` writes it). After an interruption it goes on behind the last whole epoch,
    also with another number of workers. start: the head to fine-tune."""
    together = worker.collectives
    part, before = begun(uri, plan.epochs), None
    if part is not None:
        before = head_files.read_part(part, together, worker.device)
    elif start is not None:
        before = head_files.fresh(head_files.read_part(start, together, worker.device), together)

    def on_epoch(epoch: int, loss: float, head: HeadPart) -> None:
        if on_loss is not None:
            on_loss(epoch, loss)
        if epoch + 1 < plan.epochs:
            head_files.write_part(checkpoint(uri, epoch + 1), head, together, with_state=True)
            if together.rank == 0:
                uris.remove_tree(checkpoint(uri, epoch))

    together.wait()  # whoever is first must not remove what the others are about to read
    made = fit_sharded_head(
        feature_ND,
        target_N,
        weight_N,
        num_classes,
        plan,
        seed=seed,
        used_N=used_N,
        neighbour_CK=neighbour_CK,
        collectives=together,
        device=worker.device,
        start=before,
        on_progress=on_progress,
        on_epoch=on_epoch,
    )
    head_files.write_part(uri, made, together)
    if together.rank == 0:
        for epoch in range(1, plan.epochs):
            uris.remove_tree(checkpoint(uri, epoch))


def checkpoint(uri: str, epochs: int) -> str:
    return f"{uri}-after-{epochs:03d}"


def begun(uri: str, epochs: int) -> str | None:
    """The newest whole checkpoint of an interrupted fit."""
    found = (checkpoint(uri, done) for done in range(epochs - 1, 0, -1))
    return next((one for one in found if head_files.exists(one)), None)
