import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cleanscale.maths.multi_label_metrics import (
    COUNTED,
    Groups,
    average_precisions,
    image_weights,
    labels_report,
    measure_range,
    report,
)

# N images, C classes
N, C = 80, 12


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    right_NC = rng.random((N, C)) < 0.25
    right_NC[:, 5] = False  # a class that is in no test image
    return (1.5 * right_NC + rng.normal(size=(N, C))).astype(np.float32), right_NC


@pytest.fixture
def groups() -> Groups:
    return Groups.make(np.arange(C)[::-1] * 3, np.where(np.arange(C) < 6, 0.1, np.nan))


def measure(logit_NC, right_NC, groups, ranges=((0, C),), resamples=30):
    weight_RN = image_weights(N, resamples, 0)
    total = None
    for start, stop in ranges:
        part = measure_range(logit_NC[:, start:stop], right_NC[:, start:stop], weight_RN, groups.of_range(start, stop))
        if total is None:
            total = part
        else:
            for kind, sums in part.items():
                total[kind].add(sums)
    return total


def test_average_precision_is_scikit_learns_with_ties_and_weights():
    rng = np.random.default_rng(1)
    right_N = rng.random(60) < 0.3
    for score_N in (rng.normal(size=60), rng.integers(0, 5, 60).astype(float), np.zeros(60)):
        weight_RN = image_weights(60, 5, 0)
        expected = [average_precision_score(right_N, score_N, sample_weight=weight_N) for weight_N in weight_RN]
        np.testing.assert_allclose(average_precisions(score_N, right_N, weight_RN), expected)


def test_a_class_that_a_resample_lost_has_no_average_precision():
    right_N = np.arange(4) == 2
    found_R = average_precisions(np.arange(4.0), right_N, np.array([[1, 1, 1, 1], [2, 2, 0, 0]], np.float32))
    assert found_R[0] == pytest.approx(1 / 2)
    assert np.isnan(found_R[1])


def test_map_and_ap_all_are_the_slow_ones(scored, groups):
    logit_NC, right_NC = scored
    found = report({"one": measure(logit_NC, right_NC, groups)}, groups, N)
    each = [average_precision_score(right_NC[:, c], logit_NC[:, c]) for c in range(C) if c != 5]
    one = found["map"]["one"]["all_classes"]
    assert one["value"] == pytest.approx(np.mean(each))
    assert one["low"] <= one["value"] <= one["high"]
    assert one["n"] == N
    everything = average_precision_score(right_NC.ravel(), logit_NC.ravel())
    assert found["ap_all"]["one"]["all_classes"]["value"] == pytest.approx(everything, abs=1e-3)
    by_noise = found["map"]["one"]["noise_rate"]
    assert by_noise.keys() == {"0_to_20"}  # of the other classes nobody knows
    assert by_noise["0_to_20"]["value"] == pytest.approx(np.mean(each[:5]))
    assert found["classes"]["all"] == {"all_classes": C - 1}


def test_measures_do_not_depend_on_how_classes_are_cut(scored, groups):
    whole = report({"one": measure(*scored, groups)}, groups, N)
    cut = report({"one": measure(*scored, groups, ranges=((0, 1), (1, 7), (7, C)))}, groups, N)
    assert_close(whole, cut)


def assert_close(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_close(one[name], other[name])
    else:
        assert one == pytest.approx(other)


def test_a_classifier_gains_nothing_over_itself_and_much_over_chance(scored, groups):
    logit_NC, right_NC = scored
    chance = np.random.default_rng(3).normal(size=logit_NC.shape)
    measured = {
        "chance": measure(chance, right_NC, groups),
        "same": measure(chance, right_NC, groups),
        "good": measure(logit_NC, right_NC, groups),
    }
    gain = report(measured, groups, N)["difference"]
    for name in ("map", "ap_all"):
        same, good = (gain[one]["chance"][name]["all_classes"] for one in ("same", "good"))
        assert (same["value"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
        assert good["low"] > 0.1


def test_deciles_go_from_frequent_to_rare_and_classes_without_images_are_in_none():
    images_C = np.array([5, 0, 50, 7, *range(100, 117)])
    number_C = Groups.make(images_C, np.full(len(images_C), np.nan)).number_C["frequency"]
    assert number_C[1] == -1
    assert (np.bincount(number_C[number_C >= 0]) == 2).all()
    assert number_C[0] == 9
    assert number_C[-1] == 0


def test_label_errors_are_counted_per_image():
    truth, noisy, cleaned = ([[0], [1, 2]], [[0, 3], [2]], [[0], [1, 2, 3]])
    counts = []
    for t, y, c in zip(truth, noisy, cleaned, strict=True):
        t, y, c = set(t), set(y), set(c)
        misjudged = sum((label in c) != (label in t) for label in y)
        counts.append([len(y), len(y - t), len(t - y), misjudged, len(c - t), len(t - c)])
    assert len(COUNTED) == len(counts[0])
    found = labels_report(
        [(np.array(counts[:1]), np.array([10])), (np.array(counts), np.array([0, 10]))], resamples=50, seed=0
    )
    values = {name: {m: one["value"] for m, one in by.items()} for name, by in found.items()}
    assert values["noisy"] == {
        "error_of_labels": pytest.approx(100 / 3),
        "false_per_image": 0.5,
        "missing_per_image": 0.5,
    }
    assert values["cleaned"] == {"error_of_labels": 0.0, "false_per_image": 0.5, "missing_per_image": 0.0}
    assert found["noisy"]["error_of_labels"]["n"] == 20
    assert labels_report([], resamples=50, seed=0) == {}
