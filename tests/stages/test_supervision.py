import numpy as np
import pyarrow as pa
import pytest

from cleanscale.errors import ConfigError
from cleanscale.maths.noise_types import WRONG_UNNAMED, confusion_of_pairs
from cleanscale.schema import UNSEEN
from cleanscale.stages import noise_pairs
from cleanscale.stages.settings import TreatmentSettings
from cleanscale.stages.supervision import (
    AS_LABELLED,
    CONFUSION,
    KNOWN,
    Supervision,
    check,
    read_noise,
    verified_pairs,
)
from cleanscale.storage.arrays import write_array
from cleanscale.storage.manifests import open_stage
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
