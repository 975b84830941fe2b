"""A plan from relevance tables: what is asked, what the person sees of it, and that shards do not change it."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale import schema
from cleanscale.datasets.labels import LabelMap
from cleanscale.engine.here import Here, in_this_process
from cleanscale.stages import verification_plan
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.storage.shards import Shard

NAMES = ("ant", "bee", "no images", "cow, black", "dog")
PART_ROWS = 50


@pytest.fixture(autouse=True)
def here():
    with in_this_process(Here()):
        yield


@pytest.fixture
def judged() -> pa.Table:
    """200 images of four classes; a few of `ant` are verified, all of `dog` are."""
    rng = np.random.default_rng(0)
    label_N = rng.choice([0, 1, 3, 4], 200, p=[0.5, 0.3, 0.1, 0.1])
    verified_N = np.where(label_N == 4, 1, -1)
    verified_N[np.flatnonzero(label_N == 0)[:5]] = 0
    columns = {
        "row": np.arange(200),
        "id": [f"image {row}" for row in range(200)],
        "label": label_N,
        "relevance": np.zeros(200),
        "probability_correct": rng.random(200),
        "weight": np.ones(200),
        "mislabeled": np.zeros(200, bool),
        "suggested_label": pa.array(np.ones(200, np.int32), mask=rng.random(200) < 0.5),
        "suggested_relevance": np.zeros(200),
        "verified": verified_N,
    }
    return pa.table(columns).cast(schema.RELEVANCE)


@pytest.fixture
def data(judged, tmp_path):
    """The ingested input in four parts."""
    for part in range(4):
        rows = judged.select(["row", "id", "label"]).slice(part * PART_ROWS, PART_ROWS)
        rows = rows.append_column("source", pa.array([f"photos/{row}.jpg" for row in rows["row"].to_pylist()]))
        pq.write_table(rows, tmp_path / f"part-{part:06d}.parquet")
    parts = tuple((part * PART_ROWS, (part + 1) * PART_ROWS) for part in range(4))
    return SimpleNamespace(folder=str(tmp_path), parts=parts, label_map=lambda: LabelMap(NAMES, range(5)))


@pytest.fixture
def planned(judged, data, tmp_path):
    """planned(budget, shards=...): the plan, with shards given as (first label, end label, part, parts)."""

    def plan(budget, shards=((0, 5, 0, 1),), classes=None, seed=0):
        made = []
        for index, (start, stop, part, parts) in enumerate(shards):
            shard = Shard(index, start, stop, part, parts, 0)
            inside_N = shard.contains(judged["label"].to_numpy(), judged["row"].to_numpy())
            pq.write_table(judged.filter(pa.array(inside_N)), tmp_path / f"{shard.name}.parquet")
            made.append(shard)
        features = FeatureShards(str(tmp_path), "", 1, tuple(made))
        return verification_plan.run(features, str(tmp_path), data, budget, classes=classes, seed=seed)

    return plan


def test_it_asks_each_class_as_often_and_nothing_that_is_verified(planned, judged):
    asked = planned(25).table
    label, count = np.unique(asked["label"].to_pylist(), return_counts=True)
    assert dict(zip(label.tolist(), count.tolist(), strict=True)) == {"ant": 5, "bee": 10, "cow, black": 10}
    known = judged.filter(pa.array(judged["verified"].to_numpy() != schema.UNSEEN))
    assert not set(asked["id"].to_pylist()) & set(known["id"].to_pylist())
    assert len(set(asked["id"].to_pylist())) == 25


def test_a_row_says_which_image_and_why_and_leaves_the_answer_open(planned, judged):
    for row in planned(30).table.to_pylist():
        number = int(row["id"].removeprefix("image "))
        of_image = judged.slice(number, 1).to_pylist()[0]
        assert row["source"] == f"photos/{number}.jpg"
        assert row["verified"] == row["verified_label"] == ""
        assert row["label"] == NAMES[of_image["label"]]
        assert row["suggested_label"] == (None if of_image["suggested_label"] is None else "bee")
        assert row["probability_correct"] == pytest.approx(of_image["probability_correct"], abs=0.001)
        assert row["why"].startswith(f"verified labels of its class: {'5' if row['label'] == 'ant' else 'none'};")
        assert ("uncertain" in row["why"]) == (0.2 <= of_image["probability_correct"] <= 0.8)


def test_rows_come_class_by_class(planned):
    labels = planned(40).table["label"].to_pylist()
    assert labels == sorted(labels, key=NAMES.index)


def test_shards_and_parts_of_huge_classes_do_not_change_what_is_asked(planned):
    whole = planned(40, seed=2)
    cut = planned(40, shards=((0, 1, 0, 3), (0, 1, 1, 3), (0, 1, 2, 3), (1, 2, 0, 1), (2, 5, 0, 1)), seed=2)
    assert whole.table.equals(cut.table)
    assert whole.counts.equals(cut.counts)


def test_a_budget_beyond_the_images_asks_all_that_nobody_verified(planned, judged):
    assert planned(10_000).table.num_rows == (judged["verified"].to_numpy() == schema.UNSEEN).sum()


def test_a_budget_smaller_than_the_classes_and_few_classes_are_kept_to(planned):
    assert planned(1).table.num_rows == 1
    few = planned(12, classes=2).table
    assert set(few["label"].to_pylist()) == {"bee", "cow, black"}  # nobody verified anything of them
    assert few.num_rows == 12


def test_counts_are_of_classes_that_have_images(planned, judged):
    counts = planned(5).counts
    assert counts["label"].to_pylist() == [0, 1, 3, 4]
    assert sum(counts["verified"].to_pylist()) == (judged["verified"].to_numpy() != schema.UNSEEN).sum()
