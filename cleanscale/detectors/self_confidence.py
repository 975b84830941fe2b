"""Self-confidence: the out-of-fold probability of the noisy label, against a threshold."""

from __future__ import annotations

import math

from cleanscale.detectors.score_rules import threshold_detector

DETECTOR = threshold_detector("self_confidence", "log_probability", unverified_threshold=math.log(0.5))
