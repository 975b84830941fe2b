import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from cleanscale.errors import ConfigError, DataError, StageError
from cleanscale.maths.label_lists import LabelLists
from cleanscale.models.label_cleaner import LabelCleaner, cleaner_from_bytes, cleaner_to_bytes
from cleanscale.training.collectives import Alone
from cleanscale.training.head_settings import HeadPlan
from cleanscale.training.label_cleaning import Images, Trainer, Verified, clean
from cleanscale.training.label_cleaning_settings import CleaningSettings

pytestmark = pytest.mark.usefixtures("alone")

# N images, of which V verified; C classes, D feature width
N, V, C, D = 1200, 200, 12, 24
SETTINGS = CleaningSettings(
    batch=80,
    epochs=12,
    pretrain_steps=200,
    label_width=16,
    feature_width=64,
    hidden_width=64,
    dropout=0.2,
    compare=("clean", "mixed"),
)
HEADS = HeadPlan(hidden_width=32, epochs=5, batch=80, mixup=0.0)


def lists(hot_NC: np.ndarray) -> LabelLists:
    image_E, label_E = np.nonzero(hot_NC)
    return LabelLists.of_edges(image_E, label_E, np.arange(len(hot_NC)))


class World:
    """Features that show which classes are there; 15 % of labels are missing, half of the classes have false ones."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.centre_CD = rng.normal(size=(C, D))
        self.true_NC, self.feature_ND = self.draw(N, rng)
        self.noisy_NC = self.true_NC & (rng.random((N, C)) > 0.15)
        self.noisy_NC |= ~self.true_NC & (rng.random((N, C)) < np.where(np.arange(C) % 2, 0.25, 0.0))
        self.test_NC, self.test_ND = self.draw(500, rng)
        self.verified_N = np.arange(N) < V

    def draw(self, count: int, rng: np.random.Generator):
        hot = rng.random((count, C)) < 0.15
        hot[np.arange(count), rng.integers(0, C, count)] = True
        return hot, (hot @ self.centre_CD + 0.8 * rng.normal(size=(count, D))).astype(np.float32)

    def images(self, at=slice(None)) -> Images:
        return Images(self.feature_ND[at], lists(self.noisy_NC[at]), self.verified_N[at])

    def verified(self, complete: bool = True) -> Verified:
        true, noisy = self.true_NC[:V], self.noisy_NC[:V]
        return Verified(self.feature_ND[:V], lists(noisy), lists(true), lists(noisy & ~true), np.full(V, complete))

    def average_precision(self, head) -> float:
        with torch.inference_mode():
            score_NC = head(torch.from_numpy(self.test_ND)).numpy()
        return float(np.mean([average_precision_score(self.test_NC[:, c], score_NC[:, c]) for c in range(C)]))

    def errors(self, cleaner) -> tuple[int, int]:
        """(wrong pairs as they came, as they are cleaned) of images that nobody looked at."""
        noisy = lists(self.noisy_NC)
        with torch.inference_mode():
            hot = torch.from_numpy(noisy.multi_hot(None, C))
            cleaned = clean(cleaner, torch.from_numpy(self.feature_ND), noisy, hot, None).numpy()
        wrong = (self.noisy_NC != self.true_NC), ((cleaned > 0.5) != self.true_NC)
        return int(wrong[0][V:].sum()), int(wrong[1][V:].sum())


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def trainer(world: World, **changes) -> Trainer:
    settings = SETTINGS.model_copy(update=changes)
    return Trainer(world.images(), world.verified(), C, settings, HEADS, seed=3)


@pytest.fixture(scope="module")
def fitted(world):
    torch.set_num_threads(1)
    fits = trainer(world)
    found = {"noisy": fits.fit("noisy")}
    return found | {name: fits.fit(name, found["noisy"].head) for name in ("clean", "mixed", "joint", "pretrained")}


def test_cleaned_labels_have_far_fewer_errors(world, fitted):
    for name in ("joint", "pretrained"):
        before, after = world.errors(fitted[name].cleaner)
        assert after < 0.5 * before, (name, before, after)


def test_classifiers_that_learn_with_verified_images_are_better_than_noisy_labels(world, fitted):
    found = {name: world.average_precision(one.head) for name, one in fitted.items()}
    assert found["joint"] > found["noisy"] + 0.005, found
    assert found["mixed"] > found["noisy"] + 0.005, found


def test_baselines_have_no_cleaner_and_their_start_is_not_changed(world, fitted):
    assert [name for name, one in fitted.items() if one.cleaner is not None] == ["joint", "pretrained"]
    again = trainer(world).fit("noisy").head
    for name, value in fitted["noisy"].head.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)


def test_batches_and_targets_of_the_noisy_classifier_are_label_cleanings_own(world):
    """It follows neither batches nor mixed or smoothed targets of heads: the stage's key leaves them out."""
    other = HEADS.model_copy(update={"batch": 7, "mixup": 1.0, "label_smoothing": 0.1})
    one, again = (
        Trainer(world.images(), world.verified(), C, SETTINGS, heads.model_copy(update={"epochs": 1}), seed=3)
        for heads in (HEADS, other)
    )
    assert torch.equal(one.fit("noisy").head.output.weight, again.fit("noisy").head.output.weight)


def test_the_classifier_moves_nothing_in_the_cleaner(world, fitted):
    """Without its own loss the cleaner stays where it began, whatever the classifier learns."""
    start = fitted["noisy"].head
    one, other = (trainer(world, clean_weight=0.0, weight_decay=0.0, epochs=e).fit("joint", start) for e in (1, 2))
    for first, second in zip(one.cleaner.parameters(), other.cleaner.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_pretrained_cleaner_stays_as_it_is_while_the_classifier_learns(world, fitted):
    start = fitted["noisy"].head
    one, other = (trainer(world, epochs=e, pretrain_steps=20).fit("pretrained", start) for e in (1, 2))
    for first, second in zip(one.cleaner.parameters(), other.cleaner.parameters(), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(one.head.output.weight, other.head.output.weight)


def test_batches_are_nine_parts_noisy_to_one_part_verified(world):
    fits = Trainer(world.images(), world.verified(), C, CleaningSettings(), HEADS, seed=0)
    assert (fits.per_worker - fits.verified_each, fits.verified_each) == (115, 13)


def test_more_workers_than_the_batch_has_verified_images_for_is_the_users_error(world):
    class OneOfMany(Alone):
        world = 20  # 4 images each, of which a tenth would be verified

    with pytest.raises(ConfigError, match=r"--cleaning\.batch is 80 for 20 workers"):
        Trainer(world.images(), world.verified(), C, SETTINGS, HEADS, seed=0, collectives=OneOfMany())


def test_drawn_classes_train_about_as_well_as_all(world, fitted):
    start = fitted["noisy"].head
    drawn = trainer(world, sampled_classes=2, batch=8, epochs=2).fit("joint", start)
    assert world.average_precision(drawn.head) > world.average_precision(start) - 0.01
    before, after = world.errors(drawn.cleaner)
    assert after < before


def test_a_cleaner_is_the_same_from_its_file(world, fitted):
    cleaner = fitted["joint"].cleaner
    assert world.errors(cleaner_from_bytes(cleaner_to_bytes(cleaner))) == world.errors(cleaner)


def test_before_anything_is_learned_the_cleaned_labels_are_the_noisy_ones(world):
    before, after = world.errors(LabelCleaner(D, C, 4, 4, 4))
    assert before == after


def test_without_verified_images_a_message_says_what_to_give(world, fitted):
    nobody = Verified(world.feature_ND[:0], *[LabelLists.single(np.empty(0, np.int64))] * 3, np.empty(0, bool))
    fits = Trainer(world.images(), nobody, C, SETTINGS, HEADS, seed=0)
    with pytest.raises(DataError, match=r"--data\.verification"):
        fits.fit("joint", fitted["noisy"].head)


def test_a_loss_that_is_not_finite_names_the_setting(world):
    images = world.images()
    broken = Images(np.full_like(world.feature_ND, np.nan), images.noisy, images.verified_N)
    with pytest.raises(StageError, match=r"cleaning\.learning_rate"):
        Trainer(broken, world.verified(), C, SETTINGS, HEADS, seed=0).fit("noisy")


def test_at_a_hundred_thousand_classes_nothing_has_two_sides_of_classes():
    classes, images, width = 100_000, 64, 8
    rng = np.random.default_rng(0)
    noisy = LabelLists.of_edges(
        np.repeat(np.arange(images), 3), rng.integers(0, classes, 3 * images), np.arange(images)
    )
    feature_ND = rng.normal(size=(images, width)).astype(np.float32)
    seen = np.arange(images) < 16
    at = np.arange(16)
    verified = Verified(feature_ND[:16], noisy.take(at), noisy.take(at), empty(16), np.ones(16, bool))
    settings = CleaningSettings(
        batch=32, epochs=1, label_width=8, feature_width=8, hidden_width=8, sampled_classes=512, pretrain_steps=1
    )
    tracemalloc.start()
    fits = Trainer(
        Images(feature_ND, noisy, seen),
        verified,
        classes,
        settings,
        HeadPlan(hidden_width=8, epochs=1, batch=32, mixup=0.0),
        seed=0,
    )
    start = fits.fit("noisy").head
    found = fits.fit("joint", start)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sides = [max(p.shape) * sorted(p.shape)[-2] if p.ndim > 1 else len(p) for m in found for p in m.parameters()]
    assert max(sides) <= classes * 8
    assert peak_bytes < 20 * classes * 8 * 4  # NumPy's: multi-hot targets are of the classes that a step looks at


def empty(images: int) -> LabelLists:
    return LabelLists(np.zeros(images + 1, np.int64), np.empty(0, np.int64))
