"""torchvision's transforms on decoded images, with randomness keyed by (seed, epoch, row).

The same image is augmented the same way in an epoch whichever process does it and whatever came before it.

# N images, H x W as decoded, S side of the network's input
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F  # noqa: N812 - the name its documentation uses

from cleanscale.maths.keyed_random import Purpose, hash_rows


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


def _training_steps(settings: AugmentationSettings, size: int) -> v2.Transform:
    steps: list[torch.nn.Module] = []
    if settings.scale_min < 1:
        aspect = (1 / settings.aspect_max, settings.aspect_max)
        steps.append(v2.RandomResizedCrop(size, scale=(settings.scale_min, 1.0), ratio=aspect, antialias=True))
    else:
        steps.append(v2.Resize((size, size), antialias=True))
    if settings.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if settings.trivial_augment:
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
    if settings.colour:
        steps.append(v2.ColorJitter(settings.colour, settings.colour, settings.colour))
    return v2.Compose(steps)


def train_images(
    image_N: Sequence[np.ndarray],
    row_N: np.ndarray,
    size: int,
    *,
    seed: int,
    epoch: int,
    settings: AugmentationSettings,
) -> torch.Tensor:
    """uint8 [N, 3, S, S]: each decoded RGB image (uint8 [H, W, 3]) cropped and varied for this epoch."""
    transform = _training_steps(settings, size)
    key_N = hash_rows(seed + epoch * 1_000_003, Purpose.AUGMENTATION, row_N)
    out_N3SS = torch.empty((len(image_N), 3, size, size), dtype=torch.uint8)
    generator = torch.default_generator  # torchvision draws from it and takes no other
    state = generator.get_state()
    try:
        for n, image_HW3 in enumerate(image_N):
            generator.manual_seed(int(key_N[n] >> np.uint64(1)))
            out_N3SS[n] = transform(_channels_first(image_HW3))
    finally:
        generator.set_state(state)
    return out_N3SS


def evaluation_images(image_N: Sequence[np.ndarray], size: int, *, settings: AugmentationSettings) -> torch.Tensor:
    """uint8 [N, 3, S, S]: shorter side to S / evaluation_crop, then the central S x S. No randomness."""
    out_N3SS = torch.empty((len(image_N), 3, size, size), dtype=torch.uint8)
    resized = max(size, round(size / settings.evaluation_crop))
    for n, image_HW3 in enumerate(image_N):
        image_3HW = _channels_first(image_HW3)
        if min(image_3HW.shape[1:]) != resized:
            image_3HW = F.resize(image_3HW, [resized], antialias=True)
        out_N3SS[n] = F.center_crop(image_3HW, [size, size])
    return out_N3SS


def train_image(
    image_HW3: np.ndarray, size: int, *, seed: int, epoch: int, row: int, settings: AugmentationSettings
) -> torch.Tensor:
    """One training image, uint8 [3, S, S]."""
    return train_images([image_HW3], np.array([row]), size, seed=seed, epoch=epoch, settings=settings)[0]


def eval_image(image_HW3: np.ndarray, size: int, *, settings: AugmentationSettings) -> torch.Tensor:
    """One evaluation image, uint8 [3, S, S]."""
    return evaluation_images([image_HW3], size, settings=settings)[0]


def _channels_first(image_HW3: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image_HW3 if image_HW3.flags.writeable else image_HW3.copy()).permute(2, 0, 1)
