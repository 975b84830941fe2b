"""noise_pairs: how often each true class came with each wrong label: noise_em's confusion matrix is made from it.

Xiao et al. have pairs of all classes. Here labels are verified by observed class, often in some classes only and often
without the true class: a matrix of named pairs alone has no confusing noise for the labels that nobody looked at, and
the model then believes them (CIFAR-100N, 50 of 100 classes verified: mean posterior of noise-free 0.99 in the others,
where 60 % are right). So every image counts: a named one as the pair that it is, any other as the pair of its label and
the class that heads which have not seen it find most probable beside it, as far as its label is judged to be wrong.

# N images of a range of classes, E pairs of two different classes, C classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cleanscale.engine.tasks import map_shards
from cleanscale.maths.noise_types import WRONG_UNNAMED, Confusion, confusion_of_pairs, wrong_counts
from cleanscale.schema import UNSEEN
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.judged_shard import places
from cleanscale.storage import uris
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table


@dataclass(frozen=True)
class Sources:
    """What pairs are counted from: tables of the judgement and of out-of-fold heads, and what somebody found by row."""

    features: FeatureShards
    num_classes: int
    relevance: str
    evidence: str
    known_R: np.ndarray


class Counted(NamedTuple):
    """Pairs of true and observed class, and of the images that nobody verified their number and the expected number of
    right labels among them."""

    true_E: np.ndarray  # int64
    observed_E: np.ndarray  # int64
    count_E: np.ndarray  # float64
    unseen: int
    right: float


def estimate(sources: Sources) -> tuple[Confusion, float | None]:
    """(the matrix that all pairs make likeliest, where a pair that was met once is no confusion; the share of right
    labels among those that nobody verified, None where there are none)."""
    found = dict(map_shards(count_range, sources.features.class_ranges(), sources))
    ranges = [found[k] for k in sorted(found)]
    true_E, observed_E, count_E = (np.concatenate([one[i] for one in ranges]) for i in range(3))
    confusion = confusion_of_pairs(true_E, observed_E, sources.num_classes, count_E, leave_one_out=True)
    unseen = sum(one.unseen for one in ranges)
    return confusion, sum(one.right for one in ranges) / unseen if unseen else None


def count_range(shards: list[Shard], sources: Sources) -> Counted:
    """What one range of observed classes adds, of pairs met more than once.

    All pairs with an observed class lie in its range, so what is left out here has no part in the matrix either.
    """
    found = [read_judged(shard, sources) for shard in shards]
    label_N, other_N, right_N, known_N = (np.concatenate(column) for column in zip(*found, strict=True))
    pairs = pairs_of_images(label_N, other_N, 1 - right_N, known_N)
    true_E, observed_E, count_E = wrong_counts(*pairs[:2], sources.num_classes, pairs[2])
    often_E = count_E > 1
    unseen_N = known_N == UNSEEN
    return Counted(
        true_E[often_E], observed_E[often_E], count_E[often_E], int(unseen_N.sum()), float(right_N[unseen_N].sum())
    )


def read_judged(shard: Shard, sources: Sources) -> tuple[np.ndarray, ...]:
    """(label, best other class, probability that the label is right, what somebody found) [N] of one shard."""
    columns = ["row", "label", "probability_correct"]
    judged = read_table(uris.join(sources.relevance, f"{shard.name}.parquet"), columns)
    row_N, label_N, right_N = (judged[name].to_numpy() for name in columns)
    seen = read_table(uris.join(sources.evidence, f"{shard.name}.parquet"), ["row", "best_other"])
    other_N = seen["best_other"].to_numpy()[places(seen["row"].to_numpy(), row_N)]
    return label_N, other_N, right_N.astype(np.float64), sources.known_R[row_N]


def pairs_of_images(
    label_N: np.ndarray, other_N: np.ndarray, wrong_N: np.ndarray, known_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(true class, observed class, probability) of each image that may be a pair of two different classes.

    other_N: the most probable class but the label, below 0 where there is none. wrong_N: probability that the label is
    wrong. known_N: what somebody found, see `maths/noise_types.py`.
    """
    named_N = known_N >= 0
    true_N = np.where(named_N, known_N, other_N)
    weight_N = np.where(named_N | (known_N == WRONG_UNNAMED), 1.0, wrong_N)
    kept_N = true_N >= 0
    return true_N[kept_N].astype(np.int64), label_N[kept_N].astype(np.int64), weight_N[kept_N]


def to_table(confusion: Confusion) -> pa.Table:
    columns = {"true": confusion.true_E, "observed": confusion.observed_E, "probability": confusion.probability_E}
    return pa.table(columns)


def of_table(table: pa.Table, num_classes: int) -> Confusion:
    return Confusion(num_classes, *(table[name].to_numpy() for name in ("true", "observed", "probability")))
