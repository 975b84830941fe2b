"""Losses of classifiers: plain, and built from a model of the noise. Training loops take one and know nothing of noise.

A loss gets what the network says of a batch and its targets, and gives one value per image. Targets are class numbers
[B] (or distributions [B, C]) for the plain loss, and [B, 2] for the others: the noisy label, and what somebody found
(the true class; WRONG_UNNAMED; UNSEEN; see maths/noise_types.py). `instance_forward` takes a third number, the odds of
the label.

# B images, C classes, X outputs of the network
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from cleanscale.maths.label_cleaning import padded_labels_loss, prior_logit
from cleanscale.maths.loss_correction import (
    backward_loss,
    backward_matrix,
    forward_loss,
    instance_forward_loss,
    known_or,
)
from cleanscale.maths.noise_types import Confusion, NoiseTypeModel

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ODDS_UNIT = 1000  # targets are integers: log odds are given in thousandths


class NoiseModel(NamedTuple):
    """What a loss is built from; of the two matrices the one that the treatment uses."""

    treatment: str
    num_classes: int
    observed_given_true_CC: np.ndarray | None = None
    confusion: Confusion | None = None
    noise_free: float | None = None  # share of right labels among those that nobody verified


def plain_loss(label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy with the labels as they are."""

    def loss(logit_BC: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logit_BC, target_B, reduction="none", label_smoothing=label_smoothing)

    return loss


def listed_loss(mean_labels: float, num_classes: int) -> Loss:
    """Sigmoid cross-entropy against lists of labels [B, L], -1 behind the last. mean_labels: labels per image."""
    prior = prior_logit(mean_labels, num_classes)
    return lambda logit_BC, label_BL: padded_labels_loss(logit_BC, label_BL, prior)


def noise_loss(noise: NoiseModel, device: str | torch.device) -> Loss:
    """The loss of a treatment. The network is a classifier, or what `models/noise_models.py` puts around one."""
    if noise.confusion is not None:
        types = NoiseTypeModel(noise.confusion, device, noise.noise_free)
        return lambda output_BX, target_B2: types.loss(
            output_BX[:, : noise.num_classes].log_softmax(1),
            output_BX[:, noise.num_classes :].log_softmax(1),
            *target_B2.unbind(1),
        )
    if noise.treatment == "bottom_up":
        return _bottom_up_loss
    assert noise.observed_given_true_CC is not None
    backward = noise.treatment == "backward"
    matrix_CC = backward_matrix(noise.observed_given_true_CC) if backward else noise.observed_given_true_CC
    held_CC = torch.from_numpy(matrix_CC).float().to(device)
    if noise.treatment == "instance_forward":
        return lambda logit_BC, target_B3: _instance_forward_loss(logit_BC, target_B3, held_CC)
    corrected = backward_loss if backward else forward_loss

    def loss(logit_BC: torch.Tensor, target_B2: torch.Tensor) -> torch.Tensor:
        observed_B, known_B = target_B2.unbind(1)
        log_true_BC = logit_BC.log_softmax(1)
        return known_or(corrected(log_true_BC, observed_B, held_CC), log_true_BC, known_B)

    return loss


def _instance_forward_loss(
    logit_BC: torch.Tensor, target_B3: torch.Tensor, observed_given_true_CC: torch.Tensor
) -> torch.Tensor:
    observed_B, known_B, odds_B = target_B3.unbind(1)
    log_true_BC = logit_BC.log_softmax(1)
    loss_B = instance_forward_loss(log_true_BC, observed_B, odds_B.float() / ODDS_UNIT, observed_given_true_CC)
    return known_or(loss_B, log_true_BC, known_B)


def _bottom_up_loss(output_BX: torch.Tensor, target_B2: torch.Tensor) -> torch.Tensor:
    """Class logits and log p(observed | image), as `WithNoiseLayer` gives them."""
    observed_B, known_B = target_B2.unbind(1)
    logit_BC, log_observed_BC = output_BX.chunk(2, dim=1)
    loss_B = -log_observed_BC.gather(1, observed_B[:, None]).squeeze(1)
    return known_or(loss_B, logit_BC.log_softmax(1), known_B)
