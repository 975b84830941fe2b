"""Fitting classifier heads on features: plain loops over arrays, one worker or many.

# N images of this worker, D feature width, C classes, B batch, F folds of rows
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from cleanscale.errors import DataError
from cleanscale.maths.keyed_random import Purpose, folds_of_rows, generator
from cleanscale.models.heads import Head
from cleanscale.training.collectives import Alone, Collectives
from cleanscale.training.head_settings import HeadPlan, HeadSettings
from cleanscale.training.losses import Loss, plain_loss

Wrapped = TypeVar("Wrapped", bound=nn.Module)
SUMMED_ROWS = 65_536


def fit_head(
    feature_ND: np.ndarray,
    target_N: np.ndarray,
    weight_N: np.ndarray | None,
    num_classes: int,
    settings: HeadSettings,
    *,
    seed: int,
    collectives: Collectives | None = None,
    device: str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
    start: Head | None = None,
) -> Head:
    """Weighted cross-entropy (CleanNet, Eq. 14), divided by the mean weight over all workers' images.

    `target_N` holds class numbers, or, as floats [N, C], a distribution for each image. Each worker passes its own
    rows; a worker may have none. On CPU the result depends on rows, settings, seed and number of workers alone.
    `on_epoch(epoch, mean loss of this worker)`. `start` is a head to fine-tune; it is not changed.
    Raises DataError when no image of any worker has a positive weight.
    """
    rows = _TrainingRows.make(feature_ND, target_N, weight_N, num_classes, collectives or Alone(), device)
    loss = plain_loss(settings.label_smoothing)
    return _fit(rows, lambda head: head, loss, num_classes, settings.dense(), seed, on_epoch, start)


def fit_noisy_head(
    feature_ND: np.ndarray,
    target_N2: np.ndarray,
    num_classes: int,
    settings: HeadSettings,
    *,
    wrap: Callable[[Head], Wrapped],
    loss: Loss,
    seed: int,
    collectives: Collectives | None = None,
    device: str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
    start: Head | None = None,
) -> Wrapped:
    """As `fit_head`, for a loss built from a model of the noise (`training/losses.py`).

    target_N2: noisy labels and what somebody found. `wrap` puts what else learns around the new head, or around a copy
    of `start`; the result is what it gave.
    """
    rows = _TrainingRows.make(feature_ND, target_N2, None, num_classes, collectives or Alone(), device)
    return _fit(rows, wrap, loss, num_classes, settings.dense(), seed, on_epoch, start)


def _fit(
    rows: _TrainingRows,
    wrap: Callable[[Head], Wrapped],
    loss: Loss,
    num_classes: int,
    settings: HeadPlan,
    seed: int,
    on_epoch: Callable[[int, float], None] | None,
    start: Head | None,
) -> Wrapped:
    device = rows.feature.device
    with torch.random.fork_rng(devices=[device] if device.type != "cpu" else []):
        torch.manual_seed(_torch_seed(seed, 0))  # the same first weights on every worker
        if start is not None:
            head = copy.deepcopy(start)
        else:
            head = Head(rows.feature.shape[1], num_classes, settings.hidden_width, settings.dropout)
            blocks = rows.feature.split(SUMMED_ROWS)
            head.mean_D, head.scale_D = standardisation(
                blocks, rows.feature.shape[1], rows.total, rows.together, rows.feature.device
            )
        model = wrap(head)
        model.to(device).train()
        torch.manual_seed(_torch_seed(seed, 1 + rows.together.rank))  # dropout
        _descend(model, rows, loss, settings, seed, on_epoch)
    return model.eval()


def fit_out_of_fold_heads(
    feature_ND: np.ndarray,
    target_N: np.ndarray,
    weight_N: np.ndarray | None,
    row_N: np.ndarray,
    num_classes: int,
    settings: HeadSettings,
    *,
    seed: int,
    folds: int = 2,
    collectives: Collectives | None = None,
    device: str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[Head]:
    """One head for each fold of rows: head f has not seen the rows of fold f and is the one that scores them.

    The fold of a row is `keyed_random.folds_of_rows(seed, row_N, folds)`, the same wherever it is computed.
    """
    fold_N = folds_of_rows(seed, row_N, folds)
    weight_N = np.ones(len(row_N), np.float32) if weight_N is None else weight_N
    heads = []
    for fold in range(folds):
        seen_N = fold_N != fold
        heads.append(
            fit_head(
                feature_ND[seen_N],
                target_N[seen_N],
                weight_N[seen_N],
                num_classes,
                settings,
                seed=seed * folds + fold,
                collectives=collectives,
                device=device,
                on_epoch=on_epoch,
            )
        )
    return heads


@dataclass(frozen=True)
class _TrainingRows:
    """This worker's images with a positive weight."""

    feature: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor  # scaled: mean 1 over all workers' images
    total: int  # images over all workers
    together: Collectives

    @property
    def arrays(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.feature, self.target, self.weight

    @classmethod
    def make(cls, feature_ND, target_N, weight_N, num_classes, together: Collectives, device: str) -> _TrainingRows:
        weight_N = np.ones(len(target_N), np.float32) if weight_N is None else np.asarray(weight_N, np.float32)
        _check_shapes(feature_ND, target_N, weight_N, num_classes)
        if not weight_N.all():
            used_N = weight_N > 0
            feature_ND, target_N, weight_N = feature_ND[used_N], target_N[used_N], weight_N[used_N]
        sums = torch.tensor([len(weight_N), float(weight_N.sum(dtype=np.float64))], dtype=torch.float64)
        total, weight_sum = together.sum(sums).tolist()
        if not weight_sum > 0:
            raise DataError(
                "no image with a positive weight is left to train the head on; expected at least one; "
                "lower the threshold that sets weights to zero, or use --treatment.name none"
            )
        target_N = np.asarray(target_N, np.float32 if np.asarray(target_N).dtype.kind == "f" else np.int64)
        return cls(
            torch.from_numpy(np.ascontiguousarray(feature_ND)).to(device),
            torch.from_numpy(target_N).to(device),
            torch.from_numpy(weight_N * np.float32(total / weight_sum)).to(device),
            int(total),
            together,
        )


def _check_shapes(feature_ND: np.ndarray, target_N: np.ndarray, weight_N: np.ndarray, num_classes: int) -> None:
    if np.ndim(feature_ND) != 2 or len(feature_ND) != len(target_N) or len(weight_N) != len(target_N):
        raise DataError(
            f"features have shape {np.shape(feature_ND)}, targets {np.shape(target_N)}, weights {np.shape(weight_N)}; "
            "expected [N, D], [N] or [N, C], and [N]; pass one row of each for every image"
        )
    if np.ndim(target_N) == 1 and len(target_N) and not 0 <= np.min(target_N) <= np.max(target_N) < num_classes:
        raise DataError(
            f"targets lie in {np.min(target_N)} .. {np.max(target_N)}; expected 0 .. {num_classes - 1}; "
            "number the classes from 0 without gaps"
        )


def _descend(
    model: nn.Module,
    rows: _TrainingRows,
    loss: Loss,
    settings: HeadPlan,
    seed: int,
    on_epoch: Callable[[int, float], None] | None,
) -> None:
    together = rows.together
    batch = max(settings.batch_of(rows.total), together.world)
    steps = math.ceil(rows.total / batch)
    # Each worker's part of a batch is its part of the images, which need not be even once some have no weight.
    draws = round(steps * batch * len(rows.weight) / rows.total)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps * settings.epochs))
    for epoch in range(settings.epochs):
        random = generator(seed, Purpose.EPOCH_ORDER, epoch, together.rank)
        # One share for all workers of a step, as one worker with the whole batch would draw it.
        share_S = mixup_shares(seed, epoch, steps, settings.mixup)
        loss_sum = 0.0
        batches = np.array_split(_epoch_order(random, len(rows.weight), draws), steps)
        for share, batch_B in zip(share_S, batches, strict=True):
            optimizer.zero_grad(set_to_none=True)
            if len(batch_B):
                mean = _mean_loss(model, rows, torch.from_numpy(batch_B), loss, float(share))
                mean = mean * (len(batch_B) * together.world / batch)
                mean.backward()
                loss_sum += mean.item()
            together.average_gradients(model.parameters())
            optimizer.step()
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch, loss_sum / steps)


def _epoch_order(random: np.random.Generator, images: int, draws: int) -> np.ndarray:
    """int64 [draws]: permutations of the worker's images one after the other; empty where it has none."""
    if images == 0:
        return np.empty(0, np.int64)
    passes = [random.permutation(images) for _ in range(math.ceil(draws / images))]
    return np.concatenate(passes)[:draws]


def mixup_shares(seed: int, epoch: int, steps: int, mixup: float) -> np.ndarray:
    """float64 [steps]: one draw of Beta(mixup, mixup) for each step (Zhang et al. 2018), the same on every worker."""
    return generator(seed, Purpose.MIXUP, epoch).beta(mixup, mixup, steps) if mixup else np.ones(steps)


def _mean_loss(
    model: nn.Module,
    rows: _TrainingRows,
    batch_B: torch.Tensor,
    loss: Loss,
    share: float,
) -> torch.Tensor:
    """Mean over the batch of weight x loss; share: of each image, the rest is the image that it is mixed with."""
    feature_BD, target_B, weight_B = (x[batch_B].float() if x.is_floating_point() else x[batch_B] for x in rows.arrays)
    if share == 1:
        return (weight_B * loss(model(feature_BD), target_B)).mean()
    output_BX = model(share * feature_BD + (1 - share) * feature_BD.flip(0))
    loss_B, other_B = loss(output_BX, target_B), loss(output_BX, target_B.flip(0))
    return (share * weight_B * loss_B + (1 - share) * weight_B.flip(0) * other_B).mean()


def standardisation(
    blocks: Iterable[torch.Tensor],
    width: int,
    total: int,
    together: Collectives,
    device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean_D, scale_D) of a head over the `total` images of all workers, from blocks [B, D] of this worker's.

    Summed in float64 so that the number of workers hardly matters.
    """
    sums_2D = torch.zeros(2, width, dtype=torch.float64, device=device)
    for block_BD in blocks:
        block_BD = block_BD.double()
        sums_2D += torch.stack([block_BD.sum(0), block_BD.square().sum(0)])
    mean_D, square_D = together.sum(sums_2D) / total
    spread_D = (square_D - mean_D.square()).clamp_min(0).sqrt()
    # One scale for all: scaling each by its own spread makes the small principal components as loud as the large ones,
    # and that cost one point of top-1 and half a point of detection error on CIFAR-100N.
    scale = 1 / spread_D.square().mean().sqrt().clamp_min(1e-6)
    return mean_D.float(), scale.float().expand(width).clone()


def warm_cosine(steps: int) -> Callable[[int], float]:
    """Learning-rate factor: up over the first twentieth, then down to zero along a cosine."""
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


def _torch_seed(seed: int, *about: int) -> int:
    return int(generator(seed, Purpose.HEAD, *about).integers(2**62))
