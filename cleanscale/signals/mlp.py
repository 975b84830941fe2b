"""MLP (CleanNet, Table 2; the best supervised method there): two layers in every class, from its verified images."""

from __future__ import annotations

import warnings

import numpy as np

from cleanscale.detectors.by_class import METHODS
from cleanscale.schema import RIGHT
from cleanscale.signals.class_learning import ClassLearner
from cleanscale.signals.images import Images

HIDDEN_WIDTH = 64


def score(known: Images, query: Images, choice: float, seed: int) -> np.ndarray:
    """P(right). choice: weight of the squared weights in the loss."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    labelled = known.select(known.looked_N)
    model = MLPClassifier((HIDDEN_WIDTH,), alpha=choice, learning_rate_init=3e-3, max_iter=100, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is stopped early on purpose
        model.fit(labelled.feature_ND, labelled.verified_N == RIGHT)
    return np.asarray(model.predict_proba(query.feature_ND))[:, 1]


LEARNER = ClassLearner(METHODS["mlp"], score)
