"""torchvision's transforms for training and evaluation, with randomness keyed by (seed, epoch, row).

The same image is augmented the same way in an epoch whichever process does it and whatever came before it.

Crops, flips and resizing are those that torchvision makes of a Pillow image, to the pixel, but without importing
torchvision: with torch it costs every decoding process 400 MB and seconds of start-up, and there is one per core.
Colour operations import it when they are asked for.

# N images, H x W as decoded, S side of the network's input
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from cleanscale.maths.keyed_random import Purpose, hash_rows

CROP_TRIES = 10


class AugmentationSettings(BaseModel):
    """How training images are varied, and how evaluation images are cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale_min: float = Field(0.35, gt=0, le=1, description="Smallest share of the image's area in a training crop.")
    aspect_max: float = Field(4 / 3, ge=1, le=4, description="Most that a training crop is wider than high, or higher.")
    horizontal_flip: bool = Field(True, description="Mirror every other training image; off where left is not right.")
    trivial_augment: bool = Field(False, description="One random colour or shape operation (TrivialAugmentWide).")
    colour: float = Field(0.0, ge=0, le=1, description="Strength of random brightness, contrast and saturation.")
    evaluation_crop: float = Field(
        0.875, gt=0, le=1, description="Share of the shorter side that the central evaluation crop shows."
    )


def train_images(
    image_N: Sequence[np.ndarray],
    row_N: np.ndarray,
    size: int,
    *,
    seed: int,
    epoch: int,
    settings: AugmentationSettings,
) -> np.ndarray:
    """uint8 [N, 3, S, S]: each decoded RGB image (uint8 [H, W, 3]) cropped and varied for this epoch."""
    varied = settings.trivial_augment or settings.colour
    colour = _colour_steps(settings) if varied else None  # pyright: ignore[reportArgumentType] (frozen, so hashable)
    key_N = hash_rows(seed + epoch * 1_000_003, Purpose.AUGMENTATION, np.asarray(row_N))
    out_N3SS = np.empty((len(image_N), 3, size, size), np.uint8)
    for n, image_HW3 in enumerate(image_N):
        rng = np.random.default_rng(key_N[n])
        image = Image.fromarray(image_HW3)
        if settings.scale_min < 1:
            image = image.crop(crop_box(*image.size, settings, rng))
        image = image.resize((size, size), Image.Resampling.BILINEAR)
        if settings.horizontal_flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if colour is not None:
            image = colour(image, int(key_N[n] >> np.uint64(1)))
        out_N3SS[n] = np.asarray(image).transpose(2, 0, 1)
    return out_N3SS


def crop_box(
    width: int, height: int, settings: AugmentationSettings, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random crop, drawn as torchvision's RandomResizedCrop draws it."""
    widest = math.log(settings.aspect_max)
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(settings.scale_min, 1.0)
        aspect = math.exp(rng.uniform(-widest, widest))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(rng.integers(width - crop_width + 1)), int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    # No such crop fits: the largest central one of an allowed shape.
    crop_width = min(width, round(height * settings.aspect_max))
    crop_height = min(height, round(width * settings.aspect_max))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def evaluation_images(image_N: Sequence[np.ndarray], size: int, *, settings: AugmentationSettings) -> np.ndarray:
    """uint8 [N, 3, S, S]: shorter side to S / evaluation_crop, then the central S x S. No randomness."""
    out_N3SS = np.empty((len(image_N), 3, size, size), np.uint8)
    resized = max(size, round(size / settings.evaluation_crop))
    for n, image_HW3 in enumerate(image_N):
        image = Image.fromarray(image_HW3)
        width, height = image.size
        if min(width, height) != resized:
            # The longer side is cut to whole pixels, as torchvision does.
            longer = int(resized * max(width, height) / min(width, height))
            image = image.resize((longer, resized) if width > height else (resized, longer), Image.Resampling.BILINEAR)
        left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
        out_N3SS[n] = np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
    return out_N3SS


def train_image(
    image_HW3: np.ndarray, size: int, *, seed: int, epoch: int, row: int, settings: AugmentationSettings
) -> np.ndarray:
    """One training image, uint8 [3, S, S]."""
    return train_images([image_HW3], np.array([row]), size, seed=seed, epoch=epoch, settings=settings)[0]


def eval_image(image_HW3: np.ndarray, size: int, *, settings: AugmentationSettings) -> np.ndarray:
    """One evaluation image, uint8 [3, S, S]."""
    return evaluation_images([image_HW3], size, settings=settings)[0]


@functools.cache
def _colour_steps(settings: AugmentationSettings) -> Any:
    """(Pillow image, key) -> Pillow image, by torchvision's colour operations with torch's generator keyed."""
    import torch
    from torchvision.transforms import v2

    steps: list[torch.nn.Module] = []
    if settings.trivial_augment:
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
    if settings.colour:
        steps.append(v2.ColorJitter(settings.colour, settings.colour, settings.colour))
    transform = v2.Compose(steps)

    def apply(image: Image.Image, key: int) -> Image.Image:
        state = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(key)
            return transform(image)
        finally:
            torch.default_generator.set_state(state)

    return apply
