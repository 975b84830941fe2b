from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale import schema
from cleanscale.engine.settings import EngineSettings
from cleanscale.pipeline import read_inputs
from cleanscale.reporting.progress import Progress
from cleanscale.stages import detector_signals, relevance
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.settings import DetectorName, DetectorSettings, TreatmentSettings
from cleanscale.storage.arrays import read_array
from cleanscale.storage.manifests import read_manifest


@pytest.fixture
def judge(features_run, tmp_path):
    """Judge the finished run's images by another detector: judge(DetectorSettings(...)) -> the relevance table."""
    run = features_run.folder / "rounds" / "00"
    manifest = read_manifest(str(run / "features"))
    sources = relevance.Sources(
        FeatureShards.of(str(run / "features"), manifest),
        *(str(run / name) for name in ("references", "cleannet", "class_index", "evidence")),
    )
    place = Place(str(features_run.folder), 0, EngineSettings(), Progress())
    checked = read_inputs(features_run.settings, place).train.verification()

    def do(detector: DetectorSettings, treatment: str = "probability") -> pa.Table:
        evidence = features_run.settings.evidence
        seen = sources.evidence, "as it was"
        own = detector_signals.of_named(
            place, str(tmp_path / "signals"), detector, evidence, sources.features, checked, evidence=seen
        )
        used = replace(sources, signals={name: made[0] for name, made in own.items()})
        named, folder = TreatmentSettings(name=treatment), str(tmp_path / "relevance")
        relevance.run(place, folder, used, {}, checked, detector, named, class_folds=2, num_rows=320)
        return pa.concat_tables([pq.read_table(file) for file in sorted(Path(folder).glob("*.parquet"))])

    return do


@pytest.mark.parametrize("name", get_args(DetectorName))
def test_every_detector_fills_the_relevance_table(judge, name, tmp_path):
    table = judge(DetectorSettings(name=name))
    assert table.schema.equals(schema.RELEVANCE)
    assert sorted(table["row"].to_pylist()) == list(range(320))
    for column in ("relevance", "probability_correct", "weight"):
        assert np.isfinite(table[column]).all()
    probability_N, weight_N = table["probability_correct"].to_numpy(), table["weight"].to_numpy()
    assert ((probability_N >= 0) & (probability_N <= 1)).all()
    verified_N, mislabeled_N = table["verified"].to_numpy(), table["mislabeled"].to_numpy()
    # What a person has seen stands, whatever the detector says.
    np.testing.assert_array_equal(mislabeled_N[verified_N != -1], verified_N[verified_N != -1] == 0)
    suggested_N = np.array(table["suggested_label"].to_pylist(), object)
    assert all(s is None for s in suggested_N[~mislabeled_N])
    assert all(s != label for s, label in zip(suggested_N, table["label"].to_pylist(), strict=True))
    np.testing.assert_array_equal(read_array(str(tmp_path / "relevance" / "weights.npy"))[table["row"]], weight_N)


def test_a_delta_that_the_user_gives_is_where_labels_begin_to_be_called_wrong(judge):
    table = judge(DetectorSettings(name="cleannet", delta=0.25), treatment="hard")
    unseen_N = table["verified"].to_numpy() == -1
    called_N = table["mislabeled"].to_numpy()
    np.testing.assert_array_equal(called_N[unseen_N], (table["relevance"].to_numpy() < 0.25)[unseen_N])
    np.testing.assert_array_equal(table["weight"].to_numpy(), (~called_N).astype(np.float32))


def test_for_transfer_delta_is_a_probability(judge):
    table = judge(DetectorSettings(name="transfer", delta=0.6))
    unseen_N = table["verified"].to_numpy() == -1
    expected_N = table["probability_correct"].to_numpy() < 0.6
    np.testing.assert_array_equal(table["mislabeled"].to_numpy()[unseen_N], expected_N[unseen_N])


def test_soft_weights_are_the_positive_part_of_the_cosine(judge):
    table = judge(DetectorSettings(), treatment="soft")
    np.testing.assert_allclose(table["weight"], np.maximum(0, table["relevance"].to_numpy()), rtol=1e-6)


def test_rows_that_nobody_looked_at_are_unseen():
    checked = pa.table({"row": [5, 2], "verified": pa.array([0, 1], pa.int8())})
    assert relevance.verified_of(checked, np.array([1, 2, 5, 6])).tolist() == [-1, 1, 0, -1]
    assert relevance.verified_of(checked.slice(0, 0), np.array([1, 2])).tolist() == [-1, -1]
