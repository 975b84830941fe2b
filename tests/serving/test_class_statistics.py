"""A new image is compared with the images of its class as if it were one of them."""

from __future__ import annotations

import numpy as np
import pytest

from cleanscale.errors import DataError
from cleanscale.maths.evidence import CLASS_SIGNALS, RANKED_SIGNALS, class_signals
from cleanscale.serving.class_statistics import MOST_VALUES, ClassStatistics

OWN_MEANS = tuple(name for name in CLASS_SIGNALS if "mean" in name or name == "class_log_images")


def collection(images: int, classes: int, seed: int = 0):
    """(signals as the evidence stage stores them, classes, best other classes)"""
    rng = np.random.default_rng(seed)
    label_N = np.sort(rng.choice(np.arange(0, 3 * classes, 3), images))  # ids have gaps
    signals = {name: rng.standard_normal(images).astype(np.float32) for name in RANKED_SIGNALS}
    signals["log_probability"] = np.log(rng.uniform(0.05, 0.6, images)).astype(np.float32)
    signals["margin"] = rng.uniform(-1, 1, images).astype(np.float32)
    other_N = 3 * rng.integers(0, classes, images)
    other_N = np.where(other_N == label_N, -1, other_N)
    return signals | class_signals(signals, label_N, other_N), label_N, other_N


def part_of(signals, chosen):
    return {name: value[chosen] for name, value in signals.items()}


def test_ranks_and_pairs_are_those_of_a_class_that_has_the_new_image_too():
    signals, label_N, other_N = collection(400, 5)
    statistics = ClassStatistics.of_signals(signals, label_N, other_N)
    new, new_label, new_other = collection(40, 5, seed=1)
    found = statistics.signals(new, new_label, new_other)
    for n in range(40):  # slow twin: the class with this image in it, from the beginning
        image = {name: np.append(signals[name], new[name][n]).astype(np.float32) for name in RANKED_SIGNALS}
        both = class_signals(image, np.append(label_N, new_label[n]), np.append(other_N, new_other[n]))
        for name in (*(f"{r}_in_class" for r in RANKED_SIGNALS), "pair_log_share"):
            assert found[name][n] == pytest.approx(both[name][-1], abs=1e-4), name


def test_means_and_sizes_of_classes_stay_those_of_the_run():
    signals, label_N, other_N = collection(400, 5)
    found = ClassStatistics.of_signals(signals, label_N, other_N).signals(signals, label_N, other_N)
    for name in OWN_MEANS:
        np.testing.assert_array_equal(found[name], signals[name], err_msg=name)
    assert tuple(found) == CLASS_SIGNALS


def test_statistics_do_not_depend_on_how_classes_are_cut_into_ranges():
    signals, label_N, other_N = collection(300, 6)
    whole = ClassStatistics.of_signals(signals, label_N, other_N)
    masks = [label_N < 7, label_N >= 7]
    parts = [ClassStatistics.of_signals(part_of(signals, m), label_N[m], other_N[m]) for m in masks]
    joined = ClassStatistics.concatenate(parts)
    for name in ("label_C", "images_C", "class_CW", "offset_C1", "value_GV", "pair_P2"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(joined.pair_sum_P, whole.pair_sum_P)


def test_a_large_class_is_kept_as_quantiles_that_rank_nearly_as_all_of_it():
    signals, label_N, other_N = collection(20 * MOST_VALUES, 2)
    statistics = ClassStatistics.of_signals(signals, label_N, other_N)
    assert statistics.value_GV.shape == (len(RANKED_SIGNALS), 2 * MOST_VALUES)
    new, new_label, new_other = collection(200, 2, seed=1)
    found = statistics.signals(new, new_label, new_other)["cosine_in_class"]
    below = [(signals["cosine"][label_N == c] < v).mean() for c, v in zip(new_label, new["cosine"], strict=True)]
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), below, atol=2 / MOST_VALUES)


def test_statistics_go_through_a_file():
    signals, label_N, other_N = collection(100, 3)
    statistics = ClassStatistics.of_signals(signals, label_N, other_N)
    again = ClassStatistics.from_bytes(statistics.to_bytes())
    new, new_label, new_other = collection(20, 3, seed=1)
    for name, value in statistics.signals(new, new_label, new_other).items():
        np.testing.assert_array_equal(again.signals(new, new_label, new_other)[name], value)
    assert statistics.known(np.array([0, 1, 3, 99])).tolist() == [True, False, True, False]
    with pytest.raises(DataError, match="class statistics"):
        ClassStatistics.from_bytes(b"something else, and long enough to be read")
