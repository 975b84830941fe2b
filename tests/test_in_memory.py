import subprocess
import sys

import numpy as np
import pytest

from cleanscale.detectors.settings import EvidenceSettings
from cleanscale.errors import DataError
from cleanscale.in_memory import WrongLabelFinder, find_wrong_labels
from cleanscale.schema import RELEVANCE
from cleanscale.training.head_settings import HeadSettings

QUICK = HeadSettings(hidden_width=0, dropout=0, epochs=5, batch=64, learning_rate=0.02)


def make_collection(num_classes: int = 8, images: int = 60, seed: int = 0):
    """Features in clusters, a quarter of the labels wrong."""
    random = np.random.default_rng(seed)
    centre_CD = np.random.default_rng(99).standard_normal((num_classes, 16)) * 1.5
    true_N = np.repeat(np.arange(num_classes), images)
    feature_ND = (centre_CD[true_N] + random.standard_normal((len(true_N), 16))).astype(np.float32)
    wrong_N = random.random(len(true_N)) < 0.25
    label_N = np.where(wrong_N, (true_N + random.integers(1, num_classes, len(true_N))) % num_classes, true_N)
    return feature_ND, label_N, label_N == true_N, true_N


def verify(label_N: np.ndarray, right_N: np.ndarray, classes: int = 4) -> np.ndarray:
    return np.where(label_N < classes, right_N, -1)


def test_wrong_labels_are_found_and_corrected_in_classes_nobody_verified():
    feature_ND, label_N, right_N, true_N = make_collection()
    verified_N = verify(label_N, right_N)
    table = find_wrong_labels(feature_ND, label_N, verified_N, heads=QUICK)
    unseen_N = verified_N < 0
    mislabeled_N = table["mislabeled"].to_numpy()
    assert np.mean(mislabeled_N[unseen_N] == ~right_N[unseen_N]) > 0.93
    suggested = np.array(table["suggested_label"].to_pylist(), object)
    found_N = unseen_N & mislabeled_N & ~right_N
    assert np.mean(suggested[found_N] == true_N[found_N]) > 0.9
    assert all(value is None for value in suggested[~mislabeled_N])


def test_the_table_has_the_columns_of_the_contract_and_no_nan():
    feature_ND, label_N, right_N, _ = make_collection()
    table = find_wrong_labels(feature_ND, label_N, verify(label_N, right_N), heads=QUICK)
    assert table.schema == RELEVANCE
    assert table["row"].to_pylist() == list(range(len(label_N)))
    np.testing.assert_array_equal(table["label"].to_numpy(), label_N)
    for name in ("relevance", "probability_correct", "weight"):
        value_N = table[name].to_numpy()
        assert np.isfinite(value_N).all()
        assert (np.abs(value_N) <= 1).all()
        assert name == "relevance" or (value_N >= 0).all()


def test_what_somebody_verified_stays():
    feature_ND, label_N, right_N, _ = make_collection()
    verified_N = verify(label_N, right_N)
    table = find_wrong_labels(feature_ND, label_N, verified_N, heads=QUICK)
    seen_N = verified_N >= 0
    np.testing.assert_array_equal(table["mislabeled"].to_numpy()[seen_N], ~right_N[seen_N])
    np.testing.assert_array_equal(table["probability_correct"].to_numpy()[seen_N], right_N[seen_N])
    np.testing.assert_array_equal(table["verified"].to_numpy(), verified_N)


def test_the_same_arrays_and_seed_give_the_same_table():
    feature_ND, label_N, right_N, _ = make_collection()
    arguments = (feature_ND, label_N, verify(label_N, right_N))
    settings = HeadSettings(hidden_width=16, epochs=2, batch=64)
    first = find_wrong_labels(*arguments, seed=4, heads=settings)
    assert first.equals(find_wrong_labels(*arguments, seed=4, heads=settings))
    assert not first.equals(find_wrong_labels(*arguments, seed=5, heads=settings))


def test_labels_may_be_names_or_numbers_with_gaps():
    feature_ND, label_N, right_N, _ = make_collection()
    verified_N = verify(label_N, right_N)
    plain = find_wrong_labels(feature_ND, label_N, verified_N, heads=QUICK)
    gaps = find_wrong_labels(feature_ND, label_N * 1000 - 7, verified_N, heads=QUICK)
    names = find_wrong_labels(feature_ND, [f"class {label}" for label in label_N], verified_N, heads=QUICK)
    assert gaps["mislabeled"].equals(plain["mislabeled"])
    assert names["mislabeled"].equals(plain["mislabeled"])
    suggested = plain["suggested_label"].to_pylist()
    assert gaps["suggested_label"].to_pylist() == [s if s is None else s * 1000 - 7 for s in suggested]
    assert names["suggested_label"].to_pylist() == [s if s is None else f"class {s}" for s in suggested]


def test_without_verification_labels_an_unsupervised_rule_is_left_and_said_so(caplog):
    feature_ND, label_N, right_N, _ = make_collection()
    table = find_wrong_labels(feature_ND, label_N, heads=QUICK)
    assert np.mean(table["mislabeled"].to_numpy() == ~right_N) > 0.85
    assert "no verification labels" in caplog.text


def test_many_classes_are_compared_through_candidates():
    feature_ND, label_N, right_N, _ = make_collection(12, 40)
    few = EvidenceSettings(exact_classes=4, candidates=3, tail=4)
    table = find_wrong_labels(feature_ND, label_N, verify(label_N, right_N), heads=QUICK, evidence=few)
    unseen_N = label_N >= 4
    assert np.mean(table["mislabeled"].to_numpy()[unseen_N] == ~right_N[unseen_N]) > 0.9


def test_classes_with_one_image_are_judged_too():
    feature_ND, label_N, right_N, _ = make_collection()
    label_N[:3] = [100, 200, 300]
    table = find_wrong_labels(feature_ND, label_N, verify(label_N, right_N), heads=QUICK)
    assert np.isfinite(table["probability_correct"].to_numpy()).all()


@pytest.mark.parametrize(
    "name", ["naive", "self_confidence", "classification_filtering", "svm", "neighbour_vote", "confident_learning"]
)
def test_other_detectors_go_by_their_name(name):
    feature_ND, label_N, right_N, _ = make_collection()
    table = find_wrong_labels(feature_ND, label_N, verify(label_N, right_N), heads=QUICK, detector_name=name)
    assert table.schema == RELEVANCE


def test_what_was_learned_in_one_collection_is_applied_to_another():
    feature_ND, label_N, right_N, _ = make_collection()
    finder = WrongLabelFinder(heads=QUICK).fit(feature_ND, label_N, verify(label_N, right_N, 8))
    other_ND, other_label_N, other_right_N, _ = make_collection(seed=1)
    table = finder.decide(other_ND, other_label_N)
    assert np.mean(table["mislabeled"].to_numpy() == ~other_right_N) > 0.93


def test_what_fit_learned_of_a_class_is_applied_to_that_class_in_another_collection():
    """Classes are numbered by their place among the labels, which is another one there."""
    feature_ND, label_N, right_N, _ = make_collection()
    finder = WrongLabelFinder(heads=QUICK).fit(feature_ND, label_N * 10, verify(label_N, right_N))
    told = []

    class Told:
        def decide(self, evidence):
            told.append(evidence.label_N)
            return fitted.decide(evidence)

    fitted, finder.fitted = finder.fitted, Told()
    some_N = label_N >= 2
    other_N = np.where(label_N == 5, 55, label_N * 10)[some_N]  # a class that fit has not seen
    finder.decide(feature_ND[some_N], other_N)
    np.testing.assert_array_equal(told[0], np.where(other_N == 55, -1, label_N[some_N]))


def test_features_of_another_width_than_those_of_fit_are_refused():
    feature_ND, label_N, right_N, _ = make_collection()
    finder = WrongLabelFinder(heads=QUICK).fit(feature_ND, label_N, verify(label_N, right_N))
    with pytest.raises(DataError, match="8 wide; expected 16"):
        finder.decide(feature_ND[:, :8], label_N)


def test_labels_may_be_integers_of_64_bits():
    feature_ND, label_N, _, _ = make_collection()
    table = find_wrong_labels(feature_ND, label_N + 5_000_000_000, heads=QUICK)
    assert set(table["label"].to_pylist()) == set((label_N + 5_000_000_000).tolist())


def test_deciding_before_fitting_is_refused():
    feature_ND, label_N, _, _ = make_collection()
    with pytest.raises(DataError, match="nothing has been fitted"):
        WrongLabelFinder().decide(feature_ND, label_N)
    with pytest.raises(DataError, match="nothing has been fitted"):
        WrongLabelFinder().table()


GOOD = np.zeros((4, 3), np.float32)
NAN = np.array([[0, 0], [0, np.nan]], np.float32)


@pytest.mark.parametrize(
    ("feature_ND", "label_N", "verified_N", "found"),
    [
        (np.zeros(4, np.float32), [0, 1, 0, 1], None, r"shape \(4,\)"),
        (np.zeros((0, 3), np.float32), [], None, r"shape \(0, 3\)"),
        (np.zeros((4, 3), np.int32), [0, 1, 0, 1], None, "int32"),
        (NAN, [0, 1], None, "NaN or infinity in 1 of 2 rows, the first is row 1"),
        (GOOD, [0, 1, 0], None, r"labels have shape \(3,\)"),
        (GOOD, [0.0, 1.0, 0.0, 1.0], None, "labels are float64"),
        (GOOD, [None, "a", "b", "a"], None, "labels are object"),
        (GOOD, [5, 5, 5, 5], None, "all 4 labels are"),
        (GOOD, [0, 1, 0, 1], [1, 0], r"shape \(2,\) for 4 images"),
        (GOOD, [0, 1, 0, 1], [1, 0, 2, -1], "values"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_with_what_was_found(feature_ND, label_N, verified_N, found):
    with pytest.raises(DataError, match=found):
        find_wrong_labels(feature_ND, label_N, verified_N)


def test_neither_import_nor_call_brings_in_ray():
    program = (
        "import sys, numpy as np\n"
        "from cleanscale.in_memory import find_wrong_labels, HeadSettings\n"
        "x = np.random.default_rng(0).standard_normal((40, 4)).astype('float32')\n"
        "find_wrong_labels(x, np.arange(40) % 2, heads=HeadSettings(hidden_width=0, epochs=1))\n"
        "assert not {'ray', 'mlflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
