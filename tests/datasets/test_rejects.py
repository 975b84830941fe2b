"""Nothing is dropped silently: accepted + rejected = input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanscale.datasets.labels import LabelMap
from cleanscale.datasets.rejects import (
    Reason,
    check_table,
    rejected_rows,
)
from cleanscale.schema import REJECTED

LABELS = LabelMap.from_distinct([["cat", "dog"]])


def table_of(**columns: Any) -> pa.Table:
    count = len(next(iter(columns.values())))
    base = {
        "row": pa.array(range(10, 10 + count), pa.int64()),
        "id": pa.array([f"i{one}" for one in range(count)], pa.string()),
        "label": pa.array(["cat"] * count, pa.string()),
        "source": pa.array([f"file#{one}" for one in range(count)], pa.string()),
    }
    kinds = {
        "id": pa.string(),
        "label": pa.string(),
        "true_label": pa.string(),
        "fault": pa.string(),
        "image": pa.binary(),
        "feature": pa.list_(pa.float32()),
        "source": pa.string(),
    }
    return pa.table(base | {name: pa.array(values, kinds[name]) for name, values in columns.items()})


def test_each_fault_has_its_reason() -> None:
    table = table_of(
        id=["a", "b", "c", "", None, "f", "g", "h", "i", "j"],
        label=["cat", None, "cow", "cat", "cat", "dog", "dog", "dog", "dog", "cow"],
        feature=[[1, 2], [1, 2], [1, 2], [1, 2], [1, 2], None, [1, 2, 3], [1, float("nan")], [float("inf"), 1], None],
        fault=[None] * 9 + ["malformed line"],
    )
    accepted, rejected = check_table(table, LABELS, feature_width=2)
    assert accepted.column("id").to_pylist() == ["a"]
    assert accepted.schema.field("label").type == pa.int32()
    assert "fault" not in accepted.column_names
    assert rejected.schema == REJECTED
    assert list(zip(rejected["id"].to_pylist(), rejected["reason"].to_pylist(), strict=True)) == [
        ("b", "missing label"),
        ("c", "unknown label"),
        ("", "missing id"),
        (None, "missing id"),
        ("f", "missing feature"),
        ("g", "feature of another width"),
        ("h", "NaN feature"),
        ("i", "NaN feature"),
        ("j", "malformed line"),
    ]


def test_images_of_no_bytes_are_missing() -> None:
    accepted, rejected = check_table(table_of(image=[b"x", b"", None]), LABELS)
    assert accepted.num_rows == 1
    assert rejected["reason"].to_pylist() == ["missing image"] * 2


def test_a_true_label_rejects_nothing_and_changes_nothing_else() -> None:
    with_truth, rejected = check_table(table_of(true_label=["dog", "cow", None]), LABELS)
    without, _ = check_table(table_of(label=["cat"] * 3), LABELS)
    assert with_truth["true_label"].to_pylist() == [1, -1, None]
    assert rejected.num_rows == 0
    assert with_truth.drop_columns(["true_label"]) == without


labels = st.sampled_from(["cat", "dog", "cow", "", None])
vectors = st.one_of(
    st.none(), st.lists(st.one_of(st.none(), st.floats(width=32, allow_nan=True, allow_infinity=True)), max_size=4)
)
faults = st.sampled_from([None, None, None, "malformed line"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(labels, vectors, faults), min_size=1, max_size=30))
def test_accepted_and_rejected_rows_make_up_the_input(rows: list[tuple[Any, Any, Any]]) -> None:
    """The slow twin says, row by row in plain Python, whether a row is good."""
    table = table_of(label=[one[0] for one in rows], feature=[one[1] for one in rows], fault=[one[2] for one in rows])
    accepted, rejected = check_table(table, LABELS, feature_width=2)
    good = [
        f"i{position}"
        for position, (label, vector, fault) in enumerate(rows)
        if label in ("cat", "dog")
        and fault is None
        and vector is not None
        and len(vector) == 2
        and all(value is not None and np.isfinite(value) for value in vector)
    ]
    assert accepted["id"].to_pylist() == good
    assert sorted(accepted["id"].to_pylist() + rejected["id"].to_pylist()) == sorted(table["id"].to_pylist())


def test_empty_pieces_are_no_trouble() -> None:
    empty = table_of(label=["cat"], feature=[[1.0]]).slice(0, 0)
    accepted, rejected = check_table(empty, LABELS, 1)
    assert (accepted.num_rows, rejected.num_rows) == (0, 0)
    assert rejected_rows(empty, []).schema == REJECTED


@pytest.mark.parametrize("reason", list(Reason))
def test_reasons_are_plain_texts(reason: Reason) -> None:
    assert rejected_rows(table_of(id=["a"]), [reason])["reason"].to_pylist() == [reason.value]
