"""DRAE (Xia et al. 2015; CleanNet, Table 2): in every class an autoencoder whose reconstruction error splits in two.

Unsupervised: what it rebuilds badly is called wrong. Verification labels only make its probability.
"""

from __future__ import annotations

import numpy as np

from cleanscale.detectors.by_class import METHODS
from cleanscale.signals.class_learning import ClassLearner
from cleanscale.signals.images import Images


def score(known: Images, query: Images, choice: float, seed: int) -> np.ndarray:
    """Log of the split over the image's error. choice: there is none."""
    from cleanscale.training.drae import log_error_below_split

    return log_error_below_split(known.feature_ND, query.feature_ND, seed)


# Of features of one length the errors are bounded, and split in the middle of the right images (docs/log.md).
LEARNER = ClassLearner(METHODS["drae"], score, unit_length=False)
