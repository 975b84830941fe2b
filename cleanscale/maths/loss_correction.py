"""Loss correction (Patrini et al. 2017): a classifier of true labels, trained on labels that went through known noise.

`instance_forward` is ours: the noise of an image is that of its classes, with the judgement of the image itself put in.

The noise is observed_given_true_CC[t, o] = P(observed o | true t): rows sum to 1. It is dense, so for few classes.

# N images, P verified pairs, B images of a batch, C classes
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import nll_loss

from cleanscale.schema import UNSEEN

# Share of a class's images that are its anchors: those that the classifier is most sure of.
ANCHOR_SHARE, MOST_ANCHORS = 0.05, 200
# The anchors' estimate counts as much as so many verified labels of a class.
ANCHOR_PAIRS = 10.0
# Least probability in the backward correction, as a share of the uniform one: some of its coefficients are negative,
# and without a floor the loss has no minimum.
LEAST_SHARE = 0.01
# A judgement of an image is taken for no surer than this.
LEAST_DOUBT = 0.01


def anchors_of_class(own_log_probability_N: np.ndarray) -> np.ndarray:
    """Places of a class's anchor points among its images: the surest 5 %, at most MOST_ANCHORS.

    own_log_probability_N: of their common label, by a classifier of noisy labels that has not seen them.
    """
    anchors = min(MOST_ANCHORS, max(1, round(ANCHOR_SHARE * len(own_log_probability_N))))
    return np.argsort(-own_log_probability_N, kind="stable")[:anchors]


def anchor_row(log_probability_NC: np.ndarray) -> np.ndarray:
    """float64 [C]: P(observed | true) of a class, from the predictions at its anchor points (their section 4.1).

    An anchor is an image that is surely of the class, so what a classifier of noisy labels expects there is the noise
    of the class. Patrini et al. take one; this is the mean of several.
    """
    mean_C = np.exp(log_probability_NC.astype(np.float64)).mean(axis=0)
    return mean_C / mean_C.sum()


def transition_matrix(
    anchor_CC: np.ndarray, images_C: np.ndarray, observed_P: np.ndarray, true_P: np.ndarray
) -> np.ndarray:
    """observed_given_true_CC float64 [C, C] from verified labels, and from anchors where there are none.

    Labels are verified by observed class, often in some classes only, so what they say directly is P(true | observed)
    of those classes: the share of right labels, and, where the true class is named, what the wrong ones are. The rest
    is the anchors' (`anchor_CC` turned round by Bayes). Weighted by the images of each observed class and turned back.

    images_C: images with each observed label. true_P: the true class of a verified label, below 0 if not named.
    """
    classes = len(anchor_CC)
    joint_CC = anchor_CC * images_C[:, None]
    true_given_observed_CC = joint_CC / np.maximum(joint_CC.sum(axis=0), 1e-300)  # columns sum to 1
    right_C = np.bincount(observed_P[true_P == observed_P], minlength=classes)
    checked_C = np.bincount(observed_P, minlength=classes)
    named_P = (true_P >= 0) & (true_P != observed_P)
    wrong_CC = np.zeros((classes, classes))
    np.add.at(wrong_CC, (true_P[named_P], observed_P[named_P]), 1)

    own = np.arange(classes)
    own_C = true_given_observed_CC[own, own]
    right_C = (right_C + ANCHOR_PAIRS * own_C) / (checked_C + ANCHOR_PAIRS)
    other_CC = true_given_observed_CC.copy()
    other_CC[own, own] = 0
    other_CC = wrong_CC + ANCHOR_PAIRS * other_CC / np.maximum(other_CC.sum(axis=0), 1e-300)
    found_CC = other_CC * (1 - right_C) / np.maximum(other_CC.sum(axis=0), 1e-300)
    found_CC[own, own] = right_C
    return rows_of_joint(found_CC * images_C)


def judged_column(
    probability_N: np.ndarray, log_probability_NC: np.ndarray, observed: int, noise_C: np.ndarray | None = None
) -> np.ndarray:
    """float64 [C]: how many of the images with one observed label are of which true class, as they were judged.

    Where a label is wrong, the true class is one of the others, as probable as heads that have not seen the image say,
    times `noise_C`, P(observed | true), where something is known of it already.
    """
    other_NC = np.exp(log_probability_NC.astype(np.float64)) * (1.0 if noise_C is None else noise_C)
    other_NC[:, observed] = 0
    other_NC /= np.maximum(other_NC.sum(axis=1, keepdims=True), 1e-300)
    column_C = ((1 - probability_N)[:, None] * other_NC).sum(axis=0)
    column_C[observed] = probability_N.sum()
    return column_C


def rows_of_joint(joint_CC: np.ndarray) -> np.ndarray:
    """observed_given_true_CC from counts [true, observed]; a true class that no image has is never mistaken."""
    joint_CC = joint_CC.copy()
    unused_C = joint_CC.sum(axis=1) <= 0
    joint_CC[unused_C, unused_C] = 1
    return joint_CC / joint_CC.sum(axis=1, keepdims=True)


def log_odds_in_class(probability_N: np.ndarray) -> np.ndarray:
    """float32 [N]: log odds that the label of an image is right, less those of the mean image with the same label."""
    return (_log_odds(probability_N) - _log_odds(probability_N.mean())).astype(np.float32)


def _log_odds(probability: np.ndarray) -> np.ndarray:
    sure = np.clip(np.asarray(probability, np.float64), LEAST_DOUBT, 1 - LEAST_DOUBT)
    return np.log(sure) - np.log1p(-sure)


def forward_loss(
    log_true_BC: torch.Tensor, observed_B: torch.Tensor, observed_given_true_CC: torch.Tensor
) -> torch.Tensor:
    """[B]: -log sum_t p(t | image) P(observed | t) (their Theorem 2)."""
    log_noise_BC = observed_given_true_CC.T[observed_B].clamp_min(1e-12).log()
    return -(log_true_BC + log_noise_BC).logsumexp(1)


def instance_forward_loss(
    log_true_BC: torch.Tensor, observed_B: torch.Tensor, log_odds_B: torch.Tensor, observed_given_true_CC: torch.Tensor
) -> torch.Tensor:
    """[B]: as `forward_loss`, where P(observed | observed is true) is that of the class times the image's own odds.

    -log sum_t p(t | image) P(observed | t) exp([t = observed] log_odds): up to a constant of the image the likelihood
    of its label under noise that depends on the image. A label judged surely right trains as if it were true, one
    judged surely wrong trains the classes that it is a mistake for. log_odds_B: `log_odds_in_class`.
    """
    log_noise_BC = observed_given_true_CC.T[observed_B].clamp_min(1e-12).log()
    log_noise_BC = log_noise_BC.scatter_add(1, observed_B[:, None], log_odds_B[:, None])
    return -(log_true_BC + log_noise_BC).logsumexp(1)


def backward_loss(
    log_true_BC: torch.Tensor, observed_B: torch.Tensor, true_from_observed_CC: torch.Tensor
) -> torch.Tensor:
    """[B]: the loss of every class, weighted by the inverse matrix's row of the observed one (their Theorem 1).

    Its mean over observed labels is the loss on true ones; one image's may be below zero.
    true_from_observed_CC: `backward_matrix`.
    """
    loss_BC = -log_true_BC.clamp_min(math.log(LEAST_SHARE / log_true_BC.shape[1]))
    return (true_from_observed_CC[observed_B] * loss_BC).sum(1)


def backward_matrix(observed_given_true_CC: np.ndarray) -> np.ndarray:
    """The inverse (pseudo-inverse where there is none), float64 [C, C]."""
    return np.linalg.pinv(observed_given_true_CC)


def known_or(loss_B: torch.Tensor, log_true_BC: torch.Tensor, known_B: torch.Tensor) -> torch.Tensor:
    """[B]: the log-likelihood of the true class where it is known, nothing where a label is wrong and the true class
    is not known, and `loss_B` where nobody looked."""
    of_known_B = nll_loss(log_true_BC, known_B.clamp_min(0), reduction="none")
    return torch.where(known_B >= 0, of_known_B, torch.where(known_B == UNSEEN, loss_B, torch.zeros_like(loss_B)))
