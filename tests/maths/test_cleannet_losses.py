import math

import numpy as np
import pytest
import torch

from cleanscale.maths import cleannet_losses as losses

VERIFIED = [1, 0, -1, -1, 1, 0, -1]


@pytest.fixture
def batch():
    """7 queries of 3 classes: inputs, reconstructions, query and class embeddings, own class, verification."""
    torch.manual_seed(0)
    return (
        torch.randn(7, 5, dtype=torch.float64),
        torch.randn(7, 5, dtype=torch.float64),
        torch.randn(7, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(3, 4, dtype=torch.float64, requires_grad=True),
        torch.tensor([0, 0, 1, 1, 2, 2, 2]),
        torch.tensor(VERIFIED),
    )


def slow_cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_total(batch, weights):
    """Eq. 5-10 and the contrastive term, one query at a time in plain Python."""
    inputs, outputs, queries, classes, own, verified = [t.tolist() for t in batch]
    total = 0.0
    for v, r, q, c, label in zip(inputs, outputs, queries, own, verified, strict=True):
        cosine = slow_cosine(q, classes[c])
        square = sum((a - b) ** 2 for a, b in zip(v, r, strict=True))
        total += weights.beta * (square if weights.reconstruction == "sum" else square / len(v))
        if label == 1:
            total += 1 - cosine
        if label == 0:
            total += weights.omega * max(0.0, cosine - weights.rho)
        if label == -1 and cosine >= weights.rho:
            total += weights.gamma * (1 - cosine)
        if label != 0:
            score = [math.exp(weights.temperature * slow_cosine(q, s)) for s in classes]
            p, r = score[c] / sum(score), weights.robustness
            total += weights.contrastive * ((1 - p**r) / r if r else -math.log(p))
    return total / len(own)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("contrastive", "robustness"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.8), (0.7, 1.0)])
def test_total_loss_is_the_paper_s(batch, reduction, contrastive, robustness):
    weights = losses.Weights(0.3, 0.2, 0.1, 5.0, contrastive, 10.0, robustness, reduction)
    inputs, outputs, queries, classes, own, verified = batch
    total, terms = losses.total_loss(inputs, outputs, losses.cosines(queries, classes), own, verified, weights)
    assert total.item() == pytest.approx(slow_total(batch, weights), rel=1e-6)
    assert ("contrastive" in terms) == (contrastive > 0)


def test_each_term_by_hand():
    cosine = torch.tensor([0.6, 0.6, 0.6, 0.05, -0.5, 0.1])
    verified = torch.tensor([1, 0, -1, 0, 1, -1])
    supervised = losses.supervised_loss(cosine, verified, omega=5.0, rho=0.1)
    np.testing.assert_allclose(supervised, [0.4, 2.5, 0, 0, 1.5, 0], atol=1e-6)
    reinforcing = losses.self_reinforcing_loss(cosine, rho=0.1)
    np.testing.assert_allclose(reinforcing, [0.4, 0.4, 0.4, 0, 0, 0.9], atol=1e-6)
    v, r = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert losses.reconstruction_loss(v, r).tolist() == [5.0]
    assert losses.reconstruction_loss(v, r, "mean").tolist() == [2.5]


def test_wrong_queries_teach_no_class():
    cosine = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    loss = losses.class_contrastive_loss(cosine, torch.tensor([0, 0]), torch.tensor([0, -1]), 10.0)
    assert loss[0] == 0
    assert loss[1].item() == pytest.approx(math.log(1 + math.exp(-8)), rel=1e-4)


@pytest.mark.parametrize("robustness", [0.0, 0.8])
@pytest.mark.parametrize("seen", [[1] * 7, [0] * 7, [-1] * 7, VERIFIED])
def test_gradients_are_finite_whatever_is_verified(batch, seen, robustness):
    inputs, outputs, queries, classes, own, _ = batch
    with torch.no_grad():
        queries[0] = 0  # an embedding without direction
    weights = losses.Weights(0.1, 0.1, 0.1, 5.0, 1.0, 10.0, robustness, "mean")
    cosine = losses.cosines(queries, classes)
    losses.total_loss(inputs, outputs, cosine, own, torch.tensor(seen), weights)[0].backward()
    assert torch.isfinite(queries.grad).all()
    assert torch.isfinite(classes.grad).all()


def test_cosines_are_cosines(batch):
    _, _, queries, classes, _, _ = batch
    expected = [[slow_cosine(q, s) for s in classes.tolist()] for q in queries.tolist()]
    np.testing.assert_allclose(losses.cosines(queries, classes).detach(), expected, rtol=1e-6)
