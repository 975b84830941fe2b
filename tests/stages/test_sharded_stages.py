"""The stages that train and score heads, with sharded ones, without a cluster."""

import numpy as np
import pyarrow as pa
import pytest

from cleanscale.engine.here import Here, in_this_process
from cleanscale.engine.settings import EngineSettings
from cleanscale.models.heads import FrozenHead
from cleanscale.reporting.progress import Progress
from cleanscale.schema import features_schema
from cleanscale.stages import evidence_heads, head_classifier, head_files, predictions
from cleanscale.stages.evidence_heads import HeadsJob
from cleanscale.stages.feature_files import fixed_size
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.storage.shards import plan_shards
from cleanscale.storage.tables import write_table
from cleanscale.training.head_settings import HeadSettings

CLASSES, WIDTH = 12, 6
SETTINGS = HeadSettings(sharded="on", epochs=2, batch=32)


@pytest.fixture(autouse=True)
def no_cluster():
    with in_this_process(Here()):
        yield


@pytest.fixture
def features(tmp_path) -> FeatureShards:
    rng = np.random.default_rng(0)
    label_N = np.repeat(np.arange(CLASSES), 20).astype(np.int32)
    row_N = rng.permutation(len(label_N))
    feature_ND = 3 * rng.standard_normal((CLASSES, WIDTH))[label_N] + rng.standard_normal((len(label_N), WIDTH))
    shards = plan_shards(np.arange(CLASSES), np.full(CLASSES, 20), 60)
    for shard in shards:
        mine = np.flatnonzero(shard.contains(label_N, row_N))
        mine = mine[np.lexsort((row_N[mine], label_N[mine]))]
        columns = {"row": row_N[mine], "id": row_N[mine].astype(str), "label": label_N[mine]}
        table = pa.table(columns | {"feature": fixed_size(feature_ND[mine])}).cast(features_schema(WIDTH))
        write_table(str(tmp_path / "features" / f"{shard.name}.parquet"), table)
    return FeatureShards(str(tmp_path / "features"), "f", WIDTH, tuple(shards))


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(str(tmp_path), 0, EngineSettings(), Progress())


def test_a_classifier_on_features_is_sharded_fine_tuned_and_evaluated(features, place, tmp_path):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    made = head_classifier.run(place, first, features, CLASSES, SETTINGS, backbone=None)
    start = (first, made.fingerprint)
    tuned = head_classifier.run(place, second, features, CLASSES, SETTINGS, backbone=None, start=start)
    assert (head_classifier.load_frozen(second).weight_CH != head_classifier.load_frozen(first).weight_CH).any()
    found = predictions.run(place, str(tmp_path / "predictions"), features, (second, tuned.fingerprint), None)
    assert found.correct(1).mean() > 0.9
    assert found.correct(5).mean() > 0.99
    head = head_classifier.load_head(second).frozen()
    np.testing.assert_array_equal(head.weight_CH, head_classifier.load_frozen(second).weight_CH)


def test_out_of_fold_heads_that_are_there_are_not_made_again(features, place, tmp_path):
    folder = str(tmp_path / "evidence")
    job = HeadsJob(features, CLASSES, SETTINGS.resolved(CLASSES), 2, None, None, 0)
    evidence_heads.run(place, folder, job)
    heads = evidence_heads.row_fold_heads(folder, 2)
    assert all(isinstance(head, FrozenHead) for head in heads)
    assert (heads[0].weight_CH != heads[1].weight_CH).any()
    kept = tmp_path / "evidence" / "head-0" / head_files.LAYERS
    before = kept.stat().st_mtime_ns
    (tmp_path / "evidence" / "head-1" / head_files.LAYERS).unlink()
    evidence_heads.run(place, folder, job)
    assert kept.stat().st_mtime_ns == before
    np.testing.assert_array_equal(evidence_heads.row_fold_heads(folder, 2)[1].weight_CH, heads[1].weight_CH)
