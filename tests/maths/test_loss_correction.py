import numpy as np
import pytest
import torch
from torch.nn.functional import nll_loss

from cleanscale.maths.loss_correction import (
    anchor_row,
    anchors_of_class,
    backward_loss,
    backward_matrix,
    forward_loss,
    instance_forward_loss,
    judged_column,
    known_or,
    log_odds_in_class,
    rows_of_joint,
    transition_matrix,
)
from cleanscale.maths.noise_types import WRONG_UNNAMED
from cleanscale.schema import UNSEEN

CLASSES = 5


def noise(seed: int = 0) -> np.ndarray:
    """observed_given_true_CC with 60 to 90 % right."""
    random = np.random.default_rng(seed)
    noise_CC = random.dirichlet(np.ones(CLASSES), CLASSES) * 0.4 + 0.6 * np.eye(CLASSES)
    return noise_CC / noise_CC.sum(axis=1, keepdims=True)


def predictions(images: int = 8) -> torch.Tensor:
    return torch.randn(images, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(1)


def test_the_forward_loss_is_the_likelihood_of_the_observed_label():
    noise_CC, log_true_BC = noise(), predictions()
    observed_B = torch.arange(8) % CLASSES
    found = forward_loss(log_true_BC, observed_B, torch.from_numpy(noise_CC))
    for b in range(8):
        p = sum(log_true_BC[b, t].exp().item() * noise_CC[t, observed_B[b]] for t in range(CLASSES))
        assert found[b].item() == pytest.approx(-np.log(p))


def test_the_instance_forward_loss_is_the_likelihood_under_the_images_own_noise():
    noise_CC, log_true_BC = noise(), predictions()
    observed_B, odds_B = torch.arange(8) % CLASSES, torch.linspace(-3, 3, 8, dtype=torch.float64)
    found = instance_forward_loss(log_true_BC, observed_B, odds_B, torch.from_numpy(noise_CC))
    for b in range(8):
        own_CC = noise_CC.copy()
        own_CC[observed_B[b], observed_B[b]] *= np.exp(odds_B[b].item())
        p = sum(log_true_BC[b, t].exp().item() * own_CC[t, observed_B[b]] for t in range(CLASSES))
        assert found[b].item() == pytest.approx(-np.log(p))
    zero_B = torch.zeros(8, dtype=torch.float64)
    same = instance_forward_loss(log_true_BC, observed_B, zero_B, torch.from_numpy(noise_CC))
    torch.testing.assert_close(same, forward_loss(log_true_BC, observed_B, torch.from_numpy(noise_CC)))


def test_a_label_judged_wrong_teaches_another_class_and_one_judged_right_its_own():
    noise_CC = torch.from_numpy(noise())
    gradients = []
    for odds in (-6.0, 6.0):
        logit_BC = torch.zeros(1, CLASSES, dtype=torch.float64, requires_grad=True)
        instance_forward_loss(
            logit_BC.log_softmax(1), torch.tensor([2]), torch.tensor([odds], dtype=torch.float64), noise_CC
        ).sum().backward()
        gradients.append(logit_BC.grad[0])
    assert (
        gradients[0][2] > 0 > gradients[1][2]
    )  # descent lowers the logit of a wrong label, raises that of a right one
    assert gradients[0].argmin() == noise_CC[:, 2].where(torch.arange(CLASSES) != 2, 0).argmax()


def test_a_judged_column_counts_right_labels_for_their_class_and_wrong_ones_for_the_others():
    probability_N = np.array([0.9, 0.2])
    log_probability_NC = np.log(np.array([[0.1, 0.3, 0.6], [0.5, 0.4, 0.1]]))
    found_C = judged_column(probability_N, log_probability_NC, 2)
    np.testing.assert_allclose(found_C, [0.1 * 0.25 + 0.8 * 5 / 9, 0.1 * 0.75 + 0.8 * 4 / 9, 1.1])
    assert found_C.sum() == pytest.approx(2)
    known_C = judged_column(probability_N, log_probability_NC, 2, np.array([0.0, 1.0, 1.0]))
    np.testing.assert_allclose(known_C, [0, 0.9, 1.1])
    rows_CC = rows_of_joint(np.stack([found_C, [0, 0, 0], [1, 1, 2]]))
    np.testing.assert_allclose(rows_CC.sum(1), 1)
    np.testing.assert_allclose(rows_CC[1], [0, 1, 0])  # no image is of this class


def test_the_mean_image_of_a_class_has_no_odds_of_its_own_and_sureness_is_bounded():
    probability_N = np.array([0.5, 0.5, 0.5])
    np.testing.assert_allclose(log_odds_in_class(probability_N), 0, atol=1e-7)
    odds_N = log_odds_in_class(np.array([0.0, 1.0]))
    np.testing.assert_allclose(odds_N, [np.log(0.01 / 0.99), np.log(0.99 / 0.01)], rtol=1e-6)


def test_the_backward_loss_is_on_average_over_the_noise_the_loss_on_the_truth():
    noise_CC, log_true_BC = noise(), predictions()
    true_B = torch.arange(8) % CLASSES
    inverse_CC = torch.from_numpy(backward_matrix(noise_CC))
    mean_B = torch.zeros(8, dtype=torch.float64)
    for o in range(CLASSES):
        mean_B += torch.from_numpy(noise_CC)[true_B, o] * backward_loss(log_true_BC, torch.full((8,), o), inverse_CC)
    torch.testing.assert_close(mean_B, nll_loss(log_true_BC, true_B, reduction="none"))


def test_without_noise_both_corrections_are_plain_training():
    log_true_BC, observed_B = predictions(), torch.arange(8) % CLASSES
    plain_B = nll_loss(log_true_BC, observed_B, reduction="none")
    identity = torch.eye(CLASSES, dtype=torch.float64)
    torch.testing.assert_close(forward_loss(log_true_BC, observed_B, identity), plain_B, atol=1e-9, rtol=0)
    inverse_CC = torch.from_numpy(backward_matrix(np.eye(CLASSES)))
    torch.testing.assert_close(backward_loss(log_true_BC, observed_B, inverse_CC), plain_B)


def test_a_forward_corrected_fit_finds_the_true_distribution_under_heavy_noise():
    """One image seen with many noisy labels: the plain fit learns the noise, the corrected one the truth."""
    noise_CC = noise(1)
    observed_B = torch.from_numpy(np.repeat(np.arange(CLASSES), np.round(noise_CC[2] * 100).astype(int)))
    logit_C = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logit_C], lr=0.2)
    for _ in range(150):
        optimizer.zero_grad()
        log_true_BC = logit_C.log_softmax(0).expand(len(observed_B), CLASSES)
        forward_loss(log_true_BC, observed_B, torch.from_numpy(noise_CC)).mean().backward()
        optimizer.step()
    assert logit_C.softmax(0)[2].item() > 0.95


def test_what_is_known_of_a_label_goes_before_the_noise_model():
    log_true_BC = predictions(3)
    known_B = torch.tensor([3, WRONG_UNNAMED, UNSEEN])
    found = known_or(torch.full((3,), 7.0, dtype=torch.float64), log_true_BC, known_B)
    torch.testing.assert_close(
        found, torch.stack([-log_true_BC[0, 3], torch.zeros(()).double(), torch.tensor(7.0).double()])
    )


def drawn(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(true, observed, what a perfect classifier of noisy labels says of each image: clear ones and mixtures)."""
    random = np.random.default_rng(seed)
    true_N = random.integers(0, CLASSES, images)
    observed_N = (random.random((images, 1)) > noise()[true_N].cumsum(axis=1)[:, :-1]).sum(axis=1)
    sure_NC = np.eye(CLASSES)[true_N] * 0.97 + 0.03 * random.dirichlet(np.ones(CLASSES), images)
    return true_N, observed_N, np.log(sure_NC @ noise())


def test_anchors_give_the_noise_of_a_good_classifier():
    _, observed_N, log_probability_NC = drawn(3000)
    for label in range(CLASSES):
        own_NC = log_probability_NC[observed_N == label]
        anchors = anchors_of_class(own_NC[:, label])
        assert len(anchors) == round(0.05 * len(own_NC))
        assert own_NC[anchors, label].min() >= np.delete(own_NC[:, label], anchors).max()
        found_C = anchor_row(own_NC[anchors])
        np.testing.assert_allclose(found_C, noise()[label], atol=0.03)
        assert found_C.sum() == pytest.approx(1)


def test_a_class_of_one_image_has_that_as_its_anchor():
    assert anchors_of_class(np.array([-2.0])).tolist() == [0]


@pytest.mark.parametrize("checked", [[0, 1, 2, 3, 4], [0, 2], []], ids=["all classes", "some classes", "none"])
def test_verified_pairs_mend_a_wrong_anchor_estimate_where_they_are(checked):
    true_N, observed_N, _ = drawn(40_000)
    anchor_CC = np.full((CLASSES, CLASSES), 0.05) + 0.75 * np.eye(CLASSES)
    seen_N = np.isin(observed_N, checked)
    images_C = np.bincount(observed_N, minlength=CLASSES)
    found = transition_matrix(anchor_CC, images_C, observed_N[seen_N], true_N[seen_N])
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found >= 0).all()
    error = np.abs(found - noise()).mean()
    before = np.abs(anchor_CC - noise()).mean()
    if len(checked) == CLASSES:
        np.testing.assert_allclose(found, noise(), atol=0.02)
    elif checked:
        assert error < 0.9 * before
    else:
        assert error < 1.5 * before


def test_verdicts_without_names_set_the_share_of_right_labels():
    true_N, observed_N, _ = drawn(40_000)
    anchor_CC = np.full((CLASSES, CLASSES), 0.05) + 0.75 * np.eye(CLASSES)
    unnamed_N = np.where(true_N == observed_N, true_N, WRONG_UNNAMED)
    found = transition_matrix(anchor_CC, np.bincount(observed_N, minlength=CLASSES), observed_N, unnamed_N)
    assert np.abs(found - noise()).mean() < 0.9 * np.abs(anchor_CC - noise()).mean()
    named = transition_matrix(anchor_CC, np.bincount(observed_N, minlength=CLASSES), observed_N, true_N)
    assert np.abs(named - noise()).mean() < 0.3 * np.abs(found - noise()).mean()  # names say much more


def test_a_class_that_no_image_has_stays_itself():
    anchor_CC = np.eye(3)
    found = transition_matrix(anchor_CC, np.array([5, 5, 0]), np.empty(0, np.int64), np.empty(0, np.int64))
    np.testing.assert_allclose(found, np.eye(3))
