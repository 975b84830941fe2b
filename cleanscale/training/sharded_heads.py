"""Fitting a classifier head whose output rows are spread over workers; an image costs the same with any number of them.

What a worker holds of C classes is its rows [R, H] in float32 and one number a row for the optimiser: row-wise Adagrad
divides the gradient of a row by the root of the mean squares it has seen, and only rows that occur in a step change.
There is no weight decay of output rows and no label smoothing: both would touch every row at every step.

# N images of this worker, B images of a step, C classes, R rows of this worker, H embedding width, K rows of a block
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cleanscale.errors import DataError, StageError
from cleanscale.maths.keyed_random import Purpose, generator
from cleanscale.models.heads import FrozenHead, Layers
from cleanscale.training.collectives import Alone, Collectives
from cleanscale.training.head_settings import HeadPlan, HeadSettings
from cleanscale.training.head_start import rows_of_means, standardise
from cleanscale.training.heads import mixup_shares, warm_cosine
from cleanscale.training.sharded_softmax import (
    NOWHERE,
    Gathered,
    Rows,
    Update,
    all_classes,
    loss_and_gradients,
    sampled_classes,
)
from cleanscale.training.streamed_features import StreamedFeatures

CHUNK_CLASSES = 4096  # of the exact mode: 4 MB of logits for 256 images


@dataclass
class HeadPart:
    """A head as one worker has it: the layers that all share, the rows it owns, and what going on takes."""

    layers: Layers
    rows: Rows
    num_classes: int
    square_R: torch.Tensor  # of gradients, summed: what row-wise Adagrad divides by
    precision_HH: torch.Tensor | None  # of class means: turns a gradient towards what tells classes apart
    row_size: float  # root mean square of the rows at the start
    epochs_done: int = 0
    optimizer: dict[str, Any] = field(default_factory=dict)  # of the shared layers

    def frozen(self) -> FrozenHead:
        """The head of a single worker, which owns all rows."""
        assert len(self.rows.bias_R) == self.num_classes, "rows of other workers are not here"
        weight_CH, bias_C = (x.detach().cpu().numpy() for x in (self.rows.weight_RH, self.rows.bias_R))
        return FrozenHead(*self.layers.frozen_layers(), weight_CH, bias_C)


def fit_sharded_head(
    feature_ND: Any,
    target_N: np.ndarray,
    weight_N: np.ndarray | None,
    num_classes: int,
    settings: HeadSettings,
    *,
    seed: int,
    used_N: np.ndarray | None = None,
    neighbour_CK: np.ndarray | None = None,
    collectives: Collectives | None = None,
    device: str = "cpu",
    start: HeadPart | None = None,
    on_progress: Callable[[float], None] | None = None,
    on_epoch: Callable[[int, float, HeadPart], None] | None = None,
) -> HeadPart:
    """Weighted cross-entropy (CleanNet, Eq. 14) as `heads.fit_head`; each worker ends with its own rows.

    feature_ND: anything with `.shape` that gives [X, D] for int64 positions; it is read in windows.
    used_N: images to train on; neighbour_CK: classes like each class (-1: none), for hard negatives.
    start: a head to go on with; it is changed. One with epochs done is that of an interrupted fit.
    `on_progress(epochs done, with fractions)`; `on_epoch(epoch, mean loss over all workers, the head so far)`.
    Raises DataError when no image of any worker has a positive weight, StageError when the loss is not finite.
    """
    together = collectives or Alone()
    plan = settings.resolved(num_classes)
    weight_N = np.ones(len(target_N), np.float32) if weight_N is None else weight_N
    used_N = np.ones(len(target_N), bool) if used_N is None else used_N
    data = StreamedFeatures(feature_ND, target_N, weight_N, used_N)
    totals = torch.tensor([data.images, float(weight_N[data.used_N].sum(dtype=np.float64))], dtype=torch.float64)
    images, weight_sum = together.sum(totals).tolist()
    if not weight_sum > 0:
        raise DataError(
            "no image with a positive weight is left to train the head on; expected at least one; "
            "lower the threshold that sets weights to zero, or use --treatment.name none"
        )
    part = start if start is not None else _first(data, num_classes, plan, seed, together, device)
    fit = _Fit(part, data, plan, seed, images / weight_sum, neighbour_CK, together, device)
    with torch.random.fork_rng(devices=[device] if device != "cpu" else []):
        for epoch in range(part.epochs_done, plan.epochs):
            torch.manual_seed(int(generator(seed, Purpose.HEAD, 1, epoch, together.rank).integers(2**62)))
            loss = fit.epoch(epoch, on_progress)
            part.epochs_done = epoch + 1
            if on_epoch is not None:
                on_epoch(epoch, loss, part)
    part.layers.eval()
    return part


def _first(
    data: StreamedFeatures, num_classes: int, plan: HeadPlan, seed: int, together: Collectives, device: str
) -> HeadPart:
    """The head before the first step: rows from class means."""
    with torch.random.fork_rng(devices=[device] if device != "cpu" else []):
        torch.manual_seed(int(generator(seed, Purpose.HEAD, 0).integers(2**62)))  # the same layers on every worker
        layers = Layers(data.feature_ND.shape[1], plan.hidden_width, plan.dropout).to(device).eval()
    standardise(layers, data, together)
    rows, precision_HH = rows_of_means(layers, data, num_classes, together)
    return HeadPart(
        layers,
        rows,
        num_classes,
        torch.zeros_like(rows.bias_R),
        precision_HH * len(precision_HH) / precision_HH.trace(),
        row_size_of(rows, num_classes, together),
    )


def row_size_of(rows: Rows, num_classes: int, together: Collectives) -> float:
    """Root mean square over the rows of all workers."""
    square = together.sum(rows.weight_RH.square().sum(dtype=torch.float64)[None])
    return max(1e-3, math.sqrt(float(square) / (num_classes * rows.weight_RH.shape[1])))


def row_wise_adagrad(part: HeadPart, rate: float) -> Update:
    """Changes the rows of a block in place; rate: the largest step, as a share of the rows' size.

    The gradient is turned by the precision of images around their class where rows began as class means, as those are.
    """
    most = rate * part.row_size

    def update(rows: slice | torch.Tensor, gradient_KH: torch.Tensor, gradient_K: torch.Tensor) -> None:
        square_K = part.square_R[rows] + gradient_KH.square().mean(1)
        step_K = most / square_K.sqrt()
        if part.precision_HH is not None:
            gradient_KH = gradient_KH @ part.precision_HH
        if isinstance(rows, slice):
            part.square_R[rows] = square_K
            part.rows.weight_RH[rows].addcmul_(gradient_KH, step_K[:, None], value=-1)
            part.rows.bias_R[rows].addcmul_(gradient_K, step_K, value=-1)
        else:
            part.square_R.index_copy_(0, rows, square_K)
            part.rows.weight_RH.index_add_(0, rows, gradient_KH.mul_(step_K[:, None]), alpha=-1)
            part.rows.bias_R.index_add_(0, rows, gradient_K * step_K, alpha=-1)

    return update


def step_of_rows(
    part: HeadPart,
    given: Gathered,
    plan: HeadPlan,
    rate: float,
    random: np.random.Generator,
    neighbour_CK: np.ndarray | None,
    together: Collectives,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, its gradient [B, H] by the embeddings) over all workers; the rows of `part` have made their step.

    rate: learning rate as a share of the highest. random: this worker's own, since it draws among its own classes.
    """
    if plan.exact:
        blocks = all_classes(given, part.rows, CHUNK_CLASSES)
    else:
        negatives = math.ceil(plan.negatives_of(part.num_classes) / together.world)
        hard_X = hard_negatives(given.target_BT, plan.hard_negatives, neighbour_CK, random)
        blocks = sampled_classes(given, part.rows, negatives, random, hard_X)
    if not part.square_R[:1].any():  # no row has made a step
        # As if one image had been there: without it a row's first step would be whole, however small its gradient.
        square = given.embedded_BH.square().mean() / len(given.embedded_BH) ** 2
        part.square_R.fill_(float(square.clamp_min(1e-20)))
    with torch.no_grad():
        update = row_wise_adagrad(part, plan.row_learning_rate * rate)
        return loss_and_gradients(given, part.rows, blocks, update, together)


def hard_negatives(
    target_BT: torch.Tensor, most: int, neighbour_CK: np.ndarray | None, random: np.random.Generator
) -> np.ndarray | None:
    """Some of the classes that are like the targets."""
    if neighbour_CK is None or not most:
        return None
    target_X = target_BT.cpu().numpy().reshape(-1)
    target_X = target_X[target_X != NOWHERE]
    column_XM = random.integers(0, neighbour_CK.shape[1], (len(target_X), most))
    hard_X = neighbour_CK[target_X[:, None], column_XM].reshape(-1)
    return hard_X[hard_X >= 0]


def flow_back(own_BH: torch.Tensor, gradient_BH: torch.Tensor, together: Collectives) -> None:
    """This worker's part of the gradient, into what made its embeddings.

    The loss is a sum over workers and gradients of shared weights are averaged over them: hence the factor.
    """
    start = together.rank * len(own_BH)
    own_BH.backward(gradient_BH[start : start + len(own_BH)] * together.world)


class _Fit:
    """One fit: what stays the same from step to step."""

    def __init__(
        self,
        part: HeadPart,
        data: StreamedFeatures,
        plan: HeadPlan,
        seed: int,
        weight_scale: float,
        neighbour_CK: np.ndarray | None,
        together: Collectives,
        device: str,
    ) -> None:
        self.part, self.data, self.plan, self.seed, self.together = part, data, plan, seed, together
        self.weight_scale, self.neighbour_CK, self.device = weight_scale, neighbour_CK, device
        self.batch = max(1, plan.batch // together.world)
        most = together.maximum(torch.tensor([data.images], dtype=torch.float64))
        self.steps = math.ceil(float(most) / self.batch)
        self.rate_at = warm_cosine(self.steps * plan.epochs)
        self.trained = list(part.layers.parameters())
        self.optimizer: torch.optim.Optimizer | None = None
        if self.trained:
            self.optimizer = torch.optim.AdamW(self.trained, lr=plan.learning_rate, weight_decay=plan.weight_decay)
            if part.optimizer:
                self.optimizer.load_state_dict(self.optimizer.state_dict() | part.optimizer)

    def epoch(self, epoch: int, on_progress: Callable[[float], None] | None) -> float:
        """Mean loss of a step, over all workers."""
        self.part.layers.train()
        loss_sum = torch.zeros((), device=self.device)
        share_S = mixup_shares(self.seed, epoch, self.steps, self.plan.mixup)
        for step, piece in enumerate(self.data.batches(self.batch, self.steps, self.seed, epoch)):
            random = generator(self.seed, Purpose.NEGATIVES, epoch, step, self.together.rank)
            loss_sum += self.step(epoch * self.steps + step, *piece, float(share_S[step]), random)
            if on_progress is not None:
                on_progress(epoch + (step + 1) / self.steps)
        loss = float(loss_sum) / self.steps
        if not math.isfinite(loss):
            raise StageError(
                f"the sharded head's loss is {loss} in epoch {epoch}; expected a finite number; "
                "lower --heads.row_learning_rate (or learning_rate, where there is a hidden layer)"
            )
        if self.optimizer is not None:
            self.part.optimizer = {"state": self.optimizer.state_dict()["state"]}
        return loss

    def step(
        self,
        step: int,
        feature_XD: torch.Tensor,
        target_X: torch.Tensor,
        weight_X: torch.Tensor,
        share: float,
        random: np.random.Generator,
    ) -> torch.Tensor:
        rate = self.rate_at(step)
        own_BH, given = self.gathered(feature_XD, target_X, weight_X, share)
        loss, gradient_BH = step_of_rows(self.part, given, self.plan, rate, random, self.neighbour_CK, self.together)
        if self.optimizer is not None:
            self.step_of_layers(self.optimizer, own_BH, gradient_BH, rate)
        return loss

    def gathered(
        self,
        feature_XD: torch.Tensor,
        target_X: torch.Tensor,
        weight_X: torch.Tensor,
        share: float,
    ) -> tuple[torch.Tensor, Gathered]:
        """(embeddings of this worker's images, filled up; the images of all workers)."""
        target_XT, coefficient_XT = target_X[:, None], weight_X[:, None] * (self.weight_scale / self.plan.batch)
        feature_XD = feature_XD.to(self.device)
        if share < 1:
            feature_XD = share * feature_XD + (1 - share) * feature_XD.flip(0)
            target_XT = torch.cat([target_XT, target_XT.flip(0)], dim=1)
            coefficient_XT = torch.cat([share * coefficient_XT, (1 - share) * coefficient_XT.flip(0)], dim=1)
        fill = (0, 0, 0, self.batch - len(feature_XD))
        own_BH = torch.nn.functional.pad(self.part.layers.embed(feature_XD), fill)
        target_BT = torch.nn.functional.pad(target_XT, fill, value=NOWHERE).to(self.device)
        coefficient_BT = torch.nn.functional.pad(coefficient_XT, fill).to(self.device)
        return own_BH, Gathered(*(self.together.gather(x) for x in (own_BH, target_BT, coefficient_BT)))

    def step_of_layers(
        self, optimizer: torch.optim.Optimizer, own_BH: torch.Tensor, gradient_BH: torch.Tensor, rate: float
    ) -> None:
        """AdamW on the shared layers."""
        optimizer.zero_grad(set_to_none=True)
        flow_back(own_BH, gradient_BH, self.together)
        self.together.average_gradients(self.trained)
        for group in optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * rate
        optimizer.step()
