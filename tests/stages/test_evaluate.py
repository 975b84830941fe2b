import numpy as np
import pytest

from cleanscale.engine.settings import EngineSettings
from cleanscale.pipeline import read_inputs
from cleanscale.reporting.progress import Progress
from cleanscale.stages import evaluate
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.storage.manifests import read_manifest


@pytest.fixture
def judged(features_run):
    return judged_of(features_run, 10**6)


def judged_of(features_run, most):
    run = features_run.folder / "rounds" / "00"
    shards = FeatureShards.of(str(run / "features"), read_manifest(str(run / "features")))
    place = Place(str(features_run.folder), 0, EngineSettings(), Progress())
    data = read_inputs(features_run.settings, place).train
    return evaluate.judgements(str(run / "relevance"), shards, data, most, 0), data


def test_images_that_were_verified_are_not_evaluated(judged, make_features):
    found, data = judged
    table = make_features()
    unseen_N = table["verified"].to_numpy() == -1
    assert data.verification().num_rows == (~unseen_N).sum() > 0
    assert len(found.label_N) == unseen_N.sum()
    np.testing.assert_array_equal(np.bincount(found.label_N), np.bincount(table["label"].to_numpy()[unseen_N]))
    wrong_N = table["label"].to_numpy() != table["true_label"].to_numpy()
    assert found.wrong_N.sum() == wrong_N[unseen_N].sum()


def test_held_out_classes_are_those_in_which_nobody_verified_an_image(judged):
    found, _ = judged
    assert set(found.label_N[found.held_out_N]) == {4, 5, 6, 7}
    assert set(found.label_N[~found.held_out_N]) == {0, 1, 2, 3}


def test_every_detector_was_judged_on_the_same_images(judged):
    found, _ = judged
    assert {"transfer", "cleannet", "naive", "classification_filtering"} <= set(found.decisions())
    assert {len(called) for called, _ in found.decisions().values()} == {len(found.label_N)}


def test_of_a_huge_class_some_images_are_evaluated(features_run, judged, monkeypatch):
    everything, data = judged
    monkeypatch.setattr(evaluate, "LEAST_OF_A_CLASS", 10)
    most = len(everything.label_N) // 2
    found, _ = judged_of(features_run, most)
    label_C, count_C = data.class_counts()
    before_C, after_C = (np.bincount(j.label_N, minlength=len(label_C)) for j in (everything, found))
    each = most // 4  # four classes are verified
    assert (count_C > each).any()
    small_C = (count_C <= each) & (after_C > 0)
    np.testing.assert_array_equal(after_C[small_C], before_C[small_C])
    drawn_C = (count_C > each) & (after_C > 0)
    assert (after_C[drawn_C] < before_C[drawn_C]).all()


def test_of_too_many_images_whole_classes_are_drawn(features_run, judged):
    everything, _ = judged
    found, _ = judged_of(features_run, len(everything.label_N) // 3)
    kept = np.unique(found.label_N)
    assert {0, 1, 2, 3} <= set(kept) < set(everything.label_N)  # those with verified images, and some of the others
    inside = np.isin(everything.label_N, kept)
    assert len(found.label_N) == inside.sum()
    assert found.wrong_N.sum() == everything.wrong_N[inside].sum()
