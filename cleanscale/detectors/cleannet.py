"""CleanNet (Eq. 11): a label is right iff the cosine of query and class embedding is at least delta.

Verified images come with cosines that were cross-fitted over class folds (`training.cleannet.cross_fitted_relevance`),
the others with those of the final model. Delta and the probability are fitted on the cross-fitted ones only.
"""

from __future__ import annotations

from cleanscale.detectors.score_rules import threshold_detector

SIGNAL = "cleannet_cosine"
RHO = 0.1  # where training puts the border (Eq. 6): delta when nothing is verified
DETECTOR = threshold_detector("cleannet", SIGNAL, unverified_threshold=RHO)
