import numpy as np
import pytest
import torch
from hypothesis import given as given_by
from hypothesis import settings
from hypothesis import strategies as st
from worker_threads import on_threads

from cleanscale.training.collectives import Alone
from cleanscale.training.sharded_softmax import (
    NOWHERE,
    Gathered,
    Rows,
    all_classes,
    loss_and_gradients,
    owned,
    sampled_classes,
)

CLASSES, WIDTH, IMAGES = 23, 6, 12


def case(targets: int = 1):
    torch.manual_seed(0)
    weight_CH, bias_C = torch.randn(CLASSES, WIDTH), torch.randn(CLASSES)
    target_BT = torch.randint(0, CLASSES, (IMAGES, targets))
    coefficient_BT = torch.rand(IMAGES, targets)
    coefficient_BT[3] = 0  # an image of weight zero
    coefficient_BT[7] = 0
    target_BT[7] = NOWHERE  # a place that no image fills
    return weight_CH, bias_C, torch.randn(IMAGES, WIDTH), target_BT, coefficient_BT


def dense(weight_CH, bias_C, embedded_BH, target_BT, coefficient_BT):
    """The slow twin: all logits, and autograd."""
    inputs = [x.clone().requires_grad_() for x in (embedded_BH, weight_CH, bias_C)]
    log_probability_BC = (inputs[0] @ inputs[1].T + inputs[2]).log_softmax(1)
    loss = -(coefficient_BT * log_probability_BC.gather(1, target_BT.clamp_min(0))).sum()
    loss.backward()
    return loss.detach(), *(x.grad for x in inputs)


def sharded(world: int, weight_CH, bias_C, embedded_BH, target_BT, coefficient_BT, blocks_of):
    """Loss and gradients as workers on threads compute them, the rows' put together."""

    def work(together):
        first, stop = owned(CLASSES, together.rank, together.world)
        rows = Rows(first, weight_CH[first:stop], bias_C[first:stop])
        batch = Gathered(embedded_BH, target_BT, coefficient_BT)
        weight_RH, bias_R = torch.zeros_like(rows.weight_RH), torch.zeros_like(rows.bias_R)

        def update(at, gradient_KH, gradient_K):
            weight_RH[at] += gradient_KH
            bias_R[at] += gradient_K

        return *loss_and_gradients(batch, rows, blocks_of(batch, rows), update, together), weight_RH, bias_R

    found = on_threads(work, world)
    for loss, gradient_BH, *_ in found[1:]:
        assert loss == found[0][0]
        assert torch.equal(gradient_BH, found[0][1])
    return *found[0][:2], *(torch.cat(parts) for parts in list(zip(*found, strict=True))[2:])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_exact_losses_and_gradients_are_those_of_dense_cross_entropy(world, targets, chunk):
    values = case(targets)
    found = sharded(world, *values, lambda batch, rows: all_classes(batch, rows, chunk))
    for got, expected in zip(found, dense(*values), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_drawing_as_many_classes_as_there_are_is_exact(world):
    values = case()

    def blocks(batch, rows):
        return sampled_classes(batch, rows, CLASSES, np.random.default_rng(0), np.array([1, 2, 22]))

    for got, expected in zip(sharded(world, *values, blocks), dense(*values), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


def test_more_workers_than_classes_are_no_trouble():
    weight_CH, bias_C, embedded_BH, target_BT, coefficient_BT = case()
    target_BT = target_BT.clamp_max(1)
    few = (weight_CH[:2], bias_C[:2], embedded_BH, target_BT, coefficient_BT)

    def work(together):
        first, stop = owned(2, together.rank, together.world)
        rows = Rows(first, weight_CH[first:stop], bias_C[first:stop])
        batch = Gathered(*few[2:])
        return loss_and_gradients(batch, rows, all_classes(batch, rows, 4), lambda *_: None, together)

    for loss, gradient_BH in on_threads(work, 3):
        torch.testing.assert_close(loss, dense(*few)[0])
        torch.testing.assert_close(gradient_BH, dense(*few)[1])


def test_the_sampled_sum_of_exponentials_is_without_bias():
    """Given targets and hard negatives, over many draws: the mean sum over classes is that of all classes."""
    weight_CH, bias_C, embedded_BH, target_BT, _ = case()
    rows, batch = Rows(0, weight_CH, bias_C), Gathered(embedded_BH, target_BT, torch.ones(IMAGES, 1))
    exact_B = (embedded_BH @ weight_CH.T + bias_C).exp().sum(1)
    draws = []
    for seed in range(4000):
        (block,) = sampled_classes(batch, rows, 5, np.random.default_rng(seed), np.array([4, 5]))()
        logit_BK = embedded_BH @ weight_CH[block.rows].T + bias_C[block.rows] + block.log_count_K
        draws.append(logit_BK.exp().sum(1))
    draws_SB = torch.stack(draws)
    error_B = draws_SB.std(0) / len(draws) ** 0.5
    assert ((draws_SB.mean(0) - exact_B).abs() < 4.5 * error_B).all()


@settings(max_examples=60, deadline=None)
@given_by(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_no_class_is_twice_among_the_sampled_and_every_target_is_there_once(classes, negatives, seed):
    rng = np.random.default_rng(seed)
    target_BT = torch.from_numpy(rng.integers(0, classes, (5, 2)))
    rows = Rows(0, torch.zeros(classes, 2), torch.zeros(classes))
    batch = Gathered(torch.zeros(5, 2), target_BT, torch.ones(5, 2))
    (block,) = sampled_classes(batch, rows, negatives, rng)()
    assert len(set(block.rows.tolist())) == len(block.rows)
    assert torch.equal(block.rows[block.place_BT], target_BT)


def test_memory_of_the_exact_mode_does_not_grow_with_the_number_of_classes():
    batch = Gathered(torch.randn(64, 8), torch.randint(0, 20_000, (64, 1)), torch.ones(64, 1))
    rows = Rows(0, torch.randn(20_000, 8), torch.zeros(20_000))
    largest = []

    def update(at, gradient_KH, gradient_K):
        largest.append(len(gradient_K))

    loss_and_gradients(batch, rows, all_classes(batch, rows, 512), update, Alone())
    assert max(largest) == 512
    assert sum(largest) == 20_000
