import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from cleanscale.maths.keyed_random import Purpose, hash_rows
from cleanscale.training.transforms import (
    AugmentationSettings,
    crop_box,
    eval_image,
    evaluation_images,
    train_image,
    train_images,
)

VARIED = AugmentationSettings(trivial_augment=True, colour=0.3)


def images(count=8, height=40, width=56, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def test_augmentation_does_not_depend_on_who_does_it_or_in_which_company():
    image_N, row_N = images(), np.arange(100, 108)
    together = train_images(image_N, row_N, 32, seed=3, epoch=2, settings=VARIED)
    torch.manual_seed(99)
    for n in (5, 0, 7):
        alone = train_image(image_N[n], 32, seed=3, epoch=2, row=100 + n, settings=VARIED)
        assert np.array_equal(alone, together[n])


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 3}, {"row": 8}])
def test_seed_epoch_and_row_each_change_the_augmentation(change):
    key = {"seed": 3, "epoch": 2, "row": 7}
    image = images(1)[0]
    first = train_image(image, 32, **key, settings=AugmentationSettings())
    assert not np.array_equal(first, train_image(image, 32, **(key | change), settings=AugmentationSettings()))


def test_torchs_own_random_state_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train_images(images(2), np.arange(2), 32, seed=0, epoch=0, settings=VARIED)
    assert torch.equal(torch.rand(3), expected)


def test_without_flip_no_image_is_mirrored():
    left_dark = np.zeros((32, 32, 3), np.uint8)
    left_dark[:, 16:] = 255
    kept = AugmentationSettings(horizontal_flip=False, scale_min=0.8)
    out = train_images([left_dark] * 50, np.arange(50), 32, seed=0, epoch=0, settings=kept).astype(float)
    assert (out[..., :8].mean((1, 2, 3)) < out[..., -8:].mean((1, 2, 3))).all()
    mirrored = train_images([left_dark] * 50, np.arange(50), 32, seed=0, epoch=0, settings=AugmentationSettings())
    assert (mirrored[..., :8].mean((1, 2, 3)) > 128).mean() > 0.2


def test_evaluation_shows_the_centre_and_is_the_same_every_time():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 48:80, 1] = 200
    whole = AugmentationSettings(evaluation_crop=1.0)
    out = eval_image(image, 32, settings=whole)
    assert out.shape == (3, 32, 32)
    assert out.dtype == np.uint8
    assert out[1, 16, 16] == 200
    assert out[1, 16, 2] == 0
    assert np.array_equal(out, evaluation_images([image], 32, settings=whole)[0])


def test_an_image_of_the_right_size_is_evaluated_as_it_is():
    image = images(1, 32, 32)[0]
    out = eval_image(image, 32, settings=AugmentationSettings(evaluation_crop=1.0))
    np.testing.assert_array_equal(out.transpose(1, 2, 0), image)


@pytest.mark.parametrize(("height", "width"), [(40, 56), (56, 40), (33, 33), (200, 97)])
def test_evaluation_is_what_torchvision_makes_of_a_pillow_image(height, width):
    image = images(1, height, width)[0]
    theirs = v2.Compose([v2.Resize(round(32 / 0.875)), v2.CenterCrop(32)])(Image.fromarray(image))
    np.testing.assert_array_equal(eval_image(image, 32, settings=AugmentationSettings()).transpose(1, 2, 0), theirs)


def test_a_training_crop_is_torchvisions_resized_crop_of_the_same_box():
    image, settings = images(1)[0], AugmentationSettings(horizontal_flip=False)
    ours = train_image(image, 24, seed=0, epoch=0, row=5, settings=settings)
    key = hash_rows(0, Purpose.AUGMENTATION, np.array([5]))[0]
    left, top, right, bottom = crop_box(56, 40, settings, np.random.default_rng(key))
    theirs = functional.resized_crop(Image.fromarray(image), top, left, bottom - top, right - left, [24, 24])
    np.testing.assert_array_equal(ours.transpose(1, 2, 0), np.asarray(theirs))


def test_crops_are_drawn_like_random_resized_crop():
    settings = AugmentationSettings(scale_min=0.3)
    ours = np.array([crop_box(100, 80, settings, np.random.default_rng(k)) for k in range(2000)])
    torch.manual_seed(0)
    picture = torch.zeros(3, 80, 100)
    theirs = [v2.RandomResizedCrop(8, (0.3, 1.0), (3 / 4, 4 / 3)).make_params([picture]) for _ in range(2000)]
    area = (ours[:, 2] - ours[:, 0]) * (ours[:, 3] - ours[:, 1])
    assert abs(area.mean() - np.mean([p["height"] * p["width"] for p in theirs])) < 150
    assert abs(ours[:, 0].mean() - np.mean([p["left"] for p in theirs])) < 1.5
    assert (ours[:, 2] <= 100).all()
    assert (ours[:, 3] <= 80).all()
