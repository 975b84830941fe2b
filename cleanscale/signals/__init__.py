"""Signals that detectors make from features, by the detector's name: what costs too much for every run.

Apart from `cleanscale.detectors`, which decides by them: a served model decides and needs no scikit-learn, no faiss.
"""

from __future__ import annotations

from cleanscale.signals import (
    confident_learning,
    drae,
    knn,
    label_propagation,
    label_spreading,
    mlp,
    neighbour_vote,
    svm,
)
from cleanscale.signals.images import FeatureSignals, Images

BY_CLASS = (mlp, knn, svm, label_propagation, label_spreading, drae)
MAKERS: dict[str, FeatureSignals] = {
    **{module.LEARNER.method.name: module.LEARNER for module in BY_CLASS},
    "neighbour_vote": neighbour_vote.VOTES,
    "confident_learning": confident_learning.LEARNING,
}

__all__ = ["MAKERS", "FeatureSignals", "Images"]
