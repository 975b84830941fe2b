"""Which image has which labels: the edge table of an ingested input, and verdicts on its edges.

One label per image is the special case: its edges follow from the labels by row.

# N images, E edges
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cleanscale import schema
from cleanscale.datasets.label_lists import NONE_RIGHT
from cleanscale.maths.label_lists import LabelLists
from cleanscale.stages.ingest import EDGES, REJECTED_LABEL, TRUE_EDGES, TRUTH_NOT_GIVEN, Ingested, part_name
from cleanscale.storage import uris
from cleanscale.storage.tables import read_table

Edges = tuple[np.ndarray, np.ndarray]  # (row int64 [E], label int32 [E])


@dataclass(frozen=True)
class Truth:
    """The true labels of some images. known_N: bool; where False nothing is known, and the list is empty too."""

    lists: LabelLists
    known_N: np.ndarray


def noisy(data: Ingested, row_N: np.ndarray) -> LabelLists:
    """The labels that these images (accepted rows) came with, in their order."""
    if not data.multi_label:
        return LabelLists.single(data.labels()[row_N])
    return LabelLists.of_edges(*joined(of_parts(data, EDGES, row_N)), row_N)


def truth_given(data: Ingested) -> bool:
    """Whether any true labels may be known."""
    return uris.exists(uris.join(data.folder, TRUE_EDGES, part_name(0))) if data.multi_label else data.has_true_labels


def true(data: Ingested, row_N: np.ndarray) -> Truth | None:
    """The true labels, for the evaluation alone; None where those of no image are known."""
    if not truth_given(data):
        return None
    if data.multi_label:
        row_E, label_E = joined(of_parts(data, TRUE_EDGES, row_N))
        none = NONE_RIGHT
    else:
        label_N = data.true_labels()[row_N]
        given_N = label_N != TRUTH_NOT_GIVEN
        row_E, label_E, none = row_N[given_N], label_N[given_N], REJECTED_LABEL
    known_N = np.isin(row_N, row_E)
    label_of_E = label_E != none
    return Truth(LabelLists.of_edges(row_E[label_of_E], label_E[label_of_E], row_N), known_N) if known_N.any() else None


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
