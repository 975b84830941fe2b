"""Images where they lie: what a task on any node needs to read and decode some rows of an input.

Nothing here imports torch, which would cost every decoding process hundreds of megabytes.

# M rows of a request, S side of the network's input
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cleanscale.datasets.fragments import Fragment, Plan, read_fragment
from cleanscale.datasets.images import UnreadableImage, decode
from cleanscale.datasets.settings import DataSettings
from cleanscale.training.transforms import AugmentationSettings, evaluation_images, train_images

Request = tuple[np.ndarray, list[Fragment]]  # rows in the order wanted, and the fragments that hold them


@dataclass(frozen=True)
class Images:
    """Decoding and transforming for one network input size."""

    data: DataSettings
    augmentation: AugmentationSettings
    size: int
    seed: int

    def training(self, request: Request, epoch: int) -> dict[str, np.ndarray]:
        """row [M], image uint8 [M, 3, S, S] as augmented in this epoch, ok [M]: False where it did not decode."""
        row_M, decoded, ok_M = self.decoded(request, at_least=2 * self.size)  # a crop may show half a side
        image = train_images(decoded, row_M, self.size, seed=self.seed, epoch=epoch, settings=self.augmentation)
        return {"row": row_M, "image": image, "ok": ok_M}

    def training_window(self, item: tuple[int, Request]) -> dict[str, np.ndarray]:
        """`training` of (epoch, request)."""
        epoch, wanted = item
        return self.training(wanted, epoch)

    def evaluation(self, request: Request) -> dict[str, np.ndarray]:
        """row [M], image uint8 [M, 3, S, S] resized and cropped without randomness, ok [M], reason [M]."""
        row_M, decoded, ok_M = self.decoded(request, at_least=round(self.size / self.augmentation.evaluation_crop))
        image = evaluation_images(decoded, self.size, settings=self.augmentation)
        return {"row": row_M, "image": image, "ok": ok_M}

    def decoded(self, request: Request, at_least: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """(row [M], RGB images [H, W, 3], ok [M]) in the order wanted; an unreadable image is black and not ok."""
        row_M, fragments = request
        images: dict[int, np.ndarray] = {}
        for fragment in fragments:
            for row, content in encoded(fragment, self.data, row_M):
                try:
                    images[row] = decode(content, at_least=at_least)
                except UnreadableImage:
                    continue
        black = np.zeros((self.size, self.size, 3), np.uint8)
        ok_M = np.array([int(row) in images for row in row_M], bool)
        return row_M, [images.get(int(row), black) for row in row_M], ok_M


def encoded(fragment: Fragment, data: DataSettings, row_M: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """(row, encoded image) of those wanted rows that this fragment holds; rows without an image are left out."""
    for table in read_fragment(fragment, data, ("image",), row_M):
        for row, content in zip(table["row"].to_pylist(), table["image"].to_pylist(), strict=True):
            if content is not None:
                yield row, content


def request(plan: Plan, row_M: np.ndarray) -> Request:
    return row_M, [fragment for fragment, _ in plan.fragments_of(row_M)]


def requests_in_order(plan: Plan, row_N: np.ndarray, length: int) -> list[Request]:
    """Sorted rows in requests of `length` rows (the last may be shorter)."""
    return [request(plan, row_N[start : start + length]) for start in range(0, len(row_N), length)]


def unreadable_reasons(request: Request, data: DataSettings) -> list[dict[str, Any]]:
    """Why the images of these rows could not be decoded: row and reason."""
    row_M, fragments = request
    reasons = dict.fromkeys(row_M.tolist(), "no image")
    for fragment in fragments:
        for row, content in encoded(fragment, data, row_M):
            try:
                decode(content)
            except UnreadableImage as error:
                reasons[row] = str(error)
    return [{"row": row, "reason": reason} for row, reason in reasons.items()]
