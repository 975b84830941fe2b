"""Confident learning (Northcutt et al. 2021) by the package cleanlab: an optional comparison, extra `compare`.

cleanlab gets the same out-of-fold probabilities as all other detectors, and its own defaults decide. It looks at all
images and all classes at once: images x classes is limited, here to MOST_VALUES.

# N images, C classes
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import util

import numpy as np

from cleanscale.detectors.confident_learning import ISSUE, QUALITY
from cleanscale.errors import ConfigError
from cleanscale.signals.images import Images, Probabilities

MOST_VALUES = 100_000_000  # probabilities: 0.4 GB, of which cleanlab makes several copies


@dataclass(frozen=True)
class ConfidentLearning:
    """Makes cleanlab's verdict and its quality of a label."""

    def of_arrays(self, images: Images, centre_D: np.ndarray, heads: Probabilities, seed: int) -> dict[str, np.ndarray]:
        label_C = np.unique(images.label_N)
        check_confident_learning(len(images), len(label_C))
        log_probability_NC = heads.log_probability(images.feature_ND, images.row_N)[:, label_C]
        return self.verdicts(images.label_N, label_C, log_probability_NC)

    def verdicts(
        self, label_N: np.ndarray, label_C: np.ndarray, log_probability_NC: np.ndarray
    ) -> dict[str, np.ndarray]:
        """float32 [N] of each signal. label_C: the classes of the columns, sorted; each has images."""
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        class_N = np.searchsorted(label_C, label_N)
        probability_NC = np.exp(log_probability_NC - log_probability_NC.max(axis=1, keepdims=True))
        probability_NC /= probability_NC.sum(axis=1, keepdims=True)  # classes without images are not among the columns
        issue_N = find_label_issues(class_N, probability_NC, n_jobs=1)
        return {
            ISSUE: issue_N.astype(np.float32),
            QUALITY: get_label_quality_scores(class_N, probability_NC).astype(np.float32),
        }


def check_confident_learning(images: int, classes: int) -> None:
    """Raises ConfigError when cleanlab is not there, or when there is more than it can take."""
    if util.find_spec("cleanlab") is None:
        raise ConfigError(
            "the detector 'confident_learning' needs the package cleanlab, which is not installed; expected the extra "
            "'compare'; install it (pip install 'cleanscale[compare]', on every node) or choose another detector"
        )
    if images * classes > MOST_VALUES:
        raise ConfigError(
            f"the detector 'confident_learning' would hold {images} images x {classes} classes = {images * classes} "
            f"probabilities; expected at most {MOST_VALUES}: cleanlab takes all of them at once; choose "
            "'self_confidence' or 'margin', which judge by the same probabilities, or take fewer images"
        )


LEARNING = ConfidentLearning()
