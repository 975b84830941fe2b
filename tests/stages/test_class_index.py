"""A run on features where one class has two names, and images are compared with candidates found by the index."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.engine.class_index import opened, unit
from cleanscale.stages import candidates, class_index
from cleanscale.stages.class_index import Job, ReferencesOf
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.vector_index import read_neighbours
from cleanscale.storage.manifests import read_manifest

SPLIT, SECOND_NAME = 3, 8


@pytest.fixture(scope="module")
def split_run(finish, small_settings, make_features, tmp_path_factory, in_this_process):
    root = tmp_path_factory.mktemp("split")
    table = make_features(per_class=60)
    renamed = {}
    for column in ("label", "true_label"):
        label_N = table[column].to_numpy().copy()
        label_N[(label_N == SPLIT) & (np.arange(len(label_N)) % 2 == 0)] = SECOND_NAME
        renamed[column] = pa.array(label_N)
    for column, values in renamed.items():
        table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, root / "train.parquet")
    data = {"train": str(root / "train.parquet"), "verified": "verified", "true_label": "true_label"}
    many = {
        "data": data,
        "evidence": {"exact_classes": 4, "candidates": 3, "tail": 4},
        "features": {"shard_bytes": 4096},
    }
    with in_this_process():
        return finish(small_settings(root / "run", many))


@pytest.fixture
def stages(split_run):
    return split_run.folder / "rounds" / "00"


@pytest.fixture
def features(stages):
    return FeatureShards.of(str(stages / "features"), read_manifest(str(stages / "features")))


def test_a_class_under_two_names_comes_out_on_top(split_run):
    pairs = pq.read_table(split_run.folder / "duplicate_classes.parquet")
    assert len(pairs) > 1
    top = pairs.to_pylist()[0]
    assert (top["label_a"], top["label_b"]) == (SPLIT, SECOND_NAME)
    assert top["reference_overlap"] > pairs["reference_overlap"][1].as_py() + 0.05
    assert 0.5 < top["sure"] < top["reference_overlap"] <= 1
    assert top["similarity"] == max(pairs["similarity"].to_pylist())
    confusion_P = pairs["confusion"].to_numpy()
    assert ((confusion_P >= 0) & (confusion_P <= 1)).all()
    assert (pairs["label_a"].to_numpy() < pairs["label_b"].to_numpy()).all()


def test_candidates_are_the_classes_of_nearest_means_and_those_like_the_images_own(stages, features):
    assert len(features.class_ranges()) > 3
    label_C, mean_CD = (
        np.concatenate(parts)
        for parts in zip(
            *(candidates.MeanReferences(str(stages / "references"), features)(s) for s in features.class_ranges()),
            strict=True,
        )
    )
    images = features.read(features.shards[0])
    image_ND = images.feature_ND.astype(np.float32)
    with candidates.candidate_index(str(stages / "evidence")) as index:
        found_NM = candidates.nearest_classes(image_ND, images.label_N, index, 3)
    cosine_NC = unit(image_ND) @ unit(mean_CD).T
    np.testing.assert_array_equal(found_NM[:, :3], label_C[np.argsort(-cosine_NC, axis=1)[:, :3]])
    cosine_CC = unit(mean_CD) @ unit(mean_CD).T
    alike_CK = label_C[np.argsort(-cosine_CC, axis=1)[:, 1:4]]
    np.testing.assert_array_equal(found_NM[:, 3:6], alike_CK[np.searchsorted(label_C, images.label_N)])
    signals = pq.read_table(stages / "evidence" / f"{features.shards[0].name}.parquet")
    assert np.isfinite(signals["log_probability"]).all()


def test_the_index_holds_what_the_tables_of_embeddings_say(stages, features):
    known = class_index.read(str(stages / "class_index"))
    assert known.label_C.tolist() == list(range(9))
    with opened(class_index.index_folder(str(stages / "class_index"))) as index:
        np.testing.assert_allclose(index.embeddings(known.label_C), known.embedding_CE, atol=1e-6)
        nearest_CK, _ = index.search(known.embedding_CE, 3)
    np.testing.assert_array_equal(nearest_CK[:, 0], known.label_C)
    neighbour_CK = read_neighbours(class_index.index_folder(str(stages / "class_index")), 0, 9)
    np.testing.assert_array_equal(neighbour_CK[:, :2], nearest_CK[:, 1:])
    own = class_index.read_range(str(stages / "class_index"), features.class_ranges()[1])
    np.testing.assert_array_equal(own.embedding_CE, known.of(own.label_C))


def test_reference_sets_are_read_for_the_classes_asked_for(stages, features):
    read = ReferencesOf(Job(features, str(stages / "references"), "", ""))
    sets = read(np.array([7, 2, 7, 99]))
    assert sets.label_C.tolist() == [2, 7]
    assert read(np.array([99])) is None


def test_images_called_wrong_are_told_what_they_are_nearest_to(split_run, stages):
    far = pq.read_table(split_run.folder / "open_set")
    judged = pq.read_table(split_run.folder / "relevance")
    wrong = judged.filter(judged["mislabeled"])
    assert sorted(far["row"].to_pylist()) == sorted(wrong["row"].to_pylist())
    threshold = json.loads((stages / "relevance" / "open_set.json").read_text())["relevance"]
    nearest_X = far["nearest_relevance"].to_numpy()
    np.testing.assert_array_equal(far["open_set"].to_numpy(zero_copy_only=False), nearest_X < threshold)
    own = dict(zip(wrong["row"].to_pylist(), wrong["relevance"].to_pylist(), strict=True))
    suggested = dict(zip(wrong["row"].to_pylist(), wrong["suggested_relevance"].to_pylist(), strict=True))
    for row, relevance in zip(far["row"].to_pylist(), nearest_X.tolist(), strict=True):
        assert relevance >= max(own[row], suggested[row]) - 1e-6


def test_sampled_images_do_not_depend_on_the_shards(stages, features, tmp_path, split_run, monkeypatch):
    monkeypatch.setattr(candidates, "SAMPLED_RUNS", 2)
    monkeypatch.setattr(candidates, "RUN_CLASSES", 2)
    apart = candidates.SampledImages(features, seed=1)
    one_file = pa.concat_tables([pq.read_table(stages / "features" / f"{s.name}.parquet") for s in features.shards])
    (tmp_path / "features").mkdir()
    pq.write_table(one_file, tmp_path / "features" / "shard-000000.parquet")
    whole = replace(features.shards[0], label_stop=features.shards[-1].label_stop, part=0, parts=1)
    together = candidates.SampledImages(replace(features, folder=str(tmp_path / "features"), shards=(whole,)), seed=1)
    np.testing.assert_array_equal(apart(), together())
    assert len(apart()) == len(np.intersect1d(apart.classes(), np.arange(9)))
