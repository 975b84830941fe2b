import math

import numpy as np
import pytest
import torch

from cleanscale.maths.label_cleaning import (
    classification_loss,
    cleaned_labels,
    cleaning_loss,
    padded_labels_loss,
    prior_logit,
    step_classes,
    targets,
)

# B images, S classes
B, S = 4, 6


@pytest.fixture
def drawn() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    noisy_BS = (torch.rand(B, S) < 0.4).float()
    return {
        "noisy": noisy_BS,
        "residual": torch.randn(B, S),
        "verified": (torch.rand(B, S) < 0.4).float(),
        "known": (torch.rand(B, S) < 0.7).float(),
        "logit": torch.randn(B, S),
        "weight": torch.tensor([1.0, 1.0, 3.0, 1.0, 3.0, 1.0]),
    }


def test_cleaned_labels_are_noisy_ones_plus_residual_clipped(drawn):
    slow = [
        [min(max(float(y + r), 0.0), 1.0) for y, r in zip(*row, strict=True)]
        for row in zip(drawn["noisy"], drawn["residual"], strict=True)
    ]
    torch.testing.assert_close(cleaned_labels(drawn["noisy"], drawn["residual"]), torch.tensor(slow))


def test_losses_are_the_slow_sums(drawn):
    cleaned = cleaned_labels(drawn["noisy"], drawn["residual"])
    clean, classify = [0.0] * B, [0.0] * B
    for b in range(B):
        for s in range(S):
            weight = float(drawn["weight"][s])
            v, c = float(drawn["verified"][b, s]), float(cleaned[b, s])
            known = bool(drawn["known"][b, s])
            clean[b] += weight * abs(c - v) if known else 0.0
            u = v if known else c
            p = 1 / (1 + math.exp(-float(drawn["logit"][b, s])))
            classify[b] -= weight * (u * math.log(p) + (1 - u) * math.log(1 - p))
    torch.testing.assert_close(
        cleaning_loss(cleaned, drawn["verified"], drawn["known"], drawn["weight"]), torch.tensor(clean)
    )
    target = targets(cleaned, drawn["verified"], drawn["known"])
    torch.testing.assert_close(classification_loss(drawn["logit"], target, drawn["weight"]), torch.tensor(classify))


def test_the_classifier_gives_the_cleaner_no_gradient(drawn):
    residual = drawn["residual"].requires_grad_()
    logit = drawn["logit"].requires_grad_()
    target = targets(cleaned_labels(drawn["noisy"], residual), drawn["verified"], drawn["known"])
    classification_loss(logit, target, drawn["weight"]).sum().backward()
    assert residual.grad is None
    assert logit.grad is not None
    assert logit.grad.abs().sum() > 0


def test_a_pair_pushed_out_at_the_wrong_end_is_pulled_back_and_one_at_the_right_end_is_left_alone():
    noisy, verified = torch.ones(1, 2), torch.tensor([[0.0, 1.0]])
    residual = torch.full((1, 2), 0.5, requires_grad=True)
    cleaning_loss(cleaned_labels(noisy, residual), verified, torch.ones(1, 2), torch.ones(2)).sum().backward()
    assert residual.grad is not None
    assert residual.grad.tolist() == [[1.0, 0.0]]


def test_lists_of_labels_have_the_loss_of_their_multi_hot_vector():
    torch.manual_seed(1)
    logit = torch.randn(3, 5)
    label = torch.tensor([[0, 4, -1], [-1, -1, -1], [1, 2, 3]])
    hot = torch.tensor([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]]).float()
    expected = classification_loss(logit - 2.0, hot, torch.ones(5))
    torch.testing.assert_close(padded_labels_loss(logit, label, prior=-2.0), expected)


def test_the_prior_predicts_the_mean_number_of_labels():
    assert 30 / (1 + math.exp(-prior_logit(2.5, 30))) == pytest.approx(2.5)


def test_few_classes_are_all_looked_at():
    for drawn in (0, 7, 100):
        classes = step_classes(np.array([1, 3, 3]), 9, drawn, np.random.default_rng(0))
        assert classes.class_S is None
        assert classes.weight_S.tolist() == [1.0] * 9


def test_drawn_classes_stand_for_all_others_without_bias():
    value_C = np.random.default_rng(1).random(50)
    rng, sums = np.random.default_rng(2), []
    for _ in range(4000):
        classes = step_classes(np.array([7, 7, 0, 49]), 50, 6, rng)
        assert classes.class_S is not None
        assert len(classes.class_S) == 9
        assert (np.diff(classes.class_S) > 0).all()
        assert (classes.weight_S[np.isin(classes.class_S, [0, 7, 49])] == 1).all()
        sums.append(value_C[classes.class_S] @ classes.weight_S)
    error = np.std(sums) / math.sqrt(len(sums))
    assert np.mean(sums) == pytest.approx(value_C.sum(), abs=4 * error)
