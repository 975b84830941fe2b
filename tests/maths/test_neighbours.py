import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanscale.maths import neighbours
from cleanscale.maths.neighbours import Nearest, Voters, voters_per_class


@pytest.fixture
def collection():
    """(unit_ND, Voters) of 60 images of 4 classes, all of which vote."""
    random = np.random.default_rng(0)
    unit_ND = random.standard_normal((60, 8)).astype(np.float16).astype(np.float32)
    unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
    label_N = random.integers(0, 4, 60)
    weight_N = np.array([1, 2, 1, 3], np.float32)[label_N]
    return unit_ND, Voters(np.arange(60) * 3, label_N, weight_N, unit_ND.astype(np.float16))


def votes(unit_ND, voters, most=10, k=(3, 10)):
    return Nearest.none(voters.row_V, most).among(unit_ND, voters).shares(voters.label_V, k)


def test_votes_are_those_of_a_search_image_by_image(collection):
    unit_ND, voters = collection
    found = votes(unit_ND, voters)
    similarity_NN = unit_ND @ voters.unit_VD.astype(np.float32).T
    for i in range(60):
        others = np.setdiff1d(np.argsort(-similarity_NN[i]), [i], assume_unique=True)
        for share_N, k in zip(found, (3, 10), strict=True):
            near = others[:k]
            own = voters.weight_V[near][voters.label_V[near] == voters.label_V[i]].sum()
            assert share_N[i] == pytest.approx(own / voters.weight_V[near].sum())


def test_votes_do_not_depend_on_how_many_voters_are_searched_at_once(collection, monkeypatch):
    unit_ND, voters = collection
    whole = votes(unit_ND, voters)
    monkeypatch.setattr(neighbours, "BLOCK_IMAGES", 7)
    np.testing.assert_allclose(votes(unit_ND, voters), whole)


def test_an_image_does_not_vote_on_its_own_label(collection):
    unit_ND, voters = collection
    alone = Voters(voters.row_V[:2], np.array([0, 1]), voters.weight_V[:2], voters.unit_VD[:2])
    assert votes(unit_ND[:2], alone, most=1, k=(1,))[0].tolist() == [0, 0]


def test_fewer_voters_than_neighbours_are_all_asked(collection):
    unit_ND, voters = collection
    three = Voters(voters.row_V[:3], np.array([0, 0, 1]), np.ones(3, np.float32), voters.unit_VD[:3])
    assert votes(unit_ND[:3], three)[1].tolist() == [0.5, 0.5, 0]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 300))
def test_as_many_images_of_each_class_vote_as_fit(sizes, most):
    size_C = np.array(sizes)
    each = voters_per_class(size_C, most)
    assert np.minimum(size_C, each).sum() <= max(most, len(sizes))
    assert each >= size_C.max() or np.minimum(size_C, each + 1).sum() > most
