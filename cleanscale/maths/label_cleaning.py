"""Label cleaning (Veit et al. 2017): cleaned labels, the two losses, and the classes that a step looks at.

The cleaned labels are c_hat = clip(y + residual(y, f), 0, 1) for noisy labels y and visual features f. On the
verified set V the cleaner learns by L_clean = sum |c_hat - v|; the classifier learns on all images by the sum over
classes of the binary cross-entropy against v in V and c_hat elsewhere. c_hat is held constant in the second:
otherwise classifier and cleaner would agree on nothing at all.

Sums over classes are exact where S is all classes. Where there are many, a step looks at the classes that its
images name and at some drawn evenly from the others, each of which stands for as many as were not drawn: an
unbiased estimate.

# B images of a batch, S classes of a step, C classes
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


class StepClasses(NamedTuple):
    """class_S: ascending classes, None for all of them; weight_S: for how many classes each stands (float32)."""

    class_S: np.ndarray | None
    weight_S: np.ndarray


def step_classes(named_E: np.ndarray, num_classes: int, drawn: int, rng: np.random.Generator) -> StepClasses:
    """All named classes, and `drawn` of the others; all classes where there are no more (or drawn is 0)."""
    named_K = np.unique(named_E)
    others = num_classes - len(named_K)
    if not drawn or drawn >= others:
        return StepClasses(None, np.ones(num_classes, np.float32))
    # Distinct places among the classes that are not named, then the classes at these places.
    place_D = np.sort(rng.choice(others, drawn, replace=False))
    drawn_D = place_D + np.searchsorted(named_K - np.arange(len(named_K)), place_D, side="right")
    class_S = np.concatenate([named_K, drawn_D])
    weight_S = np.concatenate([np.ones(len(named_K)), np.full(drawn, others / drawn)]).astype(np.float32)
    order_S = np.argsort(class_S)
    return StepClasses(class_S[order_S], weight_S[order_S])


def cleaned_labels(noisy_BS: torch.Tensor, residual_BS: torch.Tensor) -> torch.Tensor:
    """c_hat = clip(y + residual, 0, 1).

    The clip passes gradients on as if it were not there. L_clean's own gradient is zero wherever c_hat has reached v,
    so what this changes is pairs that were pushed out at the wrong end: clipped hard they would never come back.
    """
    sum_BS = noisy_BS + residual_BS
    return sum_BS + (sum_BS.clamp(0, 1) - sum_BS).detach()


def cleaning_loss(
    cleaned_BS: torch.Tensor, verified_BS: torch.Tensor, known_BS: torch.Tensor, weight_S: torch.Tensor
) -> torch.Tensor:
    """L_clean of each image [B]: sum over its known pairs of |c_hat - v|."""
    return ((cleaned_BS - verified_BS).abs() * known_BS) @ weight_S


def targets(cleaned_BS: torch.Tensor, verified_BS: torch.Tensor, known_BS: torch.Tensor) -> torch.Tensor:
    """What the classifier learns from: v where it is known, c_hat elsewhere; constant."""
    return torch.where(known_BS > 0, verified_BS, cleaned_BS).detach()


def classification_loss(logit_BS: torch.Tensor, target_BS: torch.Tensor, weight_S: torch.Tensor) -> torch.Tensor:
    """L_classify of each image [B]: sum over classes of the binary cross-entropy."""
    return binary_cross_entropy_with_logits(logit_BS, target_BS, reduction="none") @ weight_S


def padded_labels_loss(logit_BC: torch.Tensor, label_BL: torch.Tensor, prior: float) -> torch.Tensor:
    """`classification_loss` over all classes against lists of labels, -1 behind the last, without a multi-hot target.

    prior: a logit added to all, so that a new network begins at the mean number of labels instead of half of all.
    """
    logit_BC = logit_BC + prior
    absent_B = -logsigmoid(-logit_BC).sum(1)
    # Of a class that is there, -log(1 - p) becomes -log(p): less by the logit.
    own_BL = logit_BC.gather(1, label_BL.clamp_min(0)) * (label_BL >= 0)
    return absent_B - own_BL.sum(1)


def prior_logit(mean_labels: float, num_classes: int) -> float:
    """The logit of a class's mean share of the images."""
    share = min(max(mean_labels / num_classes, 1e-6), 0.5)
    return float(np.log(share / (1 - share)))
