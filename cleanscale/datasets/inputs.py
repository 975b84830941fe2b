"""What every reader shares: the fragment, the plan and the canonical columns of a read."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanscale.errors import DataError

# About this many rows make a fragment: a task of seconds, small against a worker's memory.
FRAGMENT_ROWS = 4096
FRAGMENT_BYTES = 256 << 20
READ_ROWS = 256  # of images at once

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif",
)  # fmt: skip

# Canonical names, whatever the user's columns are called. `fault` says why a row cannot be used, null when it can.
COLUMNS = ("id", "label", "image", "feature", "true_label", "verified", "source", "fault")

Rows = range | Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Fragment:
    """A piece of the input with a fixed range of rows, small enough to pass around by the hundred thousand.

    num_rows is -1 until `count_rows` has looked (tars, TSV). `detail` holds what the format's reader needs.
    """

    index: int
    format: str
    uri: str
    row_start: int
    num_rows: int
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def row_stop(self) -> int:
        """One past the last row."""
        return self.row_start + self.num_rows

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Fragment:
        """The inverse of `to_json`."""
        return cls(**value)


@dataclass(frozen=True)
class Plan:
    """How an input is cut into fragments. `columns`: canonical columns that can be read, in COLUMNS' order."""

    format: str
    fragments: tuple[Fragment, ...]
    columns: tuple[str, ...]
    class_names: tuple[str, ...] | None
    fingerprint: str
    feature_width: int | None = None

    @property
    def light_columns(self) -> tuple[str, ...]:
        """What ingestion reads: every column but images and features."""
        return tuple(name for name in self.columns if name not in ("image", "feature"))

    @property
    def counted(self) -> bool:
        """Whether every fragment knows its rows; if not, map `count_rows` over the fragments, then `with_counts`."""
        return all(fragment.num_rows >= 0 for fragment in self.fragments)

    @property
    def num_rows(self) -> int:
        """Rows of the input; only when `counted`."""
        if not self.counted:
            raise DataError("the rows of the input are not counted yet; expected counts; run count_rows first")
        return sum(fragment.num_rows for fragment in self.fragments)

    def with_counts(self, pieces: Sequence[Sequence[Fragment]]) -> Plan:
        """The plan with each fragment replaced by what `count_rows` made of it; rows are numbered in order."""
        return replace(self, fragments=number(piece for several in pieces for piece in several))

    def fragments_of(self, row_N: Rows) -> Iterator[tuple[Fragment, np.ndarray]]:
        """(fragment, its rows among `row_N`, sorted) for the fragments that hold any of them."""
        sorted_N = ascending(np.asarray(row_N, np.int64))
        start_F = np.array([fragment.row_start for fragment in self.fragments], np.int64)
        edge_F = np.append(np.searchsorted(sorted_N, start_F), len(sorted_N))
        for index in np.flatnonzero(np.diff(edge_F)):
            yield self.fragments[index], sorted_N[edge_F[index] : edge_F[index + 1]]

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self) | {"fragments": [fragment.to_json() for fragment in self.fragments]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        names = value["class_names"]
        return cls(
            **value
            | {
                "fragments": tuple(Fragment.from_json(one) for one in value["fragments"]),
                "columns": tuple(value["columns"]),
                "class_names": None if names is None else tuple(names),
            }
        )


def number(fragments: Iterator[Fragment] | Sequence[Fragment]) -> tuple[Fragment, ...]:
    """Fragments with index, row_start and first row in their file set in order; those without rows are left out."""
    numbered: list[Fragment] = []
    row = 0
    file_rows: dict[str, int] = {}
    for fragment in fragments:
        if fragment.num_rows == 0:
            continue
        file_row = file_rows.get(fragment.uri, 0)
        detail = fragment.detail | {"file_row": file_row}
        numbered.append(replace(fragment, index=len(numbered), row_start=row, detail=detail))
        row += max(fragment.num_rows, 0)
        file_rows[fragment.uri] = file_row + max(fragment.num_rows, 0)
    return tuple(numbered)


def positions_of(fragment: Fragment, rows: Rows | None) -> np.ndarray:
    """int64 positions inside the fragment of the asked (absolute) rows, sorted; others are ignored."""
    if rows is None:
        return np.arange(fragment.num_rows)
    if isinstance(rows, range):
        rows = np.arange(rows.start, rows.stop, rows.step)
    row_N = np.asarray(rows, np.int64)
    return ascending(row_N[(row_N >= fragment.row_start) & (row_N < fragment.row_stop)]) - fragment.row_start


def ascending(row_N: np.ndarray) -> np.ndarray:
    """Distinct rows in order. numpy's own `unique` hashes, which takes a hundred times as long for rows in order."""
    if (np.diff(row_N) > 0).all():
        return row_N
    sorted_N = np.sort(row_N)
    return sorted_N[np.diff(sorted_N, prepend=sorted_N[:1] - 1) > 0]


def runs_of(position_N: np.ndarray, length: int = READ_ROWS) -> Iterator[np.ndarray]:
    """Sorted positions in pieces of at most `length`."""
    for start in range(0, len(position_N), length):
        yield position_N[start : start + length]


def output_table(
    fragment: Fragment, position_N: np.ndarray, columns: Sequence[str], values: dict[str, Any]
) -> pa.Table:
    """A canonical table: `row` and the asked columns; `values` maps column -> Arrow array (or list) for them."""
    arrays: dict[str, Any] = {"row": pa.array(np.asarray(position_N, np.int64) + fragment.row_start)}
    for name in columns:
        value = values.get(name)
        arrays[name] = pa.nulls(len(position_N), pa.string()) if value is None else value
    return pa.table(arrays)


def label_column(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Labels as int64 or string, or lists of these, whatever width or dictionary they come in."""
    kind = column.type
    if is_list_type(kind):
        inner = kind.value_type.value_type if pa.types.is_dictionary(kind.value_type) else kind.value_type
        wanted = pa.int64() if pa.types.is_integer(inner) else pa.string()
        return pc.cast(column, pa.list_(wanted), safe=not pa.types.is_uint64(inner))
    if pa.types.is_dictionary(kind):
        column = pc.cast(column, kind.value_type)
        kind = column.type
    return pc.cast(column, pa.int64() if pa.types.is_integer(kind) else pa.string(), safe=not pa.types.is_uint64(kind))


def is_list_type(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_label_list_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold labels, one or a list of them for each image."""
    return is_label_type(kind.value_type if is_list_type(kind) else kind)


def is_label_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold labels: integers or strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def verification_column(column: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, np.ndarray]:
    """(int8 1 right, 0 wrong, -1 nobody looked; bool mask of values that are none of these).

    Takes integers, booleans, floats without fraction and their texts; null, NaN and '' mean that nobody looked.
    """
    kind = column.type
    if pa.types.is_null(kind):
        return pa.array(np.full(len(column), -1, np.int8)), np.zeros(len(column), bool)
    if pa.types.is_dictionary(kind):
        column, kind = pc.cast(column, kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = pc.utf8_lower(pc.utf8_trim_whitespace(column)).to_pylist()
        value_N = np.array([_VERIFICATION_TEXTS.get(one or "", np.inf) for one in text], np.float64)
    else:
        value_N = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    value_N = np.where(np.isnan(value_N), -1, value_N)
    bad_N = ~np.isin(value_N, (-1, 0, 1))
    return pa.array(np.where(bad_N, -1, value_N).astype(np.int8)), bad_N


_VERIFICATION_TEXTS = {
    "1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "-1": -1, "-1.0": -1, "": -1, "nan": -1, "null": -1,
}  # fmt: skip


def asked_columns(columns: Sequence[str], plan_columns: Sequence[str] | None = None) -> tuple[str, ...]:
    """The asked columns without `row`, which every read has; an unknown name is our own mistake."""
    wanted = tuple(name for name in columns if name != "row")
    known = COLUMNS if plan_columns is None else plan_columns
    missing = [name for name in wanted if name not in known]
    assert not missing, f"columns {missing} are not among {known}"
    return wanted
