import sys

import numpy as np
import pytest
import ray

from cleanscale.engine import tasks
from cleanscale.engine.tasks import map_shards, users_error
from cleanscale.errors import ConfigError, DataError, StageError

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tasks cannot import a test module
pytestmark = pytest.mark.usefixtures("ray_session")


def add(item: int, number: int, array: np.ndarray) -> int:
    return item + number + int(array.sum())


def test_every_item_comes_back_once_with_its_position():
    found = dict(map_shards(add, range(20), 100, np.ones(3)))
    assert found == {k: k + 103 for k in range(20)}


def test_no_items_are_no_work():
    assert list(map_shards(add, [], 1, np.ones(1))) == []


def fail(item: int) -> int:
    if item == 2:
        raise DataError("found this; expected that; do so")
    return item


def test_the_users_error_of_a_task_arrives_as_it_was_raised():
    with pytest.raises(DataError) as caught:
        list(map_shards(fail, range(4)))
    assert type(caught.value) is DataError
    assert str(caught.value) == "found this; expected that; do so"


def divide(item: int) -> float:
    return 1 / item


def test_any_other_error_of_a_task_is_not_taken_for_the_users():
    with pytest.raises(ray.exceptions.RayTaskError, match="ZeroDivisionError"):
        list(map_shards(divide, [0]))


def threads(item: int) -> tuple[int, list[int]]:
    import faiss  # noqa: F401
    import threadpoolctl
    import torch

    from cleanscale.engine.tasks import one_thread

    torch.set_num_threads(2)
    threadpoolctl.threadpool_limits(2)
    one_thread()
    return torch.get_num_threads(), [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]


def test_a_task_computes_on_one_thread():
    (_, (torch_threads, pools)) = next(map_shards(threads, [0]))
    assert torch_threads == 1
    assert set(pools) <= {1}


def lose(item: int) -> None:
    from cleanscale.engine.tasks import WorkLostError

    raise WorkLostError("whom it asked is gone")


def test_a_task_that_loses_whom_it_asked_is_begun_again_and_not_for_ever(caplog):
    with pytest.raises(StageError, match=f"lost its process {tasks.MAX_RETRIES + 1} times"):
        list(map_shards(lose, [0]))
    assert caplog.text.count("its piece is done again") == tasks.MAX_RETRIES


def test_the_users_error_is_found_at_the_root_of_others():
    inner = ConfigError("the message")
    outer = RuntimeError("engine")
    outer.__cause__ = inner
    assert str(users_error(outer)) == "the message"
    assert type(users_error(outer)) is ConfigError
    assert users_error(RuntimeError("nothing of ours")) is None


def test_more_tasks_are_in_flight_when_the_cluster_has_grown(monkeypatch):
    cores = iter([1.0] + [8.0] * 100)
    waiting = []
    monkeypatch.setattr(tasks, "cluster_cpus", lambda: next(cores))
    ray_wait = ray.wait
    monkeypatch.setattr(ray, "wait", lambda refs, **how: (waiting.append(len(refs)), ray_wait(refs, **how))[1])
    assert len(list(map_shards(add, range(30), 0, np.zeros(1)))) == 30
    assert waiting[0] == 2
    assert max(waiting) == 16
