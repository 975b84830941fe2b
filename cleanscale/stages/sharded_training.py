"""Training a sharded head inside a worker group: written by ranges of classes, with a checkpoint after every epoch.

On features the head is all that trains (`fit_or_go_on`). On images a network trains below it (`SpreadHead`), whose
state is in the worker group's own checkpoints: head and network are of the same epoch, whenever a worker is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cleanscale.engine.train import Worker
from cleanscale.models.heads import Layers
from cleanscale.stages import head_files
from cleanscale.storage import uris
from cleanscale.training.collectives import Collectives
from cleanscale.training.head_settings import HeadPlan
from cleanscale.training.sharded_classifier import OfSpreadRows, drawn_part
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
) -> Layers:
    """The head into `uri` (as `head_files` writes it). After an interruption it goes on behind the last whole epoch,
    also with another number of workers. start: the head to fine-tune. Returns what is below the rows."""
    together = worker.collectives
    part, before = begun(uri, plan.epochs, together), None
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
    remove_checkpoints(uri, plan.epochs, together.rank)
    return made.layers


class SpreadHead:
    """The rows below which a network trains on images: drawn, of the classifier to fine-tune, or of a checkpoint.

    layers: the network's own. epochs_done: of the network; 0 where it begins. start: the head to fine-tune.
    """

    def __init__(
        self,
        worker: Worker,
        layers: Layers,
        num_classes: int,
        plan: HeadPlan,
        *,
        seed: int,
        epochs_done: int,
        start: str | None,
    ) -> None:
        self.uri, self.together = uris.join(worker.uri, head_files.HEAD), worker.collectives
        if epochs_done:
            of_epoch = checkpoint(self.uri, epochs_done)
            # Checkpoints go when the head is whole, which an end of the process can follow.
            found = of_epoch if head_files.exists(of_epoch) else self.uri
            part = head_files.read_part(found, self.together, worker.device)
        elif start is not None:
            part = head_files.fresh(head_files.read_part(start, self.together, worker.device), self.together)
        else:
            part = drawn_part(layers, num_classes, seed, self.together, worker.device)
        self.part = replace(part, layers=layers)
        self.objective = OfSpreadRows(self.part, plan, self.together, seed)
        self.together.wait()  # whoever is first must not remove what the others are about to read

    def keep(self, epochs_done: int) -> None:
        """A checkpoint, before the network's; those of the last two epochs stay, of which the network has one."""
        self.part.epochs_done = epochs_done
        head_files.write_part(checkpoint(self.uri, epochs_done), self.part, self.together, with_state=True)
        if self.together.rank == 0:
            uris.remove_tree(checkpoint(self.uri, epochs_done - 2))

    def write(self) -> None:
        head_files.write_part(self.uri, self.part, self.together)
        remove_checkpoints(self.uri, self.part.epochs_done + 1, self.together.rank)


def remove_checkpoints(uri: str, epochs: int, rank: int) -> None:
    """Those of fewer epochs."""
    if rank == 0:
        for epoch in range(1, epochs):
            uris.remove_tree(checkpoint(uri, epoch))


def checkpoint(uri: str, epochs: int) -> str:
    return f"{uri}-after-{epochs:03d}"


def begun(uri: str, epochs: int, together: Collectives) -> str | None:
    """The newest whole checkpoint of an interrupted fit that any worker sees: shared disks may show one later than
    another, and all must go on behind the same epoch."""
    done = next((epoch for epoch in range(epochs - 1, 0, -1) if head_files.exists(checkpoint(uri, epoch))), 0)
    newest = int(together.maximum(torch.tensor(done)))
    return checkpoint(uri, newest) if newest else None
