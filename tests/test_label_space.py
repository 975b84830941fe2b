"""Many classes on the same path: candidates instead of all classes, sharded heads, streamed features, any shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from run_tables import same_tables

from cleanscale.stages import evidence_heads

GENERATED = {
    "data": {"train": "generated"},
    "generated": {
        "classes": 160,
        "images": 4000,
        "width": 24,
        "zipf": 0.7,
        "largest_share": 0.5,
        "empty_share": 0.1,
        "verified_classes": 30,
        "verified_per_class": 10,
        "test_images": 300,
    },
    # As with very many classes: sharded heads, every image compared with its nearest classes alone, cells searched.
    "heads": {"sharded": "on", "epochs": 1, "hidden_width": 0, "batch": 64},
    "evidence": {"exact_classes": 64, "candidates": 12, "tail": 24, "row_folds": 2},
    "index": {"kind": "ivf_sq8", "neighbours": 6},
}


@pytest.fixture(scope="module")
def run_with(finish, in_this_process, small_settings, tmp_path_factory):
    """run_with(shard_bytes, more settings): the folder of a finished run; begun: one whose stages it takes over."""

    def run(shard_bytes: int, begun: Path | None = None, **more) -> Path:
        folder = tmp_path_factory.mktemp("label_space") / "run"
        if begun is not None:
            shutil.copytree(begun, folder)
        features = {"features": {"shard_bytes": shard_bytes, "rows_per_file": 700}}
        with in_this_process():
            finish(small_settings(folder, GENERATED, features, more))
        return folder

    return run


@pytest.fixture(scope="module")
def given_neighbours() -> list[np.ndarray | None]:
    """What the out-of-fold heads of `one_shard` were given as hard negatives."""
    return []


@pytest.fixture(scope="module")
def one_shard(run_with, given_neighbours) -> Path:
    fit = evidence_heads.fit_or_go_on

    def spy(*args, neighbour_CK=None, **more):
        given_neighbours.append(neighbour_CK)
        fit(*args, neighbour_CK=neighbour_CK, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_heads, "fit_or_go_on", spy)
        return run_with(1 << 30)


def shards_of(folder: Path) -> list[dict]:
    return json.loads((folder / "rounds/00/features/manifest.json").read_text())["shards"]


def test_the_number_of_shards_changes_no_result(run_with, one_shard, by_row, monkeypatch):
    """Half of all images in one class, whose shard has several parts; classes without images and with a single one."""
    monkeypatch.setattr("cleanscale.storage.rows.IN_MEMORY_BYTES", 0)  # and what trains reads from files
    many = run_with(24 * 2 * 300)
    shards = shards_of(many)
    assert len(shards_of(one_shard)) == 1 < 7 <= len(shards)
    assert max(shard["parts"] for shard in shards) > 2
    for head in ("head-0", "head-1"):  # what is trained is the same to the byte
        weights = [folder / "rounds/00/evidence" / head / "weight-000000000.npy" for folder in (many, one_shard)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    same_tables(many, one_shard, by_row, stages=("evidence", "relevance"), rtol=1e-4, atol=1e-5)


def test_transfer_finds_more_than_filtering_where_nobody_looked(one_shard):
    measured = json.loads((one_shard / "metrics.json").read_text())["detection"]
    error = {
        name: measured[name]["error_per_class"]["held_out_classes"]["value"]
        for name in ("transfer", "classification_filtering", "naive")
    }
    assert error["transfer"] < error["naive"]
    assert error["transfer"] < error["classification_filtering"] + 2


def test_suggestions_from_neighbours_are_about_as_often_right_as_searched_ones(one_shard, run_with, by_row):
    truth = pq.read_table(one_shard / "generated" / "train")["true_label"].to_numpy()
    searched = run_with(1 << 30, one_shard, index={"suggestions": "search"})
    right = []
    for folder in (one_shard, searched):
        table = by_row(folder / "relevance")
        wrong_N = table["mislabeled"].to_numpy() & (table["label"].to_numpy() != truth[table["row"].to_numpy()])
        suggested_N = np.array(table["suggested_label"].to_pylist(), float)
        right.append((suggested_N == truth[table["row"].to_numpy()])[wrong_N].mean())
    assert right[0] > right[1] - 0.02 > 0.2


def test_heads_learn_from_the_classes_most_like_each(one_shard, given_neighbours):
    assert len(given_neighbours) == GENERATED["evidence"]["row_folds"]
    neighbour_CK = given_neighbours[0]
    assert len(neighbour_CK) == GENERATED["generated"]["classes"]
    with_images = np.flatnonzero((neighbour_CK >= 0).any(axis=1))
    assert len(with_images) == round(0.9 * len(neighbour_CK))  # the others have no image
    assert set(neighbour_CK[with_images].ravel()) - {-1} <= set(with_images)
    assert not (neighbour_CK == np.arange(len(neighbour_CK))[:, None]).any()


def test_nothing_that_a_run_leaves_has_the_size_of_images_times_classes(one_shard):
    shards = shards_of(one_shard)
    images, classes = sum(shard["rows"] for shard in shards), GENERATED["generated"]["classes"]
    for file in (one_shard / "rounds").rglob("*.npy"):
        shape = np.load(file, mmap_mode="r").shape
        assert np.prod(shape) < images * classes / 4, file
    files = [file for file in (one_shard / "rounds").rglob("*") if file.is_file()]
    assert len(files) < classes  # none for each class
