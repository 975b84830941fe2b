import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanscale.stages.feature_files import GROUPS, RowFiles, feature_reasons, gather_shards, shards_of
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
        write_table(str(tmp_path / name), [table], metadata={GROUPS: "0"})
        files.append(str(tmp_path / name))
    (made,) = gather_shards([shard], files, str(tmp_path / "out"), 2, None)
    assert made["rows"] == 4
    found = read_table(str(tmp_path / "out" / made["file"]))
    assert found["row"].to_pylist() == [0, 1, 2, 3]
    assert found["feature"].to_pylist() == [[r, r] for r in range(4)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=30), st.integers(3, 100))
def test_every_shard_is_gathered_once_and_few_at_a_time(counts, target_rows):
    shards = plan_shards(np.arange(len(counts)), np.array(counts), target_rows)
    groups = RowFiles("", None, shards).groups()  # pyright: ignore[reportArgumentType]
    assert [shard.index for group in groups for shard in group] == list(range(len(shards)))
    most = max(shard.rows for shard in shards)
    assert all(sum(shard.rows for shard in group) < 6 * most for group in groups)


def test_a_group_may_hold_some_parts_of_a_huge_class(tmp_path):
    shards = plan_shards(np.array([0, 1, 2]), np.array([4, 40, 4]), 10)
    row_N, label_N = np.arange(48), np.repeat([0, 1, 2], [4, 40, 4]).astype(np.int32)
    feature = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(row_N, 2), pa.float16()), 2)
    for group in (shards[:3], shards[3:]):
        mine = pa.array(np.any([s.contains(label_N, row_N) for s in group], axis=0))
        columns = {"row": row_N, "ok": [True] * 48, "label": label_N, "id": row_N.astype(str), "feature": feature}
        file = str(tmp_path / f"{group[0].index}.parquet")
        write_table(file, [pa.table(columns).filter(mine)], metadata={GROUPS: str(group[0].index)})
        made = gather_shards(group, [file], str(tmp_path / "out"), 2, None)
        for shard, one in zip(group, made, strict=True):
            found = read_table(str(tmp_path / "out" / one["file"]))["row"].to_numpy()
            np.testing.assert_array_equal(found, row_N[shard.contains(label_N, row_N)])


@pytest.mark.parametrize(("rows", "expected"), [(10, 1024), (60_000, 1024), (10**6, 15_872), (10**9, 16_384)])
def test_files_of_the_first_pass_are_blocks_and_neither_many_nor_huge(rows, expected):
    assert default_rows_per_file(rows) == expected
