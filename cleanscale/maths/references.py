"""Reference sets: the K vectors that stand for a class (CleanNet section 3.1), as ragged arrays.

k-means of many small problems. X X^T is computed once per class; k-means++ seeding and every Lloyd iteration then work
on that Gram matrix, so that an iteration costs what the images that changed their cluster cost, whatever D is. Classes
are computed in batches only to share the interpreter's overhead: every number depends on its own class alone.

# M vectors of all classes, N images, C classes, B classes of a batch, K references per class, D features, T trials
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from cleanscale.errors import ConfigError, DataError
from cleanscale.maths.keyed_random import Purpose, hash_rows

PAD = 16  # images of a class are padded to a multiple of this, so that classes of nearly one size share a batch
BATCH_BYTES = 6 << 20  # Gram matrices of one batch: about what stays in cache
TRIALS = 6  # candidates of each round of greedy k-means++
PICKED = 3  # of which so many become seeds


@dataclass(frozen=True)
class ReferenceSets:
    """Reference vectors of C classes. Class `label_C[i]` has rows `offset_C1[i] : offset_C1[i + 1]` of `vector_MD`."""

    label_C: np.ndarray  # int32, sorted, each once
    offset_C1: np.ndarray  # int64 [C + 1]
    vector_MD: np.ndarray  # float32
    count_M: np.ndarray  # int32: images that each vector stands for
    nearest_row_M: np.ndarray | None = None  # int64: row of the image nearest each vector

    def __len__(self) -> int:
        return len(self.label_C)

    def position(self, label_N: np.ndarray) -> np.ndarray:
        """int64 [N]: where each label stands in `label_C`; -1 for classes without references."""
        label_N = np.asarray(label_N)
        if len(self.label_C) == 0:
            return np.full(len(label_N), -1, np.int64)
        at_N = np.minimum(np.searchsorted(self.label_C, label_N), len(self.label_C) - 1)
        return np.where(self.label_C[at_N] == label_N, at_N, -1)

    def of(self, label: int) -> np.ndarray:
        """float32 [k, D] of one class; no rows when the class has no references."""
        at = int(self.position(np.array([label]))[0])
        return self.vector_MD[:0] if at < 0 else self.vector_MD[self.offset_C1[at] : self.offset_C1[at + 1]]

    def select(self, label_S: np.ndarray) -> ReferenceSets:
        """The sets of these classes (sorted, each once); classes without references are left out."""
        at_S = self.position(np.unique(label_S))
        at_S = at_S[at_S >= 0]
        size_S = np.diff(self.offset_C1)[at_S]
        offset_S1 = np.concatenate([[0], np.cumsum(size_S)]).astype(np.int64)
        row_M = np.repeat(self.offset_C1[at_S] - offset_S1[:-1], size_S) + np.arange(offset_S1[-1])
        nearest = None if self.nearest_row_M is None else self.nearest_row_M[row_M]
        return ReferenceSets(self.label_C[at_S], offset_S1, self.vector_MD[row_M], self.count_M[row_M], nearest)

    def mean_CD(self) -> np.ndarray:
        """float32 [C, D]: mean of each class's images (references weighted by the images they stand for)."""
        if len(self.label_C) == 0:
            return np.zeros((0, self.vector_MD.shape[1]), np.float32)
        weight_M = self.count_M.astype(np.float64)
        start_C = self.offset_C1[:-1]
        total_CD = np.add.reduceat(self.vector_MD * weight_M[:, None], start_C, axis=0)
        return (total_CD / np.add.reduceat(weight_M, start_C)[:, None]).astype(np.float32)

    @staticmethod
    def concatenate(parts: list[ReferenceSets]) -> ReferenceSets:
        """The sets of several shards as one. Raises DataError when a class stands in two of them."""
        if not parts:
            raise DataError("found no reference sets to put together; expected at least one shard's")
        label_C = np.concatenate([p.label_C for p in parts])
        twice = np.flatnonzero(np.bincount(np.unique(label_C, return_inverse=True)[1]) > 1)
        if len(twice):
            raise DataError(
                f"found class {np.unique(label_C)[twice[0]]} in two reference sets; expected each class in one shard; "
                "make references of all images of a class in one call"
            )
        size_C = np.concatenate([np.diff(p.offset_C1) for p in parts])
        nearest = [p.nearest_row_M for p in parts if p.nearest_row_M is not None]
        together = ReferenceSets(
            label_C,
            np.concatenate([[0], np.cumsum(size_C)]).astype(np.int64),
            np.concatenate([p.vector_MD for p in parts]),
            np.concatenate([p.count_M for p in parts]),
            np.concatenate(nearest) if len(nearest) == len(parts) else None,
        )
        if np.all(np.diff(label_C) > 0):
            return together
        order_C = np.argsort(label_C)
        starts = together.offset_C1[:-1][order_C]
        offset_C1 = np.concatenate([[0], np.cumsum(size_C[order_C])]).astype(np.int64)
        row_M = np.repeat(starts - offset_C1[:-1], size_C[order_C]) + np.arange(offset_C1[-1])
        nearest_M = None if together.nearest_row_M is None else together.nearest_row_M[row_M]
        return ReferenceSets(label_C[order_C], offset_C1, together.vector_MD[row_M], together.count_M[row_M], nearest_M)


def make_references(
    feature_ND: np.ndarray,
    label_N: np.ndarray,
    row_N: np.ndarray,
    *,
    per_class: int = 50,
    method: Literal["kmeans", "random"] = "kmeans",
    iterations: int = 10,
    max_images: int = 500,
    seed: int,
) -> ReferenceSets:
    """Reference sets of every class in `label_N`; all images of a class must be in one call.

    A class uses at most `max_images` of its images, those with the smallest hash of (seed, class, row); classes with at
    most `per_class` images keep them as they are. `random` takes `per_class` images instead of centroids. The result of
    a class is the same whatever other classes are in the call and in whatever order the images come. Rows must be
    distinct inside a class. Run it under one BLAS thread per process. Raises DataError for features not finite.
    """
    if per_class < 1 or max_images < per_class:
        raise ConfigError(
            f"found per_class = {per_class} and max_images = {max_images}; expected 1 <= per_class <= max_images; "
            "raise --references.max_images or lower --references.per_class"
        )
    feature_ND, label_N, row_N = np.asarray(feature_ND), np.asarray(label_N), np.asarray(row_N)
    taken, label_C, size_C = reservoir(label_N, row_N, max_images if method == "kmeans" else per_class, seed)
    start_C = np.concatenate([[0], np.cumsum(size_C)]).astype(np.int64)
    kept_C = np.minimum(size_C, per_class)
    vectors: list[np.ndarray] = [np.empty((0, feature_ND.shape[1]), np.float32)] * len(label_C)
    counts: list[np.ndarray] = [np.empty(0, np.int32)] * len(label_C)
    nearest: list[np.ndarray] = [np.empty(0, np.int64)] * len(label_C)
    for c in np.flatnonzero(kept_C == size_C):
        images = taken[start_C[c] : start_C[c + 1]]
        vectors[c] = _finite(feature_ND[images].astype(np.float32), label_C[c])
        counts[c] = np.ones(len(images), np.int32)
        nearest[c] = row_N[images]
    for batch in _batches(size_C, per_class):
        images_of = [taken[start_C[c] : start_C[c + 1]] for c in batch]
        points_BND, mean_BD, gram_BNN = _centred(feature_ND, images_of, label_C[batch])
        uniform_BRT = _uniforms(seed, label_C[batch], per_class)
        results = _lloyd(points_BND, gram_BNN, size_C[batch], uniform_BRT, per_class, iterations)
        for c, images, mean_D, (vector_kD, count_k, nearest_k) in zip(batch, images_of, mean_BD, results, strict=True):
            vectors[c], counts[c], nearest[c] = vector_kD + mean_D, count_k, row_N[images[nearest_k]]
    offset_C1 = np.concatenate([[0], np.cumsum([len(v) for v in vectors])]).astype(np.int64)
    empty_D = np.empty((0, feature_ND.shape[1]), np.float32)
    return ReferenceSets(
        label_C.astype(np.int32),
        offset_C1,
        np.concatenate([empty_D, *vectors]),
        np.concatenate([np.empty(0, np.int32), *counts]),
        np.concatenate([np.empty(0, np.int64), *nearest]),
    )


def reservoir(
    label_N: np.ndarray, row_N: np.ndarray, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(positions of the images taken, by class and then row; classes; how many of each).

    Of a class with more than `most` images those with the smallest hash of (seed, class, row): what a part of a class
    gives holds what the whole class would give of that part.
    """
    order_N = np.lexsort((row_N, label_N))
    label_C, start_C, size_C = np.unique(label_N[order_N], return_index=True, return_counts=True)
    large = np.flatnonzero(size_C > most)
    if len(large) == 0:
        return order_N, label_C, size_C
    kept_N = np.ones(len(order_N), bool)
    for c in large:
        of_class = slice(start_C[c], start_C[c] + size_C[c])
        with np.errstate(over="ignore"):
            about = hash_rows(seed, Purpose.REFERENCES, label_C[c : c + 1]) + row_N[order_N[of_class]].astype(np.uint64)
        dropped = np.argsort(hash_rows(seed, Purpose.REFERENCES, about), kind="stable")[most:]
        kept_N[start_C[c] + dropped] = False
    return order_N[kept_N], label_C, np.minimum(size_C, most)


def _batches(size_C: np.ndarray, per_class: int) -> Iterator[np.ndarray]:
    """Positions of classes that need k-means, together when their images pad to the same number."""
    padded_C = -(-size_C // PAD) * PAD
    for padded in np.unique(padded_C[size_C > per_class]):
        alike = np.flatnonzero((padded_C == padded) & (size_C > per_class))
        most = max(1, int(BATCH_BYTES // (4 * padded * padded)))
        yield from np.split(alike, range(most, len(alike), most))


def _centred(
    feature_ND: np.ndarray, images_of: list[np.ndarray], label_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points [B, N, D] with mean 0 and zeros as padding, means [B, D], Gram matrices [B, N, N])."""
    size = -(-len(images_of[0]) // PAD) * PAD
    points_BND = np.zeros((len(images_of), size, feature_ND.shape[1]), np.float32)
    mean_BD = np.empty((len(images_of), feature_ND.shape[1]), np.float32)
    gram_BNN = np.empty((len(images_of), size, size), np.float32)
    for b, images in enumerate(images_of):
        points_ND = np.asarray(feature_ND[images], np.float32)
        mean_BD[b] = _finite((np.full(len(images), 1 / len(images), np.float32) @ points_ND), label_B[b])
        # in the centre, float32 Gram matrices lose least
        np.subtract(points_ND, mean_BD[b], out=points_BND[b, : len(images)])
        np.matmul(points_BND[b], points_BND[b].T, out=gram_BNN[b])
    return points_BND, mean_BD, gram_BNN


def _finite(vector_ND: np.ndarray, label: int) -> np.ndarray:
    if not np.isfinite(vector_ND.sum()):  # one pass: a NaN or an infinity always reaches the sum
        raise DataError(
            f"found a feature that is NaN, infinite or too large in class {label}; expected finite features; "
            "extract the features again, or leave these images out"
        )
    return vector_ND


def _lloyd(
    points_BND: np.ndarray,
    gram_BNN: np.ndarray,
    size_B: np.ndarray,
    uniform_BRT: np.ndarray,
    per_class: int,
    iterations: int,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per class: centroids [k, D], images of each [k], position of the image nearest each [k]; none empty."""
    valid_BN = np.arange(points_BND.shape[1]) < size_B[:, None]
    seed_BK = _seeds(gram_BNN, valid_BN, uniform_BRT, per_class)
    batch = np.arange(len(points_BND))[:, None]
    half_BK = gram_BNN[batch, seed_BK, seed_BK] / 2
    cost_BKN = half_BK[:, :, None] - gram_BNN[batch, seed_BK]  # |x - c|^2 / 2 without |x|^2 / 2
    cluster_BN = _cheapest(cost_BKN)
    # [b, k, i] = (sum of the points of cluster k) . point i
    sums_BKN = _sums(gram_BNN, cluster_BN, valid_BN, per_class)
    for iteration in range(iterations):
        count_BK = _per_cluster(cluster_BN, valid_BN.astype(np.float32), per_class)
        norm_BK = _per_cluster(cluster_BN, np.take_along_axis(sums_BKN, cluster_BN[:, None], 1)[:, 0], per_class)
        inverse_BK = 1 / np.maximum(count_BK, 1)
        # an empty cluster attracts nothing
        half_BK = np.where(count_BK > 0, norm_BK * np.square(inverse_BK) / 2, np.inf).astype(np.float32)
        np.multiply(sums_BKN, -inverse_BK.astype(np.float32)[:, :, None], out=cost_BKN)
        cost_BKN += half_BK[:, :, None]
        if iteration == iterations - 1:
            break
        before_BN, cluster_BN = cluster_BN, _cheapest(cost_BKN)
        changed_BN = (before_BN != cluster_BN) & valid_BN
        if not changed_BN.any():
            break
        sums_BKN += _sums(gram_BNN, cluster_BN, changed_BN, per_class)
        sums_BKN -= _sums(gram_BNN, before_BN, changed_BN, per_class)
    # only the distances' order matters to what is nearest
    cost_BKN += np.where(valid_BN, np.diagonal(gram_BNN, axis1=1, axis2=2) / 2, np.inf)[:, None]
    vector_BKD = _sums(points_BND, cluster_BN, valid_BN, per_class) * inverse_BK[:, :, None].astype(np.float32)
    nearest_BK = cost_BKN.argmin(axis=2)
    used_BK = np.greater(count_BK, 0)
    return [
        (vector_BKD[b, used_K], count_BK[b, used_K].astype(np.int32), nearest_BK[b, used_K])
        for b, used_K in enumerate(used_BK)
    ]


def _sums(vector_BNX: np.ndarray, cluster_BN: np.ndarray, taken_BN: np.ndarray, per_class: int) -> np.ndarray:
    """[B, K, X]: sums of the vectors that are taken, by cluster. An embedding bag: the one fast ragged sum there is."""
    taken = np.flatnonzero(taken_BN)
    bag = cluster_BN.ravel()[taken] + per_class * (taken // cluster_BN.shape[1])
    starts = np.zeros(len(cluster_BN) * per_class, np.int64)
    np.cumsum(np.bincount(bag, minlength=len(starts))[:-1], out=starts[1:])
    summed = F.embedding_bag(
        torch.from_numpy(taken[np.argsort(bag, kind="stable")]),
        torch.from_numpy(vector_BNX.reshape(-1, vector_BNX.shape[2])),
        torch.from_numpy(starts),
        mode="sum",
    )
    return summed.numpy().reshape(len(cluster_BN), per_class, -1)


def _seeds(gram_BNN: np.ndarray, valid_BN: np.ndarray, uniform_BRT: np.ndarray, per_class: int) -> np.ndarray:
    """int64 [B, K]: greedy k-means++. A round draws T candidates by squared distance and takes the best `PICKED`.

    Best: alone, it would lower the inertia most. All distances here are halves of squares.
    """
    b = np.arange(len(gram_BNN))[:, None]
    half_BN = np.diagonal(gram_BNN, axis1=1, axis2=2) / 2
    seed_BK = np.empty((len(b), per_class), np.int64)
    seed_BK[:, 0] = (uniform_BRT[:, 0, 0] * valid_BN.sum(axis=1)).astype(np.int64)
    closest_BN = half_BN + half_BN[b, seed_BK[:, :1]] - gram_BNN[b[:, 0], seed_BK[:, 0]]
    closest_BN = np.maximum(closest_BN, 0) * valid_BN
    for rounds, k in enumerate(range(1, per_class, PICKED), 1):
        reach_BN = closest_BN.cumsum(axis=1)
        draw_BT = uniform_BRT[:, rounds] * reach_BN[:, -1:]
        candidate_BT = (reach_BN[:, None] > draw_BT[:, :, None]).argmax(axis=2)
        to_BTN = half_BN[b, candidate_BT][:, :, None] - gram_BNN[b, candidate_BT]
        to_BTN += half_BN[:, None]
        np.clip(to_BTN, 0, closest_BN[:, None], out=to_BTN)
        best_BP = to_BTN.sum(axis=2).argsort(axis=1, kind="stable")[:, : min(PICKED, per_class - k)]
        seed_BK[:, k : k + best_BP.shape[1]] = candidate_BT[b, best_BP]
        closest_BN = to_BTN[b, best_BP].min(axis=1)
    return seed_BK


def _uniforms(seed: int, label_B: np.ndarray, per_class: int) -> np.ndarray:
    """float32 [B, R, T] in [0, 1), keyed by class: a generator per class would cost as much as its Gram matrix."""
    rounds = 1 + -(-(per_class - 1) // PICKED)
    with np.errstate(over="ignore"):
        key_B1 = hash_rows(seed, Purpose.REFERENCES, ~label_B.astype(np.int64))[:, None]
        hash_BX = hash_rows(seed, Purpose.REFERENCES, key_B1 + np.arange(rounds * TRIALS, dtype=np.uint64))
    return ((hash_BX >> np.uint64(40)) * 2.0**-24).astype(np.float32).reshape(len(label_B), rounds, TRIALS)


def _cheapest(cost_BKN: np.ndarray) -> np.ndarray:
    """int64 [B, N]: argmin over clusters (the last of equals); several times faster than argmin over that axis."""
    least_BKN = cost_BKN == cost_BKN.min(axis=1, keepdims=True)
    kind = np.uint8 if cost_BKN.shape[1] <= 256 else np.int32
    return (least_BKN * np.arange(cost_BKN.shape[1], dtype=kind)[:, None]).max(axis=1).astype(np.int64)


def _per_cluster(cluster_BN: np.ndarray, value_BN: np.ndarray, per_class: int) -> np.ndarray:
    """float64 [B, K]: sums of a value over the images of each cluster."""
    slot_BN = cluster_BN + per_class * np.arange(len(cluster_BN))[:, None]
    total = np.bincount(slot_BN.ravel(), value_BN.ravel(), minlength=per_class * len(cluster_BN))
    return total.reshape(len(cluster_BN), per_class)
