"""Where a head with very many classes begins: Gaussian classes of one covariance, from sums over the images.

Twenty images of a class and one or two passes are too few for random rows to learn from. The best linear classifier of
Gaussian classes with a common covariance S needs no descent: row S^-1 m_c, bias -m_c S^-1 m_c / 2 + log n_c. Labels
are wrong and means of few images are rough, so the rows are multiplied by one number: that which explains the labels of
some images best when each of them is taken out of the mean of its own class.

# N images of this worker, X images of a block, D feature width, H embedding width, R rows of this worker, S scales
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cleanscale.models.heads import Layers
from cleanscale.training.collectives import Collectives
from cleanscale.training.sharded_softmax import Rows, owned
from cleanscale.training.streamed_features import StreamedFeatures

BLOCK_IMAGES, BLOCK_CLASSES = 16384, 65536
STANDARDISED_IMAGES = 1 << 20  # of all workers: the mean and the spread of more differ in the third digit
PROBED_IMAGES = 512  # of all workers
SCALES = tuple(2.0 ** (-k / 2) for k in range(-1, 13))


@torch.no_grad()
def standardise(layers: Layers, data: StreamedFeatures, together: Collectives) -> None:
    """Mean and one spread for all features (see `training/heads.py`), from evenly spaced images."""
    width = layers.mean_D.shape[0]
    sums_X = torch.zeros(2 * width + 1, dtype=torch.float64)
    for feature_XD, _, _ in data.evenly(-(-STANDARDISED_IMAGES // together.world), BLOCK_IMAGES):
        feature_XD = feature_XD.double()
        sums_X[:width] += feature_XD.sum(0)
        sums_X[width:-1] += feature_XD.square().sum(0)
        sums_X[-1] += len(feature_XD)
    sums_X = together.sum(sums_X.to(layers.mean_D.device)) if together.world > 1 else sums_X
    mean_D, square_D = sums_X[:width] / sums_X[-1], sums_X[width:-1] / sums_X[-1]
    spread_D = (square_D - mean_D.square()).clamp_min(0).sqrt()
    layers.mean_D.copy_(mean_D)
    layers.scale_D.fill_(float(1 / spread_D.square().mean().sqrt().clamp_min(1e-6)))


@dataclass
class ClassMeans:
    """Of the classes of one worker: sums over all workers' images, and the inverse of the common covariance."""

    first: int
    sum_RH: torch.Tensor
    weight_R: torch.Tensor  # sum of the images' weights
    centre_H: torch.Tensor
    precision_HH: torch.Tensor

    @property
    def mean_RH(self) -> torch.Tensor:
        """Centred; zeros for a class without images."""
        has_R1 = (self.weight_R > 0)[:, None]
        return torch.where(has_R1, self.sum_RH / self.weight_R.clamp_min(1e-12)[:, None] - self.centre_H, 0.0)


@torch.no_grad()
def class_means(layers: Layers, data: StreamedFeatures, num_classes: int, together: Collectives) -> ClassMeans:
    """Every worker goes through its own images by class; the sums of a range of classes are added up over workers."""
    first, stop = owned(num_classes, together.rank, together.world)
    device, width = layers.mean_D.device, layers.width
    sum_RH = torch.zeros(stop - first, width, device=device)
    weight_R = torch.zeros(stop - first, device=device)
    moment_HH = torch.zeros(width, width, dtype=torch.float64, device=device)
    between_HH = torch.zeros_like(moment_HH)
    for start in range(0, num_classes, BLOCK_CLASSES):
        end = min(start + BLOCK_CLASSES, num_classes)
        # The last column counts: one exchange for a range of classes.
        sums_XH = torch.zeros(end - start, width + 1, device=device)
        for feature_XD, target_X, weight_X in data.of_classes(start, end, BLOCK_IMAGES):
            embedded_XH = torch.nn.functional.pad(layers.embed(feature_XD.to(device)), (0, 1), value=1.0)
            weighted_XH = embedded_XH * weight_X.to(device)[:, None]
            sums_XH.index_add_(0, target_X.to(device) - start, weighted_XH)
            moment_HH += (embedded_XH[:, :-1].T @ weighted_XH[:, :-1]).double()
        sums_XH = together.sum(sums_XH)
        count_X = sums_XH[:, -1].clamp_min(1e-12)
        between_HH += (sums_XH[:, :-1].T @ (sums_XH[:, :-1] / count_X[:, None])).double()
        low, high = max(first, start), min(stop, end)
        if low < high:
            sum_RH[low - first : high - first] = sums_XH[low - start : high - start, :-1]
            weight_R[low - first : high - first] = sums_XH[low - start : high - start, -1]
    totals_X = together.sum(torch.cat([sum_RH.sum(0).double(), weight_R.sum().double()[None]]))
    classes = together.sum((weight_R > 0).sum().double()[None])
    # As unbiased as can be: a class takes one degree of freedom of its images.
    freedom = (totals_X[-1] - classes).clamp_min(1.0)
    within_HH = (together.sum(moment_HH) - between_HH) / freedom
    ridge = within_HH.trace() / width * 1e-3 + 1e-6  # a feature that never varies has no inverse
    precision_HH = torch.linalg.inv(within_HH + ridge * torch.eye(width, dtype=torch.float64, device=device))
    centre_H = totals_X[:-1] / totals_X[-1]
    return ClassMeans(first, sum_RH, weight_R, centre_H.float(), precision_HH.float())


@torch.no_grad()
def rows_of_means(
    layers: Layers, data: StreamedFeatures, num_classes: int, together: Collectives
) -> tuple[Rows, torch.Tensor]:
    """(this worker's rows, the precision [H, H] of images around their class).

    A class without images gets a row of zeros and the bias of a mean class with half an image.
    """
    means = class_means(layers, data, num_classes, together)
    mean_RH = means.mean_RH
    weight_RH = mean_RH @ means.precision_HH
    square_R = (weight_RH * mean_RH).sum(1)
    has_R = means.weight_R > 0
    sums = together.sum(torch.stack([square_R.sum(), has_R.sum().float()]))
    square_R = torch.where(has_R, square_R, sums[0] / sums[1].clamp_min(1))
    unscaled = Rows(means.first, weight_RH, -square_R / 2)
    prior_R = (means.weight_R + 0.5).log()
    scale = _best_scale(layers, data, means, unscaled, prior_R, together)
    bias_R = scale * (unscaled.bias_R - weight_RH @ means.centre_H) + prior_R
    return Rows(means.first, weight_RH.mul_(scale), bias_R), means.precision_HH


def _best_scale(
    layers: Layers,
    data: StreamedFeatures,
    means: ClassMeans,
    unscaled: Rows,
    prior_R: torch.Tensor,
    together: Collectives,
) -> float:
    """The scale with the lowest cross-entropy on some images, each without its own part in its class's mean.

    Exact, over all classes in chunks. Images that are alone in their class say nothing and are left out.
    """
    embedded_BH, target_B = _probed(layers, data, together)
    if not len(target_B):
        return 1.0
    centred_BH = embedded_BH - means.centre_H
    log_sum_SB = centred_BH.new_full((len(SCALES), len(target_B)), -1e30)
    own_B = (target_B >= unscaled.first) & (target_B < unscaled.stop)
    for rows in torch.arange(len(prior_R), device=target_B.device).split(8192):
        logit_BK = torch.addmm(unscaled.bias_R[rows], centred_BH, unscaled.weight_RH[rows].T)
        place_B = target_B - unscaled.first - int(rows[0])
        here_X = ((place_B >= 0) & (place_B < len(rows))).nonzero()[:, 0]
        logit_BK[here_X, place_B[here_X]] = -torch.inf  # its own class comes below, without the image itself
        for s, scale in enumerate(SCALES):
            sum_B = torch.logsumexp(scale * logit_BK + prior_R[rows], dim=1)
            log_sum_SB[s] = torch.logaddexp(log_sum_SB[s], sum_B)
    row_X = target_B[own_B] - unscaled.first
    left_X = means.weight_R[row_X] - 1
    mean_XH = (means.sum_RH[row_X] - embedded_BH[own_B]) / left_X.clamp_min(1e-6)[:, None] - means.centre_H
    towards_XH = mean_XH @ means.precision_HH
    logit_X = (towards_XH * centred_BH[own_B]).sum(1) - (towards_XH * mean_XH).sum(1) / 2
    scale_S1 = torch.tensor(SCALES, device=target_B.device)[:, None]
    own_SB = torch.zeros_like(log_sum_SB)
    own_SB[:, own_B] = scale_S1 * logit_X + prior_R[row_X]
    alone_B = torch.zeros_like(centred_BH[:, 0])
    alone_B[own_B] = (left_X < 0.5).float()
    sums_B = together.sum(torch.cat([own_SB, alone_B[None]]))
    own_SB, used_B = sums_B[:-1], sums_B[-1] == 0
    highest_SB = together.maximum(log_sum_SB)
    log_sum_SB = together.sum((log_sum_SB - highest_SB).exp()).log() + highest_SB
    loss_SB = torch.logaddexp(log_sum_SB, own_SB) - own_SB
    return SCALES[int(loss_SB[:, used_B].mean(1).argmin())] if used_B.any() else 1.0


def _probed(layers: Layers, data: StreamedFeatures, together: Collectives) -> tuple[torch.Tensor, torch.Tensor]:
    """(embeddings, targets) of evenly spaced images of all workers."""
    most = -(-PROBED_IMAGES // together.world)
    device = layers.mean_D.device
    embedded_BH = torch.zeros(most, layers.width, device=device)
    target_B = torch.full((most,), -1, device=device)
    start = 0
    for feature_XD, target_X, _ in data.evenly(most, BLOCK_IMAGES):
        stop = start + len(target_X)
        embedded_BH[start:stop] = layers.embed(feature_XD.to(device))
        target_B[start:stop] = target_X.to(device)
        start = stop
    embedded_BH, target_B = together.gather(embedded_BH), together.gather(target_B)
    return embedded_BH[target_B >= 0], target_B[target_B >= 0]
