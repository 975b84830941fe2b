"""Weights of labels (CleanNet, Eq. 12-14): a doubtful label counts less in the classifier's loss.

For treatments that replace labels or know the noise they are the weights of the labels as given: what the relevance
table says, and what the next round's out-of-fold heads are trained with.

# N images
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cleanscale.schema import UNSEEN, WRONG


class Judged(NamedTuple):
    """What is known of the labels of some images."""

    relevance_N: np.ndarray
    probability_correct_N: np.ndarray
    mislabeled_N: np.ndarray  # bool
    verified_N: np.ndarray  # 1 right, 0 wrong, -1 nobody looked


def none(judged: Judged) -> np.ndarray:
    """Every image counts 1: the classifier of round 0."""
    return np.ones(len(judged.relevance_N), np.float32)


def soft(judged: Judged) -> np.ndarray:
    """Eq. 12: max(0, cosine)."""
    return np.maximum(judged.relevance_N, 0).astype(np.float32)


def hard(judged: Judged) -> np.ndarray:
    """Eq. 13: 1 unless the detector calls the label wrong (for `cleannet`: cosine below delta)."""
    return (~judged.mislabeled_N).astype(np.float32)


def probability(judged: Judged) -> np.ndarray:
    """The probability that the label is right; where somebody looked, what they found."""
    looked_N = judged.verified_N != UNSEEN
    return np.where(looked_N, judged.verified_N, judged.probability_correct_N).astype(np.float32)


def believed(judged: Judged) -> np.ndarray:
    """1 unless somebody saw that the label is wrong: treatments whose loss knows the noise need no more."""
    return (judged.verified_N != WRONG).astype(np.float32)


TREATMENTS: dict[str, Callable[[Judged], np.ndarray]] = {
    "none": none,
    "soft": soft,
    "hard": hard,
    "probability": probability,
    "relabel": probability,
    "forward": believed,
    "instance_forward": probability,
    "backward": believed,
    "bottom_up": believed,
    "noise_em": believed,
    "label_cleaning": believed,
}
