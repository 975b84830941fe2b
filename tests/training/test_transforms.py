import numpy as np
import pytest
import torch

from cleanscale.training.transforms import (
    AugmentationSettings,
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
        assert torch.equal(alone, together[n])


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 3}, {"row": 8}])
def test_seed_epoch_and_row_each_change_the_augmentation(change):
    key = {"seed": 3, "epoch": 2, "row": 7}
    image = images(1)[0]
    first = train_image(image, 32, **key, settings=AugmentationSettings())
    assert not torch.equal(first, train_image(image, 32, **(key | change), settings=AugmentationSettings()))


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
    out = train_images([left_dark] * 50, np.arange(50), 32, seed=0, epoch=0, settings=kept).float()
    assert (out[..., :8].mean((1, 2, 3)) < out[..., -8:].mean((1, 2, 3))).all()
    mirrored = train_images([left_dark] * 50, np.arange(50), 32, seed=0, epoch=0, settings=AugmentationSettings())
    assert (mirrored.float()[..., :8].mean((1, 2, 3)) > 128).float().mean() > 0.2


def test_evaluation_shows_the_centre_and_is_the_same_every_time():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 48:80, 1] = 200
    whole = AugmentationSettings(evaluation_crop=1.0)
    out = eval_image(image, 32, settings=whole)
    assert out.shape == (3, 32, 32)
    assert out.dtype == torch.uint8
    assert out[1, 16, 16] == 200
    assert out[1, 16, 2] == 0
    assert torch.equal(out, evaluation_images([image], 32, settings=whole)[0])


def test_an_image_of_the_right_size_is_evaluated_as_it_is():
    image = images(1, 32, 32)[0]
    out = eval_image(image, 32, settings=AugmentationSettings(evaluation_crop=1.0))
    np.testing.assert_array_equal(out.permute(1, 2, 0).numpy(), image)
