"""Detectors by name (`--detector.name`): each file holds one method that scores (image, label) pairs."""

from __future__ import annotations

from cleanscale.detectors import (
    average,
    by_class,
    classification_filtering,
    cleannet,
    confident_learning,
    margin,
    naive,
    neighbour_vote,
    prediction_disagrees,
    self_confidence,
    transfer,
)
from cleanscale.detectors.base import Decision, Detector, Evidence, FittedDetector
from cleanscale.errors import ConfigError

DETECTORS: dict[str, Detector] = {
    **{
        module.DETECTOR.name: module.DETECTOR
        for module in (
            transfer,
            cleannet,
            naive,
            classification_filtering,
            average,
            self_confidence,
            margin,
            prediction_disagrees,
            neighbour_vote,
            confident_learning,
        )
    },
    **{name: method.detector for name, method in by_class.METHODS.items()},
}

__all__ = ["DETECTORS", "Decision", "Detector", "Evidence", "FittedDetector", "detector"]


def detector(name: str) -> Detector:
    """The detector of this name. Raises ConfigError that lists the names there are."""
    if name not in DETECTORS:
        raise ConfigError(f"--detector.name is '{name}'; expected one of {', '.join(DETECTORS)}; choose one of these")
    return DETECTORS[name]
