"""How good multi-label classifiers and cleaned labels are, where the truth is known. Nothing here is used by any fit.

Classifiers are measured on the test images, whose lists are the truth; cleaned labels on training images whose true
lists are known and that nobody verified.

# N test images, S classes of a range
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cleanscale import schema
from cleanscale.engine.tasks import map_shards
from cleanscale.maths.label_lists import LabelLists
from cleanscale.maths.multi_label_metrics import (
    COUNTED,
    Groups,
    Sums,
    image_weights,
    labels_report,
    measure_range,
    num_resamples,
    report,
)
from cleanscale.models.label_cleaner import output_rows
from cleanscale.stages import label_edges
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.features import load_projection
from cleanscale.stages.head_classifier import load_head
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.label_cleaning import LABELS
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table

RANGE_VALUES = 1 << 23  # test images x classes of a task
FEWEST_VERDICTS = 5  # or known truths, behind the noise rate of a class


@dataclass(frozen=True)
class Job:
    features: FeatureShards  # of the test images, as the backbone gives them
    test: Ingested
    heads: dict[str, str]
    projection: str | None
    groups: Groups
    resamples: int
    seed: int


def classifiers(
    place: Place,
    train: Ingested,
    test: Ingested,
    features: FeatureShards,
    heads: dict[str, str],
    projection: str | None,
    resamples: int,
) -> dict[str, Any]:
    """MAP and AP_all of the heads in these folders, by name; the first is what the others are compared with."""
    groups = Groups.make(*class_frequency_and_noise(train))
    images, classes = features.num_images, train.num_classes
    drawn = num_resamples(resamples, images, classes)
    job = Job(features, test, heads, projection, groups, drawn, place.seed)
    each = max(1, RANGE_VALUES // max(images, 1))
    ranges = [(start, min(start + each, classes)) for start in range(0, classes, each)]
    total: dict[str, dict[str, Sums]] = {}
    # Added up in their order: sums of floats must not depend on which task was quicker.
    found = dict(map_shards(measure_classes, ranges, job))
    for position in range(len(ranges)):
        for name, kinds in found.pop(position).items():
            for kind, sums in kinds.items():
                if kind in total.setdefault(name, {}):
                    total[name][kind].add(sums)
                else:
                    total[name][kind] = sums
    return report(total, groups, images)


def measure_classes(item: tuple[int, int], job: Job) -> dict[str, dict[str, Sums]]:
    start, stop = item
    own = job.features.read_all(list(job.features.shards))
    right = label_edges.noisy(job.test, own.row_N)  # the labels that test images come with are right
    class_S = np.arange(start, stop)
    right_NS = right.multi_hot(class_S, stop) > 0
    weight_RN = image_weights(len(own), job.resamples, job.seed)
    project = load_projection(job.projection)
    feature_ND = own.feature_ND.astype(np.float32)
    feature_ND = feature_ND if project is None else project(feature_ND)
    groups = job.groups.of_range(start, stop)
    found = {}
    with torch.inference_mode():
        for name, folder in job.heads.items():
            head = load_head(folder).eval()
            hidden_NH = head.embed(torch.from_numpy(feature_ND))
            logit_NS = output_rows(hidden_NH, head.output.weight, head.output.bias, torch.from_numpy(class_S))
            found[name] = measure_range(logit_NS.numpy(), right_NS, weight_RN, groups)
    return found


def class_frequency_and_noise(train: Ingested) -> tuple[np.ndarray, np.ndarray]:
    """(training images with each noisy label; share of these labels that is wrong, NaN where it is not known).

    The share is that of the labels of images whose truth is known, where no truth is that of verified labels; of
    FEWEST_VERDICTS labels at least, or of all that there are.
    """
    classes, row_N = train.num_classes, train.accepted_rows()
    noisy = label_edges.noisy(train, row_N)
    truth = label_edges.true(train, row_N)
    if truth is None:
        verdicts = label_edges.verdicts(train.verification())
        label_E = verdicts["label"].to_numpy()
        judged_noisy_E = contains(noisy, np.searchsorted(row_N, verdicts["row"].to_numpy()), label_E, classes)
        wrong_E = verdicts["verified"].to_numpy() == schema.WRONG
        looked_C = np.bincount(label_E[judged_noisy_E], minlength=classes)
        wrong_C = np.bincount(label_E[judged_noisy_E & wrong_E], minlength=classes)
        rate_C = np.where(looked_C >= FEWEST_VERDICTS, wrong_C / np.maximum(looked_C, 1), np.nan)
        return noisy.counts(classes), rate_C
    known_E = truth.known_N[noisy.image_E]
    wrong_E = known_E & ~contains(truth.lists, noisy.image_E, noisy.label_E, classes)
    count_C, looked_C, wrong_C = (
        np.bincount(noisy.label_E[of_E], minlength=classes) for of_E in (slice(None), known_E, wrong_E)
    )
    enough_C = (looked_C > 0) & (looked_C >= np.minimum(count_C, FEWEST_VERDICTS))
    return count_C, np.where(enough_C, wrong_C / np.maximum(looked_C, 1), np.nan)


def contains(lists: LabelLists, image_E: np.ndarray, label_E: np.ndarray, classes: int) -> np.ndarray:
    """bool [E]: whether the image has the label."""
    return np.isin(image_E * np.int64(classes) + label_E, lists.image_E * np.int64(classes) + lists.label_E)


def labels(place: Place, train: Ingested, features: FeatureShards, cleaned: str, threshold: float, resamples: int):
    """How wrong the training labels are before and after cleaning; nothing where the truth is not known."""
    if not label_edges.truth_given(train):
        return {}
    verified = np.unique(train.verification()["row"].to_numpy())
    shards = list(features.shards)
    found = dict(map_shards(count_shard, shards, train, uris.join(cleaned, LABELS), threshold, verified))
    return labels_report([found[k] for k in sorted(found)], resamples=resamples, seed=place.seed)


def count_shard(
    shard: Shard, train: Ingested, cleaned: str, threshold: float, verified: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(distinct rows of COUNTED, images that have them) of the images of a shard whose truth is known."""
    table = read_table(uris.join(cleaned, f"{shard.name}.parquet"))
    row_N = np.setdiff1d(table["row"].to_numpy(), verified)
    truth = label_edges.true(train, row_N)
    if truth is None:
        return np.zeros((0, len(COUNTED)), np.int64), np.zeros(0, np.int64)
    row_N, right = row_N[truth.known_N], truth.lists.take(np.flatnonzero(truth.known_N))
    table = table.filter(pa.array(np.isin(table["row"].to_numpy(), row_N)))
    image_E = np.searchsorted(row_N, table["row"].to_numpy())
    right_E = contains(right, image_E, table["label"].to_numpy(), train.num_classes)
    noisy_E = table["noisy"].to_numpy() > 0
    kept_E = table["cleaned"].to_numpy() >= threshold
    counted = {
        "noisy": noisy_E,
        "false": noisy_E & ~right_E,
        "misjudged": noisy_E & (kept_E != right_E),
        "cleaned_false": kept_E & ~right_E,
    }
    per_image = {name: np.bincount(image_E[mask_E], minlength=len(row_N)) for name, mask_E in counted.items()}
    per_image["missing"] = right.length_N - np.bincount(image_E[noisy_E & right_E], minlength=len(row_N))
    per_image["cleaned_missing"] = right.length_N - np.bincount(image_E[kept_E & right_E], minlength=len(row_N))
    return np.unique(np.column_stack([per_image[name] for name in COUNTED]), axis=0, return_counts=True)
