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

BLOCK_IMAGES, BLOCK_CLASSES, CHUNK_CLASSES = 16384, 65536, 8192
STANDARDISED_IMAGES = 1 << 20  # of all workers: the mean and the spread of more differ in the third digit
PROBED_IMAGES = 512  # of all workers
ALONE = 1e-3  # of a class's weight: an image that leaves less says nothing of the others
SCALES = tuple(2.0**-k for k in range(-1, 6))  # tried first; then steps between the best and its neighbours
FINER = tuple(2.0 ** (k / 4) for k in range(-3, 4))


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
    sums_X = together.sum(sums_X)
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
        sums_XH = torch.zeros(end - start, width + 1, dtype=torch.float64, device=device)
        for feature_XD, target_X, weight_X in data.of_classes(start, end, BLOCK_IMAGES):
            embedded_XH = torch.nn.functional.pad(layers.embed(feature_XD.to(device)), (0, 1), value=1.0)
            weighted_XH = embedded_XH * weight_X.to(device)[:, None]
            sums_XH.index_add_(0, target_X.to(device) - start, weighted_XH.double())
            moment_HH += (embedded_XH[:, :-1].T @ weighted_XH[:, :-1]).double()
        sums_XH = together.sum(sums_XH)
        count_X = sums_XH[:, -1].clamp_min(1e-12)
        between_HH += sums_XH[:, :-1].T @ (sums_XH[:, :-1] / count_X[:, None])
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

    A class without images gets a row of zeros and the bias of a mean class without them.
    """
    means = class_means(layers, data, num_classes, together)
    mean_RH = means.mean_RH
    weight_RH = mean_RH @ means.precision_HH
    square_R = (weight_RH * mean_RH).sum(1)
    has_R = means.weight_R > 0
    sums = together.sum(torch.stack([square_R.sum(), has_R.sum().float()]))
    square_R = torch.where(has_R, square_R, sums[0] / sums[1].clamp_min(1))
    unscaled = Rows(means.first, weight_RH, -square_R / 2)
    prior_R = (means.weight_R + _pseudo_images(means.weight_R, num_classes, together)).log()
    probe = _Probe(means, unscaled, prior_R, *_probed(layers, data, together), together)
    scale = probe.best(SCALES)
    scale = probe.best(tuple(scale * finer for finer in FINER))
    bias_R = scale * (unscaled.bias_R - weight_RH @ means.centre_H) + prior_R
    return Rows(means.first, weight_RH.mul_(scale), bias_R), means.precision_HH


def _pseudo_images(weight_R: torch.Tensor, num_classes: int, together: Collectives) -> float:
    """What to add to the number of images of a class before it counts as how frequent the class is.

    Numbers that vary no more than by chance (Poisson) say nothing, those of a long tail everything: the posterior mean
    under the Gamma distribution of frequencies that has the numbers' mean and variance.
    """
    moments = together.sum(torch.stack([weight_R.sum(dtype=torch.float64), weight_R.double().square().sum()]))
    mean, square = (moments / num_classes).tolist()
    return min(1e6, max(0.5, mean**2 / max(square - mean**2 - mean, 1e-9)))


@dataclass
class _Probe:
    """Some images, to choose a scale by: exact, over all classes in chunks, each image without its part in its class.

    Images that are alone in their class say nothing and are left out.
    """

    means: ClassMeans
    unscaled: Rows
    prior_R: torch.Tensor
    embedded_BH: torch.Tensor
    target_B: torch.Tensor
    weight_B: torch.Tensor
    together: Collectives

    def best(self, scales: tuple[float, ...]) -> float:
        """The scale with the lowest weighted cross-entropy."""
        own_SB, used_B = self.own_logits(scales)
        log_sum_SB = self.others(scales)
        highest_SB = self.together.maximum(log_sum_SB)
        log_sum_SB = self.together.sum((log_sum_SB - highest_SB).exp()).log() + highest_SB
        loss_SB = torch.logaddexp(log_sum_SB, own_SB) - own_SB
        used_B &= self.weight_B > 0
        return scales[int((loss_SB * self.weight_B)[:, used_B].sum(1).argmin())] if used_B.any() else 1.0

    def others(self, scales: tuple[float, ...]) -> torch.Tensor:
        """Log of the sum of exponentials [S, B] over this worker's classes but each image's own."""
        centred_BH = self.embedded_BH - self.means.centre_H
        log_sum_SB = centred_BH.new_full((len(scales), len(centred_BH)), -1e30)
        for start in range(0, len(self.prior_R), CHUNK_CLASSES):
            rows = slice(start, start + CHUNK_CLASSES)
            logit_BK = torch.addmm(self.unscaled.bias_R[rows], centred_BH, self.unscaled.weight_RH[rows].T)
            place_B = self.target_B - self.unscaled.first - start
            here_X = ((place_B >= 0) & (place_B < logit_BK.shape[1])).nonzero()[:, 0]
            logit_BK[here_X, place_B[here_X]] = -torch.inf
            for s, scale in enumerate(scales):
                sum_B = torch.logsumexp(scale * logit_BK + self.prior_R[rows], dim=1)
                log_sum_SB[s] = torch.logaddexp(log_sum_SB[s], sum_B)
        return log_sum_SB

    def own_logits(self, scales: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits [S, B] of the own classes from their other images, which images have such), over all workers."""
        means = self.means
        own_B = (self.target_B >= self.unscaled.first) & (self.target_B < self.unscaled.stop)
        row_X = self.target_B[own_B] - self.unscaled.first
        embedded_XH, weight_X = self.embedded_BH[own_B], self.weight_B[own_B]
        left_X = means.weight_R[row_X] - weight_X
        rest_XH = means.sum_RH[row_X] - weight_X[:, None] * embedded_XH
        mean_XH = rest_XH / left_X.clamp_min(1e-6)[:, None] - means.centre_H
        towards_XH = mean_XH @ means.precision_HH
        logit_X = (towards_XH * (embedded_XH - means.centre_H)).sum(1) - (towards_XH * mean_XH).sum(1) / 2
        found_SB = embedded_XH.new_zeros(len(scales) + 1, len(own_B))
        scale_S1 = torch.tensor(scales, device=found_SB.device)[:, None]
        found_SB[:-1, own_B] = scale_S1 * logit_X + self.prior_R[row_X]
        found_SB[-1, own_B] = (left_X < ALONE * means.weight_R[row_X]).float()
        found_SB = self.together.sum(found_SB)
        return found_SB[:-1], found_SB[-1] == 0


def _probed(
    layers: Layers, data: StreamedFeatures, together: Collectives
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(embeddings, targets, weights) of evenly spaced images of all workers."""
    most = -(-PROBED_IMAGES // together.world)
    device = layers.mean_D.device
    embedded_BH = torch.zeros(most, layers.width, device=device)
    target_B = torch.full((most,), -1, device=device)
    weight_B = torch.zeros(most, device=device)
    start = 0
    for feature_XD, target_X, weight_X in data.evenly(most, BLOCK_IMAGES):
        stop = start + len(target_X)
        embedded_BH[start:stop] = layers.embed(feature_XD.to(device))
        target_B[start:stop], weight_B[start:stop] = target_X.to(device), weight_X.to(device)
        start = stop
    embedded_BH, target_B, weight_B = (together.gather(x_B) for x_B in (embedded_BH, target_B, weight_B))
    there_B = target_B >= 0
    return embedded_BH[there_B], target_B[there_B], weight_B[there_B]
