import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanscale.maths.noise_types import (
    CONFUSING,
    NOISE_FREE,
    POINTLESS,
    WRONG_UNNAMED,
    NoiseTypeModel,
    confusion_of_pairs,
)
from cleanscale.schema import UNSEEN

CLASSES = 6


def random_pairs(seed: int, pairs: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """True and observed classes; true class 5 is never mistaken for another."""
    random = np.random.default_rng(seed)
    true_P = random.integers(0, CLASSES, pairs)
    observed_P = np.where(random.random(pairs) < 0.5, (true_P + random.choice([1, 1, 1, 2], pairs)) % CLASSES, true_P)
    observed_P = np.where(random.random(pairs) < 0.2, random.integers(0, CLASSES, pairs), observed_P)
    return true_P, np.where(true_P == 5, 5, observed_P)


def predictions(seed: int, images: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logit_BC = 3 * torch.randn(images, CLASSES, generator=random, dtype=torch.float64)
    logit_BZ = torch.randn(images, 3, generator=random, dtype=torch.float64)
    return logit_BC, logit_BZ, torch.arange(images) % CLASSES


def model_of(seed: int = 0) -> NoiseTypeModel:
    model = NoiseTypeModel(confusion_of_pairs(*random_pairs(seed), CLASSES))
    model.log_probability_E = model.log_probability_E.double()
    return model


def slow_likelihood(
    count_K: np.ndarray, confusing_K: tuple[bool, ...], num_classes: int, leave_one_out: bool = False
) -> float:
    """Eq. 9 of one true class, for a given choice of which wrong labels are confusing."""
    left_out = 1 if leave_one_out else 0
    chosen_K = np.array(confusing_K)
    confused = count_K[chosen_K].sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return sum(
            m * (np.log((m - left_out) / (confused - left_out)) if chosen else -np.log(num_classes - 1))
            for m, chosen in zip(count_K, chosen_K, strict=True)
        )


@pytest.mark.parametrize("leave_one_out", [False, True])
@given(st.lists(st.integers(0, 12), min_size=2, max_size=7), st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_no_choice_of_confusing_labels_is_likelier_than_the_one_found(leave_one_out, counts, more_classes):
    num_classes = len(counts) + 1 + more_classes
    observed_P = np.repeat(np.arange(1, len(counts) + 1), counts)
    found = confusion_of_pairs(np.zeros_like(observed_P), observed_P, num_classes, leave_one_out=leave_one_out)
    count_K = np.array([m for m in counts if m])
    if not any(m > leave_one_out for m in counts):
        assert len(found.true_E) == 0
        return
    choices = itertools.product([False, True], repeat=len(count_K))
    likelihoods = [slow_likelihood(count_K, choice, num_classes, leave_one_out) for choice in choices if any(choice)]
    mine = tuple(label in found.observed_E for label in np.flatnonzero(counts) + 1)
    assert slow_likelihood(count_K, mine, num_classes, leave_one_out) == pytest.approx(np.nanmax(likelihoods))
    assert found.probability_E.sum() == pytest.approx(1)
    least = 0 if leave_one_out else 1 / (num_classes - 1) - 1e-9
    assert len(found.observed_E) == 1 or (found.probability_E > least).all()  # their Lemma 1


def test_a_wrong_label_that_was_met_once_is_pointless_when_each_pair_is_judged_by_the_others():
    """As published the likelihood is higher with it: 1 of 3 wrong labels is more than 1 of 999 classes."""
    pairs = np.zeros(3, int), np.array([1, 1, 2])
    assert confusion_of_pairs(*pairs, 1000).observed_E.tolist() == [1, 2]
    assert confusion_of_pairs(*pairs, 1000, leave_one_out=True).observed_E.tolist() == [1]


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_pair_of_weight_three_counts_as_three_pairs(leave_one_out):
    true_P, observed_P = random_pairs(2, pairs=200)
    weight_P = np.random.default_rng(0).integers(0, 4, 200)
    found = confusion_of_pairs(true_P, observed_P, CLASSES, weight_P, leave_one_out=leave_one_out)
    repeated = np.repeat(true_P, weight_P), np.repeat(observed_P, weight_P)
    expected = confusion_of_pairs(*repeated, CLASSES, leave_one_out=leave_one_out)
    np.testing.assert_allclose(found.dense(), expected.dense(), rtol=1e-12)


def test_each_true_class_is_solved_alone_rows_sum_to_one_and_the_diagonal_is_empty():
    true_P, observed_P = random_pairs(3, pairs=400)
    found = confusion_of_pairs(true_P, observed_P, CLASSES).dense()
    alone = sum(confusion_of_pairs(true_P[true_P == t], observed_P[true_P == t], CLASSES).dense() for t in range(6))
    np.testing.assert_allclose(found, alone)
    np.testing.assert_allclose(found.sum(axis=1), [1, 1, 1, 1, 1, 0])
    assert not found.diagonal().any()


def test_a_frequent_confusion_is_confusing_and_single_other_labels_are_pointless():
    observed_P = np.r_[np.full(20, 1), np.arange(10, 20), np.zeros(50, int)]
    found = confusion_of_pairs(np.zeros(len(observed_P), int), observed_P, 20)
    assert found.observed_E.tolist() == [1]
    model = NoiseTypeModel(found)
    types = model.likeliest_type(torch.tensor([0, 0, 0, 7]), torch.tensor([0, 1, 10, 1]))
    assert types.tolist() == [NOISE_FREE, CONFUSING, POINTLESS, POINTLESS]


def test_the_order_of_pairs_does_not_matter():
    true_P, observed_P = random_pairs(1)
    mixed = np.random.default_rng(0).permutation(len(true_P))
    one, other = (
        confusion_of_pairs(t, o, CLASSES) for t, o in ((true_P, observed_P), (true_P[mixed], observed_P[mixed]))
    )
    np.testing.assert_array_equal(one.dense(), other.dense())


def slow_joint(model: NoiseTypeModel, true_C, type_Z, observed: int, confusion_CC: np.ndarray) -> np.ndarray:
    """p(observed, true, type | image) [C, Z] of one image: Eq. 1 and 2, every product written out."""
    joint_CZ = np.zeros((CLASSES, 3))
    for t in range(CLASSES):
        prior_Z = np.array(type_Z)
        if not confusion_CC[t].any():
            prior_Z = prior_Z * [1, 1, 0] / prior_Z[:2].sum()
        given_type = [t == observed, (t != observed) / (CLASSES - 1), confusion_CC[t, observed]]
        joint_CZ[t] = true_C[t] * prior_Z * given_type
    return joint_CZ


def test_the_posterior_is_bayes_rule_over_all_true_classes_and_types():
    confusion = confusion_of_pairs(*random_pairs(0), CLASSES)
    model = model_of()
    logit_BC, logit_BZ, observed_B = predictions(1)
    found = model.posterior(logit_BC.log_softmax(1), logit_BZ.log_softmax(1), observed_B)
    for b, observed in enumerate(observed_B.tolist()):
        prior_C, prior_Z = logit_BC[b].softmax(0).numpy(), logit_BZ[b].softmax(0).numpy()
        joint_CZ = slow_joint(model, prior_C, prior_Z, observed, confusion.dense())
        np.testing.assert_allclose(found.log_observed_B[b], np.log(joint_CZ.sum()), rtol=1e-6)
        np.testing.assert_allclose(found.true_BC[b], joint_CZ.sum(axis=1) / joint_CZ.sum(), atol=1e-6)
        np.testing.assert_allclose(found.type_BZ[b], joint_CZ.sum(axis=0) / joint_CZ.sum(), atol=1e-6)


def test_p_observed_sums_to_one_over_observed_labels():
    model = model_of()
    logit_BC, logit_BZ, _ = predictions(2, images=1)
    log_observed = [
        model.posterior(logit_BC.log_softmax(1), logit_BZ.log_softmax(1), torch.tensor([o])).log_observed_B
        for o in range(CLASSES)
    ]
    assert torch.cat(log_observed).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_the_gradient_of_an_em_step_is_that_of_the_observed_labels_likelihood():
    """Fisher's identity: what holds the posterior constant (Eq. 7) climbs log p(observed | image) itself."""
    model = model_of()
    logit_BC, logit_BZ, observed_B = (x.requires_grad_() if x.is_floating_point() else x for x in predictions(3))
    unseen_B = torch.full_like(observed_B, UNSEEN)
    model.loss(logit_BC.log_softmax(1), logit_BZ.log_softmax(1), observed_B, unseen_B).sum().backward()
    step = 1e-5
    for logit in (logit_BC, logit_BZ):
        assert logit.grad is not None
        for place in itertools.product(range(3), range(logit.shape[1])):
            values = []
            for sign in (1, -1):
                moved = [x.detach().clone() for x in (logit_BC, logit_BZ)]
                (moved[0] if logit is logit_BC else moved[1])[place] += sign * step
                posterior = model.posterior(moved[0].log_softmax(1), moved[1].log_softmax(1), observed_B)
                values.append(-posterior.log_observed_B.sum().item())
            assert logit.grad[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_posteriors_held_to_a_share_of_right_labels_have_it_on_average_and_keep_their_order(share):
    model = model_of()
    logit_BC, logit_BZ, observed_B = predictions(6, images=30)
    known_B = torch.where(torch.arange(30) % 5 == 0, torch.tensor(WRONG_UNNAMED), torch.tensor(UNSEEN))
    known_B[3] = 2
    given = logit_BC.log_softmax(1), logit_BZ.log_softmax(1), observed_B, known_B
    free, held = model.posterior(*given), model.posterior(*given, share)
    unseen_B = known_B == UNSEEN
    assert held.type_BZ[unseen_B, NOISE_FREE].mean().item() == pytest.approx(share, abs=1e-4)
    # The nearest distributions are those whose odds of noise-free all changed by one factor, and nothing else.
    odds_B2 = torch.stack([p.type_BZ[unseen_B, NOISE_FREE] / p.type_BZ[unseen_B, 1:].sum(1) for p in (free, held)], 1)
    factor_B = odds_B2[:, 1] / odds_B2[:, 0]
    torch.testing.assert_close(factor_B, factor_B.mean().expand_as(factor_B))
    for kind in ("true_BC", "type_BZ"):
        torch.testing.assert_close(getattr(held, kind).sum(1), torch.ones(30, dtype=torch.float64))
        torch.testing.assert_close(getattr(held, kind)[~unseen_B], getattr(free, kind)[~unseen_B])
    torch.testing.assert_close(held.log_observed_B, free.log_observed_B)


def test_extreme_predictions_give_finite_posteriors():
    model = NoiseTypeModel(confusion_of_pairs(*random_pairs(0), CLASSES))
    log_true_BC = (torch.eye(CLASSES) * 1e3).log_softmax(1)
    log_type_BZ = torch.tensor([[1e3, 0.0, -1e3]]).expand(CLASSES, 3).log_softmax(1)
    found = model.posterior(log_true_BC, log_type_BZ, torch.arange(CLASSES).roll(1))
    assert all(torch.isfinite(x).all() for x in found)
    torch.testing.assert_close(found.true_BC.sum(1), torch.ones(CLASSES), atol=1e-3, rtol=0)


def test_a_named_true_class_is_certain_and_a_label_known_to_be_wrong_is_not_the_truth():
    model = model_of()
    logit_BC, logit_BZ, observed_B = predictions(4, images=3)
    known_B = torch.tensor([4, WRONG_UNNAMED, UNSEEN])
    found = model.posterior(logit_BC.log_softmax(1), logit_BZ.log_softmax(1), observed_B, known_B)
    assert found.true_BC[0].tolist() == [0, 0, 0, 0, 1, 0]
    assert found.type_BZ[0, model.likeliest_type(known_B[:1], observed_B[:1])].item() == 1
    assert found.true_BC[1, observed_B[1]] == 0
    assert found.type_BZ[1, NOISE_FREE] == 0
    torch.testing.assert_close(found.true_BC.sum(1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found.type_BZ.sum(1), torch.ones(3, dtype=torch.float64))
    loss_B = model.loss(logit_BC.log_softmax(1), logit_BZ.log_softmax(1), observed_B, known_B)
    kind = int(model.likeliest_type(known_B[:1], observed_B[:1]))
    supervised = -logit_BC.log_softmax(1)[0, 4] - logit_BZ.log_softmax(1)[0, kind]
    torch.testing.assert_close(loss_B[0], supervised)


def test_without_any_named_pair_no_noise_is_confusing():
    nothing = np.empty(0, np.int64)
    model = NoiseTypeModel(confusion_of_pairs(nothing, nothing, CLASSES))
    logit_BC, logit_BZ, observed_B = predictions(5)
    log_true_BC, log_type_BZ = logit_BC.log_softmax(1).float(), logit_BZ.log_softmax(1).float()
    found = model.posterior(log_true_BC, log_type_BZ, observed_B)
    assert found.type_BZ[:, CONFUSING].sum() == 0
    type_BZ = model.type_of_image(log_true_BC, log_type_BZ)
    assert type_BZ[:, CONFUSING].sum() == 0
    torch.testing.assert_close(type_BZ.sum(1), torch.ones(len(type_BZ)))


def test_many_classes_need_no_matrix_of_classes_by_classes():
    random = np.random.default_rng(0)
    classes, pairs = 1_000_000, 20_000  # a dense matrix would take four terabytes
    true_P = random.integers(0, classes, pairs)
    found = confusion_of_pairs(true_P, (true_P + random.integers(0, 3, pairs)) % classes, classes)
    model = NoiseTypeModel(found)
    log_true_BC = torch.full((2, classes), -np.log(classes), dtype=torch.float32)
    posterior = model.posterior(log_true_BC, torch.full((2, 3), -np.log(3)), torch.from_numpy(found.observed_E[:2]))
    torch.testing.assert_close(posterior.true_BC.sum(1), torch.ones(2), atol=1e-3, rtol=0)
