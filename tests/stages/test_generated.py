"""Generated features in a run folder: files like a user's, kept when a run is interrupted."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cleanscale.datasets import generated as data_of
from cleanscale.datasets.generated import GeneratedSettings
from cleanscale.datasets.settings import DataSettings
from cleanscale.engine.here import Here, in_this_process
from cleanscale.engine.settings import EngineSettings
from cleanscale.reporting.progress import Progress
from cleanscale.stages import generated, ingest
from cleanscale.stages.place import Place

SETTINGS = GeneratedSettings(
    classes=40, images=900, width=8, test_images=50, largest_share=0.5, empty_share=0.1, verified_classes=8
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(data_of, "ROWS_PER_FILE", 400)
    with in_this_process(Here()):
        yield Place(str(tmp_path / "run"), 0, EngineSettings(), Progress())


def test_what_is_written_is_ingested_whole_with_gaps_and_one_huge_class(place):
    data = generated.run(place, place.path("generated"), SETTINGS, DataSettings(train="generated"))
    assert data.train is not None
    found = ingest.run(place, place.path("ingest"), data.train, data)
    assert (found.num_rows, found.num_accepted, found.kind, found.feature_width) == (900, 900, "features", 8)
    label_C, count_C = found.class_counts()
    assert len(label_C) == 36
    assert count_C.max() > 400
    assert found.has_true_labels
    checked = found.verification()
    right_V = found.labels()[checked["row"].to_numpy()] == found.true_labels()[checked["row"].to_numpy()]
    np.testing.assert_array_equal(checked["verified"].to_numpy(), right_V.astype(np.int8))
    assert pq.read_table(place.path("ingest", "rejected.parquet")).num_rows == 0


def test_complete_files_are_kept_when_it_goes_on_and_all_are_as_if_never_interrupted(place):
    folder = Path(place.path("generated"))
    generated.run(place, str(folder), SETTINGS, DataSettings(train="generated"))
    content = {file: file.read_bytes() for file in folder.glob("t*/*.parquet")}
    assert len(content) == 4
    kept, lost, *_ = sorted(content)
    (folder / "manifest.json").unlink()
    lost.unlink()
    before = kept.stat().st_mtime_ns
    generated.run(place, str(folder), SETTINGS, DataSettings(train="generated"))
    assert kept.stat().st_mtime_ns == before
    assert {file: file.read_bytes() for file in folder.glob("t*/*.parquet")} == content


def test_other_settings_make_it_anew(place):
    folder = place.path("generated")
    generated.run(place, folder, SETTINGS, DataSettings(train="generated"))
    fewer = SETTINGS.model_copy(update={"images": 500})
    data = generated.run(place, folder, fewer, DataSettings(train="generated"))
    assert data.train is not None
    assert sum(pq.read_metadata(file).num_rows for file in Path(data.train).glob("*.parquet")) == 500
