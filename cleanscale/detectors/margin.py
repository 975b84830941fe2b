"""Margin: out-of-fold log-probability of the noisy label less that of the best other class, against a threshold."""

from __future__ import annotations

from cleanscale.detectors.score_rules import threshold_detector

DETECTOR = threshold_detector("margin", "margin", unverified_threshold=0.0)
