"""Tables and names that everything else relies on: one definition each.

Rows are joined by `row`, the position in the input; the shard key is the *original* noisy `label`, for ever.
"""

from __future__ import annotations

import pyarrow as pa

# Verification labels (CleanNet, Eq. 1).
RIGHT, WRONG, UNSEEN = 1, 0, -1
VERDICT = ("row", "label", "verified")  # columns that say what somebody found of a label

INGESTED = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("label", pa.int32()),
        ("source", pa.string()),
    ]
)

# Several labels per image: which image has which label. Sorted by row and label.
EDGES = pa.schema([("row", pa.int64()), ("label", pa.int32())])

# What label_cleaning makes of (image, label) pairs: `noisy` 1 where the input has it, `verified` as above, `cleaned` in
# [0, 1] (the verdict where there is one). A pair that is neither noisy nor verified stands here when cleaning adds it.
CLEANED = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("label", pa.int32()),
        ("noisy", pa.int8()),
        ("verified", pa.int8()),
        ("cleaned", pa.float32()),
    ]
)

REJECTED = pa.schema([("id", pa.string()), ("source", pa.string()), ("reason", pa.string())])

RELEVANCE = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("label", pa.int32()),
        ("relevance", pa.float32()),
        ("probability_correct", pa.float32()),
        ("weight", pa.float32()),
        ("mislabeled", pa.bool_()),
        ("suggested_label", pa.int32()),
        ("suggested_relevance", pa.float32()),
        ("verified", pa.int8()),
    ]
)

# Noise types of Xiao et al. (2015): p_* from the image alone, posterior_* given its label too; of the true classes the
# most probable ones, best first.
NOISE_TYPES = pa.schema(
    [
        ("row", pa.int64()),
        ("label", pa.int32()),
        ("p_noise_free", pa.float32()),
        ("p_pointless", pa.float32()),
        ("p_confusing", pa.float32()),
        ("posterior_noise_free", pa.float32()),
        ("posterior_pointless", pa.float32()),
        ("posterior_confusing", pa.float32()),
        ("posterior_label", pa.list_(pa.int32())),
        ("posterior_probability", pa.list_(pa.float32())),
    ]
)


def features_schema(width: int) -> pa.Schema:
    """Features of one class shard: `feature` is fixed_size_list<float16>[width]."""
    return pa.schema(
        [
            ("row", pa.int64()),
            ("id", pa.string()),
            ("label", pa.int32()),
            ("feature", pa.list_(pa.float16(), width)),
        ]
    )
