"""kNN (CleanNet, Table 2): the nearest verified images of the class vote, nearer ones with more weight."""

from __future__ import annotations

import numpy as np

from cleanscale.detectors.by_class import METHODS
from cleanscale.schema import RIGHT
from cleanscale.signals.class_learning import ClassLearner
from cleanscale.signals.images import Images


def score(known: Images, query: Images, choice: float, seed: int) -> np.ndarray:
    """Share of the votes for "right". choice: how many neighbours vote."""
    from sklearn.neighbors import KNeighborsClassifier

    labelled = known.select(known.looked_N)
    voters = min(int(choice), len(labelled))
    model = KNeighborsClassifier(voters, weights="distance", algorithm="brute")
    return model.fit(labelled.feature_ND, labelled.verified_N == RIGHT).predict_proba(query.feature_ND)[:, 1]


LEARNER = ClassLearner(METHODS["knn"], score)
