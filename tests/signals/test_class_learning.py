"""Detectors that are fitted in every class: what their models see, and what happens in classes without labels."""

import numpy as np
import pytest
from sklearn.svm import SVC

from cleanscale.detectors import DETECTORS, Evidence
from cleanscale.schema import RIGHT, UNSEEN
from cleanscale.signals import MAKERS, class_learning
from cleanscale.signals.class_learning import ClassLearner, label_folds
from cleanscale.signals.images import Images

pytestmark = pytest.mark.usefixtures("alone")
SUPERVISED = ("mlp", "knn", "svm", "label_propagation", "label_spreading")
BY_CLASS = (*SUPERVISED, "drae")


def make_images(classes=4, each=90, verified=40, wrong=0.35, seed=0) -> tuple[Images, np.ndarray]:
    """(images, right_N): wrong ones lie elsewhere; in the last class nobody verified, in the one before all that
    somebody looked at are right."""
    random = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(classes) * 5 + 2, each).astype(np.int32)
    right_N = random.random(len(label_N)) > wrong
    centre_ND = random.standard_normal((classes, 2, 16))[np.repeat(np.arange(classes), each), right_N.astype(int)]
    feature_ND = (1.5 * centre_ND + random.standard_normal(centre_ND.shape)).astype(np.float16)
    verified_N = np.full(len(label_N), UNSEEN, np.int8)
    for start in range(0, (classes - 1) * each, each):
        seen = slice(start, start + verified)
        verified_N[seen] = right_N[seen]
    before_last = slice((classes - 2) * each, (classes - 1) * each)
    verified_N[before_last][verified_N[before_last] == 0] = UNSEEN
    order = random.permutation(len(label_N))
    row_N = random.permutation(10 * len(label_N))[: len(label_N)]
    return Images(row_N, label_N[order], feature_ND[order], verified_N[order]), right_N[order]


def learner_of(name: str) -> ClassLearner:
    learner = MAKERS[name]
    assert isinstance(learner, ClassLearner)
    return learner


def signals_of(name: str, images: Images) -> Evidence:
    return Evidence(images.row_N, images.label_N, learner_of(name).learned(images, 0))


def judged(name: str, images: Images):
    evidence, seen_N = signals_of(name, images), images.looked_N
    fitted = DETECTORS[name].fit(evidence.select(seen_N), images.verified_N[seen_N], class_folds=3, seed=0)
    return DETECTORS[name].from_dict(fitted.to_dict()).decide(evidence)


@pytest.mark.parametrize("name", SUPERVISED)
def test_wrong_labels_of_a_class_are_found_from_its_verified_images(name):
    images, right_N = make_images()
    decision = judged(name, images)
    unseen_N = ~images.looked_N & np.isin(images.label_N, (2, 7))
    assert np.mean(decision.mislabeled_N[unseen_N] == right_N[unseen_N]) < 0.12
    assert decision.probability_correct_N is not None
    assert abs(decision.probability_correct_N[unseen_N].mean() - right_N[unseen_N].mean()) < 0.1


@pytest.mark.parametrize("name", SUPERVISED)
def test_nothing_is_wrong_in_classes_without_both_kinds_of_labels(name):
    images, _ = make_images()
    decision = judged(name, images)
    nothing_N = np.isin(images.label_N, (12, 17))
    assert not decision.mislabeled_N[nothing_N].any()
    share = np.mean(images.verified_N[images.looked_N] == RIGHT)
    np.testing.assert_allclose(decision.probability_correct_N[nothing_N], share, rtol=1e-6)
    assert np.isfinite(decision.score_N).all()


@pytest.mark.parametrize("name", SUPERVISED)
def test_without_any_verification_label_nothing_is_wrong_and_nothing_is_probable(name, caplog):
    images, _ = make_images()
    unseen = Images(images.row_N, images.label_N, images.feature_ND, np.full(len(images), UNSEEN, np.int8))
    decision = judged(name, unseen)
    assert not decision.mislabeled_N.any()
    assert decision.probability_correct_N is None
    assert "nothing to learn from" in caplog.text


@pytest.mark.parametrize("name", BY_CLASS)
def test_a_class_is_judged_alike_alone_in_parts_and_among_others(name, few_steps):
    images, _ = make_images()
    learner = learner_of(name)
    whole = np.stack(list(learner.learned(images, 0).values()), axis=1)
    at = np.flatnonzero(images.label_N == 7)
    own = images.select(at)
    parts = [own.select(own.row_N % 3 == part) for part in range(3)]
    known = learner.known(parts[0], 0)
    for part in parts[1:]:
        known = learner.known(Images.concatenate([known, part]), 0)
    for part in parts:
        expected = whole[at][[np.flatnonzero(own.row_N == row)[0] for row in part.row_N]]
        np.testing.assert_allclose(learner.class_values(known, part, 7, 0), expected, rtol=1e-3, atol=1e-4)


def test_unverified_images_get_what_scikit_learn_says_and_verified_ones_are_left_out():
    images, _ = make_images()
    seed, learner, own = 0, learner_of("svm"), images.select(images.label_N == 2)
    value_NH = learner.class_values(learner.known(own, seed), own, 2, seed)
    own_ND = own.feature_ND.astype(np.float64)
    unit_ND = own_ND - own_ND.mean(axis=0)
    unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
    order = np.argsort(own.row_N)
    fold_N = np.empty(len(own), int)
    fold_N[order] = label_folds(own.select(order), seed)
    for h, choice in enumerate(learner.method.choices):
        for fold in (-1, 0, 1, 2):
            used_N, asked_N = own.looked_N & (fold_N != fold), fold_N == fold
            model = SVC(C=choice, gamma="scale").fit(unit_ND[used_N], own.verified_N[used_N])
            expected = model.decision_function(unit_ND[asked_N])
            np.testing.assert_allclose(value_NH[asked_N, h], expected, rtol=1e-2, atol=5e-3)


def test_the_model_of_a_huge_class_is_fitted_on_a_part_that_does_not_depend_on_the_order(monkeypatch):
    monkeypatch.setattr(class_learning, "MOST_IMAGES", 20)
    images, _ = make_images()
    own = images.select(images.label_N == 2)
    learner = learner_of("label_spreading")
    known = learner.known(own, 0)
    assert (known.looked_N.sum(), (~known.looked_N).sum()) == (20, 20)
    back = learner.known(own.select(slice(None, None, -1)), 0)
    np.testing.assert_array_equal(known.row_N, back.row_N)


@pytest.mark.parametrize("name", ["label_propagation", "label_spreading"])
def test_images_outside_the_graph_are_judged_by_their_neighbours_in_it(name, monkeypatch):
    monkeypatch.setattr(class_learning, "MOST_IMAGES", 30)
    images, right_N = make_images(each=200)
    decision = judged(name, images)
    unseen_N = ~images.looked_N & np.isin(images.label_N, (2, 7))
    assert np.mean(decision.mislabeled_N[unseen_N] == right_N[unseen_N]) < 0.15


def test_drae_learns_nothing_from_verification_labels_but_a_probability(few_steps):
    images, _ = make_images()
    unseen = Images(images.row_N, images.label_N, images.feature_ND, np.full(len(images), UNSEEN, np.int8))
    with_labels, without = judged("drae", images), judged("drae", unseen)
    np.testing.assert_array_equal(with_labels.mislabeled_N, without.mislabeled_N)
    assert with_labels.probability_correct_N is not None
    assert without.probability_correct_N is None
