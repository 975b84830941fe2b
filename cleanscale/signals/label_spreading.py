"""Label spreading (Zhou et al. 2004; CleanNet, Table 2): like propagation, but verification labels may give way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cleanscale.detectors.by_class import METHODS
from cleanscale.signals.class_graph import spreading_score
from cleanscale.signals.class_learning import ClassLearner

if TYPE_CHECKING:
    from sklearn.semi_supervised import LabelSpreading

TAKEN_OVER = 0.2  # how much of its label an image takes over from its neighbours (scikit-learn's default)


def model(neighbours: int) -> LabelSpreading:
    from sklearn.semi_supervised import LabelSpreading

    return LabelSpreading(kernel="knn", n_neighbors=neighbours, alpha=TAKEN_OVER)


LEARNER = ClassLearner(METHODS["label_spreading"], spreading_score(model))
