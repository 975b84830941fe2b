import pyarrow as pa
import pytest

from cleanscale import schema
from cleanscale.engine.settings import EngineSettings
from cleanscale.reporting.progress import Progress
from cleanscale.stages.outcome import gather_rejected
from cleanscale.stages.place import Place
from cleanscale.storage.tables import read_table, write_table


@pytest.fixture
def place(tmp_path):
    """A run folder in which every stage that may reject something has rejected one row."""
    homes = ("ingest/train", "ingest/test", "rounds/00/features", "rounds/00/classifier_test_features")
    for home in (*homes, "rounds/01/features", "tune/budget/trials/a/rounds/00/features"):
        row = {"id": [home], "source": ["x.parquet"], "reason": ["unreadable image: cut off"]}
        write_table(str(tmp_path / home / "rejected.parquet"), pa.table(row, schema=schema.REJECTED))
    return Place(str(tmp_path), 0, EngineSettings(), Progress())


@pytest.mark.parametrize(("parts", "count"), [(("train", "test"), 4), (("train",), 2)])
def test_rejected_rows_are_those_of_the_inputs_that_there_are_each_once(place, parts, count):
    assert gather_rejected(place, parts) == {"unreadable image": count}
    ids = read_table(place.path("rejected.parquet"))["id"].to_pylist()
    assert len(ids) == count
    assert not any(name.startswith(("tune/", "rounds/01/")) for name in ids)
