import threading

import numpy as np
import pytest
import torch

from cleanscale.errors import DataError
from cleanscale.maths.keyed_random import folds_of_rows
from cleanscale.models.heads import Head
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.heads import fit_head, fit_out_of_fold_heads

QUICK = HeadSettings(hidden_width=16, epochs=4, batch=64, learning_rate=0.02)


def blobs(images: int = 600, num_classes: int = 5, noise: float = 1.0):
    random = np.random.default_rng(0)
    centre_CD = np.random.default_rng(7).standard_normal((num_classes, 12)) * 3
    class_N = random.integers(0, num_classes, images)
    feature_ND = centre_CD[class_N] + random.standard_normal((images, 12)) * noise
    return feature_ND.astype(np.float16), class_N


def accuracy(head: Head, feature_ND: np.ndarray, class_N: np.ndarray) -> float:
    return float((head.frozen().log_probability(feature_ND).argmax(1) == class_N).mean())


@pytest.mark.parametrize(
    "change", [{}, {"hidden_width": 0, "dropout": 0.0}, {"mixup": 1.0}, {"label_smoothing": 0.1}], ids=str
)
def test_a_head_learns_separable_classes(change):
    feature_ND, class_N = blobs()
    losses = []
    head = fit_head(
        feature_ND,
        class_N,
        None,
        5,
        QUICK.model_copy(update=change),
        seed=0,
        on_epoch=lambda _, loss: losses.append(loss),
    )
    assert accuracy(head, feature_ND, class_N) > 0.95
    assert len(losses) == QUICK.epochs
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_head_whatever_was_drawn_before():
    feature_ND, class_N = blobs()
    first = fit_head(feature_ND, class_N, None, 5, QUICK, seed=1)
    before = torch.get_rng_state()
    torch.rand(7)
    drawn = torch.get_rng_state()
    again = fit_head(feature_ND, class_N, None, 5, QUICK, seed=1)
    other = fit_head(feature_ND, class_N, None, 5, QUICK, seed=2)
    assert torch.equal(first.output.weight, again.output.weight)
    assert not torch.equal(first.output.weight, other.output.weight)
    assert torch.equal(torch.get_rng_state(), drawn)  # and it leaves the caller's randomness alone
    assert not torch.equal(before, drawn)


def test_weight_zero_is_as_if_the_image_were_not_there():
    feature_ND, class_N = blobs()
    kept_N = np.arange(600) % 3 > 0
    weighted = fit_head(feature_ND, class_N, kept_N.astype(np.float32), 5, QUICK, seed=0)
    dropped = fit_head(feature_ND[kept_N], class_N[kept_N], None, 5, QUICK, seed=0)
    torch.testing.assert_close(weighted.output.weight, dropped.output.weight)


def test_only_the_ratio_of_weights_matters():
    feature_ND, class_N = blobs()
    weight_N = np.random.default_rng(0).random(600).astype(np.float32) + 0.1
    one = fit_head(feature_ND, class_N, weight_N, 5, QUICK, seed=0)
    tenth = fit_head(feature_ND, class_N, weight_N / 10, 5, QUICK, seed=0)
    torch.testing.assert_close(one.output.weight, tenth.output.weight, atol=1e-3, rtol=1e-3)


def test_class_numbers_and_one_hot_targets_give_the_same_head():
    feature_ND, class_N = blobs()
    numbers = fit_head(feature_ND, class_N, None, 5, QUICK, seed=0)
    one_hot = fit_head(feature_ND, np.eye(5, dtype=np.float32)[class_N], None, 5, QUICK, seed=0)
    torch.testing.assert_close(numbers.output.weight, one_hot.output.weight, atol=1e-4, rtol=1e-3)


def test_out_of_fold_heads_do_not_know_the_labels_they_score():
    random = np.random.default_rng(0)
    feature_ND, label_N = random.standard_normal((300, 40)).astype(np.float32), random.integers(0, 3, 300)
    row_N = random.permutation(10_000)[:300]
    settings = HeadSettings(hidden_width=0, dropout=0, epochs=40, batch=32, learning_rate=0.05, weight_decay=0)
    heads = fit_out_of_fold_heads(feature_ND, label_N, None, row_N, 3, settings, seed=0, folds=2)
    fold_N = folds_of_rows(0, row_N, 2)
    seen = [accuracy(head, feature_ND[fold_N != f], label_N[fold_N != f]) for f, head in enumerate(heads)]
    unseen = [accuracy(head, feature_ND[fold_N == f], label_N[fold_N == f]) for f, head in enumerate(heads)]
    assert np.mean(seen) > 0.6
    assert np.mean(unseen) < 0.45


class Threads:
    """Collectives of workers that are threads."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, board: list):
        self.rank, self.world, self.barrier, self.board = rank, world, barrier, board

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self.board[self.rank] = tensor.clone()
        self.barrier.wait()
        total = torch.stack(self.board).sum(0)
        self.barrier.wait()
        return total

    def average_gradients(self, parameters) -> None:
        for p in parameters:
            grad = p.grad if p.grad is not None else torch.zeros_like(p)
            p.grad = self.sum(grad) / self.world


def fit_on_threads(
    parts: list[tuple[np.ndarray, np.ndarray]], settings: HeadSettings, start: Head | None = None
) -> list[Head]:
    barrier, board, heads = threading.Barrier(len(parts)), [None] * len(parts), [None] * len(parts)

    def work(rank: int) -> None:
        workers = Threads(rank, len(parts), barrier, board)
        classes = start.config["num_classes"] if start else 5
        heads[rank] = fit_head(*parts[rank], None, classes, settings, seed=0, collectives=workers, start=start)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heads


def test_workers_end_with_the_same_head_also_when_one_has_no_images():
    feature_ND, class_N = blobs()
    settings = QUICK.model_copy(update={"dropout": 0.0, "hidden_width": 0})  # no weights drawn by racing threads
    parts = [(feature_ND[at], class_N[at]) for at in (slice(0, 400), slice(400, 600), slice(600, 600))]
    heads = fit_on_threads(parts, settings)
    for head in heads[1:]:
        torch.testing.assert_close(head.mean_D, heads[0].mean_D)
    assert min(accuracy(head, feature_ND, class_N) for head in heads) > 0.95


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_an_epoch_sees_every_image_however_unevenly_workers_hold_them(share):
    random = np.random.default_rng(3)
    centre_CD, class_N = random.standard_normal((40, 16)), np.repeat(np.arange(40), 40)
    feature_ND = (centre_CD[class_N] + 1.2 * random.standard_normal((len(class_N), 16))).astype(np.float32)
    unseen_ND = (centre_CD[class_N] + 1.2 * random.standard_normal((len(class_N), 16))).astype(np.float32)
    settings = QUICK.model_copy(update={"dropout": 0.0, "hidden_width": 0, "epochs": 2, "batch": 64})
    still = settings.model_copy(update={"learning_rate": 1e-12})
    start = fit_head(feature_ND, class_N, None, 40, still, seed=0)  # threads share torch's random numbers
    alone = fit_head(feature_ND, class_N, None, 40, settings, seed=0, start=start)
    order_N = random.permutation(len(class_N))
    cut = int(share * len(order_N))
    parts = [(feature_ND[at], class_N[at]) for at in (order_N[:cut], order_N[cut:])]
    (head, other) = fit_on_threads(parts, settings, start)
    expected = accuracy(alone, unseen_ND, class_N)
    assert 0.2 < expected < 0.9
    assert abs(accuracy(head, unseen_ND, class_N) - expected) < 0.03
    torch.testing.assert_close(head.output.weight, other.output.weight)


def test_frozen_heads_score_as_the_module_does_and_heads_come_back_from_their_state():
    feature_ND, class_N = blobs()
    head = fit_head(feature_ND, class_N, None, 5, QUICK, seed=0)
    with torch.no_grad():
        expected_NC = head(torch.from_numpy(feature_ND)).log_softmax(1).numpy()
    np.testing.assert_allclose(head.frozen().log_probability(feature_ND, batch=97), expected_NC, atol=1e-4)
    back = Head(**head.config)
    back.load_state_dict(head.state_dict())
    np.testing.assert_array_equal(back.frozen().log_probability(feature_ND), head.frozen().log_probability(feature_ND))


def test_a_constant_feature_and_a_single_image_are_no_trouble():
    feature_ND = np.zeros((1, 4), np.float32)
    head = fit_head(feature_ND, np.array([1]), None, 3, QUICK, seed=0)
    assert np.isfinite(head.frozen().log_probability(feature_ND)).all()


@pytest.mark.parametrize(
    ("target_N", "weight_N", "found"),
    [
        (np.array([0, 5]), None, "0 .. 5"),
        (np.array([0]), None, "targets"),
        (np.array([0, 1]), np.zeros(2, np.float32), "positive weight"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(target_N, weight_N, found):
    with pytest.raises(DataError, match=found):
        fit_head(np.zeros((2, 3), np.float32), target_N, weight_N, 3, QUICK, seed=0)


def test_a_step_sees_so_few_images_that_an_epoch_of_a_small_collection_has_fifty_steps():
    plan = HeadSettings().dense()
    for images in range(1, 60_000, 7):
        batch = plan.batch_of(images)
        assert 32 <= batch <= 512
        assert batch == 32 or images / batch >= 50
        assert batch == 512 or images / batch < 100
    assert HeadSettings(batch=700).dense().batch_of(10) == 700


def test_a_few_thousand_images_of_many_classes_are_learned():
    """With 512 images in a step the same epochs leave most classes unlearned."""
    rng = np.random.default_rng(0)
    centre_CD = rng.normal(size=(200, 32))
    label_N = np.repeat(np.arange(200), 12)
    feature_ND, unseen_ND = (centre_CD[label_N] + rng.normal(size=(2, len(label_N), 32))).astype(np.float32)
    noisy_N = np.where(rng.random(len(label_N)) < 0.3, rng.integers(200, size=len(label_N)), label_N)

    def right(settings: HeadSettings) -> float:
        head = fit_head(feature_ND, noisy_N, None, 200, settings, seed=0).frozen()
        return float((head.log_probability(unseen_ND).argmax(1) == label_N).mean())

    assert right(HeadSettings()) > right(HeadSettings(batch=512)) + 0.1
