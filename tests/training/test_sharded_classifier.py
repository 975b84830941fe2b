import numpy as np
import pytest
import torch
from worker_threads import on_threads

from cleanscale.models.backbones import BackboneSettings
from cleanscale.models.classifier import build_classifier
from cleanscale.models.heads import Head
from cleanscale.training.classifier import Batch, ClassifierSettings, OfLogits, fit_classifier
from cleanscale.training.collectives import Alone
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.losses import plain_loss
from cleanscale.training.sharded_classifier import OfSpreadRows, drawn_part
from cleanscale.training.sharded_heads import HeadPart
from cleanscale.training.sharded_softmax import Rows, owned

CLASSES, IMAGES, SIDE = 10, 24, 32
# Without batch normalisation, whose statistics are each worker's own.
BACKBONE = BackboneSettings(name="test_convnext", weights="", image_size=SIDE)
LAYERS = {"hidden_width": 12, "dropout": 0.0}
EXACT = HeadSettings(sharded="on", exact=True)


@pytest.fixture(autouse=True)
def _alone(alone):
    """On one thread: small matrices, and workers that are threads already."""


def pictures(count: int = IMAGES, seed: int = 0) -> Batch:
    """Classes that differ in colour; weights from 0 to 1."""
    rng = np.random.default_rng(seed)
    label_N = np.arange(count) % CLASSES
    colour_C3 = np.random.default_rng(7).integers(0, 200, (CLASSES, 3))
    image = colour_C3[label_N][:, :, None, None] + rng.integers(0, 50, (count, 3, SIDE, SIDE))
    weight_N = rng.random(count) * (np.arange(count) % 5 > 0)
    return Batch(*(torch.from_numpy(x) for x in (image.astype(np.uint8), label_N, weight_N.astype(np.float32))))


def part_of(batch: Batch, rank: int, world: int) -> Batch:
    here = slice(len(batch.label_B) * rank // world, len(batch.label_B) * (rank + 1) // world)
    return Batch(*(tensor[here] for tensor in batch))


@pytest.mark.parametrize("world", [1, 3])
def test_exact_mode_has_the_loss_and_the_gradients_of_dense_cross_entropy_down_to_the_backbone(world):
    batch = pictures()
    dense = build_classifier(BACKBONE, CLASSES, **LAYERS, seed=3)
    assert isinstance(dense.head, Head)
    expected = OfLogits(plain_loss(), CLASSES).backward(dense(batch.image_B3SS), batch, 0, 1.0)
    output = dense.head.output
    models = [build_classifier(BACKBONE, None, **LAYERS, seed=3) for _ in range(world)]
    for model in models:
        model.load_state_dict({k: v for k, v in dense.state_dict().items() if not k.startswith("head.output")})

    def work(together):
        model, (first, stop) = models[together.rank], owned(CLASSES, together.rank, world)
        rows = Rows(first, output.weight.detach()[first:stop].clone(), output.bias.detach()[first:stop].clone())
        part = HeadPart(model.head, rows, CLASSES, torch.full((stop - first,), 1e12), None, 1e6)  # steps: the gradient
        own = part_of(batch, together.rank, world)
        plan = EXACT.model_copy(update={"row_learning_rate": 1.0}).resolved(CLASSES)
        objective = OfSpreadRows(part, plan, together, seed=0)
        found = objective.backward(model(own.image_B3SS), own, 0, 1.0)
        together.average_gradients(model.parameters())
        return found.loss, part.rows

    found = on_threads(work, world)
    for loss, _ in found:
        torch.testing.assert_close(loss, expected.loss)
    for model in models:
        for (name, parameter), other in zip(model.named_parameters(), dense.parameters(), strict=False):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-7, msg=name)
    for before, after in (
        (output.weight, torch.cat([rows.weight_RH for _, rows in found])),
        (output.bias, torch.cat([rows.bias_R for _, rows in found])),
    ):
        torch.testing.assert_close(before.detach() - after, before.grad, rtol=1e-3, atol=1e-6)


def fitted(world: int, settings: HeadSettings, epochs: int = 6) -> tuple[torch.nn.Module, list[HeadPart]]:
    """A few epochs over the same pictures, on workers that share every batch."""
    plan = settings.resolved(CLASSES)
    models = [build_classifier(BACKBONE, None, seed=3) for _ in range(world)]
    course = ClassifierSettings(epochs=epochs, learning_rate=0.003, optimizer="adamw", warmup_epochs=0)
    steps = 4

    def work(together):
        model = models[together.rank]
        part = drawn_part(model.head, CLASSES, 5, together)
        batches = [part_of(pictures(seed=number), together.rank, world) for number in range(steps)]
        fit_classifier(
            model, lambda _: batches, course, steps_per_epoch=steps, seed=0, collectives=together,
            objective=OfSpreadRows(part, plan, together, seed=0),
        )  # fmt: skip
        return part

    return models[0], on_threads(work, world)


def top1(model: torch.nn.Module, parts: list[HeadPart]) -> float:
    unseen = pictures(100, seed=99)
    weight_CH = torch.cat([part.rows.weight_RH for part in parts])
    bias_C = torch.cat([part.rows.bias_R for part in parts])
    with torch.no_grad():
        logit_NC = model.eval()(unseen.image_B3SS) @ weight_CH.T + bias_C
    return float((logit_NC.argmax(1) == unseen.label_B).float().mean())


def test_the_number_of_workers_changes_nothing_but_rounding():
    rate = {"row_learning_rate": 0.1}
    alone_model, alone = fitted(1, EXACT.model_copy(update=rate), epochs=2)
    model, parts = fitted(3, EXACT.model_copy(update=rate), epochs=2)
    weight_CH = torch.cat([part.rows.weight_RH for part in parts])
    torch.testing.assert_close(weight_CH, alone[0].rows.weight_RH, rtol=0.02, atol=0.002)
    assert abs(top1(model, parts) - top1(alone_model, alone)) < 0.05


@pytest.mark.parametrize("change", [{"exact": True}, {"negatives": 3}, {"negatives": 0.5}], ids=str)
def test_a_backbone_learns_from_rows_that_are_spread(change):
    settings = HeadSettings(sharded="on", row_learning_rate=0.1).model_copy(update=change)
    assert top1(*fitted(2, settings)) > 0.8


def test_drawn_rows_are_the_same_for_any_number_of_workers(monkeypatch):
    monkeypatch.setattr("cleanscale.training.sharded_classifier.DRAWN_CLASSES", 4)
    layers = build_classifier(BACKBONE, None).head
    whole = drawn_part(layers, CLASSES, 1, Alone())
    parts = on_threads(lambda together: drawn_part(layers, CLASSES, 1, together), 3)
    assert torch.equal(torch.cat([part.rows.weight_RH for part in parts]), whole.rows.weight_RH)
    assert all(abs(part.row_size - whole.row_size) < 1e-6 for part in parts)
    assert (drawn_part(layers, CLASSES, 2, Alone()).rows.weight_RH != whole.rows.weight_RH).all()
