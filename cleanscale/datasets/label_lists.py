"""Several labels per image: an edge table (row, label) beside the images, and verdicts on its edges.

An image whose list holds any label that can be used is accepted, under the first such label: that is its shard key.
Entries that cannot be used are rejected one by one; the image stays. One label per image is the special case of one
edge, for which no edge table is written.

# N images, E edges, M rows of a verification table
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanscale.datasets.labels import MISSING, UNKNOWN, LabelMap
from cleanscale.datasets.rejects import Reason, rejected_rows
from cleanscale.schema import EDGES, RIGHT, WRONG

NONE_RIGHT = -1  # the label of the one true edge of an image that is known to have no true label


@dataclass(frozen=True)
class Lists:
    """The edges of a read, and list entries that cannot be used; true_edges is None where the truth is not given of
    any image."""

    edges: pa.Table
    true_edges: pa.Table | None
    rejected: pa.Table


@dataclass(frozen=True)
class JoinedEdges:
    """What a verification table says of some images' edges: row, label, verified; sorted. used_M: rows decided here."""

    table: pa.Table
    used_M: np.ndarray
    rejected: pa.Table


def has_lists(table: pa.Table) -> bool:
    """Whether a read has several labels per image."""
    return pa.types.is_list(table["label"].type)


def split_lists(table: pa.Table, label_map: LabelMap) -> tuple[pa.Table, Lists]:
    """(the read with one label per row, its lists as edges), for reads whose `has_lists` is true.

    The one label is the first of the list that is a class; where there is none, the first as it stands, which the
    checks of single labels then reject (null for an empty list).
    """
    label_L, start_N, length_N = _flat(table["label"])
    class_L = label_map.encode(label_L)
    image_L = np.repeat(np.arange(table.num_rows), length_N)
    reason_L = np.full(len(class_L), "", object)
    reason_L[class_L == UNKNOWN] = str(Reason.LISTED_UNKNOWN_LABEL)
    reason_L[class_L == MISSING] = str(Reason.LISTED_MISSING_LABEL)
    reason_L[(class_L >= 0) & _seen_before(image_L, class_L)] = str(Reason.LISTED_TWICE)
    good_L = reason_L == ""
    first_N = np.where(length_N > 0, start_N, -1)
    first_good = np.full(table.num_rows, -1, np.int64)
    first_good[image_L[good_L][::-1]] = np.flatnonzero(good_L)[::-1]
    first_N = np.where(first_good >= 0, first_good, first_N)
    single = label_L.take(pa.array(first_N, mask=first_N < 0))
    bad_L = ~good_L & (first_good[image_L] >= 0)  # of an image without any usable label, the image is what is rejected
    bad = table.select(["id", "source"]).take(pa.array(image_L[bad_L]))
    row_L = table["row"].to_numpy()[image_L]
    lists = Lists(
        _edges(row_L[good_L], class_L[good_L]), _true_edges(table, label_map), rejected_rows(bad, list(reason_L[bad_L]))
    )
    single_table = table.set_column(table.schema.get_field_index("label"), "label", single)
    drop = [name for name in ("true_label",) if name in table.column_names]
    return single_table.drop_columns(drop), lists


def of_rows(edges: pa.Table, row_N: np.ndarray) -> pa.Table:
    """The edges of these images."""
    return edges.filter(pa.array(np.isin(edges["row"].to_numpy(), row_N)))


def join_edges(images: pa.Table, edges: pa.Table, verification: pa.Table, label_map: LabelMap) -> JoinedEdges:
    """Verdicts on (image, label) pairs of `images` (row, id: accepted rows of any part of the data).

    A verdict may be about a label that the image does not have: 1 says that the label is missing from the list, 0 that
    it is rightly absent. Where a wrong label's verified_label is named, that is a second verdict: the named one is
    right. Verdicts that agree are merged. Rejected: no label where the image has several, a label that is no class,
    verdicts that disagree, a verified_label that contradicts its own verdict.
    """
    here_M = np.flatnonzero(np.asarray(pc.is_in(verification["id"], value_set=images["id"])))
    mine = verification.take(pa.array(here_M))
    row_M = images["row"].to_numpy()[np.asarray(pc.index_in(mine["id"], value_set=images["id"])).astype(np.int64)]
    label_M = label_map.encode_text(mine["label"])
    named_M = label_map.encode_text(mine["verified_label"])
    verdict_M = np.asarray(mine["verified"]).astype(np.int64)
    label_M = np.where(label_M == MISSING, _only_label(edges, row_M), label_M)
    reason_M = np.full(len(here_M), "", object)
    reason_M[label_M == MISSING] = str(Reason.VERIFICATION_NO_LABEL)
    reason_M[label_M == UNKNOWN] = str(Reason.VERIFICATION_UNKNOWN_LABEL)
    contradicts_M = (named_M != MISSING) & ((named_M == label_M) != (verdict_M == RIGHT))
    reason_M[contradicts_M & (reason_M == "")] = str(Reason.VERIFICATION_CONTRADICTION)
    good_M = reason_M == ""
    disagree_M = _disagreeing(row_M, label_M, verdict_M, named_M, good_M)
    reason_M[good_M & disagree_M] = str(Reason.VERIFICATION_DISAGREES)
    good_M = reason_M == ""
    named_too_M = good_M & (verdict_M == WRONG) & (named_M >= 0)
    table = pa.table(
        {
            "row": np.concatenate([row_M[good_M], row_M[named_too_M]]),
            "label": np.concatenate([label_M[good_M], named_M[named_too_M]]).astype(np.int32),
            "verified": np.concatenate([verdict_M[good_M], np.full(named_too_M.sum(), RIGHT)]).astype(np.int8),
        }
    )
    table = (
        table.group_by(["row", "label", "verified"])
        .aggregate([])
        .sort_by([("row", "ascending"), ("label", "ascending")])
    )
    return JoinedEdges(table, here_M, rejected_rows(mine, [reason or None for reason in reason_M]))


def _flat(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """(all entries, where each image's begin, how many it has); a null list has none."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0) if lists.num_chunks else pa.array([], column.type)
    length_N = np.asarray(pc.fill_null(pc.list_value_length(lists), 0)).astype(np.int64)
    return lists.flatten(), np.cumsum(length_N) - length_N, length_N


def _true_edges(table: pa.Table, label_map: LabelMap) -> pa.Table | None:
    """True labels as edges; one that is none of the classes cannot be predicted and is left out.

    An image whose list is null has no edge, as its truth is not known; one whose list leaves nothing has NONE_RIGHT.
    """
    if "true_label" not in table.column_names:
        return None
    label_L, _, length_N = _flat(table["true_label"])
    class_L = label_map.encode(label_L)
    row_N = table["row"].to_numpy()
    row_L = np.repeat(row_N, length_N)[class_L >= 0]
    none_N = row_N[np.asarray(pc.is_valid(table["true_label"])) & ~np.isin(row_N, row_L)]
    class_L = np.concatenate([class_L[class_L >= 0], np.full(len(none_N), NONE_RIGHT)])
    return _edges(np.concatenate([row_L, none_N]), class_L)


def _edges(row_E: np.ndarray, label_E: np.ndarray) -> pa.Table:
    """Sorted by row and label, each once."""
    pair_E2 = np.unique(np.column_stack([row_E, label_E]).astype(np.int64).reshape(-1, 2), axis=0)
    return pa.table({"row": pair_E2[:, 0], "label": pair_E2[:, 1].astype(np.int32)}).cast(EDGES)


def _seen_before(image_L: np.ndarray, class_L: np.ndarray) -> np.ndarray:
    """bool [L]: the same class stands further up in the same list."""
    pair_L = image_L * (int(class_L.max(initial=0)) + 3) + class_L
    first = np.unique(pair_L, return_index=True)[1]
    seen_L = np.ones(len(pair_L), bool)
    seen_L[first] = False
    return seen_L


def _only_label(edges: pa.Table, row_M: np.ndarray) -> np.ndarray:
    """int64 [M]: the label of an image that has one; MISSING for one that has several."""
    row_E, first_E, count_E = np.unique(edges["row"].to_numpy(), return_index=True, return_counts=True)
    if not len(row_E):
        return np.full(len(row_M), MISSING, np.int64)
    place_M = np.minimum(np.searchsorted(row_E, row_M), len(row_E) - 1)
    label_M = edges["label"].to_numpy()[first_E[place_M]].astype(np.int64)
    return np.where((row_E[place_M] == row_M) & (count_E[place_M] == 1), label_M, MISSING)


def _disagreeing(
    row_M: np.ndarray, label_M: np.ndarray, verdict_M: np.ndarray, named_M: np.ndarray, good_M: np.ndarray
) -> np.ndarray:
    """bool [M]: another row says the opposite of this one's pair, or of the label that this one names."""
    named_too_M = good_M & (verdict_M == WRONG) & (named_M >= 0)
    owner_P = np.concatenate([np.flatnonzero(good_M), np.flatnonzero(named_too_M)])
    pair_P2 = np.column_stack([row_M[owner_P], np.concatenate([label_M[good_M], named_M[named_too_M]])])
    said_P = np.concatenate([verdict_M[good_M], np.full(named_too_M.sum(), RIGHT)])
    _, pair_P = np.unique(pair_P2, axis=0, return_inverse=True)
    pair_P = pair_P.reshape(-1)
    both = np.zeros((int(pair_P.max(initial=-1)) + 1, 2), bool)
    both[pair_P, said_P] = True
    disagree_M = np.zeros(len(row_M), bool)
    disagree_M[owner_P[(both[:, 0] & both[:, 1])[pair_P]]] = True
    return disagree_M
