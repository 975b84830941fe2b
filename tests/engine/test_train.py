"""Worker groups: each takes seconds to start."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
import waiting
from waiting import wait_until

from cleanscale.engine import train
from cleanscale.engine.settings import EngineSettings
from cleanscale.engine.tasks import map_shards
from cleanscale.engine.train import scaling, train_on_workers
from cleanscale.errors import ConfigError, StageError

for module in (sys.modules[__name__], waiting):  # workers cannot import what belongs to the tests
    ray.cloudpickle.register_pickle_by_value(module)
pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]


def meet(worker, config):
    total = worker.collectives.sum(torch.tensor([worker.rank + 1.0]))
    worker.say(1, 2, "steps", [{"step": 1, "loss": 0.5}])
    worker.say(2, 2, "steps", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    Path(worker.uri, f"rank-{worker.rank}").write_text(f"{worker.world} {total.item()} {config} {worker.device}")


def test_workers_know_each_other_and_every_number_of_rank_0_is_heard(tmp_path):
    heard = []
    settings = EngineSettings(num_workers=2)
    train_on_workers(meet, "config", uri=str(tmp_path), settings=settings, on_progress=heard.append)
    said = {path.name: path.read_text() for path in tmp_path.glob("rank-*")}
    assert said == {"rank-0": "2 3.0 config cpu", "rank-1": "2 3.0 config cpu"}
    assert heard[-1]["done"] == 2
    assert heard[-1]["history"] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def refuse(worker, folder):
    (Path(folder) / f"attempt-{len(list(Path(folder).glob('attempt-*')))}").touch()
    raise StageError("found this; expected that; do so")


def test_the_users_error_of_a_worker_ends_the_training_with_its_message(tmp_path):
    attempts = tmp_path / "attempts"
    attempts.mkdir()
    with pytest.raises(StageError) as caught:
        train_on_workers(refuse, str(attempts), uri=str(tmp_path / "stage"), settings=EngineSettings(max_failures=1))
    assert str(caught.value) == "found this; expected that; do so"
    assert len(list(attempts.iterdir())) == 1


def count_to_four(worker, folder):
    state = worker.checkpoint() or {"count": 0}
    for count in range(state["count"], 4):
        with (Path(folder) / "counted").open("a") as file:
            file.write(f"{count} ")
        worker.save(lambda count=count: {"count": count + 1}, {"count": count})
        if count == 1 and not (Path(folder) / "killed").exists():
            (Path(folder) / "killed").touch()
            wait_until_heard(Path(worker.uri, "ray_train", "run"))
            os.kill(os.getpid(), signal.SIGKILL)


def wait_until_heard(run: Path) -> None:
    """Until Ray has noted the newest checkpoint as the one to go on from."""
    newest = max(path.name for path in run.glob("checkpoint_*") if path.is_dir())
    noted = run / "checkpoint_manager_snapshot.json"
    wait_until(lambda: noted.exists() and newest in noted.read_text(), newest, longest_s=60)


def test_a_killed_worker_goes_on_from_the_last_checkpoint(tmp_path):
    train_on_workers(count_to_four, str(tmp_path), uri=str(tmp_path / "stage"), settings=EngineSettings())
    assert (tmp_path / "counted").read_text() == "0 1 2 3 "


def begin_and_stay(stay_s: float, begun: str) -> None:
    Path(begun).with_suffix(".new").write_text(str(os.getpid()))
    Path(begun).with_suffix(".new").rename(begun)
    time.sleep(stay_s)


def begin_and_stay_on_a_worker(worker, begun):
    begin_and_stay(60.0, begun)


@contextlib.contextmanager
def interrupted_once(begun: Path) -> Iterator[None]:
    """One Ctrl-C for this process as soon as that file is there."""

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that tests are dealt to ignores it
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_is_heeded_in_training_and_in_every_stage_after_one(tmp_path):
    begun, settings = str(tmp_path / "training"), EngineSettings()
    with interrupted_once(tmp_path / "training"), pytest.raises(KeyboardInterrupt):
        train_on_workers(begin_and_stay_on_a_worker, begun, uri=str(tmp_path / "one"), settings=settings)
    worker = Path("/proc", Path(begun).read_text())
    wait_until(lambda: not worker.exists(), "the end of the interrupted worker", longest_s=20)
    free = lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]  # noqa: E731
    wait_until(free, "the cores of the interrupted group", longest_s=20)
    train_on_workers(meet, None, uri=str(tmp_path / "two"), settings=EngineSettings())
    with interrupted_once(tmp_path / "shards"), pytest.raises(KeyboardInterrupt):
        list(map_shards(begin_and_stay, [5.0], str(tmp_path / "shards")))


def test_groups_share_the_process_of_their_controllers_and_outlive_it(tmp_path):
    def go(name: str) -> str:
        train_on_workers(meet, None, uri=str(tmp_path / name), settings=EngineSettings())
        (host,) = train.hosts.values()
        return host._actor_id.hex()

    first = go("one")
    assert go("two") == first
    ray.kill(*train.hosts.values())
    assert go("three") != first
    assert (tmp_path / "three" / "rank-0").exists()


def test_more_workers_than_gpus_is_the_users_error(tmp_path):
    with pytest.raises(ConfigError, match=r"--engine\.num_workers is 2 with GPUs, but the cluster has 0"):
        train_on_workers(meet, None, uri=str(tmp_path / "stage"), settings=EngineSettings(num_workers=2, use_gpu=True))


def test_a_cluster_that_was_joined_may_still_get_its_gpus(caplog):
    asked = scaling(EngineSettings(num_workers=2, use_gpu=True, address="auto"))
    assert asked.num_workers == 2
    assert asked.placement_strategy == "PACK"
    assert scaling(EngineSettings(num_workers=2)).placement_strategy == "SPREAD"
    assert asked.resources_per_worker["GPU"] == 1
    assert "waiting for it to start more" in caplog.text
