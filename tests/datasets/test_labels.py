"""Labels of every kind to class ids."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cleanscale.datasets.labels import MISSING, UNKNOWN, LabelMap, distinct_labels, merged_labels
from cleanscale.errors import DataError


def test_names_get_ids_by_their_order_whatever_the_pieces() -> None:
    names = ["10", "9", "cat", "Älg", "ant"]
    whole = LabelMap.from_distinct([names])
    assert LabelMap.from_distinct([names[:2], names[1:], []]) == whole
    assert [whole.name_of(label) for label in whole.ids] == ["10", "9", "ant", "cat", "Älg"]
    assert whole.encode(pa.array(["cat", "10", None, "", "dog"])).tolist() == [3, 0, MISSING, MISSING, UNKNOWN]


def test_integers_are_their_own_ids_with_gaps() -> None:
    labels = LabelMap.from_distinct([[7, 3], [1000, 3, -4, 2**31]])
    assert labels.ids.tolist() == [3, 7, 1000]
    assert labels.id_bound == 1001
    assert labels.encode(pa.array([1000, 4, None, -4, 2**40, 3])).tolist() == [
        1000,
        UNKNOWN,
        MISSING,
        UNKNOWN,
        UNKNOWN,
        3,
    ]
    assert labels.name_of(7) == "7"


def test_given_names_keep_their_order_and_take_integers_and_names() -> None:
    labels = LabelMap.from_distinct([[1, 0]], ["bee", "ant", "cat"])
    assert labels.encode(pa.array([2, 3, -1])).tolist() == [2, UNKNOWN, UNKNOWN]
    assert labels.encode(pa.array(["ant", "dog"])).tolist() == [1, UNKNOWN]


def test_text_of_a_csv_is_a_name_first_and_a_number_else() -> None:
    integers = LabelMap.from_distinct([[0, 5]])
    assert integers.encode_text(pa.array(["5", "4", "x", "", None])).tolist() == [5, UNKNOWN, UNKNOWN, MISSING, MISSING]
    names = LabelMap.from_distinct([["0", "10", "2"]])
    assert names.encode_text(pa.array(["2", "10", "1"])).tolist() == [2, 1, 1]


def test_chunked_and_empty_columns() -> None:
    labels = LabelMap.from_distinct([[0, 1]])
    assert labels.encode(pa.chunked_array([[0, None], [1, 9]])).tolist() == [0, MISSING, 1, UNKNOWN]
    assert labels.encode(pa.nulls(2)).tolist() == [MISSING, MISSING]
    assert len(labels.encode(pa.array([], pa.int64()))) == 0


def test_distinct_labels_of_a_piece_leave_out_missing_ones() -> None:
    assert distinct_labels(pa.chunked_array([["b", None], ["a", "b", ""]])).sort().to_pylist() == ["a", "b"]


def test_a_label_map_travels() -> None:
    for labels in (LabelMap.from_distinct([["a", "b"]]), LabelMap.from_distinct([[3, 9]])):
        labels.encode(pa.array([1]))
        assert LabelMap.from_json(json.loads(json.dumps(labels.to_json()))) == labels
        copy = pickle.loads(pickle.dumps(labels))
        assert copy == labels
        assert copy.encode(pa.array([9])).tolist() == labels.encode(pa.array([9])).tolist()


def test_ids_that_are_nearly_all_unused_are_refused() -> None:
    with pytest.raises(DataError, match="number the classes anew"):
        LabelMap.from_distinct([pa.array([0, 1, 2**31 - 1])])
    assert LabelMap.from_distinct([pa.array([0, 9_999_999])]).id_bound == 10_000_000


def test_labels_that_do_not_fit_together_stop_at_once() -> None:
    with pytest.raises(DataError, match="some labels are integers and some are names"):
        LabelMap.from_distinct([[1], ["cat"]])
    with pytest.raises(DataError, match=r"no image has a usable label.*--data.label"):
        LabelMap.from_distinct([[], [-1]])
    with pytest.raises(DataError, match="occurs twice"):
        LabelMap.from_distinct([[0]], ["a", "a"])
    with pytest.raises(DataError, match="integers in the training data"):
        LabelMap.from_distinct([[0]]).encode(pa.array(["cat"]))


def test_a_million_names_take_the_room_of_their_letters_and_are_found_by_name_and_number() -> None:
    names = pc.binary_join_element_wise(
        "class-", pc.utf8_lpad(pc.cast(pa.array(range(10**6)), pa.string()), 6, "0"), ""
    )
    labels = LabelMap.from_distinct([names.take(pa.array(np.random.default_rng(0).permutation(10**6)))])
    assert labels.names is not None
    assert labels.names.array.nbytes < 20 * 10**6
    assert (labels.name_of(123_456), len(labels.names), labels.id_bound) == ("class-123456", 10**6, 10**6)
    assert labels.encode(pa.array(["class-999999", "nobody", ""])).tolist() == [999_999, UNKNOWN, MISSING]


def test_merging_many_pieces_gives_each_label_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cleanscale.datasets.labels._MERGED_TOGETHER", 10)
    pieces = [pa.array([start, start + 1, 7]) for start in range(40)]
    (merged,) = merged_labels([*pieces, pa.array([], pa.string())])
    assert merged.sort().to_pylist() == list(range(41))
