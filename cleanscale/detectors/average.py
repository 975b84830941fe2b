"""Average baseline (CleanNet, section 5): cosine to the mean of the class's references, against a threshold."""

from __future__ import annotations

from cleanscale.detectors.score_rules import threshold_detector

SIGNAL = "reference_cosine"  # maths.evidence.cosine_to_class with the means of the reference sets
DETECTOR = threshold_detector("average", SIGNAL, unverified_threshold=0.0)
