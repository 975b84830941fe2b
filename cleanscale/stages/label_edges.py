"""Which image has which labels: the edge table of an ingested input, and verdicts on its edges.

One label per image is the special case: its edges follow from the labels by row.

# N images, E edges
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from cleanscale import schema
from cleanscale.maths.label_lists import LabelLists
from cleanscale.stages.ingest import EDGES, REJECTED_LABEL, TRUE_EDGES, TRUTH_NOT_GIVEN, Ingested, part_name
from cleanscale.storage import uris
from cleanscale.storage.tables import read_table

Edges = tuple[np.ndarray, np.ndarray]  # (row int64 [E], label int32 [E])


def noisy(data: Ingested, row_N: np.ndarray) -> LabelLists:
    """The labels that these images (accepted rows) came with, in their order."""
    if not data.multi_label:
        return LabelLists.single(data.labels()[row_N])
    return LabelLists.of_edges(*joined(of_parts(data, EDGES, row_N)), row_N)


def true(data: Ingested, row_N: np.ndarray) -> LabelLists | None:
    """The true labels, for the evaluation alone; None where none are known."""
    if data.multi_label:
        if not uris.exists(uris.join(data.folder, TRUE_EDGES, part_name(0))):
            return None
        return LabelLists.of_edges(*joined(of_parts(data, TRUE_EDGES, row_N)), row_N)
    label_N = data.true_labels()[row_N]
    if (label_N == TRUTH_NOT_GIVEN).any():
        return None
    known = label_N != REJECTED_LABEL
    return LabelLists.of_edges(row_N[known], label_N[known], row_N)


def of_parts(data: Ingested, kind: str, row_N: np.ndarray) -> Iterator[Edges]:
    """Edges of these images, part file by part file: a shard's images lie in all of them."""
    for k in range(len(data.parts)):
        table = read_table(uris.join(data.folder, kind, part_name(k)))
        row_E = table["row"].to_numpy()
        mine_E = np.isin(row_E, row_N)
        yield row_E[mine_E], table["label"].to_numpy()[mine_E]


def joined(pieces: Iterator[Edges]) -> Edges:
    found = [*pieces, (np.empty(0, np.int64), np.empty(0, np.int32))]
    return np.concatenate([row_E for row_E, _ in found]), np.concatenate([label_E for _, label_E in found])


def verdicts(verification: pa.Table) -> pa.Table:
    """row, label, verified of every pair that somebody judged, sorted; a named true class counts as judged right."""
    named_M = verification["verified_label"].to_numpy()
    wrong_M = (verification["verified"].to_numpy() == schema.WRONG) & (named_M >= 0)
    row_M = verification["row"].to_numpy()
    table = pa.table(
        {
            "row": np.concatenate([row_M, row_M[wrong_M]]),
            "label": np.concatenate([verification["label"].to_numpy(), named_M[wrong_M]]).astype(np.int32),
            "verified": np.concatenate(
                [verification["verified"].to_numpy(), np.full(wrong_M.sum(), schema.RIGHT)]
            ).astype(np.int8),
        }
    )
    return table.sort_by([("row", "ascending"), ("label", "ascending")])
