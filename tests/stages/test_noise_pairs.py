from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from cleanscale.engine.here import Here, in_this_process
from cleanscale.maths.noise_types import WRONG_UNNAMED, Confusion, confusion_of_pairs
from cleanscale.schema import UNSEEN
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.noise_pairs import Sources, estimate, of_table, pairs_of_images, to_table
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import write_table

CLASSES = 5


def test_a_named_image_is_a_pair_for_sure_and_any_other_as_far_as_its_label_is_judged_to_be_wrong():
    label_N, other_N = np.array([0, 0, 0, 0, 0]), np.array([1, 1, 1, 1, -1])
    known_N = np.array([2, 0, UNSEEN, WRONG_UNNAMED, UNSEEN])
    true_N, observed_N, weight_N = pairs_of_images(label_N, other_N, np.full(5, 0.25), known_N)
    assert true_N.tolist() == [2, 0, 1, 1]  # named, found right, judged, found wrong; nothing beside the label
    assert observed_N.tolist() == [0, 0, 0, 0]
    assert weight_N.tolist() == [1, 1, 0.25, 1]


@pytest.fixture
def judged(tmp_path):
    """judged(cuts) -> Sources of 400 images in shards that begin at these classes; class 4 is often called 3."""
    random = np.random.default_rng(0)
    label_N = np.sort(random.integers(0, CLASSES, 400)).astype(np.int32)
    other_N = ((label_N + 1) % CLASSES).astype(np.int32)
    right_N = random.random(400).astype(np.float32)
    known_R = np.where(random.random(400) < 0.3, random.integers(0, CLASSES, 400), UNSEEN)

    def make(cuts: list[int]) -> Sources:
        folder = tmp_path / "-".join(map(str, cuts))
        shards = []
        for index, (start, stop) in enumerate(zip(cuts, [*cuts[1:], CLASSES], strict=True)):
            at = np.flatnonzero((label_N >= start) & (label_N < stop))
            shard = Shard(index=index, label_start=start, label_stop=stop, part=0, parts=1, rows=len(at))
            shards.append(shard)
            columns = {"row": at, "label": label_N[at], "probability_correct": right_N[at]}
            write_table(str(folder / "relevance" / f"{shard.name}.parquet"), pa.table(columns))
            mixed = at[::-1]  # the evidence is joined by row
            write_table(
                str(folder / "evidence" / f"{shard.name}.parquet"),
                pa.table({"row": mixed, "best_other": other_N[mixed]}),
            )
        features = FeatureShards("nowhere", "", 1, tuple(shards))
        return Sources(features, CLASSES, str(folder / "relevance"), str(folder / "evidence"), known_R)

    return SimpleNamespace(
        make=make,
        right=right_N[known_R == UNSEEN].mean(),
        pairs=pairs_of_images(label_N, other_N, 1 - right_N.astype(np.float64), known_R),
    )


@pytest.mark.parametrize("cuts", [[0], [0, 2], [0, 1, 2, 3, 4]])
def test_the_matrix_is_that_of_all_pairs_however_classes_are_cut_into_shards(judged, cuts):
    with in_this_process(Here()):
        found, share = estimate(judged.make(cuts))
    true_N, observed_N, weight_N = judged.pairs
    expected = confusion_of_pairs(true_N, observed_N, CLASSES, weight_N, leave_one_out=True)
    np.testing.assert_allclose(found.dense(), expected.dense(), rtol=1e-9)
    assert len(found.true_E)
    assert share == pytest.approx(judged.right)


def test_labels_that_nobody_verified_have_confusing_noise_too(judged):
    with in_this_process(Here()):
        sources = judged.make([0, 2])
        found, _ = estimate(replace(sources, known_R=np.full(400, UNSEEN)))
    assert found.dense().argmax(1).tolist() == [4, 0, 1, 2, 3]  # each is the best other class of the one before


def test_a_matrix_is_read_as_it_was_written():
    matrix = Confusion(3, np.array([1, 0]), np.array([0, 2]), np.array([1.0, 1.0]))
    assert of_table(to_table(matrix), 3).dense().tolist() == matrix.dense().tolist()
