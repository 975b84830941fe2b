import json
from dataclasses import replace

import numpy as np
import pytest

from cleanscale.detectors import Evidence, transfer
from cleanscale.maths.evidence import SIGNALS

IMAGES = 15  # of a class


def collection(classes: int = 240, seed: int = 0) -> tuple[Evidence, np.ndarray]:
    """Many small classes whose evidence says something of their labels, without a cosine and without features."""
    random = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(classes) * 3 + 1, IMAGES).astype(np.int32)
    right_N = random.random(len(label_N)) < 0.7
    hidden_N = np.where(right_N, 1.0, -1.0) + random.standard_normal(len(label_N))
    signals = {name: (hidden_N + random.standard_normal(len(label_N))).astype(np.float32) for name in SIGNALS}
    return Evidence(np.arange(len(label_N)), label_N, signals), right_N


def with_cosine(evidence: Evidence, right_N: np.ndarray, *, says: float, seed: int = 0) -> Evidence:
    """The same with a cosine: `says` is how far right labels lie above wrong ones, in standard deviations."""
    noise_N = np.random.default_rng(seed + 100).standard_normal(len(evidence))
    cosine_N = 0.4 + 0.1 * (says * (right_N - 0.5) + noise_N)
    return replace(evidence, signals=evidence.signals | {"cleannet_cosine": cosine_N.astype(np.float32)})


def seen_in(evidence: Evidence, classes: int, per_class: int = 5) -> np.ndarray:
    """bool [N]: the first images of the first classes."""
    return (evidence.label_N < 3 * classes) & (evidence.row_N % IMAGES < per_class)


def fitted(evidence: Evidence, right_N: np.ndarray, seen_N: np.ndarray) -> transfer.Transfer:
    return transfer.fit(evidence.select(seen_N), right_N[seen_N].astype(np.int8), class_folds=3, seed=0)


def error(model: transfer.Transfer, evidence: Evidence, right_N: np.ndarray) -> float:
    """In classes that nobody verified."""
    judged_N = evidence.label_N >= 3 * 120
    return float((model.decide(evidence).mislabeled_N == right_N)[judged_N].mean())


@pytest.mark.parametrize("seed", range(3))
def test_a_cosine_that_sees_what_the_heads_miss_lowers_the_error(seed):
    evidence, right_N = collection(seed=seed)
    seen_N = seen_in(evidence, classes=120)
    more = with_cosine(evidence, right_N, says=2.0, seed=seed)
    alone = error(fitted(evidence, right_N, seen_N), evidence, right_N)
    assert error(fitted(more, right_N, seen_N), more, right_N) < 0.8 * alone


@pytest.mark.parametrize("says", [0.0, -2.0], ids=["nothing", "the opposite"])
@pytest.mark.parametrize("classes", [4, 120])
def test_a_cosine_that_does_not_help_does_not_hurt(says, classes):
    evidence, right_N = collection()
    seen_N = seen_in(evidence, classes)
    more = with_cosine(evidence, right_N, says=says)
    alone = error(fitted(evidence, right_N, seen_N), evidence, right_N)
    assert error(fitted(more, right_N, seen_N), more, right_N) <= alone + 0.01


def test_a_cosine_that_speaks_against_right_labels_is_left_out():
    evidence, right_N = collection()
    seen_N = seen_in(evidence, classes=120)
    against = fitted(with_cosine(evidence, right_N, says=-2.0), right_N, seen_N)
    assert against == fitted(evidence, right_N, seen_N)


def test_the_scale_of_the_cosine_does_not_matter():
    """CleanNets of other settings spread their cosines differently."""
    evidence, right_N = collection()
    seen_N = seen_in(evidence, classes=120)
    more = with_cosine(evidence, right_N, says=2.0)
    scaled = replace(more, signals=more.signals | {"cleannet_cosine": 0.1 + 0.3 * more.signals["cleannet_cosine"]})
    score_N = fitted(more, right_N, seen_N).decide(more).score_N
    np.testing.assert_allclose(fitted(scaled, right_N, seen_N).decide(scaled).score_N, score_N, atol=1e-5)


@pytest.mark.parametrize("unknown", ["the signal", "of some images"])
def test_where_no_cosine_is_known_the_evidence_decides_alone(unknown):
    evidence, right_N = collection()
    seen_N = seen_in(evidence, classes=120)
    more = with_cosine(evidence, right_N, says=2.0)
    model, alone = fitted(more, right_N, seen_N), fitted(evidence, right_N, seen_N)
    bare_N = np.ones(len(evidence), bool)
    if unknown == "of some images":
        bare_N = evidence.row_N % 2 == 0
        more.signals["cleannet_cosine"][bare_N] = np.nan
    else:
        more = evidence
    score_N, alone_N = model.decide(more).score_N, alone.decide(evidence).score_N
    np.testing.assert_array_equal(score_N[bare_N], alone_N[bare_N])
    assert bare_N.all() or (score_N != alone_N)[~bare_N].mean() > 0.9


def test_probabilities_from_evidence_and_cosine_are_calibrated():
    evidence, right_N = collection(classes=600)
    more = with_cosine(evidence, right_N, says=1.5)
    model = fitted(more, right_N, seen_in(evidence, classes=120))
    probability_N = model.decide(more).probability_correct_N
    assert probability_N is not None
    for low in np.arange(0, 1, 0.2):
        of_bin = (probability_N >= low) & (probability_N < low + 0.2) & (evidence.label_N >= 3 * 120)
        assert probability_N[of_bin].mean() == pytest.approx(right_N[of_bin].mean(), abs=0.08)


def test_what_was_fitted_before_there_was_a_cosine_still_loads():
    evidence, right_N = collection()
    model = fitted(evidence, right_N, seen_in(evidence, classes=120))
    stored = json.loads(json.dumps(model.to_dict()))
    del stored["with_cosine"]
    assert transfer.Transfer.from_dict(stored) == model
