import itertools
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from waiting import wait_until

from cleanscale.engine import class_index
from cleanscale.engine.class_index import ClassIndex, nodes_in_turn, opened
from cleanscale.engine.here import Here, in_this_process
from cleanscale.engine.tasks import map_shards
from cleanscale.maths import class_search
from cleanscale.maths.class_search import SearchPlan
from cleanscale.maths.references import ReferenceSets
from cleanscale.storage.index_files import TRAINED, ClassRange, IndexFiles, write_faiss, write_vectors

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.usefixtures("ray_session")
CLASSES, WIDTH, RANGES = 4000, 16, 5


def vectors(number: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return class_index.unit(
        rng.normal(size=(40, WIDTH))[rng.integers(0, 40, number)] + rng.normal(size=(number, WIDTH))
    )


def saved(folder: str) -> IndexFiles:
    """An index over every second label, in ranges of unequal size, one of them empty."""
    label_C, vector_CE = np.arange(0, 2 * CLASSES, 2), vectors(CLASSES, seed=0)
    trained = class_search.train(vector_CE, 30, seed=0)
    cuts = [0, 2000, 2001, 3000, 7000, 2 * CLASSES]
    ranges = []
    for first, stop in itertools.pairwise(cuts):
        inside_C = (label_C >= first) & (label_C < stop)
        one = ClassRange(first, stop, int(inside_C.sum()))
        write_vectors(folder, one, label_C[inside_C], vector_CE[inside_C])
        write_faiss(f"{folder}/{one.file('codes')}", class_search.filled(trained, vector_CE[inside_C]))
        ranges.append(one)
    write_faiss(f"{folder}/{TRAINED}", trained)
    files = IndexFiles(folder, "here", SearchPlan("ivf_sq8", WIDTH, 30, 4), tuple(ranges))
    files.write()
    return files


def two_of_each(label_X: np.ndarray) -> ReferenceSets:
    """Reference sets of two vectors that say whose they are."""
    vector_MD = np.repeat(label_X, 2)[:, None] + np.zeros((1, 3), np.float32)
    offset_C1 = np.arange(0, 2 * len(label_X) + 1, 2)
    return ReferenceSets(label_X.astype(np.int32), offset_C1, vector_MD, np.ones(2 * len(label_X), np.int32))


@pytest.fixture(scope="module")
def index(ray_session, tmp_path_factory):
    """An index on actors."""
    files = saved(str(tmp_path_factory.mktemp("index")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_index, "SMALL_BYTES", 0)
        with opened(files.folder, two_of_each) as on_actors:
            assert on_actors.actors is not None
            yield on_actors


def in_process(index: ClassIndex) -> ClassIndex:
    return ClassIndex(IndexFiles.read(index.files.folder), None, two_of_each)


def test_actors_answer_what_one_process_answers(index):
    query_QE = vectors(5000, seed=1)  # more than a batch
    for exact in (False, True):
        ways = (which.search(query_QE, 7, exact=exact) for which in (index, in_process(index)))
        for found, alone in zip(*ways, strict=True):
            np.testing.assert_array_equal(found, alone)
    true_QK, _ = index.search(query_QE[:300], 7, exact=True)
    assert class_search.recall(index.search(query_QE[:300], 7)[0], true_QK) > 0.5


def test_embeddings_and_references_come_from_whoever_owns_the_class(index):
    label_N = np.array([7998, 2, 3, 0, 7998, 90_000, 2000])
    vector_CE = vectors(CLASSES, seed=0)
    for which in (index, in_process(index)):
        found_NE = which.embeddings(label_N)
        np.testing.assert_array_equal(found_NE[[0, 1, 3, 4, 6]], vector_CE[[3999, 1, 0, 3999, 1000]])
        assert np.isnan(found_NE[[2, 5]]).all()
        sets = which.references(np.array([7998, 4, 2000, 4]))
        assert sets.label_C.tolist() == [4, 2000, 7998]
        assert sets.of(2000).tolist() == [[2000.0] * 3] * 2


def nearest_in_task(item: int, index: ClassIndex) -> list[int]:
    return index.search(vectors(50, seed=item), 1)[0][:, 0].tolist()


def test_tasks_that_hold_all_cores_are_answered(index):
    found = dict(map_shards(nearest_in_task, range(6), index))
    assert found == {item: nearest_in_task(item, in_process(index)) for item in range(6)}


def test_an_actor_that_dies_in_mid_stream_is_asked_again_and_nothing_is_wrong_or_missing(index, monkeypatch):
    query_QE = vectors(8 * class_index.BATCH, seed=2)
    expected = in_process(index).search(query_QE, 3)
    processes = [ray.get(actor.process.remote()) for actor, _ in index.actors]
    merged, answered = class_index.merged, []

    def merged_until_one_dies(*args):
        answered.append(args)
        if len(answered) == 2:  # more calls wait at the actor, and more are to come
            os.kill(processes[0], signal.SIGKILL)
        return merged(*args)

    monkeypatch.setattr(class_index, "merged", merged_until_one_dies)
    found = index.search(query_QE, 3)
    assert len(answered) == 8
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    now = [ray.get(actor.process.remote()) for actor, _ in index.actors]
    assert now[0] != processes[0]
    assert now[1:] == processes[1:]


def test_in_a_trial_and_for_few_classes_no_actor_is_started(index):
    with in_this_process(Here()), opened(index.files.folder, two_of_each) as here:
        assert here.actors is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_index, "SMALL_BYTES", 1 << 30)
        with opened(index.files.folder) as small:
            assert small.actors is None


def test_actors_end_with_their_index(index):
    with opened(index.files.folder) as other:
        processes = [ray.get(actor.process.remote()) for actor, _ in other.actors]
    wait_until(lambda: not any(Path(f"/proc/{p}").exists() for p in processes), "the end of the actors", longest_s=20)
    assert not any(Path(f"/proc/{p}").exists() for p in processes)


def test_actors_are_dealt_to_living_nodes_by_their_cores():
    nodes = [
        {"NodeID": "head", "Alive": True, "Resources": {"memory": 1.0}},
        {"NodeID": "small", "Alive": True, "Resources": {"CPU": 1.0}},
        {"NodeID": "lost", "Alive": False, "Resources": {}},
        {"NodeID": "large", "Alive": True, "Resources": {"CPU": 3.0}},
    ]
    assert nodes_in_turn(nodes) == ["small", "large", "large", "large"]
    assert nodes_in_turn(nodes[:1]) == []


def test_without_a_faiss_for_gpus_nothing_is_searched_there():
    import faiss

    assert (class_index.gpu_resources() is not None) == bool(
        hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()
    )
