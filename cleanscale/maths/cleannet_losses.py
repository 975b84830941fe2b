"""CleanNet's losses (Eq. 5-10) and the class-contrastive term, each per query, as pure functions of tensors.

# Q queries, S classes of the batch, D features, E embedding. verified: 1 right, 0 wrong, -1 unseen (Eq. 1)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from cleanscale.schema import UNSEEN, WRONG


class Weights(NamedTuple):
    """What multiplies the terms of the total loss (Eq. 9), and their constants."""

    beta: float  # reconstruction
    gamma: float  # self-reinforcing
    rho: float  # margin of both cosine losses
    omega: float  # wrong queries
    contrastive: float
    temperature: float  # cosines are multiplied by it before the softmax over classes
    robustness: float  # of the contrastive term: 0 cross-entropy ... 1 absolute error
    reconstruction: Literal["sum", "mean"]  # over features


def cosines(query_QE: torch.Tensor, class_SE: torch.Tensor) -> torch.Tensor:
    """[Q, S] cosine of every query embedding to every class embedding; 0 for an embedding of zeros."""
    return F.normalize(query_QE, dim=1, eps=1e-6) @ F.normalize(class_SE, dim=1, eps=1e-6).T


def reconstruction_loss(
    input_QD: torch.Tensor, output_QD: torch.Tensor, reduction: Literal["sum", "mean"] = "sum"
) -> torch.Tensor:
    """[Q] Eq. 5: squared distance of a query's feature to its reconstruction ("mean": divided by D)."""
    square_QD = (input_QD - output_QD).square()
    return square_QD.sum(dim=1) if reduction == "sum" else square_QD.mean(dim=1)


def supervised_loss(cosine_Q: torch.Tensor, verified_Q: torch.Tensor, omega: float, rho: float) -> torch.Tensor:
    """[Q] Eq. 6: 1 - cos for right queries, omega * max(0, cos - rho) for wrong ones, 0 for unseen ones."""
    wrong_Q = omega * (cosine_Q - rho).clamp_min(0)
    loss_Q = torch.where(verified_Q == WRONG, wrong_Q, 1 - cosine_Q)
    return torch.where(verified_Q == UNSEEN, torch.zeros_like(loss_Q), loss_Q)


def self_reinforcing_loss(cosine_Q: torch.Tensor, rho: float) -> torch.Tensor:
    """[Q] Eq. 7-8: 1 - cos where cos >= rho, otherwise 0. Meant for unseen queries; Eq. 10 is in `total_loss`."""
    return torch.where(cosine_Q >= rho, 1 - cosine_Q, torch.zeros_like(cosine_Q))


def class_contrastive_loss(
    cosine_QS: torch.Tensor, own_Q: torch.Tensor, verified_Q: torch.Tensor, temperature: float, robustness: float = 0.0
) -> torch.Tensor:
    """[Q] (1 - p^r) / r for robustness r, -log p for 0: p = softmax of `temperature` * cosine over the batch's classes,
    at the query's own class `own_Q`. 0 for queries known to be wrong.

    It needs no verification: every class teaches the encoders, which the published losses do not give when few classes
    are verified. The labels it believes are noisy, hence the generalised cross-entropy (Zhang and Sabuncu 2018), which
    lets go of queries that the model thinks belong elsewhere.
    """
    log_p_Q = F.log_softmax(temperature * cosine_QS, dim=1).gather(1, own_Q[:, None])[:, 0]
    loss_Q = -log_p_Q if robustness == 0 else -torch.expm1(robustness * log_p_Q) / robustness
    return torch.where(verified_Q == WRONG, torch.zeros_like(loss_Q), loss_Q)


def total_loss(
    input_QD: torch.Tensor,
    output_QD: torch.Tensor,
    cosine_QS: torch.Tensor,
    own_Q: torch.Tensor,
    verified_Q: torch.Tensor,
    weights: Weights,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Eq. 9-10, mean over queries, plus the class-contrastive term; and the mean of each term before its weight."""
    cosine_Q = cosine_QS.gather(1, own_Q[:, None])[:, 0]
    unseen_Q = verified_Q == UNSEEN
    terms = {
        "supervised": supervised_loss(cosine_Q, verified_Q, weights.omega, weights.rho).mean(),
        "reconstruction": reconstruction_loss(input_QD, output_QD, weights.reconstruction).mean(),
        "self_reinforcing": (self_reinforcing_loss(cosine_Q, weights.rho) * unseen_Q).mean(),
    }
    total = terms["supervised"] + weights.beta * terms["reconstruction"] + weights.gamma * terms["self_reinforcing"]
    if weights.contrastive > 0:
        terms["contrastive"] = class_contrastive_loss(
            cosine_QS, own_Q, verified_Q, weights.temperature, weights.robustness
        ).mean()
        total = total + weights.contrastive * terms["contrastive"]
    return total, terms
