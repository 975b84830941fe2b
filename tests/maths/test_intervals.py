"""The bootstrap against slow twins and simulations, and the layout of metrics.json."""

import json

import numpy as np
import pytest
from sklearn import metrics

from cleanscale.maths import detection_metrics as dm
from cleanscale.maths import intervals as iv


def _classes(rng, classes, images, spread=0.15, level=0.3):
    """Labels and right/wrong decisions whose error varies between classes."""
    error_C = np.clip(rng.normal(level, spread, size=classes), 0.01, 0.99)
    label_N = np.repeat(np.arange(classes), images)
    return label_N, rng.random(len(label_N)) < error_C[label_N]


def _slow_bootstrap(label_N, err_N, resamples, rng):
    by_class = [err_N[label_N == label] for label in np.unique(label_N)]
    mean, pooled = [], []
    for _ in range(resamples):
        drawn = [by_class[c] for c in rng.integers(len(by_class), size=len(by_class))]
        drawn = [rng.choice(err, size=len(err)) for err in drawn]
        mean.append(np.mean([err.mean() for err in drawn]))
        pooled.append(np.concatenate(drawn).mean())
    return np.array(mean), np.array(pooled)


def test_resampling_counts_is_resampling_classes_and_images():
    rng = np.random.default_rng(0)
    label_N, err_N = _classes(rng, 12, 20)
    keep = rng.random(len(label_N)) < np.linspace(0.2, 1, 12)[label_N]  # classes of unequal size
    label_N, err_N = label_N[keep], err_N[keep]
    counts = dm.count_by_class(label_N, err_N, np.zeros(len(err_N), bool))
    mean_BK, pooled_BK = iv.resample_classes(counts.images_C, counts.errors_C[:, None], resamples=4000)
    slow_mean, slow_pooled = _slow_bootstrap(label_N, err_N, 2000, rng)
    for fast, slow in ((mean_BK[:, 0], slow_mean), (pooled_BK[:, 0], slow_pooled)):
        assert fast.mean() == pytest.approx(slow.mean(), abs=0.01)
        assert fast.std() == pytest.approx(slow.std(), rel=0.1)


def test_drawing_rows_is_resampling_classes_and_images():
    rng = np.random.default_rng(1)
    label_N, err_N = _classes(rng, 12, 20)
    images_C = np.bincount(label_N)
    draws = np.array([w_N @ err_N / w_N.sum() for w_N in iv.resampled_weights(images_C, resamples=1000)])
    _, slow = _slow_bootstrap(label_N, err_N, 2000, rng)
    assert draws.mean() == pytest.approx(slow.mean(), abs=0.01)
    assert draws.std() == pytest.approx(slow.std(), rel=0.12)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        label_N, err_N = _classes(rng, 40, 60)
        counts = dm.count_by_class(label_N, err_N, np.zeros(len(err_N), bool))
        mean, _ = iv.measured_errors(counts, resamples=300, seed=trial)
        covered += mean.low <= 30.0 <= mean.high  # clipping moves the true mean by 0.2
    assert 180 <= covered <= 199


def test_the_paired_interval_is_that_of_the_rows_differences():
    rng = np.random.default_rng(3)
    label_N, wrong_N = _classes(rng, 30, 50)
    called_N = wrong_N ^ (rng.random(1500) < 0.10)
    other_N = called_N ^ (rng.random(1500) < 0.06)
    mean, pooled = iv.paired_errors(label_N, wrong_N, called_N, other_N)
    gap_N = (called_N != wrong_N).astype(float) - (other_N != wrong_N)
    slow_mean, _ = _slow_bootstrap(label_N, gap_N, 1500, rng)
    assert mean.value == pooled.value == pytest.approx(100 * gap_N.mean())
    assert mean.low == pytest.approx(100 * np.quantile(slow_mean, 0.025), abs=0.3)
    assert mean.high == pytest.approx(100 * np.quantile(slow_mean, 0.975), abs=0.3)
    alone = iv.measured_errors(dm.count_by_class(label_N, wrong_N, called_N))[0]
    assert mean.high - mean.low < alone.high - alone.low
    same, _ = iv.paired_errors(label_N, wrong_N, called_N, called_N)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_weighted_ranking_is_scikit_learns_with_sample_weights():
    rng = np.random.default_rng(4)
    wrong_N = rng.random(300) < 0.4
    weight_N = rng.integers(0, 4, size=300)
    for score_N in (rng.normal(size=300) - wrong_N, np.round(rng.normal(size=300) - wrong_N)):
        area, precision = iv.WeightedRanking(wrong_N, score_N).measure(weight_N)
        assert area == pytest.approx(metrics.roc_auc_score(wrong_N, -score_N, sample_weight=weight_N))
        assert precision == pytest.approx(metrics.average_precision_score(wrong_N, -score_N, sample_weight=weight_N))


def test_no_errors_in_few_images_is_not_certainty():
    label_N, right_N = np.repeat([0, 1], 5), np.zeros(10, bool)
    mean, pooled = iv.measured_errors(dm.count_by_class(label_N, right_N, right_N))
    assert mean.value == pooled.value == mean.low == 0
    assert mean.high == pytest.approx(30.85, abs=0.01)  # Clopper-Pearson for 0 of 10
    assert iv.measured_accuracy(np.ones(10, bool)).low == pytest.approx(69.15, abs=0.01)


def test_intervals_need_no_memory_of_classes_times_resamples():
    rng = np.random.default_rng(5)
    images_C = rng.integers(1, 60, size=100_000)
    errors_C = rng.binomial(images_C, 0.3)
    mean, pooled = iv.measured_errors(dm.ClassCounts(np.arange(100_000), images_C, errors_C))
    assert mean.low < mean.value < mean.high < mean.low + 0.5
    assert pooled.n == images_C.sum()


def test_accuracy_intervals_and_their_paired_gain():
    rng = np.random.default_rng(6)
    first_N = rng.random(2000) < 0.6
    second_N = first_N | (rng.random(2000) < 0.05)
    alone = iv.measured_accuracy(first_N)
    width = 100 * 1.96 * np.sqrt(0.6 * 0.4 / 2000)
    assert alone.high - alone.value == pytest.approx(width, rel=0.15)
    gain = iv.paired_accuracy(second_N, first_N)
    assert gain.value == pytest.approx(100 * (second_N.mean() - first_N.mean()))
    assert 0 < gain.low < gain.value < gain.high < 2 * width
    report = iv.classification_report({"round_0": {"top1": first_N}, "round_1": {"top1": second_N}})
    assert report["classification"]["round_0"]["top1"] == alone.to_json()
    assert report["difference"] == {"round_1": {"round_0": {"top1": gain.to_json()}}}


def test_the_calibration_interval_holds_its_value():
    rng = np.random.default_rng(7)
    probability_N = rng.beta(2, 1, size=4000)
    label_N = rng.integers(20, size=4000)
    right_N = rng.random(4000) < probability_N
    good = iv.measured_calibration(label_N, right_N, probability_N, resamples=200)
    bad = iv.measured_calibration(label_N, right_N, probability_N**3, resamples=200)
    assert 0 <= good.low <= good.value <= good.high < 0.06 < bad.low
    assert list(iv.calibration_report(label_N, ~right_N, {"transfer": probability_N})) == ["transfer"]


@pytest.fixture
def report_inputs():
    rng = np.random.default_rng(8)
    label_N, wrong_N = _classes(rng, 20, 30)
    score_N = rng.normal(size=600) - 4 * wrong_N
    noise_N = score_N + rng.normal(size=600)
    decisions = {
        "naive": (np.zeros(600, bool), None),
        "transfer": (score_N < -2, score_N),
        "classification_filtering": (noise_N < -2, noise_N),
    }
    return label_N, wrong_N, decisions, {"held_out_classes": label_N < 8, "verified_classes": label_N >= 8}


def test_the_report_has_the_layout_of_metrics_json(report_inputs):
    label_N, wrong_N, decisions, groups = report_inputs
    report = json.loads(json.dumps(iv.detection_report(label_N, wrong_N, decisions, groups), allow_nan=False))
    transfer = report["detection"]["transfer"]
    assert list(transfer) == ["error_per_class", "error_pooled", "auroc", "average_precision"]
    assert list(transfer["error_per_class"]) == ["held_out_classes", "verified_classes"]
    assert set(transfer["error_per_class"]["held_out_classes"]) == {"value", "low", "high", "n"}
    assert transfer["error_per_class"]["held_out_classes"]["n"] == 240
    assert transfer["auroc"]["value"] == pytest.approx(dm.auroc(wrong_N, decisions["transfer"][1]))
    assert transfer["auroc"]["verified_classes"]["n"] == 360
    assert report["detection"]["naive"]["auroc"]["value"] is None
    compared = report["difference"]["transfer"]
    assert list(compared) == ["naive", "classification_filtering"]
    assert compared["naive"]["error_per_class"]["held_out_classes"]["high"] < 0
    assert compared["classification_filtering"]["auroc"]["held_out_classes"]["value"] > 0
    assert "auroc" not in compared["naive"]


def test_an_empty_group_and_a_group_without_wrong_labels_give_none(report_inputs):
    label_N, wrong_N, decisions, _ = report_inputs
    groups = {"held_out_classes": np.zeros(600, bool), "verified_classes": ~wrong_N}
    report = json.loads(json.dumps(iv.detection_report(label_N, wrong_N, decisions, groups), allow_nan=False))
    transfer = report["detection"]["transfer"]
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    assert transfer["error_per_class"]["held_out_classes"] == transfer["auroc"]["held_out_classes"] == nothing
    assert transfer["auroc"]["verified_classes"] == {**nothing, "n": int((~wrong_N).sum())}
    assert report["detection"]["naive"]["error_pooled"]["verified_classes"]["value"] == 0


def test_the_report_does_not_depend_on_the_order_of_rows(report_inputs):
    label_N, wrong_N, decisions, groups = report_inputs
    turned = np.random.default_rng(9).permutation(600)
    other = iv.detection_report(
        label_N[turned],
        wrong_N[turned],
        {name: (a[turned], None if b is None else b[turned]) for name, (a, b) in decisions.items()},
        {name: mask[turned] for name, mask in groups.items()},
    )
    one = iv.detection_report(label_N, wrong_N, decisions, groups)
    mean = ["detection", "transfer", "error_per_class", "held_out_classes"]
    for key in mean:
        one, other = one[key], other[key]
    assert one == other
