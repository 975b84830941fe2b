import io
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch

from cleanscale.errors import StageError
from cleanscale.models.backbones import BackboneSettings
from cleanscale.models.classifier import build_classifier
from cleanscale.training.classifier import (
    Batch,
    ClassifierSettings,
    Course,
    course_of_round,
    fit_classifier,
    learning_rate_at,
    weighted_loss,
)
from cleanscale.training.losses import plain_loss

BACKBONE = BackboneSettings(name="test_resnet", weights="", image_size=32)
WITHOUT_BATCH_NORM = BackboneSettings(name="test_convnext", weights="", image_size=32)
SETTINGS = ClassifierSettings(epochs=3, batch_size=8, learning_rate=0.05, dropout=0.2, hidden_width=8)


def pictures(count=16, classes=4):
    """Classes that differ in brightness, so that a few steps are enough to learn something."""
    rng = np.random.default_rng(0)
    label_N = np.arange(count) % classes
    image = label_N[:, None, None, None] * 50 + rng.integers(0, 40, (count, 3, 32, 32))
    return torch.from_numpy(image.astype(np.uint8)), torch.from_numpy(label_N), torch.ones(count)


def batches(batch=8, part=slice(None)):
    image, label, weight = pictures()

    def of_epoch(epoch):
        order = np.random.default_rng(epoch).permutation(len(label))
        for start in range(0, len(label), batch):
            chosen = order[start : start + batch][part]
            yield Batch(image[chosen], label[chosen], weight[chosen])

    return of_epoch


class Together:
    """Workers that are threads: what each of them gives is added up behind a barrier."""

    def __init__(self, rank, world, shelf, barrier):
        self.rank, self.world, self.shelf, self.barrier = rank, world, shelf, barrier

    def sum(self, tensor):
        self.shelf[self.rank] = tensor.clone()
        self.barrier.wait()
        total = sum(self.shelf[rank] for rank in range(self.world))
        self.barrier.wait()
        return total

    def average_gradients(self, parameters):
        for p in parameters:
            p.grad = self.sum(p.grad) / self.world


def fit_together(world, settings, backbone):
    shelf, barrier = {}, threading.Barrier(world, timeout=20)
    models = [build_classifier(backbone, 4, seed=1) for _ in range(world)]  # threads share torch's random state

    def work(rank):
        part = slice(rank * 8 // world, (rank + 1) * 8 // world)
        fit_classifier(
            models[rank], batches(part=part), settings, steps_per_epoch=2, seed=0,
            collectives=Together(rank, world, shelf, barrier),
        )  # fmt: skip

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [model.state_dict() for model in models]


def test_weighted_loss_is_equation_14():
    logit_BC, label_B = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])
    weight_B = torch.tensor([1.0, 0.0, 0.5, 2.0, 0.25])
    slow = 0.0
    for logit_C, label, weight in zip(logit_BC, label_B, weight_B, strict=True):
        probability = logit_C.exp() / logit_C.exp().sum()
        slow += -weight * probability[label].log() / 5
    torch.testing.assert_close(weighted_loss(plain_loss()(logit_BC, label_B), weight_B), slow)


def test_an_image_of_weight_zero_teaches_nothing():
    logit_BC = torch.zeros(2, 3, requires_grad=True)
    weighted_loss(plain_loss()(logit_BC, torch.tensor([0, 1])), torch.tensor([1.0, 0.0])).backward()
    assert logit_BC.grad[0].abs().sum() > 0
    assert logit_BC.grad[1].abs().sum() == 0


def test_learning_rate_rises_then_falls_along_a_cosine():
    course = Course(epochs=10, learning_rate=1.0, warmup_epochs=1.0)
    rate = [learning_rate_at(step, 5, course) for step in range(50)]
    assert rate[0] < rate[4] < 1
    assert max(rate) == pytest.approx(rate[5]) == 1.0
    assert all(before >= after for before, after in pairwise(rate[5:]))
    assert rate[-1] < 0.01


def test_later_rounds_fine_tune():
    settings = ClassifierSettings(epochs=9, finetune_epochs=2, finetune_learning_rate=0.1)
    assert course_of_round(settings, 0).epochs == 9
    assert course_of_round(settings, 1) == course_of_round(settings, 3)
    assert course_of_round(settings, 1)[:2] == (2, 0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resuming_at_an_epoch_gives_the_same_bits(optimizer):
    settings = SETTINGS.model_copy(update={"optimizer": optimizer, "learning_rate": 0.01})
    saved = []

    def keep(epoch, metrics, state):
        if epoch == 0:
            saved.append({key: clone(value) for key, value in state().items()})

    def clone(value):
        return value if isinstance(value, int) else torch.load(to_bytes(value), weights_only=True)

    arguments = {"steps_per_epoch": 2, "seed": 3}
    whole = fit_classifier(build_classifier(BACKBONE, 4), batches(), settings, on_epoch=keep, **arguments)
    torch.manual_seed(77)
    again = build_classifier(BACKBONE, 4, seed=5)
    fit_classifier(again, batches(), settings, start=saved[0], **arguments)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())


def to_bytes(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def test_training_learns_and_reports():
    seen = []
    settings = ClassifierSettings(epochs=8, batch_size=8, learning_rate=0.05)
    model = fit_classifier(
        build_classifier(BACKBONE, 4), batches(), settings, steps_per_epoch=2, seed=0,
        on_epoch=lambda epoch, metrics, state: seen.append(metrics),
    )  # fmt: skip
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]
    assert {"loss", "train_top1", "learning_rate", "images_per_second"} <= seen[0].keys()
    image, label, _ = pictures()
    assert (model.eval()(image).argmax(1) == label).float().mean() > 0.9


def test_two_workers_with_half_the_batch_each_take_the_steps_of_one():
    settings = ClassifierSettings(epochs=1, batch_size=8, learning_rate=0.01)
    (alone,) = fit_together(1, settings, WITHOUT_BATCH_NORM)
    first, second = fit_together(2, settings, WITHOUT_BATCH_NORM)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.allclose(alone[key], first[key], atol=1e-5) for key in alone)


def test_after_an_epoch_all_workers_hold_the_same_statistics():
    settings = ClassifierSettings(epochs=2, batch_size=8, learning_rate=0.01)
    first, second = fit_together(2, settings, BACKBONE)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_loss_that_explodes_is_the_users_error():
    settings = ClassifierSettings(epochs=2, learning_rate=1e20, warmup_epochs=0)
    with pytest.raises(StageError, match="learning_rate"):
        fit_classifier(build_classifier(BACKBONE, 4), batches(), settings, steps_per_epoch=2, seed=0)


def test_training_leaves_torchs_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    fit_classifier(build_classifier(BACKBONE, 4), batches(), SETTINGS, steps_per_epoch=2, seed=0)
    assert torch.equal(torch.rand(2), expected)
