"""Verification budgets: which labels a budget has, and from which budget on more verification stops paying.

V verification labels, N images, B budgets, R repeats. Budgets of one repeat are nested: of two, the one with at
least as many classes and labels per class has all the labels of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cleanscale.maths.intervals import RESAMPLES, Measured
from cleanscale.maths.keyed_random import Purpose, folds_of_classes, generator, hash_rows

_CLASSES, _ROWS, _ACCURACY = 0, 1, 2


@dataclass(frozen=True, order=True)
class Budget:
    """A share of the verified classes that a repeat may draw from, and labels in each of them."""

    classes: float
    labels_per_class: int

    @property
    def name(self) -> str:
        return f"{100 * self.classes:g}%x{self.labels_per_class}"

    def within(self, other: Budget) -> bool:
        """The other budget has all that this one has."""
        return self.classes <= other.classes and self.labels_per_class <= other.labels_per_class


def evaluation_classes(label_V: np.ndarray, *, seed: int, repeat: int, folds: int) -> np.ndarray:
    """Sorted ids of the verified classes that judge a repeat and are never drawn in it: one fold, whole classes.

    Folds of a seed are disjoint, so the repeats of a budget are judged on different classes. Needs two classes or more.
    """
    label_C = np.unique(label_V)
    fold_C = folds_of_classes(seed, label_C, min(folds, len(label_C)))
    return label_C[fold_C == repeat % min(folds, len(label_C))]


def draw(row_V: np.ndarray, label_V: np.ndarray, budget: Budget, *, seed: int, repeat: int, folds: int) -> np.ndarray:
    """bool [V]: the verification labels that a budget has. What is drawn does not depend on the order of the rows.

    A class with fewer labels than the budget gives those that it has.
    """
    kept_C = np.setdiff1d(label_V, evaluation_classes(label_V, seed=seed, repeat=repeat, folds=folds))
    about = _key(seed, repeat)
    order_C = kept_C[np.argsort(hash_rows(about[_CLASSES], Purpose.BUDGETS, kept_C), kind="stable")]
    chosen_C = order_C[: math.ceil(budget.classes * len(kept_C) - 1e-9)]
    order_V = np.lexsort((hash_rows(about[_ROWS], Purpose.BUDGETS, row_V), label_V))
    sorted_V = label_V[order_V]
    rank_V = np.empty(len(label_V), np.int64)  # place of each label among those of its class
    rank_V[order_V] = np.arange(len(label_V)) - np.searchsorted(sorted_V, sorted_V)
    return np.isin(label_V, chosen_C) & (rank_V < budget.labels_per_class)


def _key(seed: int, repeat: int) -> list[int]:
    return [int(k) for k in np.random.SeedSequence([seed, int(Purpose.BUDGETS), repeat]).generate_state(2)]


def mean_accuracy(
    correct_RN: np.ndarray, other_RN: np.ndarray | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Measured:
    """Mean accuracy in percent of R repeats on the same N test images, with an interval over the images.

    other_RN: another budget's, whose mean accuracy is taken off, image by image (paired): then it is in points.
    """
    images = correct_RN.shape[1]
    if images == 0:
        return Measured(None, None, None, 0)
    gain_N = np.asarray(correct_RN, np.float64).mean(0)
    if other_RN is not None:
        gain_N = gain_N - np.asarray(other_RN, np.float64).mean(0)
    value_K, count_K = np.unique(gain_N.round(9), return_counts=True)  # few kinds of image: resampling is multinomial
    drawn_BK = generator(seed, Purpose.BUDGETS, _ACCURACY).multinomial(images, count_K / images, size=resamples)
    return Measured.of_draws(float(100 * gain_N.mean()), 100 * (drawn_BK @ value_K) / images, images)


def stops_paying(
    labels: Mapping[Budget, float], difference: Mapping[Budget, Measured], *, margin: float
) -> Budget | None:
    """The smallest budget after which more verification stops paying; None: even up to the largest one it pays.

    labels: what each budget costs. difference: each budget's error minus that of the largest one, in points. It counts
    when the whole interval is below `margin`, for the budget and for every budget that contains it: a small one that
    was lucky does not count when more of the same did worse.
    """
    good = {b for b, gap in difference.items() if gap.high is not None and gap.high < margin}
    kept = [b for b in good if all(other in good for other in difference if b.within(other))]
    return min(kept, key=lambda b: (labels[b], b), default=None)


def largest(budgets: Sequence[Budget]) -> Budget:
    """The budget that contains all others of a grid."""
    return Budget(max(b.classes for b in budgets), max(b.labels_per_class for b in budgets))
