"""The objective: a detector's error on verified classes that it was not fitted on (the class-fold protocol).

It is computed from verification labels alone. Neither true labels nor test images have a part in it.

# V verified images
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cleanscale.detectors import DETECTORS, Evidence
from cleanscale.maths.detection_metrics import count_by_class, error_per_class
from cleanscale.maths.keyed_random import class_fold_masks
from cleanscale.stages import judged_shard
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.judged_shard import Sources
from cleanscale.storage import uris
from cleanscale.storage.tables import read_table

COSINE, REFERENCE_COSINE = "cleannet_cosine", "reference_cosine"


def needs_cleannet(detector: str) -> bool:
    return COSINE in DETECTORS[detector].signals


def needs_evidence(detector: str) -> bool:
    return bool(set(DETECTORS[detector].signals) - {COSINE, REFERENCE_COSINE})


def needs_references(detector: str) -> bool:
    return bool({COSINE, REFERENCE_COSINE} & set(DETECTORS[detector].signals))


def class_fold_error(
    detector: str, evidence: Evidence, verified_N: np.ndarray, *, class_folds: int, seed: int, delta: float | None
) -> float | None:
    """Mean error per class in percent, each class judged by a detector fitted without any of its labels.

    The evidence must be cross-fitted itself. delta: a threshold on scores that is given, not fitted. None: there are
    fewer than two classes, and nothing to hold out.
    """
    folds = class_fold_masks(evidence.label_N, class_folds, seed)
    if not folds:
        return None
    mislabeled_N = np.empty(len(evidence), bool)
    for left_N in folds:
        fitted = DETECTORS[detector].fit(
            evidence.select(~left_N), verified_N[~left_N], class_folds=class_folds, seed=seed
        )
        decision = fitted.decide(evidence.select(left_N))
        mislabeled_N[left_N] = decision.mislabeled_N if delta is None else decision.score_N < delta
    return error_per_class(count_by_class(evidence.label_N, verified_N == 0, mislabeled_N))


def verified_evidence(
    features: FeatureShards,
    checked: pa.Table,
    detector: str,
    *,
    evidence: str | None,
    references: str,
    cosines: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[Evidence, np.ndarray]:
    """The signals that a detector needs of the verified images, and their verification labels (1, 0), by row.

    evidence, references: folders. cosines: (rows sorted, cross-fitted cosines of CleanNet).
    """
    row_V, label_V = (checked[name].to_numpy() for name in ("row", "label"))
    order_V = np.argsort(row_V)
    row_V, label_V = row_V[order_V], label_V[order_V]
    signals: dict[str, np.ndarray] = {}
    if cosines is not None:
        signals[COSINE] = cosines[1][np.searchsorted(cosines[0], row_V)]
    wanted = set(DETECTORS[detector].signals) - {COSINE}
    if wanted:
        signals |= _stored(features, row_V, label_V, wanted, evidence, references)
    return Evidence(row_V, label_V, signals), checked["verified"].to_numpy()[order_V]


def _stored(
    features: FeatureShards,
    row_V: np.ndarray,
    label_V: np.ndarray,
    wanted: set[str],
    evidence: str | None,
    references: str,
) -> dict[str, np.ndarray]:
    """Signals that lie in shards, of these rows and in their order."""
    rows: list[np.ndarray] = []
    found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for shard in features.shards:
        if not shard.contains(label_V, row_V).any():
            continue
        own = features.read(shard)
        mine_N = np.isin(own.row_N, row_V)
        if REFERENCE_COSINE in wanted:
            sources = Sources(features, references, None, None, "")
            mean_CD, position_N = judged_shard.mean_references(shard, sources, own)
            feature_XD = own.feature_ND[mine_N].astype(np.float32)
            found[REFERENCE_COSINE].append(judged_shard.cosine_to_means(feature_XD, mean_CD, position_N[mine_N]))
        own = own.take(mine_N)
        rows.append(own.row_N)
        if evidence is not None and wanted - {REFERENCE_COSINE}:
            table = read_table(
                uris.join(evidence, f"{shard.name}.parquet"), ["row", *sorted(wanted - {REFERENCE_COSINE})]
            )
            at_N = judged_shard.places(table["row"].to_numpy(), own.row_N)
            for name in wanted - {REFERENCE_COSINE}:
                found[name].append(table[name].to_numpy()[at_N])
    order_N = judged_shard.places(np.concatenate(rows), row_V)
    return {name: np.concatenate(parts)[order_N] for name, parts in found.items()}
