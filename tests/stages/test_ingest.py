import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.datasets.settings import DataSettings
from cleanscale.engine.settings import EngineSettings
from cleanscale.errors import DataError
from cleanscale.reporting.progress import Progress
from cleanscale.stages import ingest, label_edges
from cleanscale.stages.place import Place

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def place(tmp_path):
    return Place(str(tmp_path / "run"), 0, EngineSettings(), Progress())


@pytest.fixture
def data(tmp_path):
    """Write feature rows and return (settings, uri)."""

    def write(ids, labels, name="data.parquet", **columns):
        feature = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2.0 * len(ids), dtype=np.float32)), 2)
        table = {"id": pa.array(ids, pa.string()), "label": labels, "feature": feature} | columns
        pq.write_table(pa.table(table), tmp_path / name, row_group_size=3)
        return str(tmp_path / name)

    return write


def test_accepted_and_rejected_rows_together_are_the_input(place, data):
    uri = data(["a", "b", "a", None, "e", "f"], ["cat", "dog", "cat", "cat", None, "eel"])
    found = ingest.run(place, place.path("ingest"), uri, DataSettings())
    assert (found.num_rows, found.num_accepted, found.num_classes, found.kind) == (6, 3, 3, "features")
    rejected = pq.read_table(place.path("ingest", "rejected.parquet")).to_pylist()
    assert sorted((r["id"], r["reason"].split(":")[0]) for r in rejected if r["id"]) == [
        ("a", "duplicate id"),
        ("e", "missing label"),
    ]
    assert len(rejected) == 3
    np.testing.assert_array_equal(found.accepted_rows(), [0, 1, 5])
    names = found.label_map()
    assert [names.name_of(label) for label in found.labels()[[0, 1, 5]]] == ["cat", "dog", "eel"]
    assert (found.labels()[[2, 3, 4]] == ingest.REJECTED_LABEL).all()


def test_duplicates_are_the_same_whatever_the_parts_and_partitions(place, data, tmp_path, monkeypatch):
    ids = [f"image {k * k % 17}" for k in range(40)]
    for start in range(0, 40, 8):
        data(ids[start : start + 8], np.arange(start, start + 8) % 3, name=f"piece-{start:02d}.parquet")
    uri = str(tmp_path / "piece-*.parquet")
    whole = ingest.run(place, place.path("whole"), uri, DataSettings())
    monkeypatch.setattr(ingest, "IDS_PER_PARTITION", 9)
    monkeypatch.setattr(ingest, "PART_ROWS", 7)
    cut = ingest.run(place, place.path("cut"), uri, DataSettings())
    assert len(cut.parts) > len(whole.parts)
    np.testing.assert_array_equal(cut.labels(), whole.labels())
    assert cut.accepted_rows().tolist() == sorted({name: row for row, name in reversed(list(enumerate(ids)))}.values())


def test_rows_are_found_again_by_position(place, data):
    uri = data([f"image {k}" for k in range(10)], np.arange(10) % 4)
    found = ingest.run(place, place.path("ingest"), uri, DataSettings())
    table = found.table(np.array([7, 2]))
    assert table["id"].to_pylist() == ["image 7", "image 2"]
    assert table["label"].to_pylist() == [3, 2]
    np.testing.assert_array_equal(found.label_range(3, 6), [3, 0, 1])
    assert len(found.table(np.empty(0, np.int64))) == 0


def test_a_test_set_has_the_classes_of_the_training_data(place, data):
    train = ingest.run(place, place.path("train"), data(["a", "b"], ["dog", "cat"]), DataSettings())
    uri = data(["x", "y", "z"], ["dog", "wolf", "cat"], name="test.parquet")
    test = ingest.run(place, place.path("test"), uri, DataSettings(), like=train)
    assert [train.label_map().name_of(one) for one in test.labels()[[0, 2]]] == ["dog", "cat"]
    rejected = pq.read_table(place.path("test", "rejected.parquet")).to_pylist()
    assert [(r["id"], r["reason"].split(":")[0]) for r in rejected] == [("y", "unknown label")]


def test_verification_labels_come_from_a_table_and_from_a_column_and_the_table_wins(place, data, tmp_path):
    uri = data(list("abcd"), [0, 1, 0, 1], checked=pa.array([1, -1, 0, None], pa.int8()))
    (tmp_path / "checked.csv").write_text("id,verified\na,0\nb,1\nnobody,1\n")
    settings = DataSettings(verified="checked", verification=str(tmp_path / "checked.csv"))
    found = ingest.run(place, place.path("ingest"), uri, settings)
    seen = found.verification()
    assert list(zip(seen["row"].to_pylist(), seen["verified"].to_pylist(), strict=True)) == [(0, 0), (1, 1), (2, 0)]
    reasons = [r["reason"] for r in pq.read_table(place.path("ingest", "rejected.parquet")).to_pylist()]
    assert [reason.split(":")[0] for reason in reasons] == ["verification of an unknown id"]


def test_naming_true_labels_changes_nothing_that_is_trained_on(place, data):
    uri = data(list("abcd"), [0, 1, 0, 1], truth=[0, 0, 1, 1])
    without = ingest.run(place, place.path("without"), uri, DataSettings())
    named = ingest.run(place, place.path("with"), uri, DataSettings(true_label="truth"))
    assert named.fingerprint == without.fingerprint
    assert named.true_labels().tolist() == [0, 0, 1, 1]
    assert (without.true_labels() == ingest.TRUTH_NOT_GIVEN).all()


def test_data_of_which_nothing_can_be_used_is_the_users_error(place, data):
    uri = data([None, ""], ["cat", "dog"])
    with pytest.raises(DataError, match=r"none of 2 rows can be used \(2 x missing id.*--data\.label"):
        ingest.run(place, place.path("ingest"), uri, DataSettings())


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(place, data):
    uri = data(["a", "b"], [0, 1])
    first = ingest.run(place, place.path("ingest"), uri, DataSettings())
    assert ingest.run(place, place.path("ingest"), uri, DataSettings()) == first
    data(["a", "b", "c"], [0, 1, 1])
    assert ingest.run(place, place.path("ingest"), uri, DataSettings()).num_rows == 3


def lists(values, kind):
    return pa.array(values, pa.list_(kind))


def test_lists_of_labels_are_edges_beside_the_images(place, data, tmp_path):
    uri = data(list("abcd"), lists([["cat", "dog"], ["eel", "cat", None], [], ["dog", "dog"]], pa.string()))
    checked = "id,label,verified\na,dog,0\na,eel,1\nb,fox,1\nd,,1\nz,cat,1\n"
    (tmp_path / "checked.csv").write_text(checked)
    found = ingest.run(place, place.path("ingest"), uri, DataSettings(verification=str(tmp_path / "checked.csv")))
    assert (found.num_rows, found.num_accepted, found.num_classes, found.multi_label) == (4, 3, 3, True)
    names = found.label_map()
    row_N = found.accepted_rows()
    assert [names.name_of(label) for label in found.labels()[row_N]] == ["cat", "eel", "dog"]
    edges = label_edges.noisy(found, row_N[::-1])
    assert [names.name_of(label) for label in edges.label_E] == ["dog", "cat", "eel", "cat", "dog"]
    assert edges.length_N.tolist() == [1, 2, 2]
    verification = found.verification().select(["row", "label", "verified"]).to_pylist()
    assert [(v["row"], names.name_of(v["label"]), v["verified"]) for v in verification] == [
        (0, "dog", 0),
        (0, "eel", 1),
        (3, "dog", 1),
    ]
    rejected = pq.read_table(place.path("ingest", "rejected.parquet")).to_pylist()
    assert sorted((r["id"], r["reason"]) for r in rejected) == [
        ("b", "missing label in a list"),
        ("b", "verification of an unknown label"),
        ("c", "missing label"),
        ("d", "label twice in a list"),
        ("z", "verification of an unknown id"),
    ]
    assert label_edges.true(found, row_N) is None


def test_integer_lists_keep_their_numbers_and_true_lists_are_known(place, data):
    truth = lists([[7], [2, 7], [9], [], None], pa.int64())
    uri = data(list("abcde"), lists([[7, 2], [2], [7], [7], [7]], pa.int32()), true_label=truth)
    found = ingest.run(place, place.path("ingest"), uri, DataSettings(true_label="true_label"))
    row_N = found.accepted_rows()
    assert label_edges.noisy(found, row_N).label_E.tolist() == [2, 7, 2, 7, 7, 7]
    true = label_edges.true(found, row_N)
    assert true is not None
    assert true.lists.label_E.tolist() == [7, 2, 7]
    assert true.lists.length_N.tolist() == [1, 2, 0, 0, 0]  # 9 is none of the classes
    assert true.known_N.tolist() == [True, True, True, True, False]
    assert label_edges.true(found, row_N[4:]) is None


def test_one_label_per_image_is_one_edge_per_image(place, data):
    found = ingest.run(place, place.path("ingest"), data(["a", "b", "c"], [3, None, 1]), DataSettings())
    assert not found.multi_label
    edges = label_edges.noisy(found, found.accepted_rows())
    assert (edges.label_E.tolist(), edges.length_N.tolist()) == ([3, 1], [1, 1])


def test_lists_and_single_labels_do_not_mix(place, data):
    uri = data(["a", "b"], lists([[1], [2]], pa.int64()), one=pa.array([1, 2]), verdict=pa.array([1, 0]))
    with pytest.raises(DataError, match="expected both alike"):
        ingest.run(place, place.path("ingest"), uri, DataSettings(true_label="one"))
    with pytest.raises(DataError, match=r"--data\.verification instead"):
        ingest.run(place, place.path("ingest"), uri, DataSettings(verified="verdict"))
