"""Fitting a model in every class anew, from this class's verified images alone (CleanNet, section 5, "Supervised").

A class needs two right and two wrong verified images at least. Others have nothing to learn a border from, and their
values are NaN: the detector then calls nothing wrong, as naive does. The paper says the same of these methods ("they
require human supervision for every class to be cleansed") and compares them in verified classes only; a model that is
pooled over classes would be another method, and `transfer` is that method.

# N images, M images that a class's model is fitted on, V verified ones of them, D feature width, H choices
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cleanscale.detectors.base import positions_by_class
from cleanscale.detectors.by_class import ByClass
from cleanscale.maths.evidence import unit_rows
from cleanscale.maths.keyed_random import Purpose, generator, hash_rows
from cleanscale.schema import RIGHT, UNSEEN, WRONG
from cleanscale.signals.images import Images, Probabilities

LEAST_OF_A_KIND = 2  # verified images that are right, and that are wrong: one to learn from while one is left out
LABEL_FOLDS = 3  # of the verified images of a class
# A class's model is fitted on at most so many verified images, and as many others (graphs, autoencoders): what a task
# holds and computes does not grow with a huge class.
MOST_IMAGES = 2000


class Score(Protocol):
    def __call__(self, known: Images, query: Images, choice: float, seed: int) -> np.ndarray:
        """[N] scores of `query`, higher where right. Its images may be in `known`, their labels not."""
        ...


@dataclass(frozen=True)
class ClassLearner:
    """A method, and how it scores the images of one class, from centred features, by default of length 1."""

    method: ByClass
    score: Score
    unit_length: bool = True

    @property
    def supervised(self) -> bool:
        return self.method.supervised

    def of_arrays(
        self, images: Images, centre_D: np.ndarray, heads: Probabilities | None, seed: int
    ) -> dict[str, np.ndarray]:
        """float32 [N] of each signal, class by class. `centre_D` and `heads` are not used: features are centred within
        the class."""
        return self.learned(images, seed)

    def learned(self, images: Images, seed: int) -> dict[str, np.ndarray]:
        """float32 [N] of each signal of whole classes."""
        value_NH = np.full((len(images), len(self.method.choices)), np.nan, np.float32)
        for label, at_X in positions_by_class(images.label_N):
            own = images.select(at_X)
            value_NH[at_X] = self.class_values(self.known(own, seed), own, label, seed)
        return {name: value_NH[:, h] for h, name in enumerate(self.method.signals)}

    def known(self, images: Images, seed: int) -> Images:
        """What a class's model is fitted on, by row: verified images and others, at most MOST_IMAGES of each.

        Those with the smallest hash of their row, so that the parts of a huge class may be asked one after the other:
        known(a and b) = known(known(a) and b).
        """
        hash_N = hash_rows(seed, Purpose.CLASS_DETECTORS, images.row_N)
        looked_N = images.looked_N & self.supervised
        chosen = [smallest(hash_N, np.flatnonzero(kind_N), MOST_IMAGES) for kind_N in (looked_N, ~looked_N)]
        at_M = np.concatenate(chosen)
        return images.select(at_M[np.argsort(images.row_N[at_M], kind="stable")])

    def class_values(self, known: Images, query: Images, label: int, seed: int) -> np.ndarray:
        """float32 [N, H] of images of one class. known: `known` of the whole class."""
        value_NH = np.full((len(query), len(self.method.choices)), np.nan, np.float32)
        if not len(query) or not self.can_learn(known.verified_N):
            return value_NH
        centre_D = known.feature_ND.mean(axis=0, dtype=np.float64)
        known, query = (centred(images, centre_D, self.unit_length) for images in (known, query))
        state = int(generator(seed, Purpose.CLASS_DETECTORS, label).integers(2**31))
        left_out_N = self.supervised & query.looked_N & np.isin(query.row_N, known.row_N)
        rest = query.select(~left_out_N)
        for h, choice in enumerate(self.method.choices):
            if len(rest):
                value_NH[~left_out_N, h] = self.score(known, rest, choice, state)
            if left_out_N.any():
                value_M = self._cross_fitted(known, choice, state, seed)
                value_NH[left_out_N, h] = value_M[np.searchsorted(known.row_N, query.row_N[left_out_N])]
        return value_NH

    def can_learn(self, verified_M: np.ndarray) -> bool:
        kinds = (verified_M == RIGHT).sum(), (verified_M == WRONG).sum()
        return min(kinds) >= LEAST_OF_A_KIND if self.supervised else len(verified_M) >= 2 * LEAST_OF_A_KIND

    def _cross_fitted(self, known: Images, choice: float, state: int, seed: int) -> np.ndarray:
        """[M]: verified images scored by models that saw no verification label of their fold; NaN for the others."""
        value_M = np.full(len(known), np.nan)
        fold_M = label_folds(known, seed)
        for fold in range(LABEL_FOLDS):
            left_M = fold_M == fold
            if left_M.any():
                hidden_M = np.where(left_M, UNSEEN, known.verified_N).astype(np.int8)
                others = Images(known.row_N, known.label_N, known.feature_ND, hidden_M)
                value_M[left_M] = self.score(others, known.select(left_M), choice, state)
        return value_M


def smallest(hash_N: np.ndarray, at_X: np.ndarray, most: int) -> np.ndarray:
    """Of the positions `at_X` the `most` with the smallest hashes."""
    return at_X[np.argsort(hash_N[at_X], kind="stable")[:most]]


def label_folds(known: Images, seed: int) -> np.ndarray:
    """int [M]: the fold of each verified image, right and wrong ones dealt out evenly; -1 for the others."""
    fold_M = np.full(len(known), -1)
    order_M = np.argsort(hash_rows(seed, Purpose.CLASS_DETECTORS, known.row_N), kind="stable")
    for kind in (RIGHT, WRONG):
        at_V = order_M[known.verified_N[order_M] == kind]
        fold_M[at_V] = np.arange(len(at_V)) % LABEL_FOLDS
    return fold_M


def centred(images: Images, centre_D: np.ndarray, unit_length: bool) -> Images:
    """The same with centred float32 features."""
    if unit_length:
        feature_ND = unit_rows(images.feature_ND, centre_D)
    else:
        feature_ND = images.feature_ND.astype(np.float32) - centre_D.astype(np.float32)
    return Images(images.row_N, images.label_N, feature_ND, images.verified_N)
