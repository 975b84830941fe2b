"""Logistic models: from scores to probabilities.

# N images, S signals
"""

from __future__ import annotations

import numpy as np


def sigmoid(logit_N: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logit)), without overflow."""
    return np.exp(-np.logaddexp(0, -np.asarray(logit_N, np.float64)))


def fit_logistic(
    value_NS: np.ndarray,
    right_N: np.ndarray,
    *,
    penalty: float,
    offset_N: np.ndarray | None = None,
    prior_count: float = 1.0,
    iterations: int = 50,
) -> tuple[np.ndarray, float]:
    """(coefficient_S, intercept) of P(right) = sigmoid(offset + value . coefficient + intercept), by Newton's method.

    Minimises the sum of negative log-likelihoods + penalty / 2 * |coefficient|^2. `offset_N` is what is believed
    beforehand. `prior_count` made-up images at offset 0, half of them right, keep the intercept finite when all labels
    are right or all are wrong. The problem is strictly convex: the answer does not depend on a start.
    """
    x_NS = np.concatenate([np.asarray(value_NS, np.float64), np.ones((len(right_N), 1))], axis=1)
    offset_N = np.zeros(len(right_N)) if offset_N is None else np.asarray(offset_N, np.float64)
    right_N = np.asarray(right_N, np.float64)
    penalty_S = np.append(np.full(x_NS.shape[1] - 1, penalty), 0.0)
    w_S = np.zeros(x_NS.shape[1])
    value = _objective(w_S, x_NS, right_N, offset_N, penalty_S, prior_count)
    for _ in range(iterations):
        probability_N = sigmoid(offset_N + x_NS @ w_S)
        gradient_S = x_NS.T @ (probability_N - right_N) + penalty_S * w_S
        hessian_SS = (x_NS * (probability_N * (1 - probability_N))[:, None]).T @ x_NS + np.diag(penalty_S)
        prior = float(sigmoid(w_S[-1]))
        gradient_S[-1] += prior_count * (prior - 0.5)
        hessian_SS[-1, -1] += prior_count * prior * (1 - prior)
        step_S = np.linalg.solve(hessian_SS + 1e-9 * np.eye(len(w_S)), gradient_S)
        w_S, value, moved = _line_search(w_S, step_S, value, x_NS, right_N, offset_N, penalty_S, prior_count)
        if moved < 1e-7:
            break
    return w_S[:-1], float(w_S[-1])


def _objective(w_S, x_NS, right_N, offset_N, penalty_S, prior_count) -> float:
    logit_N = offset_N + x_NS @ w_S
    likelihood = np.logaddexp(0, logit_N).sum() - right_N @ logit_N
    prior = prior_count * (np.logaddexp(0, w_S[-1]) - 0.5 * w_S[-1])
    return float(likelihood + prior + 0.5 * penalty_S @ w_S**2)


def _line_search(w_S, step_S, value, *rest) -> tuple[np.ndarray, float, float]:
    """(new weights, their objective, largest change): the Newton step, halved until the objective does not rise."""
    size = 1.0
    for _ in range(30):
        new_S = w_S - size * step_S
        new = _objective(new_S, *rest)
        if new <= value:
            return new_S, new, float(np.abs(size * step_S).max())
        size /= 2
    return w_S, value, 0.0


def fit_platt(score_N: np.ndarray, right_N: np.ndarray) -> tuple[float, float]:
    """(slope, intercept): P(right) = sigmoid(slope * score + intercept); the slope is never negative.

    Fitted with the made-up images of `fit_logistic`, so one label is enough; without any it is (1, 0).
    """
    if len(score_N) == 0:
        return 1.0, 0.0
    score_N = np.asarray(score_N, np.float64)
    centre, spread = float(score_N.mean()), max(float(score_N.std()), 1e-9)
    coefficient_S, intercept = fit_logistic(((score_N - centre) / spread)[:, None], right_N, penalty=0.1)
    slope = max(float(coefficient_S[0]), 0.0) / spread
    return slope, intercept - slope * centre
