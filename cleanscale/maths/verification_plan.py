"""Which labels to verify next: how many of each class, and which of its images.

A budget is shared so that all classes come to equally many verified labels, those counted that they have: evidence
about classes is learned from classes. Within a class an image is drawn with a chance proportional to p (1 - p), p being
the probability that its label is right: uncertain images say most about where right ends and wrong begins. And spread
over p, so that the labels of a class are not all of one kind. `benchmarks/verify_next.py` measures what that is worth;
docs/log.md says what was tried and is worth nothing.

# C classes, N images that nobody has verified
"""

from __future__ import annotations

import numpy as np

from cleanscale.maths.keyed_random import Purpose, generator, hash_about

LEAST_WEIGHT = 1e-6  # of an image: where a detector is certain of all of them, all are alike
_CLASSES = 0  # what a hash is about
_IMAGES = 1


def labels_by_class(
    label_C: np.ndarray,
    verified_C: np.ndarray,
    unverified_C: np.ndarray,
    budget: int,
    *,
    classes: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """int64 [C]: labels to ask of each class, `budget` in all, or as many as there are.

    label_C: distinct class ids. verified_C, unverified_C: their images with and without a verification label.
    classes: how many may be asked about at most; the least verified come first. Which of equals is drawn by seed.
    """
    turn_C = np.lexsort((hash_about(seed, Purpose.VERIFICATION_PLAN, _CLASSES, label_C), verified_C))
    rest_C = np.asarray(unverified_C, np.int64)
    if classes is not None:
        open_C = turn_C[rest_C[turn_C] > 0]
        rest_C = np.where(np.isin(np.arange(len(label_C)), open_C[:classes]), rest_C, 0)
    asked_C, more_C = equal_labels(np.asarray(verified_C, np.int64), rest_C, budget)
    left = min(budget, int(rest_C.sum())) - int(asked_C.sum())
    asked_C[turn_C[more_C[turn_C]][:left]] += 1
    return asked_C


def equal_labels(verified_C: np.ndarray, unverified_C: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels to ask of each class so that all come to equally many; which classes could be asked one more).

    In whole rounds: what the budget has left is less than one more for each that could be asked.
    """

    def up_to(level: int) -> np.ndarray:
        return np.clip(level - verified_C, 0, unverified_C)

    low, high = 0, int((verified_C + unverified_C).max(initial=0)) + 1
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if up_to(level).sum() <= budget else (low, level)
    return up_to(low), up_to(low + 1) > up_to(low)


def images_by_class(
    label_N: np.ndarray, probability_N: np.ndarray, label_C: np.ndarray, asked_C: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """int64, sorted: positions of the images to ask, `asked_C` of each class.

    label_N, probability_N: of images that nobody verified, sorted by label and row; of other classes there may be some.
    What is chosen of a class does not depend on the classes it comes with.
    """
    chosen = [np.empty(0, np.int64)]
    for label, asked in zip(np.asarray(label_C).tolist(), np.asarray(asked_C).tolist(), strict=True):
        start, stop = np.searchsorted(label_N, [label, label + 1])
        rng = generator(seed, Purpose.VERIFICATION_PLAN, _IMAGES, label)
        chosen.append(start + uncertain_images(probability_N[start:stop], asked, rng))
    return np.sort(np.concatenate(chosen))


def uncertain_images(probability_N: np.ndarray, picks: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [picks], sorted: images of one class drawn with chances proportional to p (1 - p), spread over p.

    Systematic sampling with unequal chances (Madow 1949) in the order of p: along the sum of chances every whole step
    is an image.
    """
    probability_N = np.asarray(probability_N, np.float64)
    picks = min(picks, len(probability_N))
    chance_N = chances(np.maximum(probability_N * (1 - probability_N), LEAST_WEIGHT), picks)
    order_N = np.argsort(probability_N, kind="stable")
    sum_N = np.cumsum(chance_N[order_N])
    step_P = np.minimum(np.arange(picks) + rng.random(), sum_N[-1] if picks else 0)
    return np.sort(order_N[np.searchsorted(sum_N, step_P)])


def chances(weight_N: np.ndarray, picks: int) -> np.ndarray:
    """float64 [N] proportional to the weights, which are above 0, but at most 1 each; they add up to `picks`."""
    sure_N = np.zeros(len(weight_N), bool)
    while True:
        rest = weight_N[~sure_N].sum()
        scale = (picks - int(sure_N.sum())) / rest if rest else 0.0
        chance_N = np.where(sure_N, 1.0, weight_N * scale)
        if (chance_N <= 1).all():
            return chance_N
        sure_N |= chance_N > 1
