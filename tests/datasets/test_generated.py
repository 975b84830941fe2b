"""Generated features: any rows anywhere, known truth, class sizes as asked."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from cleanscale.datasets.generated import (
    BLOCK_ROWS,
    ROWS_PER_FILE,
    GeneratedSettings,
    class_centres,
    class_sizes,
    generated_files,
    generated_rows,
    generated_verification,
    group_order,
    labels_of_rows,
)
from cleanscale.errors import ConfigError

SMALL = GeneratedSettings(classes=60, images=3000, width=16, look_alikes=5, verified_classes=10, verified_per_class=8)


def labels(settings: GeneratedSettings, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return labels_of_rows(settings, seed, "train", np.arange(settings.num_images))


def features(table: pa.Table, width: int) -> np.ndarray:
    return table["feature"].combine_chunks().flatten().to_numpy().reshape(-1, width).astype(np.float32)


def test_rows_do_not_depend_on_the_ranges_they_are_made_in():
    edge = BLOCK_ROWS
    settings = SMALL.model_copy(update={"images": edge + 100})
    whole = generated_rows(settings, 3, "train", edge - 50, edge + 60)
    cuts = [edge - 50, edge - 49, edge - 1, edge + 2, edge + 60]
    pieces = [generated_rows(settings, 3, "train", a, b) for a, b in itertools.pairwise(cuts)]
    assert pa.concat_tables(pieces).combine_chunks().equals(whole.combine_chunks())


def test_files_cover_every_row_once():
    settings = SMALL.model_copy(update={"images": 2 * ROWS_PER_FILE + 5, "test_images": 7})
    ranges = [(f.split, f.start, f.stop) for f in generated_files(settings)]
    assert ranges == [
        ("train", 0, ROWS_PER_FILE),
        ("train", ROWS_PER_FILE, 2 * ROWS_PER_FILE),
        ("train", 2 * ROWS_PER_FILE, 2 * ROWS_PER_FILE + 5),
        ("test", 0, 7),
    ]


def test_the_labels_of_all_rows_have_the_class_sizes_in_no_order_of_classes():
    label_N, _ = labels(SMALL)
    assert np.array_equal(np.bincount(label_N, minlength=60), class_sizes(SMALL, 0))
    assert abs(np.corrcoef(np.arange(3000), label_N)[0, 1]) < 0.05


def test_class_sizes_have_a_long_tail_gaps_and_the_sum_that_is_asked():
    settings = GeneratedSettings(classes=10_000, images=40_000, zipf=1.0, empty_share=0.1)
    size_C = class_sizes(settings, 0)
    assert size_C.sum() == 40_000
    assert (size_C == 0).sum() == 1000
    assert (size_C == 1).sum() > 2000 and size_C.max() > 2500


def test_one_class_can_have_half_of_all_images():
    size_C = class_sizes(GeneratedSettings(classes=1000, images=20_000, largest_share=0.5), 0)
    assert size_C.max() == 10_001 and size_C.sum() == 20_000
    assert np.sort(size_C)[-2] < 1000


def test_the_share_of_wrong_labels_is_as_asked_and_differs_between_classes():
    settings = GeneratedSettings(classes=100, images=100_000, noise=0.4, zipf=0.0)
    label_N, true_N = labels(settings)
    wrong_N = label_N != true_N
    rate_C = np.bincount(label_N, wrong_N, 100)[(live_C := class_sizes(settings, 0) > 0)] / np.bincount(label_N)[live_C]
    assert abs(wrong_N.mean() - 0.4) < 0.05
    assert rate_C.min() < 0.2 and rate_C.max() > 0.6


def test_confusing_noise_names_look_alikes_and_pointless_noise_any_class():
    group_C = group_order(SMALL, 0)(np.arange(60)) // SMALL.look_alikes
    for share, expected in ((1.0, 1.0), (0.0, 4 / 59)):
        label_N, true_N = labels(SMALL.model_copy(update={"confusing_share": share}))
        wrong_N = label_N != true_N
        alike = (group_C[label_N[wrong_N]] == group_C[true_N[wrong_N]]).mean()
        assert alike == pytest.approx(expected, abs=0.04)


def test_images_lie_around_the_centre_of_their_true_class():
    settings = SMALL.model_copy(update={"ambiguity": 0.0, "width": 64})
    table = generated_rows(settings, 0, "train", 0, 3000)
    true_N = table["true_label"].to_numpy()
    own = class_centres(settings, 0, np.arange(60))
    distance_NC = ((features(table, 64)[:, None] - own) ** 2).sum(2)
    assert (distance_NC.argmin(1) == true_N).mean() > 0.8


def test_test_images_have_right_labels_of_classes_that_have_images():
    table = generated_rows(SMALL, 0, "test", 0, 500)
    label_N = table["label"].to_numpy()
    assert table["label"].equals(table["true_label"])
    assert (class_sizes(SMALL, 0)[label_N] > 0).all()


def test_verification_tells_the_truth_about_some_classes():
    checked = generated_verification(SMALL, 0)
    rows = generated_rows(SMALL, 0, "train", 0, 3000)
    place = {one: at for at, one in enumerate(rows["id"].to_pylist())}
    take = rows.take([place[one] for one in checked["id"].to_pylist()])
    assert take["label"].combine_chunks().equals(checked["label"].combine_chunks())
    right_M = take["label"].to_numpy() == take["true_label"].to_numpy()
    assert np.array_equal(checked["verified"].to_numpy(), right_M.astype(np.int8))
    label_V, count_V = np.unique(checked["label"].to_numpy(), return_counts=True)
    assert len(label_V) == 10
    assert np.array_equal(count_V, np.minimum(8, class_sizes(SMALL, 0)[label_V]))


def test_names_stand_for_the_same_classes_in_the_same_order():
    named = SMALL.model_copy(update={"named": True})
    numbers = generated_rows(SMALL, 0, "train", 0, 200)["label"].to_numpy()
    names = generated_rows(named, 0, "train", 0, 200)["label"].to_pylist()
    assert names == [f"class-{number:02d}" for number in numbers]


def test_too_few_images_are_refused_with_a_remedy():
    with pytest.raises(ConfigError, match=r"generated\.images = 50 .* expected one for each"):
        GeneratedSettings(classes=100, images=50)
