import numpy as np
import pytest
import torch
from worker_threads import on_threads

from cleanscale.errors import ConfigError, DataError, StageError
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.heads import fit_head
from cleanscale.training.sharded_heads import fit_sharded_head

CLASSES, WIDTH = 40, 12
SHARDED = HeadSettings(sharded="on", epochs=3, batch=64, row_learning_rate=0.03)


def clusters(per_class: int = 20, noise: float = 0.3, seed: int = 0):
    """(features by class, labels of which `noise` are wrong, true classes); directions differ in how loud they are."""
    rng = np.random.default_rng(seed)
    centre_CD = np.random.default_rng(7).standard_normal((CLASSES, WIDTH))
    true_N = np.repeat(np.arange(CLASSES), per_class)
    loud_D = np.linspace(2.0, 0.2, WIDTH)
    feature_ND = centre_CD[true_N] + rng.standard_normal((len(true_N), WIDTH)) * loud_D
    label_N = np.where(rng.random(len(true_N)) < noise, rng.integers(0, CLASSES, len(true_N)), true_N)
    order_N = np.argsort(label_N, kind="stable")
    return feature_ND.astype(np.float16)[order_N], label_N[order_N], true_N[order_N]


def accuracy(head, feature_ND, true_N) -> float:
    return float((head.frozen().log_probability(feature_ND).argmax(1) == true_N).mean())


class Indexable:
    """What training may ask of features: a shape, and copies of positions."""

    def __init__(self, array_ND: np.ndarray) -> None:
        self.array_ND, self.shape, self.most = array_ND, array_ND.shape, 0

    def __getitem__(self, position_X: np.ndarray) -> np.ndarray:
        assert isinstance(position_X, np.ndarray)
        assert position_X.dtype.kind == "i"
        assert (np.diff(position_X) >= 0).all(), "read in ascending order: that is how they lie on disk"
        self.most = max(self.most, len(position_X))
        return self.array_ND[position_X]


@pytest.mark.parametrize(
    "change",
    [{}, {"exact": True}, {"negatives": 5}, {"negatives": 0.3}, {"mixup": 1.0}, {"dropout": 0.2}],
    ids=str,
)
def test_a_sharded_head_is_as_good_as_a_dense_one(change):
    feature_ND, label_N, _ = clusters()
    unseen_ND, _, true_N = clusters(10, 0.0, seed=1)
    dense = fit_head(feature_ND, label_N, None, CLASSES, HeadSettings(hidden_width=0, epochs=20, batch=64), seed=0)
    made = fit_sharded_head(feature_ND, label_N, None, CLASSES, SHARDED.model_copy(update=change), seed=0)
    assert accuracy(made, unseen_ND, true_N) > accuracy(dense, unseen_ND, true_N) - 0.03


def test_a_hidden_layer_learns_too():
    """Better than class means behind the same layer as it was drawn."""
    feature_ND, label_N, _ = clusters()
    unseen_ND, _, true_N = clusters(20, 0.0, seed=1)
    settings = SHARDED.model_copy(update={"hidden_width": 32, "epochs": 8, "learning_rate": 0.01})
    still = settings.model_copy(update={"epochs": 1, "learning_rate": 1e-9, "row_learning_rate": 1e-9})
    drawn, made = (fit_sharded_head(feature_ND, label_N, None, CLASSES, s, seed=0) for s in (still, settings))
    assert accuracy(made, unseen_ND, true_N) > accuracy(drawn, unseen_ND, true_N) + 0.03


def test_exact_heads_do_not_depend_on_the_number_of_workers():
    """All workers see the same images, so that their batches, put together, are those of fewer workers repeated."""
    feature_ND, label_N, _ = clusters(6)
    one = SHARDED.model_copy(update={"exact": True, "batch": 32})
    alone = fit_sharded_head(feature_ND, label_N, None, CLASSES, one, seed=0)
    for world in (2, 3):
        settings = one.model_copy(update={"batch": 32 * world})
        parts = on_threads(
            lambda together, settings=settings: fit_sharded_head(
                feature_ND, label_N, None, CLASSES, settings, seed=0, collectives=together
            ),
            world,
        )
        weight_CH = torch.cat([part.rows.weight_RH for part in parts])
        # Repeated images count as more images of a class: the prior differs, and with it the biases and a little more.
        cosine_C = torch.nn.functional.cosine_similarity(weight_CH, alone.rows.weight_RH)
        assert cosine_C.min() > 0.99


def test_workers_that_split_the_images_agree_with_one(tmp_path):
    feature_ND, label_N, _ = clusters()
    unseen_ND, _, true_N = clusters(10, 0.0, seed=1)
    alone = accuracy(fit_sharded_head(feature_ND, label_N, None, CLASSES, SHARDED, seed=0), unseen_ND, true_N)
    cuts = [slice(0, 500), slice(500, 800), slice(800, 800)]  # one has none

    def work(together):
        mine = cuts[together.rank]
        return fit_sharded_head(feature_ND[mine], label_N[mine], None, CLASSES, SHARDED, seed=0, collectives=together)

    parts = on_threads(work, 3)
    frozen = parts[0].layers.frozen_layers()
    logit_NC = ((unseen_ND - frozen[0]) * frozen[1]) @ torch.cat([p.rows.weight_RH for p in parts]).numpy().T
    logit_NC += torch.cat([p.rows.bias_R for p in parts]).numpy()
    assert abs((logit_NC.argmax(1) == true_N).mean() - alone) < 0.03


def test_features_are_read_in_windows_and_never_all_at_once(monkeypatch):
    for name, value in (("CHUNK_IMAGES", 8), ("WINDOW_CHUNKS", 4)):
        monkeypatch.setattr(f"cleanscale.training.streamed_features.{name}", value)
    for name, value in (("BLOCK_IMAGES", 64), ("BLOCK_CLASSES", 16)):
        monkeypatch.setattr(f"cleanscale.training.head_start.{name}", value)
    feature_ND, label_N, true_N = clusters()
    source = Indexable(feature_ND)
    made = fit_sharded_head(source, label_N, None, CLASSES, SHARDED, seed=0)
    assert source.most < len(label_N) / 8
    assert accuracy(made, feature_ND, true_N) > 0.75


def test_images_of_weight_zero_and_images_left_out_are_as_if_they_were_not_there():
    feature_ND, label_N, _ = clusters()
    kept_N = np.arange(len(label_N)) % 3 > 0
    spoiled_ND = np.where(kept_N[:, None], feature_ND, np.nan).astype(np.float16)
    weighted = fit_sharded_head(spoiled_ND, label_N, kept_N.astype(np.float32), CLASSES, SHARDED, seed=0)
    left_out = fit_sharded_head(spoiled_ND, label_N, None, CLASSES, SHARDED, seed=0, used_N=kept_N)
    torch.testing.assert_close(weighted.rows.weight_RH, left_out.rows.weight_RH)
    assert torch.isfinite(weighted.rows.weight_RH).all()


def test_classes_without_images_and_with_one_are_no_trouble():
    feature_ND, label_N, true_N = clusters(noise=0.0)
    kept_N = (label_N != 3) & ((label_N != 5) | (np.cumsum(label_N == 5) == 1))
    made = fit_sharded_head(feature_ND, label_N, None, CLASSES, SHARDED, seed=0, used_N=kept_N)
    found_N = made.frozen().log_probability(feature_ND).argmax(1)
    assert (found_N == 3).mean() < 0.02
    assert (found_N == true_N)[~np.isin(label_N, [3, 5])].mean() > 0.75


def test_only_rows_that_occur_in_a_step_change():
    feature_ND, label_N, _ = clusters()
    before = fit_sharded_head(feature_ND, label_N, None, CLASSES, SHARDED.model_copy(update={"epochs": 1}), seed=0)
    weight_RH = before.rows.weight_RH.clone()
    before.epochs_done = 0
    few_N = label_N < 5
    settings = SHARDED.model_copy(update={"epochs": 1, "negatives": 1, "batch": 100})
    after = fit_sharded_head(feature_ND, label_N, None, CLASSES, settings, seed=0, used_N=few_N, start=before)
    changed_C = (after.rows.weight_RH != weight_RH).any(1)
    assert changed_C[:5].all()
    assert changed_C.sum() <= 5 + 2  # the negatives of two steps


def test_hard_negatives_are_among_the_rows_of_a_step():
    feature_ND, label_N, _ = clusters()
    start = fit_sharded_head(feature_ND, label_N, None, CLASSES, SHARDED.model_copy(update={"epochs": 1}), seed=0)
    weight_RH, start.epochs_done = start.rows.weight_RH.clone(), 0
    neighbour_CK = np.full((CLASSES, 2), -1, np.int32)
    neighbour_CK[:5] = [20, 30]
    settings = SHARDED.model_copy(update={"epochs": 1, "negatives": 1, "batch": 200, "hard_negatives": 2})
    after = fit_sharded_head(
        feature_ND, label_N, None, CLASSES, settings, seed=0, used_N=label_N < 5, start=start, neighbour_CK=neighbour_CK
    )
    assert (after.rows.weight_RH != weight_RH).any(1)[[20, 30]].all()


def test_what_a_sharded_head_cannot_do_is_said():
    feature_ND, label_N, _ = clusters()
    with pytest.raises(ConfigError, match="label_smoothing"):
        fit_sharded_head(feature_ND, label_N, None, CLASSES, HeadSettings(sharded="on", label_smoothing=0.1), seed=0)
    with pytest.raises(DataError, match="positive weight"):
        fit_sharded_head(feature_ND, label_N, np.zeros(len(label_N), np.float32), CLASSES, SHARDED, seed=0)
    spoiled_ND = np.full_like(feature_ND, np.nan)
    with pytest.raises(StageError, match="row_learning_rate"):
        fit_sharded_head(spoiled_ND, label_N, None, CLASSES, SHARDED, seed=0)


def test_large_label_spaces_are_sharded_on_their_own_and_small_ones_are_not():
    settings = HeadSettings()
    small, large = settings.resolved(99_999), settings.resolved(100_000)
    assert (small.sharded, small.hidden_width, small.epochs, small.mixup) == ("off", 512, 8, 1.0)
    assert (large.sharded, large.hidden_width, large.mixup) == ("on", 0, 0.0)
    assert HeadSettings(hidden_width=64).resolved(10**6).hidden_width == 64
    assert HeadSettings(sharded="off").resolved(10**6).sharded == "off"
    assert HeadSettings(negatives=0.01).negatives_of(10**6) == 10_000
    # What a dense head does not read must not redo it.
    assert settings.relevant(10) == HeadSettings(negatives=7, sharded_from=50).relevant(10)
    assert settings.relevant(10**6) != HeadSettings(negatives=7).relevant(10**6)
