"""Signals of detectors that make their own: the same however the collection is cut into shards, and when resumed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cleanscale.engine.settings import EngineSettings
from cleanscale.errors import ConfigError
from cleanscale.models.heads import Head, head_to_bytes
from cleanscale.reporting.progress import Progress
from cleanscale.signals import MAKERS
from cleanscale.signals.images import Images
from cleanscale.stages import detector_signals
from cleanscale.stages.evidence_heads import head_name, heads_of
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.relevance import verified_of
from cleanscale.stages.settings import DetectorSettings
from cleanscale.storage.arrays import write_array
from cleanscale.storage.shards import plan_shards
from cleanscale.storage.tables import write_table

# One of each way of making them; what is fitted class by class is compared method by method in test_class_learning.py.
WAYS = ("svm", "label_spreading", "drae", "neighbour_vote", "confident_learning")
pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def in_this_process(monkeypatch) -> Iterator[list]:
    """Tasks run here, the last first; what they worked on."""
    worked_on: list = []

    def each(function, items, *shared):
        worked_on.extend((function.__name__, item) for item in items)
        for position in reversed(range(len(items))):
            yield position, function(items[position], *shared)

    monkeypatch.setattr(detector_signals, "map_shards", each)
    return worked_on


@pytest.fixture(scope="module")
def collection(tmp_path_factory, make_features) -> tuple[pa.Table, pa.Table, str]:
    """(features by label, verification, a folder as the evidence stage leaves it): 8 classes of 20 to 100 images."""
    table = make_features()
    table = table.append_column("row", pa.array(np.arange(table.num_rows))).sort_by([("label", "ascending")])
    flat = table["feature"].combine_chunks().flatten().to_numpy().astype(np.float16)
    table = table.set_column(4, "feature", pa.FixedSizeListArray.from_arrays(pa.array(flat), 16))
    checked = table.filter(pa.compute.not_equal(table["verified"], -1)).select(["row", "label", "verified"])
    evidence = tmp_path_factory.mktemp("evidence")
    write_array(str(evidence / "centre.npy"), flat.reshape(-1, 16).mean(axis=0, dtype=np.float64).astype(np.float32))
    for fold in range(2):
        (evidence / f"{head_name(fold)}.safetensors").write_bytes(head_to_bytes(Head(16, 8)))
    return table, checked, str(evidence)


def cut(table: pa.Table, folder: Path, target_rows: int) -> FeatureShards:
    """The features as shards of about so many images."""
    label_N, row_N = table["label"].to_numpy(), table["row"].to_numpy()
    shards = plan_shards(*np.unique(label_N, return_counts=True), target_rows)
    for shard in shards:
        inside = table.filter(pa.array(shard.contains(label_N, row_N)))
        write_table(str(folder / f"{shard.name}.parquet"), inside.select(["row", "id", "label", "feature"]))
    return FeatureShards(str(folder), f"cut at {target_rows}", 16, tuple(shards))


def make(name: str, shards: FeatureShards, checked: pa.Table, evidence: str, folder: Path, **changed) -> Path:
    place = Place(str(folder), 0, EngineSettings(), Progress())
    detector_signals.run(place, str(folder / name), name, shards, checked, evidence=(evidence, "made"), row_folds=2)
    return folder / name


@pytest.mark.parametrize("name", WAYS)
def test_signals_are_those_of_all_images_together_however_they_are_cut(
    collection, in_this_process, few_steps, tmp_path, by_row, name
):
    table, checked, evidence = collection
    row_N = table["row"].to_numpy()
    feature_ND = table["feature"].combine_chunks().flatten().to_numpy().reshape(-1, 16)
    images = Images(row_N, table["label"].to_numpy(), feature_ND, verified_of(checked, row_N))
    centre_D = np.load(Path(evidence) / "centre.npy")
    expected = MAKERS[name].of_arrays(images, centre_D, heads_of(evidence, 2, 0), 0)
    order = np.argsort(row_N)
    for target_rows in (1000, 60, 30):  # all in one shard; several; the largest classes in parts
        shards = cut(table, tmp_path / f"features {target_rows}", target_rows)
        found = by_row(make(name, shards, checked, evidence, tmp_path / str(target_rows)))
        assert found["row"].to_pylist() == list(range(320))
        for signal, value_N in expected.items():
            np.testing.assert_allclose(found[signal], value_N[order], rtol=1e-3, atol=1e-4, err_msg=signal)
    assert max(shard.parts for shard in shards.shards) > 1


@pytest.mark.parametrize("name", ["svm", "neighbour_vote"])
def test_an_interrupted_stage_goes_on_with_the_shards_it_lacks(collection, in_this_process, tmp_path, by_row, name):
    table, checked, evidence = collection
    shards = cut(table, tmp_path / "features", 60)
    folder = make(name, shards, checked, evidence, tmp_path)
    whole = by_row(folder)
    (folder / "manifest.json").unlink()
    (folder / f"{shards.shards[2].name}.parquet").unlink()
    in_this_process.clear()
    make(name, shards, checked, evidence, tmp_path)
    made = [item for function, item in in_this_process if function in ("learn_range", "vote_on_shard")]
    assert made in ([shards.shards[2]], [[shards.shards[2]]])
    again = by_row(folder)
    for signal in whole.column_names:
        np.testing.assert_array_equal(again[signal], whole[signal])


def test_only_what_learns_from_verification_labels_is_redone_with_others(collection, in_this_process, tmp_path):
    table, checked, evidence = collection
    shards = cut(table, tmp_path / "features", 1000)
    for name, redone in (("knn", True), ("neighbour_vote", False)):
        make(name, shards, checked, evidence, tmp_path)
        in_this_process.clear()
        make(name, shards, checked.slice(3), evidence, tmp_path)
        assert bool(in_this_process) == redone


def test_confident_learning_of_too_much_is_refused_before_features_are_made():
    named = DetectorSettings(compare=("confident_learning",))
    detector_signals.check(DetectorSettings(), images=10**9, classes=10**6)
    with pytest.raises(ConfigError, match="1000000000 images x 1000000 classes"):
        detector_signals.check(named, images=10**9, classes=10**6)
