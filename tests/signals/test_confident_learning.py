import numpy as np
import pytest
from cleanlab.filter import find_label_issues

from cleanscale.detectors import DETECTORS, Evidence
from cleanscale.detectors.confident_learning import ISSUE, QUALITY
from cleanscale.errors import ConfigError
from cleanscale.signals import confident_learning
from cleanscale.signals.confident_learning import LEARNING, check_confident_learning


@pytest.fixture(scope="module")
def scored():
    """(label_N with a gap, label_C, log_probability_NC, right_N)."""
    random = np.random.default_rng(1)
    label_C = np.array([0, 1, 3, 4])
    true_N = random.integers(0, 4, 400)
    class_N = np.where(random.random(400) < 0.25, random.integers(0, 4, 400), true_N)
    logit_NC = 3 * np.eye(4)[true_N] + random.standard_normal((400, 4))
    log_probability_NC = logit_NC - np.logaddexp.reduce(logit_NC, axis=1, keepdims=True)
    return label_C[class_N], label_C, log_probability_NC, class_N == true_N


def test_the_verdicts_are_those_of_cleanlab(scored):
    label_N, label_C, log_probability_NC, right_N = scored
    signals = LEARNING.verdicts(label_N, label_C, log_probability_NC)
    expected_N = find_label_issues(np.searchsorted(label_C, label_N), np.exp(log_probability_NC), n_jobs=1)
    np.testing.assert_array_equal(signals[ISSUE] == 1, expected_N)
    evidence = Evidence(np.arange(400), label_N, signals)
    detector = DETECTORS["confident_learning"]
    fitted = detector.fit(evidence.select(slice(0, 80)), right_N[:80].astype(np.int8), class_folds=3, seed=0)
    decision = detector.from_dict(fitted.to_dict()).decide(evidence)
    np.testing.assert_array_equal(decision.mislabeled_N, expected_N)
    assert np.mean(decision.mislabeled_N == right_N) < 0.12
    assert decision.score_N[expected_N].max() < decision.score_N[~expected_N].min() + 1
    assert abs(decision.probability_correct_N.mean() - right_N.mean()) < 0.1


def test_probabilities_are_shared_out_among_the_classes_that_have_images(scored):
    label_N, label_C, log_probability_NC, _ = scored
    halved = LEARNING.verdicts(label_N, label_C, log_probability_NC + np.log(0.5))
    for name, value_N in LEARNING.verdicts(label_N, label_C, log_probability_NC).items():
        np.testing.assert_allclose(halved[name], value_N, rtol=1e-6)


def test_without_verification_there_is_no_probability(scored):
    label_N = scored[0]
    signals = {ISSUE: np.zeros(400, np.float32), QUALITY: np.ones(400, np.float32)}
    evidence, detector = Evidence(np.arange(400), label_N, signals), DETECTORS["confident_learning"]
    fitted = detector.fit(evidence.select(slice(0, 0)), np.empty(0, np.int8), class_folds=3, seed=0)
    assert fitted.decide(evidence).probability_correct_N is None


def test_a_missing_package_is_answered_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(confident_learning.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cleanlab.*cleanscale\[compare\]"):
        check_confident_learning(10, 10)


def test_more_probabilities_than_fit_in_memory_are_refused_before_they_are_made():
    check_confident_learning(1_000_000, 100)
    with pytest.raises(ConfigError, match=r"1000001 images x 100 classes.*at most 100000000.*self_confidence"):
        check_confident_learning(1_000_001, 100)
