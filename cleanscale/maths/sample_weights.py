"""Weights of images in the classifier's loss (CleanNet Eq. 12-14)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812


def soft_weight(cosine_N: np.ndarray) -> np.ndarray:
    """float32 [N] Eq. 12: max(0, cos)."""
    return np.maximum(np.asarray(cosine_N, np.float32), 0)


def hard_weight(cosine_N: np.ndarray, delta: float) -> np.ndarray:
    """float32 [N] Eq. 13: 1 where cos >= delta, otherwise 0."""
    return (np.asarray(cosine_N) >= delta).astype(np.float32)


def weighted_loss(logit_NC: torch.Tensor, label_N: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """[N] Eq. 14: weight times the negative log likelihood of the noisy label."""
    return weight_N * F.cross_entropy(logit_NC, label_N, reduction="none")
