import numpy as np
import pyarrow as pa

from cleanscale.detectors import Evidence
from cleanscale.stages import open_set
from cleanscale.stages.feature_shards import Features
from cleanscale.stages.judged_shard import Nearest


def evidence(relevance_V: np.ndarray) -> Evidence:
    row_V = np.arange(len(relevance_V))
    return Evidence(row_V, row_V, {"cleannet_cosine": relevance_V})


def test_the_threshold_is_what_nearly_all_right_labels_reach():
    relevance_V = np.linspace(0, 1, 101)
    right_V = np.ones(101, np.int8)
    right_V[:50] = 0  # wrong labels count for nothing, and what is not known neither
    relevance_V[60] = np.nan
    said = open_set.threshold(evidence(relevance_V), right_V)
    assert 0.5 < said["relevance"] < 0.55
    assert said["right_labels"] == 50


def test_too_few_right_labels_give_no_threshold_and_nobody_is_said_to_be_of_no_class():
    assert open_set.threshold(evidence(np.ones(5)), np.ones(5, np.int8))["relevance"] is None
    assert open_set.threshold(Evidence(np.arange(30), np.arange(30), {}), np.ones(30, np.int8))["relevance"] is None


def test_images_far_from_every_class_are_of_no_class():
    features = Features(np.array([4, 6, 9]), np.array([0, 0, 1]), np.zeros((3, 2)), pa.chunked_array([["a", "b", "c"]]))
    near = Nearest(
        own_X=np.array([0, 1]),
        own_relevance_X=np.array([0.1, 0.6], np.float32),
        found_X=np.array([3, 3]),
        found_relevance_X=np.array([np.nan, 0.2], np.float32),
        label_X=np.array([5, -1]),
        relevance_X=np.array([0.3, np.nan], np.float32),
    )
    table = open_set.table(features, np.array([True, False, True]), near, 0.4)
    assert table["row"].to_pylist() == [4, 9]
    assert table["nearest_label"].to_pylist() == [5, 1]
    assert table["open_set"].to_pylist() == [True, False]
    assert open_set.table(features, np.array([True, False, True]), near, None)["open_set"].to_pylist() == [None, None]
