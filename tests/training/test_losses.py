"""Heads trained with losses that know the noise, against plain training, where the truth is known."""

import numpy as np
import pytest
import torch

from cleanscale.maths.loss_correction import transition_matrix
from cleanscale.maths.noise_types import NUM_TYPES, WRONG_UNNAMED, confusion_of_pairs
from cleanscale.models.heads import Head
from cleanscale.models.noise_models import WithNoiseLayer, WithNoiseTypes
from cleanscale.schema import UNSEEN
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.heads import fit_head, fit_noisy_head
from cleanscale.training.losses import NoiseModel, noise_loss

CLASSES, WIDTH = 6, 10
SETTINGS = HeadSettings(hidden_width=0, epochs=12, batch=128, learning_rate=0.02, weight_decay=0, mixup=0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blobs(images: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features, true, observed): 60 % of classes 0, 2, 4 are observed as the next class; 10 % of all as any."""
    random = np.random.default_rng(seed)
    centre_CD = np.random.default_rng(3).standard_normal((CLASSES, WIDTH)) * 1.2
    true_N = random.integers(0, CLASSES, images)
    feature_ND = (centre_CD[true_N] + random.standard_normal((images, WIDTH))).astype(np.float32)
    observed_N = np.where((true_N % 2 == 0) & (random.random(images) < 0.6), true_N + 1, true_N)
    return feature_ND, true_N, np.where(random.random(images) < 0.1, random.integers(0, CLASSES, images), observed_N)


def accuracy(head: Head, seed: int = 1) -> float:
    feature_ND, true_N, _ = blobs(seed=seed)
    return float((head.frozen().log_probability(feature_ND).argmax(1) == true_N).mean())


def known_of(true_N: np.ndarray, observed_N: np.ndarray, verified: int) -> np.ndarray:
    return np.where(np.arange(len(true_N)) < verified, true_N, UNSEEN)


def noise_of(treatment: str, true_V: np.ndarray, observed_V: np.ndarray, observed_N: np.ndarray) -> NoiseModel:
    if treatment == "noise_em":
        return NoiseModel(treatment, CLASSES, confusion=confusion_of_pairs(true_V, observed_V, CLASSES))
    images_C = np.bincount(observed_N, minlength=CLASSES)
    return NoiseModel(treatment, CLASSES, transition_matrix(np.eye(CLASSES) + 1e-3, images_C, observed_V, true_V))


def fit(treatment: str, verified: int = 400, settings: HeadSettings = SETTINGS) -> Head:
    feature_ND, true_N, observed_N = blobs()
    known_N = known_of(true_N, observed_N, verified)
    noise = noise_of(treatment, true_N[:verified], observed_N[:verified], observed_N)

    def wrap(head: Head) -> torch.nn.Module:
        if treatment == "noise_em":
            types = Head(WIDTH, NUM_TYPES, settings.hidden_width)
            types.mean_D, types.scale_D = head.mean_D.clone(), head.scale_D.clone()
            return WithNoiseTypes(head, types, CLASSES)
        matrix_CC = noise.observed_given_true_CC
        return WithNoiseLayer(head, matrix_CC) if treatment == "bottom_up" and matrix_CC is not None else head

    common = {"wrap": wrap, "loss": noise_loss(noise, "cpu"), "seed": 0}
    start = None
    if treatment == "noise_em":  # the paper's order: both networks on verified images, then EM
        rows = slice(0, verified)
        start = fit_head(feature_ND[rows], true_N[rows], None, CLASSES, settings, seed=0)
    model = fit_noisy_head(
        feature_ND, np.stack([observed_N, known_N], axis=1), CLASSES, settings, start=start, **common
    )
    return model if isinstance(model, Head) else model.classifier


@pytest.fixture(scope="module")
def plain(one_thread) -> float:
    feature_ND, _, observed_N = blobs()
    return accuracy(fit_head(feature_ND, observed_N, None, CLASSES, SETTINGS, seed=0))


@pytest.mark.parametrize("treatment", ["forward", "backward", "bottom_up", "noise_em"])
def test_a_loss_that_knows_the_noise_beats_training_on_the_labels_as_they_are(treatment, plain):
    assert accuracy(fit(treatment)) > plain + 0.1


def test_verdicts_that_only_say_wrong_still_teach_noise_em_that_the_label_is_not_the_truth():
    feature_ND, true_N, observed_N = blobs(600)
    known_N = np.where(true_N == observed_N, true_N, WRONG_UNNAMED)
    nothing = np.empty(0, np.int64)
    noise = NoiseModel("noise_em", CLASSES, confusion=confusion_of_pairs(nothing, nothing, CLASSES))
    loss = noise_loss(noise, "cpu")

    def wrap(head: Head) -> WithNoiseTypes:
        return WithNoiseTypes(head, Head(WIDTH, NUM_TYPES), CLASSES)

    model = fit_noisy_head(
        feature_ND, np.stack([observed_N, known_N], axis=1), CLASSES, SETTINGS, wrap=wrap, loss=loss, seed=0
    )
    labels_alone = fit_head(feature_ND, observed_N, None, CLASSES, SETTINGS, seed=0)
    assert accuracy(model.classifier) > accuracy(labels_alone) + 0.1


def test_the_noise_layer_starts_at_the_matrix_that_it_is_given():
    matrix_CC = np.full((3, 3), 0.1) + 0.7 * np.eye(3)
    layer = WithNoiseLayer(Head(4, 3), matrix_CC)
    np.testing.assert_allclose(layer.observed_given_true(), matrix_CC, rtol=1e-5)
    output_BX = layer(torch.randn(2, 4))
    expected_BC = output_BX[:, :3].softmax(1) @ torch.from_numpy(matrix_CC).float()
    torch.testing.assert_close(output_BX[:, 3:].exp(), expected_BC)
