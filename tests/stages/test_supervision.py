import numpy as np
import pyarrow as pa
import pytest
import torch

from cleanscale.engine.here import Here, in_this_process
from cleanscale.errors import ConfigError
from cleanscale.maths.noise_types import WRONG_UNNAMED, confusion_of_pairs
from cleanscale.models.heads import Head
from cleanscale.schema import UNSEEN
from cleanscale.stages import head_files, noise_pairs
from cleanscale.stages.evidence_heads import head_name, heads_of
from cleanscale.stages.feature_files import fixed_size
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.noise_matrices import Job
from cleanscale.stages.settings import TreatmentSettings
from cleanscale.stages.supervision import (
    AS_LABELLED,
    CONFUSION,
    KNOWN,
    TARGETS,
    WEIGHTS,
    Supervision,
    check,
    read_noise,
    verified_pairs,
    write_relabelled,
)
from cleanscale.storage.arrays import read_array, write_array
from cleanscale.storage.manifests import open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import write_table
from cleanscale.training.head_settings import HeadSettings


@pytest.fixture
def noise_folder(tmp_path):
    """A noise model of noise_em: rows 1 and 4 verified, 5 wrong without a name; all three are seen 3 times."""
    stage = open_stage(str(tmp_path / "supervision"), "supervision", {}, {})
    write_array(stage.path(KNOWN), np.array([-1, 2, -1, -1, 0, WRONG_UNNAMED], np.int32))
    write_table(stage.path(CONFUSION), noise_pairs.to_table(confusion_of_pairs(np.array([2, 0]), np.array([1, 0]), 3)))
    stage.finish(notes={"treatment": "noise_em", "num_classes": 3, "repeats": 3})
    return stage.uri


def test_verified_images_are_seen_as_often_as_the_model_says_and_alone_in_pretraining(noise_folder):
    taught = Supervision(noise=noise_folder).read()
    rows, counts = np.unique(taught.rows(np.arange(6)), return_counts=True)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert counts.tolist() == [1, 3, 1, 1, 3, 3]
    part, counts = np.unique(taught.rows(np.array([0, 4])), return_counts=True)  # of one worker's rows
    assert (part.tolist(), counts.tolist()) == ([0, 4], [1, 3])
    alone = Supervision(noise=noise_folder, verified_only=True).read()
    assert alone.rows(np.arange(6)).tolist() == [1, 4, 5]


def test_pretraining_is_another_stage_than_training():
    one = Supervision((("supervision", "abc"),), noise="folder")
    assert one.inputs() != Supervision((("supervision", "abc"),), noise="folder", verified_only=True).inputs()


def test_targets_of_a_noise_model_are_the_label_and_what_somebody_found(noise_folder):
    taught = Supervision(noise=noise_folder).read()
    found = taught.targets(np.array([1, 5, 0]), np.array([1, 2, 2], np.int32))
    assert found.tolist() == [[1, 2], [2, WRONG_UNNAMED], [2, UNSEEN]]


def test_a_noise_model_is_read_as_it_was_written(noise_folder):
    noise = read_noise(noise_folder)
    assert noise.confusion is not None
    assert noise.confusion.dense().tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_without_a_treatment_labels_and_rows_are_as_they_are():
    taught = AS_LABELLED.read()
    assert taught.rows(np.array([3, 4])).tolist() == [3, 4]
    assert taught.targets(np.array([3, 4]), np.array([1, 0], np.int32)).tolist() == [1, 0]
    assert taught.weights(np.array([3, 4])).tolist() == [1, 1]
    assert taught.loss("cpu") is None


def test_replaced_targets_and_weights_come_by_row(tmp_path):
    write_array(str(tmp_path / "t.npy"), np.array([4, 5, 6], np.int32))
    write_array(str(tmp_path / "w.npy"), np.array([0.5, np.nan, 1], np.float32))
    taught = Supervision(weights=str(tmp_path / "w.npy"), targets=str(tmp_path / "t.npy")).read()
    assert taught.targets(np.array([2, 0]), np.array([1, 1], np.int32)).tolist() == [6, 4]
    assert taught.weights(np.array([1, 0])).tolist() == [0, 0.5]


def test_a_right_label_is_a_pair_and_a_wrong_one_only_if_it_is_named():
    table = pa.table({"row": [0, 1, 2], "label": [5, 6, 7], "verified": [1, 0, 0], "verified_label": [-1, 3, -1]})
    observed_P, true_P = verified_pairs(table)
    assert observed_P.tolist() == [5, 6, 7]
    assert true_P.tolist() == [5, 3, WRONG_UNNAMED]


@pytest.mark.parametrize("name", ["forward", "instance_forward", "backward", "bottom_up"])
def test_more_classes_than_a_matrix_may_have_are_refused_with_a_way_out(name):
    settings = TreatmentSettings(name=name)
    check(settings, HeadSettings(), settings.matrix_classes)
    with pytest.raises(ConfigError, match=r"4097 classes.*at most 4096.*noise_em"):
        check(settings, HeadSettings(), 4097)
    whole = HeadSettings(sharded="off")
    check(TreatmentSettings(name="noise_em"), whole, 10_000_000)


def test_a_model_of_the_noise_is_refused_where_heads_are_sharded_and_weights_are_not():
    with pytest.raises(ConfigError, match=r"heads of 100000 classes are sharded.*probability"):
        check(TreatmentSettings(name="noise_em"), HeadSettings(), 100_000)
    check(TreatmentSettings(name="probability"), HeadSettings(), 100_000)


def test_the_weight_of_a_suggestion_is_its_own_probability_whoever_suggested_it(tmp_path):
    """Against all log-probabilities of the heads: suggestions of the evidence, of the class index, and none."""
    classes, images = 5, 12
    random = np.random.default_rng(0)
    label_N, right_N = np.sort(random.integers(0, classes, images)), random.random(images).astype(np.float32)
    feature_ND = random.standard_normal((images, 3)).astype(np.float16)
    torch.manual_seed(0)
    for fold in range(2):
        head_files.write_dense(str(tmp_path / "evidence" / head_name(fold)), Head(3, classes))
    probability_NC = np.exp(heads_of(str(tmp_path / "evidence"), 2, 0).log_probability(feature_ND, np.arange(images)))
    image_N = np.arange(images)
    own_N = probability_NC[image_N, label_N]
    others_NC = np.where(np.arange(classes) == label_N[:, None], 0, probability_NC)
    ranked_NC = np.argsort(-others_NC, axis=1)
    best_N = np.where(image_N == 11, -1, ranked_NC[:, 0])
    suggested_N = np.where(image_N % 3 == 0, best_N, ranked_NC[:, 2])
    suggested_N = np.where(image_N % 3 == 1, -1, suggested_N)
    shard = Shard(index=0, label_start=0, label_stop=classes, part=0, parts=1, rows=images)
    log_best_N = np.where(best_N < 0, -30, np.log(others_NC.max(1)))
    mixed = image_N[::-1]  # tables are joined by row
    tables = {
        "features": {"row": image_N, "label": label_N.astype(np.int32), "feature": fixed_size(feature_ND)},
        "relevance": {
            "row": mixed,
            "label": label_N[mixed],
            "probability_correct": right_N[mixed],
            "mislabeled": (suggested_N >= 0)[mixed],
            "suggested_label": pa.array(suggested_N[mixed], mask=suggested_N[mixed] < 0),
        },
        "evidence": {
            "row": image_N,
            "log_probability": np.log(own_N),
            "best_other": best_N,
            "best_other_log_probability": log_best_N.astype(np.float32),
        },
    }
    for folder, columns in tables.items():
        write_table(str(tmp_path / folder / f"{shard.name}.parquet"), pa.table(columns))
    features = FeatureShards(str(tmp_path / "features"), "f", 3, (shard,))
    known_R = np.full(images, UNSEEN, np.int32)
    job = Job(features, classes, str(tmp_path / "relevance"), str(tmp_path / "evidence"), 2, known_R, 0)
    with in_this_process(Here()):
        write_relabelled(lambda name: str(tmp_path / name), job)
    target_R = np.where(suggested_N >= 0, suggested_N, label_N)
    of_others_N = probability_NC[image_N, target_R] / (1 - own_N)
    np.testing.assert_array_equal(read_array(str(tmp_path / TARGETS)), target_R)
    expected_R = np.where(suggested_N >= 0, (1 - right_N) * of_others_N, right_N)
    np.testing.assert_allclose(read_array(str(tmp_path / WEIGHTS)), expected_R, rtol=1e-3)
