import sys
import time
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from cleanscale.engine.data import actor_count, blocks, stream, through_actors
from cleanscale.engine.settings import EngineSettings
from cleanscale.errors import DataError

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tasks cannot import a test module
pytestmark = pytest.mark.usefixtures("ray_session")


def read(item: int) -> dict[str, np.ndarray]:
    if item == 0:
        time.sleep(0.5)  # the first item is the last one ready
    return {"row": np.arange(10 * item, 10 * item + 10), "image": np.full((10, 2, 2, 3), item, np.uint8)}


def test_blocks_arrive_in_the_order_of_the_items_however_long_each_takes():
    found = list(blocks(stream([0, 3, 1, 2], read, num_cpus=0.5)))
    np.testing.assert_array_equal(
        np.concatenate([b["row"] for b in found]), np.concatenate([10 * k + np.arange(10) for k in (0, 3, 1, 2)])
    )
    assert all(b["image"].dtype == np.uint8 and b["image"].shape[1:] == (2, 2, 3) for b in found)
    for block in found:
        np.testing.assert_array_equal(block["image"][:, 0, 0, 0], block["row"] // 10)


def refuse(item: int) -> dict[str, np.ndarray]:
    raise DataError("found this; expected that; do so")


def test_the_users_error_of_a_read_arrives_as_it_was_raised():
    with pytest.raises(DataError) as caught:
        list(blocks(stream([1], refuse, num_cpus=0.5)))
    assert str(caught.value) == "found this; expected that; do so"


class Doubling:
    def __init__(self, threads: int) -> None:
        assert threads >= 1

    def __call__(self, block: dict[str, np.ndarray]) -> pa.Table:
        return pa.table({"row": block["row"], "double": 2 * block["row"]})


def write(folder: str, table: pa.Table) -> dict[str, int]:
    first = int(table["row"][0].as_py())
    pq.write_table(table, f"{folder}/{first:04d}.parquet")
    return {"rows": table.num_rows}


@pytest.mark.parametrize("actors", [1, 2])
def test_a_pool_of_actors_leaves_files_of_the_length_that_was_asked_for(tmp_path, actors):
    written = through_actors(
        stream([0, 1, 2, 3, 4], read, num_cpus=0.5),
        Doubling,
        {},
        rows_per_write=20,
        write=partial(write, str(tmp_path)),
        settings=EngineSettings(feature_actors=actors),
    )
    assert [int(file["rows"]) for file in written] == [20, 20, 10]
    table = pa.concat_tables([pq.read_table(file) for file in sorted(tmp_path.iterdir())])
    np.testing.assert_array_equal(table["row"], np.arange(50))
    np.testing.assert_array_equal(table["double"], 2 * np.arange(50))


def test_a_small_machine_has_one_actor_unless_more_are_asked_for():
    assert actor_count(EngineSettings()) == 1
    assert actor_count(EngineSettings(feature_actors=3)) == 3


def test_a_cluster_that_grows_is_asked_for_as_many_gpus_as_training_takes():
    joined = EngineSettings(use_gpu=True, num_workers=8, address="auto")
    assert actor_count(joined) == 8
    assert actor_count(joined.model_copy(update={"address": None})) == 1
    assert actor_count(joined.model_copy(update={"feature_actors": 3})) == 3
