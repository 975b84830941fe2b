"""The relevance table in short. A class may lie in several shards."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale import schema
from cleanscale.datasets.labels import LabelMap
from cleanscale.stages import overview
from cleanscale.stages.evaluate import Judgements

NAMED = SimpleNamespace(label_map=lambda: LabelMap(("ant", "bee", "cow"), (0, 1, 2)))


def relevance_table(first_row: int, label, probability, mislabeled, verified) -> pa.Table:
    rows = np.arange(first_row, first_row + len(label))
    columns = {
        "row": rows,
        "id": [str(row) for row in rows],
        "label": label,
        "relevance": np.zeros(len(label)),
        "probability_correct": probability,
        "weight": np.ones(len(label)),
        "mislabeled": mislabeled,
        "suggested_label": pa.array([1] * len(label), pa.int32()),
        "suggested_relevance": np.zeros(len(label)),
        "verified": verified,
    }
    return pa.table(columns).cast(schema.RELEVANCE)


@pytest.fixture
def summaries(tmp_path):
    """Two shards; the class `bee` lies in both, nobody has an image of `cow`."""
    tables = [
        relevance_table(0, [0, 0, 1], [0.9, 0.2, 0.4], [False, True, True], [-1, -1, -1]),
        relevance_table(3, [1, 1, 1], [0.1, 0.0, 1.0], [True, True, False], [-1, 0, 1]),
    ]
    found = []
    for number, table in enumerate(tables):
        shard = SimpleNamespace(name=f"shard-{number:06d}")
        pq.write_table(table, tmp_path / f"{shard.name}.parquet")
        found.append(overview.summarise_shard(shard, str(tmp_path)))
    return found


def test_classes_are_counted_over_shards(summaries):
    table = overview.per_class(pa.concat_tables([counts for counts, _ in summaries]), NAMED, None, "transfer")
    assert table["name"].to_pylist() == ["ant", "bee"]
    assert table["images"].to_pylist() == [2, 4]
    assert table["called_wrong"].to_pylist() == [1, 3]
    assert table["verified"].to_pylist() == [0, 2]
    assert table["verified_wrong"].to_pylist() == [0, 1]
    assert table["share_called_wrong"].to_pylist() == pytest.approx([0.5, 0.75])
    assert table["mean_probability_correct"].to_pylist() == pytest.approx([0.55, 0.375])


def test_errors_stand_where_the_truth_is_known(summaries):
    wrong_N, called_N = np.array([True, False]), np.array([True, True])
    judged = Judgements(np.array([1, 1]), wrong_N, np.zeros(2, bool), {"transfer": called_N}, {}, {})
    table = overview.per_class(pa.concat_tables([counts for counts, _ in summaries]), NAMED, judged, "transfer")
    assert table["error"].to_pylist() == [None, 50.0]
    assert table["evaluated"].to_pylist() == [0, 2]
    assert table["evaluated_wrong"].to_pylist() == [0, 1]


def test_the_surest_finds_are_those_that_nobody_verified(summaries):
    found = overview.surest_rows(pa.concat_tables([rows for _, rows in summaries]))
    assert found["row"].to_pylist() == [3, 1, 2]  # row 4 is surer still, but somebody has looked already


def test_classes_without_names_are_named_by_their_number():
    numbered = SimpleNamespace(label_map=lambda: LabelMap(None, (3, 70)))
    assert overview.names_of(numbered, pa.chunked_array([[3, 70]])).to_pylist() == ["3", "70"]
