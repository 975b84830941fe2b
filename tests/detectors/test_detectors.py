import json
import logging
from typing import get_args

import numpy as np
import pytest

from cleanscale.detectors import DETECTORS, Evidence, detector
from cleanscale.errors import ConfigError, DataError
from cleanscale.maths.calibration import sigmoid
from cleanscale.maths.evidence import IMAGE_SIGNALS, OTHER_CLASS_SIGNALS, SIGNALS, class_signals
from cleanscale.maths.keyed_random import class_fold_masks
from cleanscale.stages.settings import DetectorName

MORE_SIGNALS = ("reference_cosine", "cleannet_cosine")
# Those that judge by the evidence of every run; the others have tests of their own.
BY_EVIDENCE = sorted(name for name, entry in DETECTORS.items() if not entry.own_signals)
LEARNING = sorted(set(BY_EVIDENCE) - {"naive"})


def make_evidence(num_classes: int = 12, images: int = 150, seed: int = 0) -> tuple[Evidence, np.ndarray]:
    """Evidence that says something about whether labels are right, in classes that differ in how much is wrong."""
    random = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(num_classes) * 7 + 3, images).astype(np.int32)
    right_N = random.random(len(label_N)) < np.repeat(random.uniform(0.3, 0.9, num_classes), images)
    hidden_N = np.where(right_N, 1.0, -1.0) + random.standard_normal(len(label_N))
    noisy = lambda: (hidden_N + 0.7 * random.standard_normal(len(label_N))).astype(np.float32)  # noqa: E731
    signals = {name: noisy() for name in (*IMAGE_SIGNALS, *MORE_SIGNALS)}
    signals["log_rank"] = np.log1p(np.maximum(0, np.round(3 - 2 * signals["margin"]))).astype(np.float32)
    signals["log_probability"] = np.log(sigmoid(signals["log_probability"])).astype(np.float32)
    signals |= class_signals(signals, label_N, random.integers(0, num_classes, len(label_N)))
    signals |= {name: noisy() * 0 for name in OTHER_CLASS_SIGNALS}
    return Evidence(np.arange(len(label_N)), label_N, signals), right_N


def fit_on(name: str, evidence: Evidence, right_N: np.ndarray, seen_N: np.ndarray):
    return DETECTORS[name].fit(evidence.select(seen_N), right_N[seen_N].astype(np.int8), class_folds=3, seed=0)


def test_the_names_are_those_of_the_contract():
    assert set(DETECTORS) == set(get_args(DetectorName))
    assert {
        "transfer",
        "cleannet",
        "naive",
        "classification_filtering",
        "average",
        "self_confidence",
        "margin",
        "prediction_disagrees",
        "neighbour_vote",
        "mlp",
        "knn",
        "svm",
        "label_propagation",
        "label_spreading",
        "drae",
        "confident_learning",
    } == set(DETECTORS)
    assert all(name == entry.name for name, entry in DETECTORS.items())


def test_an_unknown_detector_is_answered_with_the_names_there_are():
    with pytest.raises(ConfigError, match=r"'tranfer'.*transfer, cleannet"):
        detector("tranfer")


@pytest.mark.parametrize("name", LEARNING)
def test_every_detector_beats_believing_all_labels_in_classes_nobody_verified(name):
    evidence, right_N = make_evidence()
    seen_N = evidence.label_N < 40
    decision = fit_on(name, evidence, right_N, seen_N).decide(evidence.select(~seen_N))
    error = np.mean(decision.mislabeled_N == right_N[~seen_N])
    assert error < np.mean(~right_N[~seen_N]) - 0.1
    assert decision.probability_correct_N is not None
    assert abs(decision.probability_correct_N.mean() - right_N[~seen_N].mean()) < 0.2


def test_transfer_beats_every_signal_alone():
    evidence, right_N = make_evidence()
    seen_N = evidence.label_N < 40
    error = {}
    for name in BY_EVIDENCE:
        decision = fit_on(name, evidence, right_N, seen_N).decide(evidence.select(~seen_N))
        error[name] = np.mean(decision.mislabeled_N == right_N[~seen_N])
    assert error["transfer"] == min(error.values())


@pytest.mark.parametrize("name", BY_EVIDENCE)
def test_fitted_detectors_survive_json(name):
    evidence, right_N = make_evidence()
    fitted = fit_on(name, evidence, right_N, evidence.label_N < 40)
    back = DETECTORS[name].from_dict(json.loads(json.dumps(fitted.to_dict())))
    before, after = fitted.decide(evidence), back.decide(evidence)
    np.testing.assert_array_equal(before.score_N, after.score_N)
    np.testing.assert_array_equal(before.mislabeled_N, after.mislabeled_N)
    np.testing.assert_array_equal(before.probability_correct_N, after.probability_correct_N)


VERIFIED_PARTS = {
    "nobody": lambda label_N, right_N: np.zeros(len(label_N), bool),
    "one image": lambda label_N, right_N: np.arange(len(label_N)) == 5,
    "one class": lambda label_N, right_N: label_N == 3,
    "two classes": lambda label_N, right_N: label_N <= 10,
    "only right": lambda label_N, right_N: right_N & (label_N < 40),
    "only wrong": lambda label_N, right_N: ~right_N & (label_N < 40),
}


@pytest.mark.parametrize("part", VERIFIED_PARTS)
@pytest.mark.parametrize("name", BY_EVIDENCE)
def test_detectors_cope_with_few_and_one_sided_verification_labels(name, part):
    evidence, right_N = make_evidence()
    decision = fit_on(name, evidence, right_N, VERIFIED_PARTS[part](evidence.label_N, right_N)).decide(evidence)
    assert np.isfinite(decision.score_N).all()
    assert decision.mislabeled_N.dtype == bool
    if decision.probability_correct_N is not None:
        assert ((decision.probability_correct_N >= 0) & (decision.probability_correct_N <= 1)).all()


@pytest.mark.parametrize("part", ["nobody", "one class", "only right", "only wrong"])
def test_transfer_stays_useful_with_few_labels(part, caplog):
    evidence, right_N = make_evidence()
    seen_N = VERIFIED_PARTS[part](evidence.label_N, right_N)
    with caplog.at_level(logging.WARNING):
        decision = fit_on("transfer", evidence, right_N, seen_N).decide(evidence)
    ranked = decision.score_N.argsort()
    tenth = len(ranked) // 10
    assert right_N[ranked[-tenth:]].mean() - right_N[ranked[:tenth]].mean() > 0.5
    assert bool(caplog.text) == (part != "one class")


def test_transfer_probabilities_are_calibrated_in_classes_nobody_verified():
    evidence, right_N = make_evidence(40, 200)
    seen_N = evidence.label_N < 150
    probability_N = fit_on("transfer", evidence, right_N, seen_N).decide(evidence.select(~seen_N)).probability_correct_N
    for low in np.arange(0, 1, 0.2):
        of_bin = (probability_N >= low) & (probability_N < low + 0.2)
        assert abs(probability_N[of_bin].mean() - right_N[~seen_N][of_bin].mean()) < 0.1


def test_transfer_does_not_depend_on_the_order_of_images():
    evidence, right_N = make_evidence()
    seen_N = evidence.label_N < 40
    order = np.random.default_rng(0).permutation(len(right_N))
    one = fit_on("transfer", evidence, right_N, seen_N).decide(evidence)
    other = fit_on("transfer", evidence.select(order), right_N[order], seen_N[order]).decide(evidence)
    np.testing.assert_allclose(one.probability_correct_N, other.probability_correct_N, atol=1e-4)


def test_filtering_accepts_the_k_best_classes():
    fit = DETECTORS["classification_filtering"].fit
    rank_N = np.tile(np.arange(8), 10)
    evidence = Evidence(np.arange(80), np.repeat(np.arange(2), 40), {"log_rank": np.log1p(rank_N).astype(np.float32)})
    fitted = fit(evidence, (rank_N < 3).astype(np.int8), class_folds=3, seed=0)
    assert fitted.to_dict()["k"] == 3
    np.testing.assert_array_equal(fitted.decide(evidence).mislabeled_N, rank_N >= 3)
    assert fit(evidence, np.zeros(80), class_folds=3, seed=0).to_dict()["k"] == 1
    assert fit(evidence, np.ones(80), class_folds=3, seed=0).to_dict()["k"] == 8


def test_class_folds_hold_out_whole_classes_once():
    label_N = np.random.default_rng(0).integers(0, 10, 200) * 1000
    masks = class_fold_masks(label_N, 3, seed=0)
    assert (np.sum(masks, axis=0) == 1).all()
    assert all(not np.isin(label_N[mask], label_N[~mask]).any() for mask in masks)
    assert class_fold_masks(np.zeros(5), 3, seed=0) == []


def test_evidence_that_is_missing_or_not_finite_is_named():
    evidence, right_N = make_evidence()
    for signals, found in (({}, "no signal 'margin'"), ({"margin": np.array([np.nan])}, "not finite for 1 of 1")):
        bad = Evidence(np.arange(1), np.zeros(1, np.int32), signals)
        with pytest.raises(DataError, match=found):
            fit_on("margin", evidence, right_N, evidence.label_N < 40).decide(bad)


def test_every_signal_that_transfer_wants_is_made():
    assert set(DETECTORS["transfer"].signals) <= set(SIGNALS)


def test_a_signal_that_no_verified_image_has_leaves_the_unverified_rule():
    """Cross-fitted cosines where one class is verified: none of its folds has another to learn from."""
    evidence, right_N = make_evidence()
    seen_N = evidence.label_N == 3
    missing = Evidence(
        evidence.row_N,
        evidence.label_N,
        evidence.signals | {"cleannet_cosine": np.where(seen_N, np.nan, evidence.signals["cleannet_cosine"])},
    )
    fitted = fit_on("cleannet", missing, right_N, seen_N)
    unverified = fit_on("cleannet", evidence, right_N, np.zeros(len(evidence), bool))
    assert fitted.to_dict() == unverified.to_dict()
    half_N = seen_N | (evidence.label_N == 10)
    partly = fit_on("cleannet", missing, right_N, half_N)
    assert partly.to_dict() == fit_on("cleannet", evidence, right_N, evidence.label_N == 10).to_dict()
