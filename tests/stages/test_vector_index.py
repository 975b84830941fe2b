import itertools

import numpy as np
import pytest

from cleanscale.engine.class_index import opened, unit
from cleanscale.engine.here import Here, in_this_process
from cleanscale.stages import vector_index
from cleanscale.stages.settings import ClassIndexSettings
from cleanscale.stages.vector_index import Build, build, read_neighbours
from cleanscale.storage.index_files import IndexFiles
from cleanscale.storage.shards import Shard

WIDTH, CLASSES = 24, 3000
SMALL = {"flat_classes": 100, "neighbours": 4, "recall": 0.8}


@pytest.fixture(autouse=True)
def here():
    """No tasks and no actors: what they do is tested with them (tests/engine)."""
    with in_this_process(Here()):
        yield


def clustered(number: int, seed: int) -> np.ndarray:
    centre_XE = np.random.default_rng(0).normal(size=(60, WIDTH))
    rng = np.random.default_rng(seed)
    return unit(centre_XE[rng.integers(0, 60, number)] + 0.5 * rng.normal(size=(number, WIDTH)))


LABELS = np.sort(np.random.default_rng(3).choice(2 * CLASSES, CLASSES, replace=False)).astype(np.int32)
VECTORS = clustered(CLASSES, seed=1)


def vectors_of(shards):
    inside_C = np.isin(LABELS, np.arange(shards[0].label_start, shards[0].label_stop))
    return LABELS[inside_C], 7 * VECTORS[inside_C]  # of any length


def ranges_of(number: int) -> list[list[Shard]]:
    """Ranges of classes; the first class is huge and has shards of its own."""
    cuts = [int(LABELS[0]), int(LABELS[0]) + 1, *np.linspace(LABELS[0] + 40, 2 * CLASSES, number).astype(int).tolist()]
    shards = [Shard(2 + k, a, b, 0, 1, 10) for k, (a, b) in enumerate(itertools.pairwise(cuts[1:]))]
    huge = [Shard(part, cuts[0], cuts[1], part, 2, 500) for part in range(2)]
    return [huge, *([shard] for shard in shards)]


def built(folder, ranges: int = 30, **settings) -> IndexFiles:
    job = Build(str(folder), "made", WIDTH, ClassIndexSettings(**{**SMALL, **settings}), 0, vectors_of)
    return build(job, ranges_of(ranges))


@pytest.mark.parametrize("kind", ["flat", "ivf_sq8"])
def test_nothing_that_is_found_depends_on_how_classes_were_cut_into_shards(tmp_path, kind):
    whole = built(tmp_path / "whole", kind=kind, shard_bytes=1 << 30)
    apart = built(tmp_path / "apart", ranges=40, kind=kind, shard_bytes=CLASSES * WIDTH * 4 * 2 // 7)
    assert len(whole.ranges) == 1
    assert len(apart.ranges) >= 7
    assert whole.plan == apart.plan
    assert whole.measured == apart.measured
    query_QE = clustered(400, seed=2)
    with opened(whole.folder) as one, opened(apart.folder) as seven:
        for found, other in zip(one.search(query_QE, 6), seven.search(query_QE, 6), strict=True):
            np.testing.assert_array_equal(found, other)
        np.testing.assert_array_equal(one.embeddings(LABELS[::7]), seven.embeddings(LABELS[::7]))
        np.testing.assert_allclose(one.embeddings(LABELS), VECTORS, atol=1e-6)
    span = int(LABELS[0]), 2 * CLASSES
    np.testing.assert_array_equal(read_neighbours(whole.folder, *span), read_neighbours(apart.folder, *span))


def test_as_many_cells_are_searched_as_the_recall_takes(tmp_path):
    few, many = (built(tmp_path / str(r), kind="ivf_sq8", recall=r) for r in (0.5, 0.97))
    assert few.plan.probes < many.plan.probes
    query_QE = clustered(500, seed=5)
    with opened(many.folder) as index:
        true_QK, _ = index.search(query_QE, 10, exact=True)
        found_QK, _ = index.search(query_QE, 10)
    assert vector_index.class_search.recall(found_QK, true_QK) > 0.93
    assert IndexFiles.read(many.folder).measured["recall"][str(many.plan.probes)] >= 0.97


def test_auto_compares_all_of_few_classes_and_all_where_cells_do_not_help(tmp_path, monkeypatch):
    assert built(tmp_path / "few", kind="auto", flat_classes=CLASSES).plan.kind == "flat"
    assert built(tmp_path / "many", kind="auto").plan.kind == "ivf_sq8"
    monkeypatch.setattr(vector_index, "WORTH_IT", 0.001)  # as with vectors that form no clusters
    assert built(tmp_path / "vain", kind="auto", recall=0.999).plan.kind == "flat"


def test_neighbours_are_the_nearest_other_classes_in_rows_by_class_id(tmp_path):
    files = built(tmp_path / "index", kind="flat")
    neighbour_XK = read_neighbours(files.folder, 0, 2 * CLASSES)
    assert neighbour_XK.shape == (2 * CLASSES, 4)
    assert neighbour_XK.dtype == np.int32
    cosine_CC = VECTORS @ VECTORS.T
    np.fill_diagonal(cosine_CC, -2)
    expected_CK = LABELS[np.argsort(-cosine_CC, axis=1)[:, :4]]
    assert (neighbour_XK[LABELS] == expected_CK).mean() > 0.999  # rounding may exchange two
    missing_X = np.setdiff1d(np.arange(2 * CLASSES), LABELS)
    assert (neighbour_XK[missing_X] == -1).all()
    np.testing.assert_array_equal(read_neighbours(files.folder, 77, 1234), neighbour_XK[77:1234])
    np.testing.assert_array_equal(read_neighbours(files.folder, 77, 1234, 2), neighbour_XK[77:1234, :2])
    plain = np.load(f"{files.folder}/neighbours-{files.ranges[-1].first:09d}.npy")
    np.testing.assert_array_equal(plain, neighbour_XK[files.ranges[-1].first : files.ranges[-1].stop])


def test_an_index_lies_wherever_the_run_does():
    files = built("memory://runs/index", kind="ivf_sq8", shard_bytes=CLASSES * WIDTH * 2)
    with opened(files.folder) as index:
        assert index.search(VECTORS[:50], 1)[0][:, 0].tolist() == LABELS[:50].tolist()


def test_an_interrupted_index_does_not_count(tmp_path, monkeypatch):
    folder = str(tmp_path / "index")
    assert not vector_index.complete(folder, "made")

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vector_index, "write_neighbours", dies)
        with pytest.raises(KeyboardInterrupt):
            built(folder, kind="ivf_sq8")
    assert not vector_index.complete(folder, "made")
    built(folder, kind="ivf_sq8")
    assert vector_index.complete(folder, "made")
    assert not vector_index.complete(folder, "another")


def test_few_classes_make_an_index_too(tmp_path):
    for labels in ([5], [5, 8]):
        vector_CE = clustered(len(labels), seed=3)
        read = lambda _, labels=labels, vector_CE=vector_CE: (np.array(labels, np.int32), vector_CE)  # noqa: E731
        job = Build(str(tmp_path / str(len(labels))), "made", WIDTH, ClassIndexSettings(kind="ivf_sq8"), 0, read)
        files = build(job, [[Shard(0, 5, 9, 0, 1, 10)]])
        with opened(files.folder) as index:
            label_QK, _ = index.search(vector_CE, 3)
            assert label_QK[:, 0].tolist() == labels
            assert (label_QK[:, len(labels) :] == -1).all()
        assert read_neighbours(files.folder, 5, 6)[0, 0] == ([-1, 8][len(labels) - 1])
