"""Training an image classifier with a weight for every image (paper, Eq. 14-15; all weights 1 in round 0).

A plain loop over (model, batches, collectives): it knows no files, no Ray and no devices but the one it is given.

# B images of one worker's batch, S image side, C classes, K predictions kept per image, N images
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from cleanscale.errors import StageError
from cleanscale.maths.keyed_random import Purpose, generator
from cleanscale.training.collectives import Alone, Collectives
from cleanscale.training.losses import Loss, plain_loss

State = dict[str, Any]
Network = TypeVar("Network", bound=nn.Module)  # with `num_classes`: its first outputs are the logits of the classes


class ClassifierSettings(BaseModel):
    """How the classifier learns: from the noisy labels in round 0, from weighted ones afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(30, ge=0, le=10_000, description="Passes over the images in round 0.")
    batch_size: int = Field(256, ge=1, description="Images per step over all workers together.")
    learning_rate: float = Field(0.02, gt=0, description="Highest learning rate of round 0.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd is with Nesterov momentum.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd; first decay rate of adamw.")
    weight_decay: float = Field(1e-4, ge=0, description="Pull of weights towards zero; not of biases and norms.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Course of the learning rate after warm-up.")
    warmup_epochs: float = Field(1.0, ge=0, description="Epochs over which the learning rate rises from zero.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes.")
    hidden_width: int = Field(0, ge=0, description="Width of a hidden layer in front of the output; 0 is none.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in the fully connected layers.")
    row_learning_rate: float = Field(
        0.4,
        gt=0,
        description="Of a sharded head: peak step of an output row (row-wise Adagrad), as a share of the rows' size.",
    )
    finetune_epochs: int = Field(10, ge=0, le=10_000, description="Passes over the images in each weighted round.")
    finetune_learning_rate: float = Field(0.005, gt=0, description="Highest learning rate of weighted rounds.")
    finetune_warmup_epochs: float = Field(0.5, ge=0, description="Epochs of rising learning rate in weighted rounds.")


class Objective(Protocol):
    """What a network's outputs are compared with, and how that flows back into the network."""

    def backward(self, output_BX: torch.Tensor, batch: Batch, step: int, rate: float) -> Compared:
        """Adds to the gradients that workers average. rate: learning rate as a share of the highest."""
        ...


class Compared(NamedTuple):
    """loss: mean over the batch, or over those of all workers. right: images predicted as labelled, where known."""

    loss: torch.Tensor
    right: torch.Tensor | None


class Course(NamedTuple):
    """How long and how fast one round trains: the part of the settings that differs between rounds."""

    epochs: int
    learning_rate: float
    warmup_epochs: float


class Batch(NamedTuple):
    """One step of one worker. Every batch of a run has the same B; images that only fill one up have weight 0."""

    image_B3SS: torch.Tensor  # uint8
    label_B: torch.Tensor  # int64: what the loss takes as targets, the label alone or [B, 2] with what is known of it
    weight_B: torch.Tensor  # float32


def course_of_round(settings: ClassifierSettings, round_number: int) -> Course:
    """Round 0 trains on the noisy labels as they are; later rounds fine-tune with weights."""
    if round_number == 0:
        return Course(settings.epochs, settings.learning_rate, settings.warmup_epochs)
    return Course(settings.finetune_epochs, settings.finetune_learning_rate, settings.finetune_warmup_epochs)


def learning_rate_at(step: int, steps_per_epoch: int, course: Course, schedule: str = "cosine") -> float:
    """Learning rate of one step, a function of the step alone, so that a resumed run needs no other state."""
    warmup = course.warmup_epochs * steps_per_epoch
    total = course.epochs * steps_per_epoch
    if step < warmup:
        return course.learning_rate * (step + 1) / (math.floor(warmup) + 1)
    if schedule == "constant":
        return course.learning_rate
    done = (step - warmup) / max(1.0, total - warmup)
    return course.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def weighted_loss(loss_B: torch.Tensor, weight_B: torch.Tensor) -> torch.Tensor:
    """Weighted loss over the number of images (Eq. 14): an image of weight 0 still counts in B."""
    return (loss_B * weight_B).sum() / len(weight_B)


class OfLogits:
    """A loss of outputs of which the first are the logits of all classes."""

    def __init__(self, loss: Loss, num_classes: int) -> None:
        self.loss, self.num_classes = loss, num_classes

    def backward(self, output_BX: torch.Tensor, batch: Batch, step: int, rate: float) -> Compared:
        loss = weighted_loss(self.loss(output_BX, batch.label_B), batch.weight_B)
        loss.backward()
        noisy_B = batch.label_B if batch.label_B.ndim == 1 else batch.label_B[:, 0]
        right_B = (output_BX.detach()[:, : self.num_classes].argmax(1) == noisy_B) & (batch.weight_B > 0)
        return Compared(loss.detach(), right_B.sum())


def fit_classifier(
    model: Network,
    epoch_batches: Callable[[int], Iterable[Batch]],
    settings: ClassifierSettings,
    *,
    steps_per_epoch: int,
    seed: int,
    course: Course | None = None,
    start: State | None = None,
    collectives: Collectives | None = None,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[int, dict[str, float], Callable[[], State]], None] | None = None,
    loss: Loss | None = None,
    objective: Objective | None = None,
) -> Network:
    """Train `model` in place and return it.

    `epoch_batches(epoch)` gives this worker's batches, `steps_per_epoch` of them on every worker. After each epoch
    every worker calls `on_epoch(epoch, metrics, state)`; `state()` is what a checkpoint must hold, and given back as
    `start` it continues as if there had been no interruption (on CPU: bit for bit). `course` is round 0's unless
    given. `loss` is cross-entropy of the logits unless given; an `objective` takes its place where outputs are none.
    Raises StageError when the loss is no longer finite.
    """
    collectives = collectives or Alone()
    course = course or course_of_round(settings, 0)
    objective = objective or OfLogits(loss or plain_loss(settings.label_smoothing), int(model.num_classes))  # type: ignore[arg-type]
    model.to(device)
    optimizer = _optimizer(model, settings, course)
    first_epoch = 0
    if start is not None:
        model.load_state_dict(start["model"])
        optimizer.load_state_dict(start["optimizer"])
        first_epoch = start["next_epoch"]
    for epoch in range(first_epoch, course.epochs):
        with _dropout_of_epoch(seed, epoch, collectives.rank, device):
            metrics = _train_epoch(
                model,
                epoch_batches(epoch),
                optimizer,
                objective,
                settings,
                course,
                epoch,
                steps_per_epoch,
                collectives,
                device,
            )
        _average_statistics(model, collectives)
        if on_epoch is not None:

            def state(next_epoch: int = epoch + 1) -> State:
                return {"next_epoch": next_epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}

            on_epoch(epoch, metrics, state)
    return model


def _train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    settings: ClassifierSettings,
    course: Course,
    epoch: int,
    steps_per_epoch: int,
    collectives: Collectives,
    device: str | torch.device,
) -> dict[str, float]:
    """One pass; metrics over all workers: loss, top-1 on the noisy labels (percent; where known), learning rate,
    images per s."""
    model.train()
    began = time.monotonic()
    total = torch.zeros(3, device=device)  # summed loss, images predicted as labelled, images that are no filling
    taken, knows_right = 0, True
    for batch in batches:
        step = epoch * steps_per_epoch + taken
        rate = learning_rate_at(step, steps_per_epoch, course, settings.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        here = Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))
        output_BX = model(here.image_B3SS)
        optimizer.zero_grad(set_to_none=True)
        loss, right = objective.backward(output_BX, here, step, rate / settings.learning_rate)
        collectives.average_gradients(model.parameters())
        optimizer.step()
        taken += 1
        knows_right = right is not None
        counted = (here.weight_B > 0).sum()
        total += torch.stack([loss * len(here.weight_B), right if right is not None else counted, counted])
    assert taken == steps_per_epoch, f"{taken} batches, {steps_per_epoch} announced: other workers would wait for ever"
    loss_sum, right, counted = collectives.sum(total).tolist()
    if not math.isfinite(loss_sum):
        raise StageError(
            f"The classifier's loss is {loss_sum} in epoch {epoch}; expected a finite number; "
            "lower --classifier.learning_rate (or finetune_learning_rate, or row_learning_rate where the head is "
            "sharded) or lengthen --classifier.warmup_epochs"
        )
    known = {"train_top1": 100 * right / max(counted, 1.0)} if knows_right else {}
    return known | {
        "loss": loss_sum / max(counted, 1.0),
        "learning_rate": rate if taken else 0.0,
        "images_per_second": counted / max(time.monotonic() - began, 1e-9),
    }


@contextlib.contextmanager
def _dropout_of_epoch(seed: int, epoch: int, rank: int, device: str | torch.device) -> Iterator[None]:
    """torch's random state for one epoch, keyed, so that a resumed run drops the same units; restored afterwards."""
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        torch.manual_seed(int(generator(seed, Purpose.CLASSIFIER, epoch, rank).integers(2**63)))
        yield


def _optimizer(model: nn.Module, settings: ClassifierSettings, course: Course) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels alone, as is usual: not on biases and normalisation."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=course.learning_rate, betas=(settings.momentum, 0.999))
    return torch.optim.SGD(groups, lr=course.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0)


@torch.no_grad()
def _average_statistics(model: nn.Module, collectives: Collectives) -> None:
    """Batch normalisation's running statistics become the mean over workers, so that all hold the same model."""
    if collectives.world == 1:
        return
    running = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not running:
        return
    mean = collectives.sum(torch.cat([buffer.flatten().float() for buffer in running])) / collectives.world
    for buffer, value in zip(running, mean.split([buffer.numel() for buffer in running]), strict=True):
        buffer.copy_(value.view_as(buffer))
