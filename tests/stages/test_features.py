import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from cleanscale.datasets.settings import DataSettings
from cleanscale.engine.settings import EngineSettings
from cleanscale.errors import StageError
from cleanscale.maths.projection import fit_projection
from cleanscale.pipeline import read_inputs
from cleanscale.reporting.progress import Progress
from cleanscale.stages import features, ingest
from cleanscale.stages.images import Images
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.stages.settings import FeaturesSettings
from cleanscale.storage.manifests import read_manifest
from cleanscale.training.transforms import AugmentationSettings


def place_of(folder: Path, **engine) -> Place:
    return Place(str(folder), 0, EngineSettings(**engine), Progress())


@pytest.fixture
def data(glyphs_run) -> Ingested:
    return read_inputs(glyphs_run.settings, place_of(glyphs_run.folder)).train


@pytest.fixture
def extract(glyphs_run, data, tmp_path):
    """Make the finished run's features again: extract(place, rows_per_file) -> the folder."""
    classifier = glyphs_run.folder / "rounds/00/classifier"
    made = str(classifier), read_manifest(str(classifier)).fingerprint

    def do(place: Place, rows_per_file: int) -> Path:
        settings = glyphs_run.settings.features.model_copy(update={"rows_per_file": rows_per_file})
        features.run(place, place.path("features"), data, settings, glyphs_run.settings.augmentation, classifier=made)
        return tmp_path / "features"

    return do


def assert_same_features(one: pa.Table, other: pa.Table) -> None:
    for column in ("row", "id", "label"):
        assert one[column].equals(other[column])
    wide = [np.asarray(t["feature"].combine_chunks().flatten().to_numpy(), np.float32) for t in (one, other)]
    # Batches are cut elsewhere and threads are other: float16 hides all but a last digit.
    np.testing.assert_allclose(*wide, rtol=5e-3, atol=1e-3)


def test_neither_the_number_of_actors_nor_that_of_files_changes_features(extract, glyphs_run, tmp_path, by_row):
    folder = extract(place_of(tmp_path, feature_actors=2), rows_per_file=64)
    assert_same_features(by_row(folder), by_row(glyphs_run.folder / "rounds/00/features"))
    assert not (folder / "rows").exists()


def test_rows_that_an_interrupted_pass_has_written_are_not_computed_again(
    extract, glyphs_run, tmp_path, by_row, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "map_shards", killed)  # the second pass: all rows are written, the stage is not done
    with pytest.raises(KeyboardInterrupt):
        extract(place_of(tmp_path), 64)
    files = sorted((tmp_path / "features/rows").glob("*.parquet"))
    assert len(files) == 5
    monkeypatch.undo()
    files[2].unlink()
    seen = []
    through_actors = features.through_actors

    def counted(*args, **kwargs):
        for file in through_actors(*args, **kwargs):
            seen.append(int(file["rows"]))
            yield file

    monkeypatch.setattr(features, "through_actors", counted)
    folder = extract(place_of(tmp_path), 64)
    assert seen == [64]
    assert_same_features(by_row(folder), by_row(glyphs_run.folder / "rounds/00/features"))


def test_features_that_cannot_be_used_are_rejected_with_their_reasons(tmp_path, ray_session, by_row):
    good, bad = [[1.0, 2.0]] * 4, [[np.nan, 0.0], [1e6, 0.0], None]
    table = {"id": [str(k) for k in range(7)], "label": [0, 1, 0, 1, 0, 1, 0], "feature": good + bad}
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    place = place_of(tmp_path / "run")
    data = ingest.run(place, place.path("ingest"), str(tmp_path / "data.parquet"), DataSettings())
    made = features.run(
        place, place.path("features"), data, FeaturesSettings(), AugmentationSettings(), classifier=None
    )
    assert by_row(tmp_path / "run/features")["row"].to_pylist() == [0, 1, 2, 3]
    files = [tmp_path / "run" / part / "rejected.parquet" for part in ("ingest", "features")]
    rejected = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert sorted((r["id"], r["reason"]) for r in rejected) == [
        ("4", "NaN feature"),
        ("5", "feature beyond float16"),
        ("6", "missing feature"),
    ]
    assert made.notes["rejected"] == 3


def test_ranges_of_another_length_than_an_interrupted_pass_wrote_lose_no_image(tmp_path, ray_session, by_row):
    table = {
        "id": [str(k) for k in range(50)],
        "label": np.arange(50) % 3,
        "feature": [[float(k), 1.0] for k in range(50)],
    }
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    place = place_of(tmp_path / "run")
    data = ingest.run(place, place.path("ingest"), str(tmp_path / "data.parquet"), DataSettings())

    def make(rows_per_file: int) -> None:
        settings = FeaturesSettings(rows_per_file=rows_per_file)
        features.run(place, place.path("features"), data, settings, AugmentationSettings(), classifier=None)

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "second_pass", killed)
        with pytest.raises(KeyboardInterrupt):
            make(10)
    for done in sorted((tmp_path / "run/features/rows").glob("*.parquet"))[1::2]:
        done.unlink()
    make(20)
    assert by_row(tmp_path / "run/features")["row"].to_pylist() == list(range(50))


def test_wide_features_of_a_small_collection_are_projected_on_all_of_its_images(tmp_path, ray_session, by_row):
    random = np.random.default_rng(0)
    wide_ND = random.standard_normal((60, 3)) @ random.standard_normal((3, 12)) + 0.01 * random.standard_normal(
        (60, 12)
    )
    table = {"id": [str(k) for k in range(60)], "label": np.arange(60) % 4, "feature": list(wide_ND)}
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    place = place_of(tmp_path / "run")
    data = ingest.run(place, place.path("ingest"), str(tmp_path / "data.parquet"), DataSettings())
    settings = FeaturesSettings(dimensions=3)
    features.run(
        *(place, place.path("features"), data, settings, AugmentationSettings()),
        classifier=None,
        projection=features.FIT,
    )
    made = by_row(tmp_path / "run/features")["feature"].combine_chunks()
    stored_ND = wide_ND.astype(np.float16).astype(np.float32)
    expected_ND = fit_projection(stored_ND, 3)(stored_ND)
    np.testing.assert_allclose(made.flatten().to_numpy().reshape(60, 3), expected_ND, rtol=5e-3, atol=5e-3)


def test_data_without_one_readable_image_is_the_users_error(extract, glyphs_run, tmp_path, monkeypatch, data):
    class Blind(Images):
        def decoded(self, request, at_least):
            row_M, images, ok_M = super().decoded(request, at_least)
            return row_M, images, np.zeros_like(ok_M)

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tasks cannot import a test module
    monkeypatch.setattr(features, "Images", Blind)
    with pytest.raises(StageError, match="none of 320 images could be decoded"):
        extract(place_of(tmp_path), 0)


def test_features_none_of_which_can_be_used_are_the_users_error(tmp_path, ray_session):
    table = {"id": ["a", "b"], "label": [0, 1], "feature": [[np.inf, 0.0], [1e6, 0.0]]}
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    place = place_of(tmp_path / "run")
    data = ingest.run(place, place.path("ingest"), str(tmp_path / "data.parquet"), DataSettings())
    with pytest.raises(StageError, match=r"none of 2 features can be used.*--data\.feature \('feature'\)"):
        features.run(place, place.path("features"), data, FeaturesSettings(), AugmentationSettings(), classifier=None)
