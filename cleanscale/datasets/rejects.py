"""What cannot be used becomes a row of `rejected` with its reason: accepted + rejected = input, always."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

import enum
import zlib
from collections.abc import Iterable, Sequence

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


def rejected_rows(table: pa.Table, reason_N: Sequence[str | None]) -> pa.Table:
    """A `rejected` table of the rows that have a reason; `table` has id and source."""
    bad_N = np.array([reason is not None for reason in reason_N], bool)
    part = table.filter(pa.array(bad_N))
    reasons = pa.array([str(reason) for reason in reason_N if reason is not None], pa.string())
    return pa.table({"id": part.column("id"), "source": part.column("source"), "reason": reasons}).cast(REJECTED)


def check_table(table: pa.Table, label_map: LabelMap, feature_width: int | None = None) -> tuple[pa.Table, pa.Table]:
    """(accepted rows, rejected rows) of a read with row, id, label, source and any of the other columns.

    Accepted rows have `label` as int32 class id and no `fault`; `true_label`, where asked, is int32 too: null when
    not given, -1 when it is none of the classes. It never rejects a row, since nothing but the evaluation may use it.
    """
    reason_N = _reasons(table, label_map, feature_width)
    rejected = rejected_rows(table, reason_N)
    label_N = label_map.encode(table.column("label"))
    accepted = table.set_column(table.schema.get_field_index("label"), "label", pa.array(label_N))
    if "true_label" in table.column_names:
        true_label_N = label_map.encode(table.column("true_label"))
        values = pa.array(true_label_N, pa.int32(), mask=true_label_N == MISSING)
        accepted = accepted.set_column(table.schema.get_field_index("true_label"), "true_label", values)
    if "fault" in accepted.column_names:
        accepted = accepted.drop_columns(["fault"])
    return accepted.filter(pa.array([reason is None for reason in reason_N], pa.bool_())), rejected


def _reasons(table: pa.Table, label_map: LabelMap, feature_width: int | None) -> list[str | None]:
    """The first reason against each row, None for a good one."""
    reason_N = np.full(table.num_rows, "", object)

    def reject(bad_N: np.ndarray, reason: str) -> None:
        reason_N[bad_N & (reason_N == "")] = str(reason)

    names = table.column_names
    if "fault" in names:
        reason_N[:] = table.column("fault").fill_null("").to_pylist()
    if "id" in names:
        ids = table.column("id")
        reject(_mask(pc.or_kleene(pc.is_null(ids), pc.equal(ids, ""))), Reason.MISSING_ID)
    label_N = label_map.encode(table.column("label"))
    reject(label_N == MISSING, Reason.MISSING_LABEL)
    reject(label_N == UNKNOWN, Reason.UNKNOWN_LABEL)
    if "image" in names:
        lengths = pc.fill_null(pc.binary_length(table.column("image")), 0)
        reject(_mask(pc.equal(lengths, 0)), Reason.MISSING_IMAGE)
    if "feature" in names:
        missing_N, width_N, nan_N = feature_faults(table.column("feature"), feature_width)
        reject(missing_N, Reason.MISSING_FEATURE)
        reject(width_N, Reason.FEATURE_WIDTH)
        reject(nan_N, Reason.NAN_FEATURE)
    return [reason or None for reason in reason_N]


def feature_faults(column: pa.ChunkedArray | pa.Array, width: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool [N] each: missing or empty, not `width` numbers, a number that is null, NaN or infinite."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    length_N = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    value_V = np.asarray(pc.cast(column.flatten(), pa.float32(), safe=False).fill_null(np.nan))
    bad_V = ~np.isfinite(value_V)
    before_V = np.concatenate([[0], np.cumsum(bad_V)])
    stop_N = np.cumsum(length_N)
    nan_N = before_V[stop_N] > before_V[stop_N - length_N]
    missing_N = length_N == 0
    width_N = ~missing_N & (length_N != width) if width is not None else np.zeros(len(length_N), bool)
    return missing_N, width_N, nan_N


def partition_ids(table: pa.Table, parts: int) -> list[pa.Table]:
    """row, id and source of accepted rows by hash of the id: equal ids meet in one partition."""
    small = table.select(["row", "id", "source"])
    part_N = np.array([zlib.crc32(one.encode()) % parts for one in small.column("id").to_pylist()], np.int64)
    return [small.filter(pa.array(part_N == part)) for part in range(parts)]


def duplicates_in_partition(tables: Iterable[pa.Table]) -> pa.Table:
    """row, id and source of every row whose id occurs in a lower row: the first occurrence stays."""
    table = pa.concat_tables(list(tables)).sort_by("row")
    first = table.group_by("id").aggregate([("row", "min")])
    return table.filter(pc.invert(pc.is_in(table.column("row"), value_set=first.column("row_min"))))


def duplicate_reasons(duplicates: pa.Table) -> pa.Table:
    """The `rejected` table of what `duplicates_in_partition` found."""
    return rejected_rows(duplicates, [Reason.DUPLICATE_ID] * duplicates.num_rows)


def _mask(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.asarray(column).astype(bool)
