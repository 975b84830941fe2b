import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from cleanscale.schema import features_schema
from cleanscale.stages.feature_files import fixed_size
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.storage.shards import plan_shards
from cleanscale.storage.tables import write_table

WIDTH = 3


def stored(folder, target_rows):
    """60 images of classes 1 (10), 4 (40) and 6 (10), as the features stage leaves them."""
    row_N = np.random.default_rng(0).permutation(60)
    label_N = np.repeat([1, 4, 6], [10, 40, 10]).astype(np.int32)
    shards = plan_shards(np.array([1, 4, 6]), np.array([10, 40, 10]), target_rows)
    feature_ND = np.repeat(row_N[:, None], WIDTH, axis=1).astype(np.float16)
    written = []
    for shard in shards:
        mine = np.flatnonzero(shard.contains(label_N, row_N))
        mine = mine[np.lexsort((row_N[mine], label_N[mine]))]
        columns = {"row": row_N[mine], "id": [f"image {r}" for r in row_N[mine]], "label": label_N[mine]}
        table = pa.table(columns | {"feature": fixed_size(feature_ND[mine])}).cast(features_schema(WIDTH))
        write_table(str(folder / f"{shard.name}.parquet"), table)
        written.append(dataclasses.replace(shard, rows=len(mine)))
    return FeatureShards(str(folder), "f", WIDTH, tuple(written))


def test_parts_of_a_class_stand_together_and_every_other_shard_alone(tmp_path):
    shards = stored(tmp_path, target_rows=12)
    assert [[s.label_start for s in group] for group in shards.class_ranges()] == [[1], [4, 4, 4, 4], [6]]


def test_features_read_as_they_were_written_whatever_the_shards(tmp_path):
    for target_rows in (12, 1000):
        folder = tmp_path / str(target_rows)
        shards = stored(folder, target_rows)
        found = shards.read_all(list(shards.shards))
        assert sorted(found.row_N.tolist()) == list(range(60))
        assert (np.diff(found.label_N * 1000 + found.row_N) > 0).all()  # by label and row
        assert found.feature_ND.dtype == np.float16
        np.testing.assert_array_equal(found.feature_ND, np.repeat(found.row_N[:, None], WIDTH, axis=1))
        (shard, *_) = shards.shards
        known = shards.read(shard, ids=True)
        assert known.id_N.to_pylist() == [f"image {row}" for row in known.row_N]


def test_more_than_memory_holds_is_read_from_a_file_in_the_same_order(tmp_path, monkeypatch):
    shards = stored(tmp_path, 12)
    held = shards.read_all(list(shards.shards))
    monkeypatch.setattr("cleanscale.storage.rows.IN_MEMORY_BYTES", 0)
    mapped = shards.read_all(list(shards.shards), str(tmp_path))
    assert not isinstance(mapped.feature_ND, np.ndarray)
    at_23 = np.array([[59, 0, 7], [7, 30, 1]])
    np.testing.assert_array_equal(mapped.feature_ND[at_23], held.feature_ND[at_23])
    np.testing.assert_array_equal(mapped.row_N, held.row_N)
    assert len(list(tmp_path.iterdir())) == len(shards.shards)  # the file has no name


def test_workers_get_all_shards_once(tmp_path):
    shards = stored(tmp_path, target_rows=12)
    hands = shards.deal(3)
    assert sorted(s.index for hand in hands for s in hand) == list(range(len(shards.shards)))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("target_rows", [12, 1000])
def test_workers_share_the_images_equally_however_few_the_shards(tmp_path, monkeypatch, target_rows, in_memory):
    shards = stored(tmp_path, target_rows)
    whole = shards.read_all(list(shards.shards))
    if not in_memory:
        monkeypatch.setattr("cleanscale.storage.rows.IN_MEMORY_BYTES", 0)
    shares = [shards.read_share(rank, 7, str(tmp_path)) for rank in range(7)]
    assert {len(share) for share in shares} == {8, 9}  # of 60 images
    row_N = np.concatenate([share.row_N for share in shares])
    np.testing.assert_array_equal(np.sort(row_N), np.sort(whole.row_N))
    label_of = dict(zip(whole.row_N, whole.label_N, strict=True))
    for share in shares:
        assert [label_of[row] for row in share.row_N] == share.label_N.tolist()
        np.testing.assert_array_equal(share.feature_ND[np.arange(len(share))][:, 0], share.row_N)
    if in_memory:  # every worker meets every class, and the cut into shards moves nobody
        assert all(set(share.label_N) == {1, 4, 6} for share in shares)
        np.testing.assert_array_equal(shares[0].row_N, whole.row_N[::7])


def test_nothing_is_an_empty_matrix_of_the_right_width():
    nothing = Features.concatenate([], WIDTH)
    assert (len(nothing), nothing.feature_ND.shape) == (0, (0, WIDTH))
