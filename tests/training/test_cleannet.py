import threading

import numpy as np
import pytest
import torch
from worker_threads import on_threads

from cleanscale.errors import DataError, StageError
from cleanscale.maths.references import make_references
from cleanscale.training import cleannet
from cleanscale.training.cleannet_settings import CleanNetSettings

SMALL = CleanNetSettings(
    steps=60, start_steps=40, classes_per_half=6, reference_widths=(16, 16), query_width=16, embedding=8
)


@pytest.fixture(scope="module")
def noisy():
    """8 clusters in 10 dimensions; 30 % of the labels are another cluster's. Classes 0-3 are verified."""
    rng = np.random.default_rng(1)
    true_N = np.repeat(np.arange(8), 40)
    centre_CD = rng.normal(size=(8, 10)) * 2
    feature_ND = (centre_CD[true_N] + rng.normal(size=(320, 10))).astype(np.float32)
    label_N = np.where(rng.random(320) < 0.3, rng.integers(0, 8, 320), true_N).astype(np.int32)
    right_N = label_N == true_N
    verified_N = np.where(label_N < 4, right_N, -1).astype(np.int8)
    references = make_references(feature_ND, label_N, np.arange(320), per_class=10, seed=0)
    return feature_ND, label_N, verified_N, references, right_N


def auroc(score_N, right_N):
    return np.mean(score_N[right_N][:, None] > score_N[~right_N])


def test_relevance_finds_wrong_labels_of_classes_without_verification(noisy):
    feature_ND, label_N, verified_N, references, right_N = noisy
    model = cleannet.fit_cleannet(feature_ND, label_N, verified_N, references, SMALL, seed=0)
    cosine_N = cleannet.relevance(model, references, feature_ND, label_N)
    assert cosine_N.dtype == np.float32
    assert np.abs(cosine_N).max() <= 1
    held_N = label_N >= 4
    assert auroc(cosine_N[held_N], right_N[held_N]) > 0.97


def test_relevance_is_the_cosine_of_the_two_embeddings_and_nan_without_references(noisy):
    feature_ND, label_N, verified_N, references, _ = noisy
    model = cleannet.fit_cleannet(feature_ND, label_N, verified_N, references, SMALL, seed=0, steps=2)
    some = references.select(np.array([0, 2, 3, 5]))
    cosine_N = cleannet.relevance(model, some, feature_ND, label_N, batch=50)
    class_CE = cleannet.class_embeddings(model, some, batch=3)
    query_NE = cleannet.query_embeddings(model, feature_ND)
    for i in (0, 100, 319):
        known = label_N[i] in some.label_C
        assert np.isnan(cosine_N[i]) == (not known)
        if known:
            expected = query_NE[i] @ class_CE[list(some.label_C).index(label_N[i])]
            assert cosine_N[i] == pytest.approx(expected, abs=1e-5)


def test_attention_sums_to_one_in_each_class(noisy):
    feature_ND, label_N, verified_N, references, _ = noisy
    model = cleannet.fit_cleannet(feature_ND, label_N, verified_N, references, SMALL, seed=0, steps=2)
    _, attention_M = cleannet.encode_references(model, references, batch=3)
    np.testing.assert_allclose(np.add.reduceat(attention_M, references.offset_C1[:-1]), 1, rtol=1e-5)


@pytest.mark.parametrize("preset", ["default", "paper", "published_code"])
@pytest.mark.parametrize("only", [-1, 0, 1])
def test_one_kind_of_verification_is_enough(noisy, preset, only):
    feature_ND, label_N, _, references, _ = noisy
    settings = CleanNetSettings(preset=preset, reference_widths=(16, 16))
    verified_N = np.where(label_N < 3, only, -1)
    model = cleannet.fit_cleannet(feature_ND, label_N, verified_N, references, settings, seed=0, steps=5)
    assert np.isfinite(cleannet.relevance(model, references, feature_ND, label_N)).all()


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone(noisy):
    feature_ND, label_N, verified_N, references, _ = noisy
    settings = SMALL.model_copy(update={"dropout": 0.2, "steps": 5})

    def weights(seed):
        model = cleannet.fit_cleannet(feature_ND, label_N, verified_N, references, settings, seed=seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    before = torch.random.get_rng_state()
    first = weights(0)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_a_start_is_continued_and_not_changed(noisy):
    feature_ND, label_N, verified_N, references, _ = noisy
    start = cleannet.fit_cleannet(feature_ND, label_N, verified_N, references, SMALL, seed=0, steps=3)
    kept = start.to_bytes()
    short = SMALL.model_copy(update={"learning_rate": 1e-7})
    near = cleannet.fit_cleannet(feature_ND, label_N, verified_N, references, short, seed=0, start=start, steps=1)
    assert start.to_bytes() == kept
    torch.testing.assert_close(near.context_H, start.context_H, atol=1e-5, rtol=0)


def test_cross_fitted_cosines_do_not_depend_on_their_own_class_s_verification(noisy):
    feature_ND, label_N, verified_N, references, _ = noisy
    settings = SMALL.model_copy(update={"steps": 4, "start_steps": 4})
    fitted = cleannet.cross_fitted_relevance(feature_ND, label_N, verified_N, references, settings, seed=0)
    turned_N = np.where(label_N == 2, 1 - verified_N, verified_N)
    other = cleannet.cross_fitted_relevance(feature_ND, label_N, turned_N, references, settings, seed=0)
    two_N = label_N == 2
    np.testing.assert_array_equal(fitted.cosine_N[two_N], other.cosine_N[two_N])
    assert not np.array_equal(fitted.cosine_N[verified_N >= 0], other.cosine_N[verified_N >= 0])
    np.testing.assert_array_equal(np.isnan(fitted.cosine_N), verified_N < 0)


@pytest.mark.parametrize(("start", "known"), [("unverified", True), ("scratch", False)])
def test_one_verified_class_cannot_be_left_out(noisy, start, known):
    feature_ND, label_N, verified_N, references, _ = noisy
    one_N = np.where(label_N == 1, verified_N, -1)
    settings = SMALL.model_copy(update={"steps": 2, "start_steps": 2, "fold_start": start})
    fitted = cleannet.cross_fitted_relevance(feature_ND, label_N, one_N, references, settings, seed=0)
    assert np.isfinite(fitted.cosine_N[one_N >= 0]).all() == known


class Barrier:
    """Two workers in threads that average through shared memory."""

    def __init__(self, rank, shared, barrier):
        self.rank, self.world, self._shared, self._barrier = rank, 2, shared, barrier

    def sum(self, tensor):
        self._shared[self.rank] = tensor
        self._barrier.wait()
        total = self._shared[0] + self._shared[1]
        self._barrier.wait()
        return total

    def average_gradients(self, parameters):
        for p in parameters:
            p.grad = self.sum(p.grad if p.grad is not None else torch.zeros_like(p)) / 2


@pytest.mark.parametrize("second_has_images", [True, False])
def test_workers_with_their_own_shards_end_with_the_same_weights(noisy, second_has_images):
    feature_ND, label_N, verified_N, references, _ = noisy
    shared, barrier, models = [None, None], threading.Barrier(2, timeout=60), [None, None]
    settings = SMALL.model_copy(update={"steps": 6})

    def work(rank):
        mine = (label_N % 2 == rank) | (verified_N >= 0)
        if rank == 1 and not second_has_images:
            mine = np.zeros(len(label_N), bool)
        models[rank] = cleannet.fit_cleannet(
            feature_ND[mine],
            label_N[mine],
            verified_N[mine],
            references,
            settings,
            seed=0,
            start=first,
            collectives=Barrier(rank, shared, barrier),
        )

    # a common start: threads share torch's global generator, which processes do not
    first = cleannet.fit_cleannet(feature_ND, label_N, verified_N, references, settings, seed=0, steps=1)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_verified_images_that_all_workers_hold_count_once_when_they_are_taken_for_unseen(noisy):
    """Two workers that together have each unseen image once start from the mean of one that has them all."""
    feature_ND, label_N, verified_N, references, _ = noisy
    settings = SMALL.model_copy(update={"transform": "standardise"})
    nobody_N = np.full(len(label_N), -1)
    alone = cleannet.fit_cleannet(feature_ND, label_N, nobody_N, references, settings, seed=0, steps=1)

    def work(workers):
        own_N = label_N % 2 == workers.rank
        has = np.flatnonzero(own_N | (verified_N >= 0))
        given = (feature_ND[has], label_N[has], nobody_N[has])
        return cleannet.fit_cleannet(
            *given, references, settings, seed=0, steps=1, collectives=workers, own_N=own_N[has]
        )

    for model in on_threads(work, 2):
        torch.testing.assert_close(model.shift_D, alone.shift_D)
        torch.testing.assert_close(model.scale_D, alone.scale_D)


def test_sizes_that_disagree_are_refused(noisy):
    feature_ND, label_N, verified_N, references, _ = noisy
    with pytest.raises(DataError, match="319 labels"):
        cleannet.fit_cleannet(feature_ND, label_N[1:], verified_N, references, SMALL, seed=0)
    with pytest.raises(DataError, match="width 9"):
        cleannet.fit_cleannet(feature_ND[:, 1:], label_N, verified_N, references, SMALL, seed=0)
    with pytest.raises(StageError, match="no image of a class with references"):
        cleannet.fit_cleannet(feature_ND, label_N + 50, verified_N, references, SMALL, seed=0)
