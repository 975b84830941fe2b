"""Images of no class of the run: labels called wrong where no other class is near either.

`open_set/*.parquet` of a run: every image whose label is called wrong, the class that it is nearest to (which may
be its own), how relevant it is to that, and whether this is less than nearly all images with right labels reach.

# V verified images, X images called wrong
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.detectors import Evidence
from cleanscale.schema import RIGHT
from cleanscale.stages.feature_shards import Features
from cleanscale.stages.judged_shard import Nearest

FOLDER, THRESHOLD = "open_set", "open_set.json"  # in the stage's folder
RIGHT_BELOW = 0.05  # share of images with right labels that are no nearer to their class
FEWEST = 20  # verified right labels, for such a share to mean something


def threshold(evidence: Evidence, verified_V: np.ndarray) -> dict[str, Any]:
    """{"relevance": below it an image is of no class; None where too few right labels are known}.

    Their relevance is that of CleanNets that saw no verification label of their class.
    """
    relevance_V = evidence.signals.get("cleannet_cosine", np.full(len(verified_V), np.nan))[verified_V == RIGHT]
    relevance_V = relevance_V[np.isfinite(relevance_V)]
    if len(relevance_V) < FEWEST:
        return {"relevance": None, "right_labels": len(relevance_V)}
    return {"relevance": float(np.quantile(relevance_V, RIGHT_BELOW)), "right_labels": len(relevance_V)}


def table(features: Features, mislabeled_N: np.ndarray, near: Nearest, least: float | None) -> pa.Table:
    """row, label, nearest_label, nearest_relevance, open_set (null where no threshold is known)."""
    wrong_X = np.flatnonzero(mislabeled_N)
    label_X, relevance_X = near.of_all()
    unknown_X = np.isnan(relevance_X)
    far = pa.nulls(len(wrong_X), pa.bool_()) if least is None else pa.array(relevance_X < least, mask=unknown_X)
    return pa.table(
        {
            "row": features.row_N[wrong_X],
            "label": features.label_N[wrong_X],
            "nearest_label": pa.array(label_X, pa.int32(), mask=unknown_X),
            "nearest_relevance": pa.array(relevance_X, pa.float32(), mask=unknown_X),
            "open_set": far,
        }
    )
