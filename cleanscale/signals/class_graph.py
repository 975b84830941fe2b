"""A graph over the images of a class on which verification labels spread to the images that nobody verified.

# N images, M images of the graph, D feature width
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cleanscale.schema import RIGHT
from cleanscale.signals.class_learning import Score
from cleanscale.signals.images import Images

if TYPE_CHECKING:
    from sklearn.semi_supervised import LabelPropagation, LabelSpreading


def spreading_score(make: Callable[[int], LabelPropagation | LabelSpreading]) -> Score:
    """make(neighbours): the unfitted model of a graph that joins each image with its nearest neighbours.

    Images of the graph get what spread to them; others (only in classes with more than `MOST_IMAGES`) the mean of their
    nearest neighbours in the graph. Where nothing arrives, the share of the verified images that are right.
    """

    def score(known: Images, query: Images, choice: float, seed: int) -> np.ndarray:
        from sklearn.exceptions import ConvergenceWarning

        model = make(min(int(choice), len(known)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(known.feature_ND, known.verified_N)
        arrived_M2 = model.label_distributions_  # columns: wrong, right
        share_right = float(np.mean(known.verified_N[known.looked_N] == RIGHT))
        right_M = np.where(arrived_M2.sum(axis=1) > 0, arrived_M2[:, 1], share_right)
        at_N = np.minimum(np.searchsorted(known.row_N, query.row_N), len(known) - 1)
        inside_N = known.row_N[at_N] == query.row_N
        right_N = right_M[at_N]
        if not inside_N.all():
            with np.errstate(invalid="ignore"):  # 0 / 0 where nothing arrived at any neighbour
                near_N2 = model.predict_proba(query.feature_ND[~inside_N])
            right_N[~inside_N] = np.nan_to_num(near_N2[:, 1], nan=share_right)
        return right_N

    return score
