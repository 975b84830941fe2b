import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanscale.stages.feature_files import SHARDS_OF_GROUPS, feature_reasons, gather_shard, shards_of
from cleanscale.stages.features import default_rows_per_file
from cleanscale.storage.shards import Shard, plan_shards
from cleanscale.storage.tables import read_table, write_table


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 500), st.integers(1, 200), min_size=1, max_size=20), st.integers(3, 300))
def test_each_image_goes_to_the_shard_that_holds_it(counts, target_rows):
    label_C = np.array(sorted(counts))
    count_C = np.array([counts[c] for c in label_C])
    shards = plan_shards(label_C, count_C, target_rows)
    label_N = np.repeat(label_C, count_C)
    row_N = np.random.default_rng(0).permutation(len(label_N))
    for shard, owner in zip(shards, range(len(shards)), strict=True):
        np.testing.assert_array_equal(shards_of(shards, label_N, row_N) == owner, shard.contains(label_N, row_N))


def test_a_feature_that_cannot_be_used_is_given_its_reason():
    features = [[1.0, 2.0], [np.nan, 0.0], None, [1.0], [np.inf, 0.0], [70000.0, 0.0], [-65504.0, 0.0]]
    table = pa.table(
        {"feature": pa.array(features, pa.list_(pa.float32())), "fault": pa.array([None] * 7, pa.string())}
    )
    assert feature_reasons(table, 2) == [
        None,
        "NaN feature",
        "missing feature",
        "feature of another width",
        "NaN feature",
        "feature beyond float16",
        None,
    ]


def test_rows_that_two_files_hold_are_taken_once(tmp_path):
    shard = Shard(index=0, label_start=0, label_stop=3, part=0, parts=1, rows=4)
    files = []
    for name, rows in (("0.parquet", [0, 1, 2]), ("1.parquet", [1, 2, 3])):
        columns = {"row": rows, "ok": [True] * 3, "label": [r // 2 for r in rows], "id": [str(r) for r in rows]}
        feature = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(rows, 2), pa.float16()), 2)
        table = pa.table(columns | {"feature": feature})
        write_table(str(tmp_path / name), [table], metadata={SHARDS_OF_GROUPS: "0"})
        files.append(str(tmp_path / name))
    made = gather_shard(shard, files, str(tmp_path / "out"), 2, None)
    assert made["rows"] == 4
    found = read_table(str(tmp_path / "out" / made["file"]))
    assert found["row"].to_pylist() == [0, 1, 2, 3]
    assert found["feature"].to_pylist() == [[r, r] for r in range(4)]


@pytest.mark.parametrize(("rows", "expected"), [(10, 1024), (60_000, 1024), (10**6, 15_872), (10**9, 16_384)])
def test_files_of_the_first_pass_are_blocks_and_neither_many_nor_huge(rows, expected):
    assert default_rows_per_file(rows) == expected
