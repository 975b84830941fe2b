"""From what a request holds, encoded images or features, to features as the training job makes them.

# N rows of a request, B of a batch, D feature width, S side of the network's input
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cleanscale.datasets.images import UnreadableImage, decode
from cleanscale.models.backbones import Backbone
from cleanscale.training.transforms import AugmentationSettings, evaluation_images

BATCH = 64
LARGEST = 65504.0  # float16, in which the job keeps features


@dataclass(frozen=True)
class Made:
    """Features of the rows that can be used, and for each row of the request why it cannot be, or None."""

    feature_XD: np.ndarray  # float16
    error_N: list[str | None]

    @property
    def usable(self) -> np.ndarray:
        """int [X]: the positions of the usable rows."""
        return np.flatnonzero([error is None for error in self.error_N])


@dataclass(frozen=True)
class FromImages:
    """Encoded images through the backbone, decoded and cut as the job does it."""

    backbone: Backbone
    evaluation_crop: float
    column: str = "image"

    def __call__(self, content_N: Sequence[Any]) -> Made:
        error_N: list[str | None] = [None] * len(content_N)
        found = [np.empty((0, self.backbone.width), np.float16)]
        for start in range(0, len(content_N), BATCH):
            image_BHW3 = self.decoded(content_N[start : start + BATCH], start, error_N)
            if image_BHW3:
                found.append(self.features(image_BHW3))
        return without_infinite(np.concatenate(found), error_N)

    def decoded(self, content_B: Sequence[Any], start: int, error_N: list[str | None]) -> list[np.ndarray]:
        """RGB images of those that can be read; what is wrong with the others goes to `error_N`."""
        at_least = round(self.backbone.image_size / self.evaluation_crop)
        images = []
        for position, content in enumerate(content_B, start):
            if not isinstance(content, (bytes, bytearray, memoryview)):
                error_N[position] = f"found {type(content).__name__}; expected the bytes of an encoded image"
                continue
            try:
                images.append(decode(bytes(content), at_least=at_least))
            except UnreadableImage as error:
                error_N[position] = f"unreadable image: {error}"
        return images

    @torch.inference_mode()
    def features(self, image_BHW3: Sequence[np.ndarray]) -> np.ndarray:
        settings = AugmentationSettings(evaluation_crop=self.evaluation_crop)
        image_B3SS = evaluation_images(image_BHW3, self.backbone.image_size, settings=settings)
        return self.backbone(torch.from_numpy(image_B3SS)).half().numpy()


@dataclass(frozen=True)
class FromFeatures:
    """Features that come as they are, for runs whose input was features."""

    width: int
    column: str = "feature"

    def __call__(self, content_N: Sequence[Any]) -> Made:
        error_N: list[str | None] = [None] * len(content_N)
        found = [np.empty((0, self.width), np.float16)]
        for position, content in enumerate(content_N):
            feature_D = np.asarray(content, np.float32).reshape(-1)
            if len(feature_D) != self.width:
                error_N[position] = f"found a feature of {len(feature_D)} numbers; expected {self.width}"
            elif not (np.abs(feature_D) <= LARGEST).all():
                error_N[position] = f"found NaN or numbers beyond float16; expected finite ones up to {LARGEST:g}"
            else:
                found.append(feature_D[None].astype(np.float16))
        return Made(np.concatenate(found), error_N)


def without_infinite(feature_XD: np.ndarray, error_N: list[str | None]) -> Made:
    """A network may give more than float16 holds; the job leaves such images out."""
    finite_X = np.isfinite(feature_XD).all(axis=1)
    usable = np.flatnonzero([error is None for error in error_N])
    for position in usable[~finite_X]:
        error_N[position] = "its feature is not finite"
    return Made(feature_XD[finite_X], error_N)
