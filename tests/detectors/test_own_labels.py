import json
from dataclasses import replace

import numpy as np
import pytest

from cleanscale.detectors import Evidence, own_labels, transfer
from cleanscale.detectors.own_labels import OwnLabels, fit_borders, ridge_border
from cleanscale.maths.calibration import sigmoid
from cleanscale.maths.evidence import SIGNALS

WIDTH = 12


def collection(classes: int = 6, images: int = 200, seed: int = 0) -> tuple[Evidence, np.ndarray]:
    """Labels whose evidence says something, and whose features say more, in a direction that each class has alone."""
    random = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(classes) * 5 + 2, images).astype(np.int32)
    right_N = random.random(len(label_N)) < 0.6
    direction_CD = random.standard_normal((classes, WIDTH))
    feature_ND = random.standard_normal((len(label_N), WIDTH))
    feature_ND += np.where(right_N, 0.7, -0.7)[:, None] * direction_CD[(label_N - 2) // 5]
    hidden_N = np.where(right_N, 0.5, -0.5) + random.standard_normal(len(label_N))
    signals = {name: (hidden_N + random.standard_normal(len(label_N))).astype(np.float32) for name in SIGNALS}
    return Evidence(np.arange(len(label_N)), label_N, signals, feature_ND.astype(np.float16)), right_N


def seen_in(evidence: Evidence, classes: int, per_class: int) -> np.ndarray:
    """bool [N]: the first images of the first classes."""
    return (evidence.label_N < 5 * classes + 2) & (evidence.row_N % 200 < per_class)


def fitted(evidence: Evidence, right_N: np.ndarray, seen_N: np.ndarray) -> transfer.Transfer:
    return transfer.fit(evidence.select(seen_N), right_N[seen_N].astype(np.int8), class_folds=3, seed=0)


def errors(model: transfer.Transfer, evidence: Evidence, right_N: np.ndarray, judged_N: np.ndarray) -> float:
    return float((model.decide(evidence).mislabeled_N == right_N)[judged_N].mean())


def test_leave_one_out_values_are_those_of_borders_without_the_image():
    random = np.random.default_rng(1)
    unit_KD, right_K = random.standard_normal((15, 4)), random.random(15) < 0.5
    weight_D, intercept, left_out_K = ridge_border(unit_KD, right_K)
    constant = own_labels.CONSTANT**0.5
    extended = np.concatenate([unit_KD, np.full((15, 1), constant)], axis=1)  # the slow twin: the normal equations
    target_K = np.where(right_K, 1.0, -1.0)

    def solved(kept_K: np.ndarray) -> np.ndarray:
        x = extended[kept_K]
        return np.linalg.solve(x.T @ x + own_labels.RIDGE * np.eye(5), x.T @ target_K[kept_K])

    whole = solved(np.ones(15, bool))
    np.testing.assert_allclose([*weight_D, intercept], [*whole[:-1], constant * whole[-1]], atol=1e-10)
    twin_K = [extended[k] @ solved(np.arange(15) != k) for k in range(15)]
    np.testing.assert_allclose(left_out_K, twin_K, atol=1e-10)


def test_a_class_with_labels_of_its_own_is_judged_better_and_others_as_before():
    evidence, right_N = collection()
    seen_N = seen_in(evidence, classes=4, per_class=100)
    model = fitted(evidence, right_N, seen_N)
    alone = replace(model, own=None)
    own_N = (evidence.label_N < 22) & ~seen_N
    assert errors(model, evidence, right_N, own_N) < 0.7 * errors(alone, evidence, right_N, own_N)
    others_N = evidence.label_N >= 22
    with_own, without = model.decide(evidence), alone.decide(evidence)
    np.testing.assert_array_equal(with_own.score_N[others_N], without.score_N[others_N])


def test_probabilities_in_classes_with_labels_are_calibrated():
    evidence, right_N = collection(images=200, seed=3)
    seen_N = seen_in(evidence, classes=6, per_class=100)
    probability_N = fitted(evidence, right_N, seen_N).decide(evidence).probability_correct_N
    assert probability_N is not None
    assert probability_N[~seen_N].mean() == pytest.approx(right_N[~seen_N].mean(), abs=0.06)


@pytest.mark.parametrize("seed", range(4))
def test_borders_that_do_not_help_are_left_out(seed):
    """A few labels of a class, or features that say nothing of its labels: the evidence is believed alone."""
    evidence, right_N = collection(seed=seed)
    few = fitted(evidence, right_N, seen_in(evidence, classes=4, per_class=4))
    random = np.random.default_rng(seed)
    blind = replace(evidence, feature_ND=random.standard_normal(evidence.feature_ND.shape))
    seen_N = seen_in(evidence, classes=4, per_class=100)
    nothing = fitted(blind, right_N, seen_N)
    unseen_N = ~seen_in(evidence, classes=6, per_class=100)
    for model, known in ((few, evidence), (nothing, blind)):
        alone = errors(replace(model, own=None), known, right_N, unseen_N)
        assert errors(model, known, right_N, unseen_N) <= alone + 0.01


def test_classes_with_labels_of_one_kind_have_no_border():
    evidence, right_N = collection(classes=2, images=200)
    all_right_N = right_N | (evidence.label_N == 2)
    borders, left_out_V = fit_borders(evidence.feature_ND, evidence.label_N, all_right_N)
    assert borders.label_M.tolist() == [7]
    assert np.isnan(left_out_V[evidence.label_N == 2]).all()
    assert np.isnan(borders.values(evidence.feature_ND, np.full(len(evidence), 3))).all()


def test_without_features_there_are_no_borders():
    evidence, right_N = collection()
    seen_N = seen_in(evidence, classes=4, per_class=100)
    assert fitted(replace(evidence, feature_ND=None), right_N, seen_N).own is None
    model = fitted(evidence, right_N, seen_N)
    bare = replace(evidence, feature_ND=None)
    np.testing.assert_array_equal(
        model.decide(bare).score_N, sigmoid(model.slope * model.logit(bare) + model.shift).astype(np.float32)
    )


def test_a_fitted_detector_goes_through_json_unchanged():
    evidence, right_N = collection()
    model = fitted(evidence, right_N, seen_in(evidence, classes=4, per_class=100))
    assert isinstance(model.own, OwnLabels)
    again = transfer.Transfer.from_dict(json.loads(json.dumps(model.to_dict())))
    np.testing.assert_array_equal(again.decide(evidence).score_N, model.decide(evidence).score_N)
