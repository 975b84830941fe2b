"""Discriminative reconstruction (Xia et al. 2015, "Learning Discriminative Reconstructions for Unsupervised Outlier
Removal"): an autoencoder that learns to rebuild the images of a class so that inliers' and outliers' errors part.

Alternating: the errors are split in two where the sum of squares within is smallest; then the autoencoder takes a step
on the inliers' mean error + LAMBDA * (squares within the two groups / squares of all errors).

# N images, M images that it is fitted on, D feature width
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cleanscale.maths.two_groups import best_split

WIDTHS = (64, 16)
LAMBDA = 0.1
STEPS = 150
PLAIN_STEPS = 30  # at first all images count as inliers: errors of an untrained network tell nothing
LEARNING_RATE = 3e-3
ALIKE = 1.001  # errors that differ by less than this factor are noise: images that are all alike are all inliers


def log_error_below_split(fitted_MD: np.ndarray, query_ND: np.ndarray, seed: int) -> np.ndarray:
    """float32 [N]: log(split / error of each query image): positive for inliers. Fitted on the M images."""
    scale = float(np.sqrt(np.mean(np.square(fitted_MD)))) or 1.0
    fitted = torch.from_numpy(np.asarray(fitted_MD, np.float32) / scale)
    model = _fit(fitted, seed)
    with torch.inference_mode():
        error_M = _errors(model, fitted).numpy()
        split = max(best_split(error_M), float(error_M.min()) * ALIKE)
        error_N = _errors(model, torch.from_numpy(np.asarray(query_ND, np.float32) / scale)).numpy()
    return np.log(max(split, 1e-12) / np.maximum(error_N, 1e-12)).astype(np.float32)


def _fit(fitted: torch.Tensor, seed: int) -> nn.Module:
    model = _autoencoder(fitted.shape[1], seed)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    for step in range(STEPS):
        error_M = _errors(model, fitted)
        loss = error_M.mean() if step < PLAIN_STEPS else _discriminative_loss(error_M)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _discriminative_loss(error_M: torch.Tensor) -> torch.Tensor:
    inlier_M = error_M <= best_split(error_M.detach().numpy())
    groups = [error_M[inlier_M], error_M[~inlier_M]]
    within = sum((group - group.mean()).square().sum() for group in groups if len(group))
    whole = (error_M - error_M.mean()).square().sum()
    return groups[0].mean() + LAMBDA * within / whole.clamp_min(1e-12)


def _errors(model: nn.Module, feature_ND: torch.Tensor) -> torch.Tensor:
    """[N]: mean squared difference of each image and what the network makes of it."""
    return (model(feature_ND) - feature_ND).square().mean(dim=1)


def _autoencoder(width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide, narrow = (min(w, width) for w in WIDTHS)
        return nn.Sequential(
            *(nn.Linear(width, wide), nn.Tanh(), nn.Linear(wide, narrow), nn.Tanh()),
            *(nn.Linear(narrow, wide), nn.Tanh(), nn.Linear(wide, width)),
        )
