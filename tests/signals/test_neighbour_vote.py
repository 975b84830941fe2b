import numpy as np
import pytest

from cleanscale.detectors import DETECTORS, Evidence
from cleanscale.schema import UNSEEN
from cleanscale.signals.images import Images
from cleanscale.signals.neighbour_vote import VOTES, NeighbourVotes, voting_images


@pytest.fixture(scope="module")
def collection():
    """(images, right_N): classes around centres, 30 % of the labels wrong."""
    random = np.random.default_rng(3)
    true_N = random.integers(0, 6, 600)
    label_N = np.where(random.random(600) < 0.3, random.integers(0, 6, 600), true_N)
    feature_ND = 2 * random.standard_normal((6, 12))[true_N] + random.standard_normal((600, 12))
    verified_N = np.where(np.arange(600) < 150, label_N == true_N, UNSEEN).astype(np.int8)
    return Images(np.arange(600), label_N, feature_ND.astype(np.float16), verified_N), label_N == true_N


def decide(images, signals, seen_N):
    evidence, detector = Evidence(images.row_N, images.label_N, signals), DETECTORS["neighbour_vote"]
    fitted = detector.fit(evidence.select(seen_N), images.verified_N[seen_N], class_folds=3, seed=0)
    return detector.from_dict(fitted.to_dict()).decide(evidence)


@pytest.mark.parametrize("verified", [True, False])
def test_labels_unlike_those_of_similar_images_are_wrong(collection, verified):
    images, right_N = collection
    signals = VOTES.of_arrays(images, images.feature_ND.mean(axis=0), None, 0)
    decision = decide(images, signals, images.looked_N & verified)
    assert np.mean(decision.mislabeled_N == right_N) < 0.1
    assert (decision.probability_correct_N is not None) == verified


def test_a_sample_of_voters_says_nearly_the_same_as_all(collection):
    images, right_N = collection
    signals = NeighbourVotes(most_voters=200).of_arrays(images, images.feature_ND.mean(axis=0), None, 0)
    assert np.mean(decide(images, signals, images.looked_N).mislabeled_N == right_N) < 0.12


def test_the_parts_of_a_huge_class_give_the_voters_of_the_whole(collection):
    images, _ = collection
    whole = voting_images(images, 20, 0)
    part = images.row_N % 2 == 0
    merged = voting_images(Images.concatenate([voting_images(images.select(part), 20, 0), images.select(~part)]), 20, 0)
    np.testing.assert_array_equal(whole.row_N, merged.row_N)
    assert np.unique(whole.label_N, return_counts=True)[1].tolist() == [20] * 6
