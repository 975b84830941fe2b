import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.datasets.settings import DataSettings
from cleanscale.engine.settings import EngineSettings
from cleanscale.errors import DataError
from cleanscale.reporting.progress import Progress
from cleanscale.stages import ingest
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
