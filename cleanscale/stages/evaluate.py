"""evaluate: how good the judgement and the classifiers are, where the truth is known. Nothing here is used by any fit.

Detection is measured on images with a known true label whose verification label nothing has used.

# N images
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.engine.tasks import map_shards, shared_value
from cleanscale.maths.intervals import calibration_report, classification_report, detection_report
from cleanscale.maths.keyed_random import Purpose, sampled, uniform_about
from cleanscale.reporting.terminal import Found
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import TRUTH_NOT_GIVEN, Ingested
from cleanscale.stages.place import Place
from cleanscale.stages.predictions import Predictions
from cleanscale.stages.settings import EvaluateSettings
from cleanscale.storage import uris
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table

LEAST_OF_A_CLASS = 1000  # images that are evaluated of a class, where it has them


@dataclass(frozen=True)
class Judgements:
    """What all detectors said of the images that are evaluated."""

    label_N: np.ndarray
    wrong_N: np.ndarray  # in truth
    held_out_N: np.ndarray  # no verification label in the image's class
    mislabeled: dict[str, np.ndarray]
    score: dict[str, np.ndarray]
    probability: dict[str, np.ndarray]

    def decisions(self) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
        return {name: (self.mislabeled[name], self.score[name]) for name in self.mislabeled}

    def groups(self) -> dict[str, np.ndarray]:
        return {"held_out_classes": self.held_out_N, "verified_classes": ~self.held_out_N}


def judgements(relevance: str, features: FeatureShards, data: Ingested, most: int, seed: int) -> Judgements | None:
    """Decisions on images with known truth that nobody verified; None when no truth is known.

    most: so many images at most; of more, those of classes drawn by (seed, class), so that they stand for all, and of
    huge classes some.
    """
    if not data.has_true_labels:
        return None
    verification = data.verification()
    share = min(1.0, most / max(features.num_images, 1))
    huge = huge_classes(data, verification, most) if share < 1 else (np.empty(0, np.int64), np.empty(0))
    wanted = Wanted(relevance, verification, share, seed, *huge)
    truth = shared_value(data.true_labels)
    found = dict(map_shards(known_decisions, list(features.shards), wanted, truth))
    tables = [found[position] for position in sorted(found)]
    table = pa.concat_tables(tables, promote_options="permissive")
    label_N = table["label"].to_numpy()

    def columns(kind: str) -> dict[str, np.ndarray]:
        names = [n for n in table.column_names if n.endswith(f".{kind}")]
        return {n.removesuffix(f".{kind}"): table[n].to_numpy() for n in names}

    return Judgements(
        label_N,
        table["true_label"].to_numpy() != label_N,
        ~np.isin(label_N, wanted.verification["label"].to_numpy()),
        columns("mislabeled"),
        columns("score"),
        columns("probability"),
    )


@dataclass(frozen=True)
class Wanted:
    """Which decisions are evaluated: of this share of the classes, images that are not verified.

    huge_H: sorted classes of which only a share is taken, share_H.
    """

    relevance: str
    verification: pa.Table
    share: float
    seed: int
    huge_H: np.ndarray
    share_H: np.ndarray

    def drawn(self, label_N: np.ndarray, row_N: np.ndarray) -> np.ndarray:
        """bool [N]: the image is among those evaluated. Verified classes always have some: they are few."""
        drawn_N = sampled(self.seed, Purpose.EVALUATION, label_N.astype(np.int64), self.share)
        drawn_N |= np.isin(label_N, self.verification["label"].to_numpy())
        if not len(self.huge_H):
            return drawn_N
        at_N = np.minimum(np.searchsorted(self.huge_H, label_N), len(self.huge_H) - 1)
        share_N = np.where(self.huge_H[at_N] == label_N, self.share_H[at_N], 1.0)
        return drawn_N & (uniform_about(self.seed, Purpose.EVALUATION, 1, row_N) < share_N)


def huge_classes(data: Ingested, verification: pa.Table, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(sorted classes, share of each) of those with more images than `most` would leave each verified class."""
    label_C, count_C = data.class_counts()
    each = max(LEAST_OF_A_CLASS, most // max(1, len(np.unique(verification["label"].to_numpy()))))
    huge_C = count_C > each
    return label_C[huge_C], each / count_C[huge_C]


def known_decisions(shard: Shard, wanted: Wanted, true_label_R: np.ndarray) -> pa.Table:
    """The decisions about those images of a shard that are evaluated, with their true labels."""
    table = read_table(uris.join(wanted.relevance, "decisions", f"{shard.name}.parquet"))
    row_N, label_N = table["row"].to_numpy(), table["label"].to_numpy()
    verified_N = np.isin(row_N, wanted.verification["row"].to_numpy())
    use_N = (true_label_R[row_N] != TRUTH_NOT_GIVEN) & ~verified_N & wanted.drawn(label_N, row_N)
    table = table.filter(pa.array(use_N)).drop_columns(["row"])
    return table.append_column("true_label", pa.array(true_label_R[row_N[use_N]], pa.int32()))


def metrics(
    place: Place,
    settings: EvaluateSettings,
    judged: Judgements | None,
    predictions: dict[str, Predictions],
    main: str,
    *,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The detection, calibration, classification and difference tables of metrics.json.

    earlier: the metrics when the same judgement was last measured; what they say of it is not computed again.
    """
    sure: dict[str, int] = {"resamples": settings.resamples, "seed": place.seed}
    with place.timed("evaluate"):
        if earlier is not None:
            found = {name: earlier[name] for name in ("detection", "calibration") if name in earlier}
            found["difference"] = {n: d for n, d in earlier["difference"].items() if n == "detection"}
        else:
            found = detection_metrics(judged, main, **sure)
        if predictions:
            correct = {name: {"top1": p.correct(1), "top5": p.correct(5)} for name, p in predictions.items()}
            report = classification_report(correct, **sure)
            found["classification"] = report["classification"]
            found["difference"]["classification"] = report["difference"]
    return found


def detection_metrics(judged: Judgements | None, main: str, *, resamples: int, seed: int) -> dict[str, Any]:
    if judged is None or not len(judged.label_N):
        return {"difference": {}}
    sure: dict[str, int] = {"resamples": resamples, "seed": seed}
    decisions, groups = judged.decisions(), judged.groups()
    report = detection_report(judged.label_N, judged.wrong_N, decisions, groups, main=main, **sure)
    return {
        "detection": report["detection"],
        "difference": {"detection": report["difference"]},
        "calibration": calibration_report(judged.label_N, judged.wrong_N, judged.probability, **sure),
    }


def count_found(relevance: str, features: FeatureShards) -> Found:
    """How many labels are called wrong, by class; counted shard by shard."""
    counts = dict(map_shards(count_shard, list(features.shards), relevance))
    return Found.merge(counts[k] for k in sorted(counts))


def count_shard(shard: Shard, relevance: str) -> Found:
    table = read_table(uris.join(relevance, f"{shard.name}.parquet"), ["label", "mislabeled", "probability_correct"])
    columns = [table[name].to_numpy() for name in ("label", "mislabeled", "probability_correct")]
    return Found.count(*columns)
