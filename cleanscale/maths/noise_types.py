"""Noise types (Xiao et al. 2015): how a label comes to differ from the truth, and what a label therefore says of it.

p(observed | true, type): noise-free is the identity, pointless is uniform over the other classes, confusing is a sparse
stochastic matrix with zero diagonal. It is held as `observed_given_true` (their C is its transpose: their column is our
row), by its entries: nothing here is of size C x C, and a batch needs no more than its images times classes.

# P pairs of true and observed class, E entries of the matrix, R true classes with wrong pairs, B images, C classes,
# Z the three types
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from cleanscale.schema import UNSEEN

NOISE_FREE, POINTLESS, CONFUSING = 0, 1, 2
NUM_TYPES = 3
# In place of a true class: somebody found the label wrong and did not say what is right.
WRONG_UNNAMED = -2
# Counts and likelihoods that differ by less are equal: weights of pairs are sums of rounded numbers.
ROUNDING = 1e-9
# Bounds of the shift of log-odds that holds posteriors to a share, and how finely it is found.
MOST_TILT, TILT_HALVINGS = 10.0, 24


@dataclass(frozen=True)
class Confusion:
    """observed_given_true[t, o] = P(observed o | true t, confusing), by its entries, ordered by observed, then true.

    Rows (true classes) sum to 1, or are empty: a true class without wrong pairs has no confusing noise.
    """

    num_classes: int
    true_E: np.ndarray  # int64
    observed_E: np.ndarray  # int64
    probability_E: np.ndarray  # float64

    def dense(self) -> np.ndarray:
        """float64 [C, C], for few classes."""
        observed_given_true_CC = np.zeros((self.num_classes, self.num_classes))
        observed_given_true_CC[self.true_E, self.observed_E] = self.probability_E
        return observed_given_true_CC


def confusion_of_pairs(
    true_P: np.ndarray,
    observed_P: np.ndarray,
    num_classes: int,
    weight_P: np.ndarray | None = None,
    *,
    leave_one_out: bool = False,
) -> Confusion:
    """The most likely confusion matrix (Eq. 8-14), exactly: for each true class the k most frequent wrong labels.

    Each k is tried and the one with the highest likelihood is kept, where the labels after the k-th are pointless.
    Equal counts: the lower class first; equal likelihoods: the smaller k. The pairs are sorted: O(P log P), whatever C.

    weight_P: how many pairs each stands for; 1 where not given.
    leave_one_out: each pair's likelihood is what the other pairs say of it. As published, a true class with fewer
    wrong labels than there are classes has every one of them for confusing, since 1/m > 1/(C - 1); so, one that was
    met once is pointless.
    """
    true_E, observed_E, count_E = wrong_counts(true_P, observed_P, num_classes, weight_P)
    left_out = 1.0 if leave_one_out else 0.0
    seen_E = count_E > left_out + ROUNDING
    true_E, observed_E, count_E = true_E[seen_E], observed_E[seen_E], count_E[seen_E]
    if not len(count_E):
        nothing = np.empty(0, np.int64)
        return Confusion(num_classes, nothing, nothing, np.empty(0))
    order_E = np.lexsort((observed_E, -count_E, true_E))
    true_E, observed_E, count_E = true_E[order_E], observed_E[order_E], count_E[order_E]

    start_R = np.flatnonzero(np.r_[True, true_E[1:] != true_E[:-1]])  # of each true class with wrong pairs
    length_R = np.diff(np.r_[start_R, len(true_E)])
    first_k_E = _sums_so_far(count_E, start_R, length_R)
    entropy_E = _sums_so_far(count_E * np.log(count_E - left_out), start_R, length_R)
    # E(k) against no confusing noise at all: k labels share it by their counts (Eq. 14) instead of 1 / (C - 1) each.
    likelihood_E = entropy_E - first_k_E * np.log(first_k_E - left_out) + first_k_E * _log_others(num_classes)
    best_R = np.maximum.reduceat(likelihood_E, start_R)
    rank_E = np.arange(len(true_E)) - np.repeat(start_R, length_R)
    as_good_E = likelihood_E >= np.repeat(best_R - ROUNDING * (1 + np.abs(best_R)), length_R)
    last_R = np.minimum.reduceat(np.where(as_good_E, rank_E, len(true_E)), start_R)
    kept_E = rank_E <= np.repeat(last_R, length_R)
    probability_E = count_E / np.repeat(first_k_E[start_R + last_R], length_R)

    true_E, observed_E, probability_E = true_E[kept_E], observed_E[kept_E], probability_E[kept_E]
    order_E = np.lexsort((true_E, observed_E))
    return Confusion(num_classes, true_E[order_E], observed_E[order_E], probability_E[order_E])


def wrong_counts(
    true_P: np.ndarray, observed_P: np.ndarray, num_classes: int, weight_P: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(true class, observed class, how often), int64, int64, float64, of the distinct pairs of two different classes;
    by true class, then by observed."""
    wrong_P = true_P != observed_P
    key_P = true_P[wrong_P].astype(np.int64) * num_classes + observed_P[wrong_P]
    key_E, place_P = np.unique(key_P, return_inverse=True)
    weight_P = np.ones(len(key_P)) if weight_P is None else np.asarray(weight_P, np.float64)[wrong_P]
    true_E, observed_E = np.divmod(key_E, num_classes)
    return true_E, observed_E, np.bincount(place_P, weight_P, minlength=len(key_E))


def _sums_so_far(value_E: np.ndarray, start_R: np.ndarray, length_R: np.ndarray) -> np.ndarray:
    """Sum of each row's values up to and with each; rows begin at start_R."""
    total_E = np.cumsum(value_E)
    return total_E - np.repeat(total_E[start_R] - value_E[start_R], length_R)


def _log_others(num_classes: int) -> float:
    """-log of the probability of one given other class under pointless noise."""
    return float(np.log(max(num_classes - 1, 1)))


def _tilt(log_odds_B: torch.Tensor, counted_B: torch.Tensor, share: float) -> torch.Tensor:
    """[B]: what to add to the log-odds of the images that count, the same for all, so that their mean probability is
    `share`; 0 for the others."""
    counted_of_B = counted_B.to(log_odds_B.dtype) / counted_B.sum().clamp_min(1)
    low, high = log_odds_B.new_tensor(-MOST_TILT), log_odds_B.new_tensor(MOST_TILT)
    for _ in range(TILT_HALVINGS):
        middle = (low + high) / 2
        too_many = ((log_odds_B + middle).sigmoid() * counted_of_B).sum() > share
        low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
    return torch.where(counted_B, (low + high) / 2, torch.zeros_like(log_odds_B))


class Posterior(NamedTuple):
    """p(true | observed, image) and p(type | observed, image); rows sum to 1."""

    true_BC: torch.Tensor
    type_BZ: torch.Tensor
    log_observed_B: torch.Tensor  # log p(observed | image)


class NoiseTypeModel:
    """The noise model as tensors on a device: posteriors of batches, and the loss of EM's gradient steps."""

    def __init__(
        self, confusion: Confusion, device: str | torch.device = "cpu", noise_free: float | None = None
    ) -> None:
        """noise_free: share of right labels among those that nobody verified, which EM's posteriors are held to."""
        self.noise_free = noise_free
        classes = confusion.num_classes
        self.num_classes = classes
        self.true_E = torch.tensor(confusion.true_E, device=device)
        self.key_E = torch.from_numpy(confusion.observed_E * classes + confusion.true_E).to(device)
        self.log_probability_E = torch.from_numpy(np.log(confusion.probability_E)).float().to(device)
        start_C1 = np.searchsorted(confusion.observed_E, np.arange(classes + 1))
        self.start_C1 = torch.from_numpy(start_C1.astype(np.int64)).to(device)
        empty_C = np.ones(classes, bool)
        empty_C[confusion.true_E] = False
        self.empty_C = torch.from_numpy(empty_C).to(device)

    def likeliest_type(self, true_B: torch.Tensor, observed_B: torch.Tensor) -> torch.Tensor:
        """int64 [B]: the type with the highest p(observed | true, type); what the types' network learns first."""
        key_B = observed_B * self.num_classes + true_B
        listed_B = torch.zeros_like(true_B, dtype=torch.bool)
        if len(self.key_E):
            place_B = torch.searchsorted(self.key_E, key_B).clamp_max(len(self.key_E) - 1)
            listed_B = self.key_E[place_B] == key_B
        type_B = torch.where(listed_B, CONFUSING, POINTLESS)
        return torch.where(true_B == observed_B, NOISE_FREE, type_B)

    def posterior(
        self,
        log_true_BC: torch.Tensor,
        log_type_BZ: torch.Tensor,
        observed_B: torch.Tensor,
        known_B: torch.Tensor | None = None,
        noise_free: float | None = None,
    ) -> Posterior:
        """Eq. 5 in log space; a constant for the gradient. For true classes without confusing noise the other two types
        are all there is.

        known_B: the true class where somebody named it, WRONG_UNNAMED where it is not the observed one, else UNSEEN.
        noise_free: the nearest distributions (Kullback-Leibler) whose mean probability of noise-free is this, over the
        images that nobody looked at: posterior regularisation (Ganchev et al. 2010).
        """
        with torch.no_grad():
            known_B = torch.full_like(observed_B, UNSEEN) if known_B is None else known_B
            image_B = torch.arange(len(observed_B), device=observed_B.device)
            free_B, pointless_B, confusing_B = log_type_BZ.unbind(1)
            rest_B = torch.logaddexp(free_B, pointless_B)
            share_BC = torch.where(self.empty_C, rest_B[:, None], rest_B.new_zeros(()))
            joint_BC = log_true_BC + (pointless_B - _log_others(self.num_classes))[:, None] - share_BC
            joint_BC[image_B, observed_B] = -torch.inf
            log_pointless_B = joint_BC.logsumexp(1)
            log_free_B = log_true_BC[image_B, observed_B] + free_B - share_BC[image_B, observed_B]
            log_free_B = log_free_B.masked_fill(known_B == WRONG_UNNAMED, -torch.inf)
            image_X, entry_X = self._entries(observed_B)
            true_X = self.true_E[entry_X]
            log_confusing_X = log_true_BC[image_X, true_X] + confusing_B[image_X] + self.log_probability_E[entry_X]
            joint_BC[image_X, true_X] = torch.logaddexp(joint_BC[image_X, true_X], log_confusing_X)
            log_wrong_B = joint_BC.logsumexp(1)
            log_observed_B = torch.logaddexp(log_free_B, log_wrong_B)
            if noise_free is not None:
                log_free_B = log_free_B + _tilt(log_free_B - log_wrong_B, known_B == UNSEEN, noise_free)
            joint_BC[image_B, observed_B] = log_free_B
            total_B = torch.logaddexp(log_free_B, log_wrong_B)
            by_confusing_B = torch.zeros_like(total_B).index_add(0, image_X, (log_confusing_X - total_B[image_X]).exp())
            type_BZ = torch.stack(
                [(log_free_B - total_B).exp(), (log_pointless_B - total_B).exp(), by_confusing_B], dim=1
            )
            found = Posterior((joint_BC - total_B[:, None]).exp(), type_BZ, log_observed_B)
            return self._as_named(found, observed_B, known_B)

    def _entries(self, observed_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(image, entry) for all entries of the matrix in the columns of the observed classes."""
        start_B, stop_B = self.start_C1[observed_B], self.start_C1[observed_B + 1]
        count_B = stop_B - start_B
        image_X = torch.repeat_interleave(torch.arange(len(observed_B), device=observed_B.device), count_B)
        before_B = count_B.cumsum(0) - count_B
        return image_X, torch.arange(len(image_X), device=observed_B.device) + (start_B - before_B)[image_X]

    def _as_named(self, found: Posterior, observed_B: torch.Tensor, known_B: torch.Tensor) -> Posterior:
        """Where somebody named the true class, that is certain, and so is the type."""
        named_B = torch.nonzero(known_B >= 0).squeeze(1)
        true_M = known_B[named_B]
        found.true_BC[named_B] = 0
        found.true_BC[named_B, true_M] = 1
        found.type_BZ[named_B] = 0
        found.type_BZ[named_B, self.likeliest_type(true_M, observed_B[named_B])] = 1
        return found

    def loss(
        self, log_true_BC: torch.Tensor, log_type_BZ: torch.Tensor, observed_B: torch.Tensor, known_B: torch.Tensor
    ) -> torch.Tensor:
        """[B]: minus the expected complete log-likelihood (Eq. 6-7) under the posterior of the same predictions.

        Its gradient is that of -log p(observed | image); with a named true class it is that of supervised training.
        A network that is free to fit every noisy label makes that likelihood highest by calling all noise-free: with
        `noise_free`, their share stays what verification found.
        """
        posterior = self.posterior(log_true_BC, log_type_BZ, observed_B, known_B, self.noise_free)
        of_true_B = -(posterior.true_BC * log_true_BC).sum(1)
        of_type_B = -(posterior.type_BZ * log_type_BZ).sum(1)
        rest_B = torch.logaddexp(log_type_BZ[:, NOISE_FREE], log_type_BZ[:, POINTLESS])
        return of_true_B + of_type_B + (posterior.true_BC * self.empty_C).sum(1) * rest_B

    def type_of_image(self, log_true_BC: torch.Tensor, log_type_BZ: torch.Tensor) -> torch.Tensor:
        """p(type | image) [B, Z], over true classes with and without confusing noise as the classifier sees them."""
        confused_B1 = (log_true_BC.exp() * ~self.empty_C).sum(1, keepdim=True)
        type_BZ = log_type_BZ.exp()
        rest_BZ = type_BZ * type_BZ.new_tensor([1.0, 1.0, 0.0])
        return confused_B1 * type_BZ + (1 - confused_B1) * rest_BZ / rest_BZ.sum(1, keepdim=True)
