import pyarrow as pa
import pytest

from cleanscale.datasets.label_lists import NONE_RIGHT, has_lists, join_edges, split_lists
from cleanscale.datasets.labels import LabelMap, distinct_labels
from cleanscale.datasets.rejects import Reason

NAMES = LabelMap.from_distinct([["bird", "cat", "dog"]])


def read(lists, true=None) -> pa.Table:
    ids = [f"i{k}" for k in range(len(lists))]
    table = {
        "row": range(10, 10 + len(lists)),
        "id": ids,
        "source": ids,
        "label": pa.array(lists, pa.list_(pa.string())),
    }
    return pa.table(table | ({"true_label": pa.array(true, pa.list_(pa.string()))} if true else {}))


def edges_of(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(table["row"].to_pylist(), table["label"].to_pylist(), strict=True))


def said(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def test_labels_in_lists_make_classes():
    column = pa.chunked_array([[["dog", "cat"], None], [["dog"], []]], pa.list_(pa.string()))
    assert sorted(distinct_labels(column).to_pylist()) == ["cat", "dog"]


def test_an_image_stands_under_its_first_label_that_is_a_class_and_keeps_all_of_them():
    single, lists = split_lists(read([["dog", "bird"], ["eel", "cat"]]), NAMES)
    assert single["label"].to_pylist() == ["dog", "cat"]
    assert not has_lists(single)
    assert edges_of(lists.edges) == [(10, 0), (10, 2), (11, 1)]


def test_entries_that_cannot_be_used_are_rejected_alone():
    _, lists = split_lists(read([["eel", "cat", None, "cat", ""]]), NAMES)
    assert edges_of(lists.edges) == [(10, 1)]
    assert said(lists.rejected) == [
        ("i0", Reason.LISTED_UNKNOWN_LABEL),
        ("i0", Reason.LISTED_MISSING_LABEL),
        ("i0", Reason.LISTED_TWICE),
        ("i0", Reason.LISTED_MISSING_LABEL),
    ]


def test_an_image_without_any_usable_label_is_left_to_the_checks_of_images():
    single, lists = split_lists(read([[], None, ["eel", "eel"], [None]]), NAMES)
    assert single["label"].to_pylist() == [None, None, "eel", None]
    assert lists.edges.num_rows == lists.rejected.num_rows == 0


def test_true_labels_are_edges_of_their_own():
    truth = [["cat", "dog"], ["eel"], [], None]
    single, lists = split_lists(read([["dog"], ["cat"], ["cat"], ["cat"]], truth), NAMES)
    assert "true_label" not in single.column_names
    assert lists.true_edges is not None
    none_right = [(11, NONE_RIGHT), (12, NONE_RIGHT)]  # of row 13 nothing is known
    assert edges_of(lists.true_edges) == [(10, 1), (10, 2), *none_right]


@pytest.fixture
def join():
    table, lists = split_lists(read([["dog", "bird"], ["cat"], ["dog"]]), NAMES)

    def do(*rows: tuple):
        names = ("id", "label", "verified", "verified_label")
        filled = [(*row, None)[:4] for row in rows]
        kinds = (pa.string(), pa.string(), pa.int8(), pa.string())
        verification = pa.table({n: pa.array([row[k] for row in filled], kinds[k]) for k, n in enumerate(names)})
        verification = verification.append_column("source", pa.array([f"v#{k}" for k in range(len(rows))]))
        joined = join_edges(table, lists.edges, verification, NAMES)
        found = joined.table.to_pylist()
        return [(one["row"], one["label"], one["verified"]) for one in found], said(joined.rejected), joined.used_M

    return do


def test_verdicts_are_about_a_label_of_an_image_also_one_that_is_missing(join):
    found, rejected, used = join(("i0", "dog", 1), ("i0", "bird", 0), ("i0", "cat", 1), ("elsewhere", "cat", 1))
    assert found == [(10, 0, 0), (10, 1, 1), (10, 2, 1)]
    assert rejected == []
    assert used.tolist() == [0, 1, 2]  # the last one may belong to another part of the data


def test_the_label_may_be_left_out_where_an_image_has_one(join):
    found, rejected, _ = join(("i1", None, 1), ("i0", None, 1))
    assert found == [(11, 1, 1)]
    assert rejected == [("i0", Reason.VERIFICATION_NO_LABEL)]


def test_a_named_true_label_is_a_verdict_that_it_is_right(join):
    found, _, _ = join(("i1", None, 0, "dog"))
    assert found == [(11, 1, 0), (11, 2, 1)]


def test_verdicts_that_cannot_be_used_are_rejected_with_reasons(join):
    found, rejected, _ = join(
        ("i0", "eel", 1), ("i0", "dog", 1), ("i0", "dog", 0), ("i0", "bird", 1), ("i0", "bird", 1),
        ("i1", "cat", 1, "dog"), ("i2", "dog", 0, "bird"), ("i2", "bird", 0),
    )  # fmt: skip
    assert found == [(10, 0, 1)]
    assert rejected == [
        ("i0", Reason.VERIFICATION_UNKNOWN_LABEL),
        ("i0", Reason.VERIFICATION_DISAGREES),
        ("i0", Reason.VERIFICATION_DISAGREES),
        ("i1", Reason.VERIFICATION_CONTRADICTION),
        ("i2", Reason.VERIFICATION_DISAGREES),
        ("i2", Reason.VERIFICATION_DISAGREES),
    ]
