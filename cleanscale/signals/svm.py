"""SVM (CleanNet, Table 2): a support vector machine with a Gaussian kernel in every class, from its verified images."""

from __future__ import annotations

import numpy as np

from cleanscale.detectors.by_class import METHODS
from cleanscale.schema import RIGHT
from cleanscale.signals.class_learning import ClassLearner
from cleanscale.signals.images import Images


def score(known: Images, query: Images, choice: float, seed: int) -> np.ndarray:
    """Signed distance to the border. choice: C, how much an image on the wrong side costs."""
    from sklearn.svm import SVC

    labelled = known.select(known.looked_N)
    model = SVC(C=choice, gamma="scale").fit(labelled.feature_ND, labelled.verified_N == RIGHT)
    return model.decision_function(query.feature_ND)


LEARNER = ClassLearner(METHODS["svm"], score)
