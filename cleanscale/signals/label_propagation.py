"""Label propagation (Zhu & Ghahramani 2002; CleanNet, Table 2): labels flow over a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cleanscale.detectors.by_class import METHODS
from cleanscale.signals.class_graph import spreading_score
from cleanscale.signals.class_learning import ClassLearner

if TYPE_CHECKING:
    from sklearn.semi_supervised import LabelPropagation


def model(neighbours: int) -> LabelPropagation:
    from sklearn.semi_supervised import LabelPropagation

    return LabelPropagation(kernel="knn", n_neighbors=neighbours)


LEARNER = ClassLearner(METHODS["label_propagation"], spreading_score(model))
