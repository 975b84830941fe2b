"""What cannot be used becomes a row of `rejected` with its reason: accepted + rejected = input, always."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanscale.datasets.labels import MISSING, UNKNOWN, LabelMap
from cleanscale.schema import REJECTED


class Reason(enum.StrEnum):
    """Why a row was rejected: the texts of the `rejected` table and of the counts in metrics.json."""

    UNREADABLE_IMAGE = "unreadable image"
    MISSING_IMAGE = "missing image"
    MISSING_ID = "missing id"
    DUPLICATE_ID = "duplicate id"
    MISSING_LABEL = "missing label"
    UNKNOWN_LABEL = "unknown label"
    MISSING_FEATURE = "missing feature"
    NAN_FEATURE = "NaN feature"
    FEATURE_WIDTH = "feature of another width"
    MALFORMED_LINE = "malformed line"
    MALFORMED_FEATURE = "malformed feature"
    MALFORMED_JSON = "malformed json"
    VERIFICATION_VALUE = "verification is not 0 or 1"
    VERIFICATION_UNKNOWN_ID = "verification of an unknown id"
    VERIFICATION_LABEL = "verification of another label"
    VERIFICATION_DISAGREES = "verifications disagree"
    VERIFICATION_CONTRADICTION = "verification contradicts its verified_label"
    LISTED_UNKNOWN_LABEL = "unknown label in a list"
    LISTED_MISSING_LABEL = "missing label in a list"
    LISTED_TWICE = "label twice in a list"
    VERIFICATION_NO_LABEL = "verification without a label"
    VERIFICATION_UNKNOWN_LABEL = "verification of an unknown label"


def rejected_rows(table: pa.Table, reason_N: Sequence[str | None] | pa.Array | pa.ChunkedArray) -> pa.Table:
    """A `rejected` table of the rows that have a reason; `table` has id and source."""
    if not isinstance(reason_N, pa.Array | pa.ChunkedArray):
        reason_N = pa.array([None if reason is None else str(reason) for reason in reason_N], pa.string())
    part = table.filter(pc.is_valid(reason_N))
    return pa.table({"id": part["id"], "source": part["source"], "reason": reason_N.drop_null()}).cast(REJECTED)


def check_table(table: pa.Table, label_map: LabelMap, feature_width: int | None = None) -> tuple[pa.Table, pa.Table]:
    """(accepted rows, rejected rows) of a read with row, id, label, source and any of the other columns.

    Accepted rows have `label` as int32 class id and no `fault`; `true_label`, where asked, is int32 too: null when
    not given, -1 when it is none of the classes. It never rejects a row, since nothing but the evaluation may use it.
    """
    label_N = label_map.encode(table.column("label"))
    reason_N = _reasons(table, label_N, feature_width)
    rejected = rejected_rows(table, reason_N)
    accepted = table.set_column(table.schema.get_field_index("label"), "label", pa.array(label_N))
    if "true_label" in table.column_names:
        true_label_N = label_map.encode(table.column("true_label"))
        values = pa.array(true_label_N, pa.int32(), mask=true_label_N == MISSING)
        accepted = accepted.set_column(table.schema.get_field_index("true_label"), "true_label", values)
    if "fault" in accepted.column_names:
        accepted = accepted.drop_columns(["fault"])
    return accepted.filter(pc.is_null(reason_N)), rejected


def _reasons(table: pa.Table, label_N: np.ndarray, feature_width: int | None) -> pa.Array:
    """The first reason against each row, null for a good one; label_N: its class id, or why there is none."""
    names = table.column_names
    found = Reasons(table["fault"] if "fault" in names else pa.nulls(table.num_rows, pa.string()))
    if "id" in names:
        ids = table["id"]
        found.add(_mask(pc.or_kleene(pc.is_null(ids), pc.equal(ids, ""))), Reason.MISSING_ID)
    found.add(label_N == MISSING, Reason.MISSING_LABEL)
    found.add(label_N == UNKNOWN, Reason.UNKNOWN_LABEL)
    if "image" in names:
        lengths = pc.fill_null(pc.binary_length(table["image"]), 0)
        found.add(_mask(pc.equal(lengths, 0)), Reason.MISSING_IMAGE)
    if "feature" in names:
        missing_N, width_N, nan_N = feature_faults(table["feature"], feature_width)
        found.add(missing_N, Reason.MISSING_FEATURE)
        found.add(width_N, Reason.FEATURE_WIDTH)
        found.add(nan_N, Reason.NAN_FEATURE)
    return found.array()


class Reasons:
    """The first reason against each of some rows, as numbers of texts: nothing is done row by row."""

    def __init__(self, fault: pa.ChunkedArray | pa.Array) -> None:
        """fault: text or null for each row."""
        whole = fault.combine_chunks() if isinstance(fault, pa.ChunkedArray) else fault
        coded = pc.dictionary_encode(pc.if_else(pc.equal(whole, ""), None, whole))
        self._texts: list[str | None] = [None, *coded.dictionary.to_pylist()]
        self._code_N = np.asarray(pc.fill_null(coded.indices, -1)).astype(np.int32) + 1

    def add(self, bad_N: np.ndarray, reason: str) -> None:
        """A reason against the rows that have none yet."""
        new_N = bad_N & (self._code_N == 0)
        if new_N.any():
            self._code_N[new_N] = len(self._texts)
            self._texts.append(str(reason))

    @property
    def good_N(self) -> np.ndarray:
        """bool [N]: nothing was found against the row."""
        return self._code_N == 0

    def array(self) -> pa.Array:
        """Texts, null for a good row."""
        return pa.array(self._texts, pa.string()).take(pa.array(self._code_N))


def feature_faults(column: pa.ChunkedArray | pa.Array, width: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool [N] each: missing or empty, not `width` numbers, a number that is null, NaN or infinite."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    length_N = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    value_V = np.asarray(pc.cast(column.flatten(), pa.float32(), safe=False).fill_null(np.nan))
    bad_V = ~np.isfinite(value_V)
    nan_N = np.zeros(len(length_N), bool)
    if bad_V.any():
        before_V = np.concatenate([[0], np.cumsum(bad_V)])
        stop_N = np.cumsum(length_N)
        nan_N = before_V[stop_N] > before_V[stop_N - length_N]
    missing_N = length_N == 0
    width_N = ~missing_N & (length_N != width) if width is not None else np.zeros(len(length_N), bool)
    return missing_N, width_N, nan_N


def duplicate_reasons(duplicates: pa.Table) -> pa.Table:
    """The `rejected` table of rows whose id is taken."""
    return rejected_rows(duplicates, [Reason.DUPLICATE_ID] * duplicates.num_rows)


def _mask(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.asarray(column).astype(bool)
