import itertools
import math

import numpy as np
import pytest

from cleanscale.maths import compared_classes, evidence
from cleanscale.maths.keyed_random import folds_of_rows
from cleanscale.models.heads import FrozenHead

CLASSES, WIDTH, SEED = 9, 6, 3


def random_head(random: np.random.Generator, num_classes: int, hidden: int) -> FrozenHead:
    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    return FrozenHead(
        normal(WIDTH),
        np.abs(normal(WIDTH)) + 0.5,
        normal(hidden, WIDTH) if hidden else None,
        normal(hidden) if hidden else None,
        normal(num_classes, hidden or WIDTH),
        normal(num_classes),
    )


def make_case(images: int = 120, num_classes: int = CLASSES, hidden: int = 5):
    random = np.random.default_rng(0)
    heads = evidence.OutOfFold([random_head(random, num_classes, hidden) for _ in range(2)], SEED)
    feature_ND = random.standard_normal((images, WIDTH)).astype(np.float16)
    class_N = np.sort(random.integers(0, num_classes - 1, images))  # the last class has no image
    class_N[0] = 0
    class_N[1:][class_N[1:] == 0] = 1  # the first class has one image
    return heads, feature_ND, class_N, random.permutation(1000)[:images], feature_ND.mean(0, dtype=np.float64)


def all_signals(case, compared=None, parts=None):
    """The three steps over shards, each a list of positions."""
    heads, feature_ND, class_N, row_N, centre_D = case
    num_classes = len(heads.scorers[0].bias_C)
    parts = [np.arange(len(class_N))] if parts is None else parts
    choose = lambda at: compared(at) if compared else evidence.Compared(num_classes)  # noqa: E731
    sums = None
    for at in parts:
        own = evidence.logit_signals(heads, feature_ND[at], class_N[at], row_N[at], choose(at)).signals["log_probability"]
        part = evidence.class_sums(feature_ND[at], class_N[at], own, centre_D)
        sums = evidence.ClassSums.zeros(num_classes, WIDTH) + part if sums is None else sums + part
    prototype_CD = evidence.denoised_prototypes(sums)
    statistic_C2 = evidence.class_statistics(sums)
    found = {}
    for at in parts:
        step = evidence.image_signals(heads, prototype_CD, feature_ND[at], class_N[at], row_N[at], centre_D, choose(at))
        values = step.signals | evidence.class_signals(step.signals, class_N[at], step.best_other_N)
        values |= evidence.other_class_signals(statistic_C2, class_N[at], step.best_other_N)
        assert set(values) == set(evidence.SIGNALS)
        values |= {"best": step.best_other_N, "best_log_probability": step.best_other_log_probability_N}
        for name, value in values.items():
            found.setdefault(name, np.empty(len(class_N)))[at] = value
    return found, prototype_CD


def slow_logits(head: FrozenHead, feature_D: np.ndarray) -> list[float]:
    x = [(float(f) - m) * s for f, m, s in zip(feature_D, head.mean_D, head.scale_D, strict=True)]
    hidden = [
        max(0.0, sum(w * v for w, v in zip(row, x, strict=True)) + b)
        for row, b in zip(head.hidden_HD, head.hidden_bias_H, strict=True)
    ]
    return [
        sum(w * v for w, v in zip(row, hidden, strict=True)) + b
        for row, b in zip(head.weight_CH, head.bias_C, strict=True)
    ]


def test_image_signals_are_what_plain_loops_compute():
    case = make_case(40)
    heads, feature_ND, class_N, row_N, centre_D = case
    found, _ = all_signals(case)
    fold_N = folds_of_rows(SEED, row_N, 2)
    log_probability = []
    for i in range(40):
        logits = slow_logits(heads.scorers[fold_N[i]], feature_ND[i])
        normaliser = math.log(sum(math.exp(z) for z in logits))
        log_probability.append([z - normaliser for z in logits])
    units = [(feature_ND[i] - centre_D) / np.linalg.norm(feature_ND[i] - centre_D) for i in range(40)]
    prototypes = {}
    for c in set(class_N.tolist()):
        total = sum(math.exp(log_probability[i][c]) * units[i] for i in range(40) if class_N[i] == c)
        prototypes[c] = total / np.linalg.norm(total)
    for i in range(40):
        own, c = log_probability[i][class_N[i]], class_N[i]
        others = {k: v for k, v in enumerate(log_probability[i]) if k != c}
        assert found["log_probability"][i] == pytest.approx(own, abs=1e-4)
        assert found["margin"][i] == pytest.approx(own - max(others.values()), abs=1e-4)
        assert found["best"][i] == max(others, key=others.get)
        assert found["log_rank"][i] == pytest.approx(math.log1p(sum(v > own for v in others.values())), abs=1e-4)
        assert found["entropy"][i] == pytest.approx(-sum(math.exp(v) * v for v in log_probability[i]), abs=1e-3)
        cosine = float(units[i] @ prototypes[c])
        best = max(float(units[i] @ vector) for k, vector in prototypes.items() if k != c)
        assert found["cosine"][i] == pytest.approx(cosine, abs=1e-4)
        assert found["cosine_margin"][i] == pytest.approx(cosine - best, abs=1e-4)


def test_signals_of_the_best_other_class_are_those_of_its_images():
    case = make_case()
    found, _ = all_signals(case)
    for i, other in enumerate(found["best"].astype(int)):
        mates = np.flatnonzero(case[2] == other)
        if len(mates):
            mean = np.exp(found["log_probability"][mates]).mean()
            assert found["other_class_log_images"][i] == pytest.approx(math.log(len(mates)), abs=1e-5)
            assert found["other_class_log_probability"][i] == pytest.approx(math.log(mean), abs=1e-4)
        else:
            assert found["other_class_log_images"][i] == 0


def test_class_signals_are_what_plain_loops_compute():
    random = np.random.default_rng(1)
    class_N = random.integers(0, 4, 60)
    signals = {name: random.integers(-5, 5, 60).astype(np.float32) / 4 for name in evidence.IMAGE_SIGNALS}
    best_N = random.integers(4, 7, 60)
    found = evidence.class_signals(signals, class_N, best_N)
    assert tuple(found) == evidence.CLASS_SIGNALS
    for i in range(60):
        mates = np.flatnonzero(class_N == class_N[i])
        for name in evidence.RANKED_SIGNALS:
            values = signals[name][mates]
            below = np.sum(values < signals[name][i]) + np.sum(values == signals[name][i]) / 2
            share = below / len(mates)
            assert found[f"{name}_in_class"][i] == pytest.approx(math.log(share / (1 - share)), abs=1e-5)
            assert found[f"{name}_class_mean"][i] == pytest.approx(values.mean(), abs=1e-5)
        assert found["probability_class_mean"][i] == pytest.approx(
            np.exp(signals["log_probability"][mates]).mean(), rel=1e-5
        )
        assert found["agreement_class_mean"][i] == pytest.approx((signals["margin"][mates] >= 0).mean())
        assert found["class_log_images"][i] == pytest.approx(math.log(len(mates)))
        alike = [k for k in mates if best_N[k] == best_N[i]]
        mass = sum(math.exp(signals["log_probability"][k] - signals["margin"][k]) for k in alike)
        assert found["pair_log_share"][i] == pytest.approx(math.log(mass / len(mates)), abs=1e-5)


@pytest.mark.parametrize("shards", [2, 7])
def test_signals_do_not_depend_on_shard_count(shards):
    case = make_case()
    class_N = case[2]
    one, prototype_CD = all_signals(case)
    bounds = np.linspace(0, CLASSES, shards + 1).round()
    parts = [np.flatnonzero((class_N >= low) & (class_N < high)) for low, high in itertools.pairwise(bounds)]
    many, same_CD = all_signals(case, parts=[at for at in parts if len(at)])
    np.testing.assert_allclose(prototype_CD, same_CD, atol=1e-6)
    for name, value_N in one.items():
        np.testing.assert_allclose(many[name], value_N, atol=1e-5, err_msg=name)


def test_signals_do_not_depend_on_block_size(monkeypatch):
    case = make_case()
    one, _ = all_signals(case)
    monkeypatch.setattr(compared_classes, "BLOCK_VALUES", 64)
    many, _ = all_signals(case)
    for name, value_N in one.items():
        np.testing.assert_allclose(many[name], value_N, atol=1e-5, err_msg=name)


def test_all_classes_as_candidates_give_the_exact_signals():
    case = make_case()
    exact, _ = all_signals(case)

    def compared(at):
        everything_NM = np.tile(np.r_[np.arange(CLASSES), 2, -1], (len(at), 1))  # a repetition and a gap as well
        return evidence.Compared.candidates(everything_NM, CLASSES, tail=4, seed=0)

    through_candidates, _ = all_signals(case, compared)
    for name, value_N in exact.items():
        np.testing.assert_allclose(through_candidates[name], value_N, atol=1e-4, err_msg=name)


def test_the_tail_stands_for_all_classes_that_are_not_candidates():
    case = make_case(60, num_classes=400)
    for scorer in case[0].scorers:
        scorer.weight_CH[:] /= 8  # no class so probable that one draw decides
    exact, _ = all_signals(case)

    def mean_probability(tail):
        found = []
        for seed in range(30):
            near_NM = np.tile(np.arange(10), (60, 1))
            compared = lambda at, near=near_NM, s=seed: evidence.Compared.candidates(near[at], 400, tail=tail, seed=s)  # noqa: E731
            found.append(np.exp(-all_signals(case, compared)[0]["log_probability"]))
        return np.mean(found, axis=0)

    # 1 / probability is linear in the normaliser, so importance weights make it unbiased
    np.testing.assert_allclose(mean_probability(200), np.exp(-exact["log_probability"]), rtol=0.25)


def test_signals_are_finite_for_single_images_and_certain_heads():
    heads, feature_ND, class_N, row_N, centre_D = make_case()
    for scorer in heads.scorers:
        scorer.weight_CH[:] *= 1e4
    found, _ = all_signals((heads, feature_ND, class_N, row_N, centre_D))
    assert all(np.isfinite(value_N).all() for value_N in found.values())


def test_nearest_classes_are_those_of_largest_cosine():
    _, feature_ND, _, _, centre_D = make_case()
    prototype_CD = np.random.default_rng(2).standard_normal((CLASSES, WIDTH)).astype(np.float32)
    prototype_CD /= np.linalg.norm(prototype_CD, axis=1, keepdims=True)
    nearest_NM = evidence.nearest_classes(feature_ND, prototype_CD, centre_D, 4)
    cosine_NC = (feature_ND - centre_D) @ prototype_CD.T
    np.testing.assert_array_equal(nearest_NM, np.argsort(-cosine_NC, axis=1)[:, :4])
