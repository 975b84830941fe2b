"""relabel: images whose label is called wrong are kept, under the label that is suggested for them.

# N images
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Suggested(NamedTuple):
    """What is known of some images' labels and of what else they may be."""

    label_N: np.ndarray
    probability_correct_N: np.ndarray  # 1 or 0 where somebody looked
    mislabeled_N: np.ndarray  # bool
    suggested_N: np.ndarray  # -1: none
    log_probability_N: np.ndarray  # of the label, by heads that have not seen the image
    suggested_log_probability_N: np.ndarray  # of the suggestion, by the same heads; of no account where there is none
    known_N: np.ndarray  # the true class where somebody named it; below 0 elsewhere


def relabelled(images: Suggested) -> tuple[np.ndarray, np.ndarray]:
    """(targets int32 [N], weights float32 [N]): a weight is the probability that the target in use is right.

    For a suggestion that is the probability that the label is wrong, times that of the suggestion among the other
    classes. A label called wrong without a suggestion weighs nothing; a class that somebody named weighs 1.
    """
    replaced_N = images.mislabeled_N & (images.suggested_N >= 0)
    target_N = np.where(replaced_N, images.suggested_N, images.label_N)
    others_N = np.maximum(1 - np.exp(images.log_probability_N.astype(np.float64)), 1e-6)
    of_others_N = np.minimum(np.exp(images.suggested_log_probability_N.astype(np.float64)) / others_N, 1)
    weight_N = np.where(images.mislabeled_N, 0.0, images.probability_correct_N)
    weight_N = np.where(replaced_N, (1 - images.probability_correct_N) * of_others_N, weight_N)
    named_N = images.known_N >= 0
    target_N = np.where(named_N, images.known_N, target_N)
    return target_N.astype(np.int32), np.where(named_N, 1.0, weight_N).astype(np.float32)
