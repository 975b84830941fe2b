"""Training images that are too many to copy: read a window, by class, or evenly, never all at once.

# N images of this worker, X images of a piece, B images of a batch, D feature width
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cleanscale.maths.epoch_plan import epoch_windows

CHUNK_IMAGES, WINDOW_CHUNKS = 64, 1024  # a window of 65,536 images: 33 MB of 128 float32

Piece = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # feature_XD float32, target_X int64, weight_X float32


class StreamedFeatures:
    """feature_ND: anything with `.shape` that gives [X, D] for int64 positions. Images of weight 0 are never read."""

    def __init__(self, feature_ND: Any, target_N: np.ndarray, weight_N: np.ndarray, used_N: np.ndarray) -> None:
        self.feature_ND, self.target_N, self.weight_N = feature_ND, target_N, weight_N
        self.used_N = used_N & (weight_N > 0)
        self.images = int(self.used_N.sum())

    def read(self, position_X: np.ndarray) -> Piece:
        """In the order asked for, which costs least when it is ascending."""
        feature_XD = np.asarray(self.feature_ND[position_X], np.float32)
        target_X = self.target_N[position_X].astype(np.int64)
        weight_X = self.weight_N[position_X].astype(np.float32)
        return torch.from_numpy(feature_XD), torch.from_numpy(target_X), torch.from_numpy(weight_X)

    def evenly(self, most: int, size: int) -> Iterator[Piece]:
        """At most `most` images, evenly spaced over all."""
        position_X = np.flatnonzero(self.used_N)
        if len(position_X) > most:
            position_X = position_X[np.arange(most) * len(position_X) // most]
        yield from (self.read(position_X[at : at + size]) for at in range(0, len(position_X), size))

    def of_classes(self, first: int, stop: int, size: int) -> Iterator[Piece]:
        """All images of a range of classes."""
        position_X = self._positions(first, stop)
        yield from (self.read(position_X[at : at + size]) for at in range(0, len(position_X), size))

    def _positions(self, first: int, stop: int) -> np.ndarray:
        if self._in_order:
            low, high = np.searchsorted(self.target_N, [first, stop])
            return low + np.flatnonzero(self.used_N[low:high])
        return np.flatnonzero(self.used_N & (self.target_N >= first) & (self.target_N < stop))

    @cached_property
    def _in_order(self) -> bool:
        return bool((self.target_N[1:] >= self.target_N[:-1]).all())

    def batches(self, batch: int, steps: int, seed: int, epoch: int) -> Iterator[Piece]:
        """`steps` batches of one epoch, in windows; those at the end may be short or empty."""
        given, rest_X = 0, np.empty(0, np.int64)
        for piece in self._windows(seed, epoch):
            position_X = np.concatenate([rest_X, piece])
            whole = len(position_X) // batch * batch
            for feature_XD, target_X, weight_X in self._shuffled_read(position_X[:whole]):
                for at in range(0, len(target_X), batch):
                    given += 1
                    yield feature_XD[at : at + batch], target_X[at : at + batch], weight_X[at : at + batch]
            rest_X = position_X[whole:]
        while given < steps:
            given += 1
            yield self.read(np.sort(rest_X))
            rest_X = rest_X[:0]

    def _windows(self, seed: int, epoch: int) -> Iterator[np.ndarray]:
        if self.images:
            windows = epoch_windows(len(self.used_N), CHUNK_IMAGES, WINDOW_CHUNKS, seed, epoch, 0, 1)
            yield from (position_X[self.used_N[position_X]] for position_X in windows)

    def _shuffled_read(self, position_X: np.ndarray) -> Iterator[Piece]:
        """The images in this order, read in ascending order."""
        if len(position_X):
            order_X = np.argsort(position_X, kind="stable")
            back_X = torch.from_numpy(np.argsort(order_X, kind="stable"))
            yield tuple(values[back_X] for values in self.read(position_X[order_X]))  # pyright: ignore[reportReturnType]
