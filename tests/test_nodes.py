"""A cluster of three nodes that loses one in each long stage: the run ends with the tables of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from ray.cluster_utils import Cluster
from run_tables import same_tables
from waiting import wait_until

from cleanscale.engine.memory import descendants

pytestmark = pytest.mark.slow
LONGEST_S = 240
# In order: shards' tasks by their function, training stages by their folder. The last asks the class index's actors.
LOST_IN = (
    "copy_features",
    "rounds/00/classifier",
    "make_shard",
    "rounds/00/evidence",
    "rounds/00/cleannet",
    "judge_shard",
)
# The command, in which the first that comes to such work notes where it is and never ends. These functions replace
# two of the driver's; the processes that run them have the real ones. No index is too small to be on actors.
COMMAND = """
import json, os, sys, time
from pathlib import Path

import ray

from cleanscale.engine import class_index, tasks, train
from cleanscale.train import main

NAMES, NOTES = {names}, Path({notes!r})


def stay(name):
    note = NOTES / name.replace("/", "-")
    if name not in NAMES:
        return
    try:
        note.touch(exist_ok=False)
    except FileExistsError:
        return
    note.write_text(json.dumps([ray.get_runtime_context().get_node_id(), os.getpid()]))
    time.sleep(3600)


@ray.remote(max_retries=0)
def run(function, item, shared):
    from cleanscale.engine import tasks

    stay(function.__name__)
    return tasks._run._function(function, item, shared)


def train_loop(settings):
    from cleanscale.engine import train

    def loop(worker, config):
        stay("/".join(Path(worker.uri).parts[-3:]))
        settings["loop"](worker, config)

    train._train_loop(settings | {{"loop": loop}})


tasks._run, train._train_loop, class_index.SMALL_BYTES = run, train_loop, 0
raise SystemExit(main())
"""


@pytest.fixture
def cluster(monkeypatch) -> Iterator[Cluster]:
    """A head, on which nothing but the driver runs, and two nodes of one core each."""
    for name, value in (("RAY_health_check_period_ms", "500"), ("RAY_health_check_failure_threshold", "3")):
        monkeypatch.setenv(name, value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def said_by(note: Path, process: subprocess.Popen) -> tuple[str, int]:
    """(id of the node, process) of the work that stays where it is, once it is there."""

    def look() -> tuple[str, int] | None:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return tuple(json.loads(note.read_text()))
        return None

    return wait_until(look, note.name, longest_s=LONGEST_S, by=process)


def titles(node) -> list[str]:
    """What the processes of a node call themselves."""
    found = []
    for pid in descendants(node.all_processes["raylet"][0].process.pid):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_text())
    return found


def node_with(cluster: Cluster, title: str) -> Any:
    """A node on which something is called so, once there is one."""

    def look() -> Any:
        having = (node for node in cluster.worker_nodes if any(one.startswith(title) for one in titles(node)))
        return next(having, None)

    return wait_until(look, f"a node with {title}", longest_s=LONGEST_S, every_s=0.1)


def lose(cluster: Cluster, node: Any, pid: int) -> None:
    """SIGKILL for a node, in whose place another one comes, and for the process that stays where it is."""
    cluster.add_node(num_cpus=1, wait=False)
    cluster.remove_node(node, allow_graceful=False)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_node_lost_in_each_long_stage_changes_no_result(
    cluster, features_run, feature_values, small_values, tmp_path, by_row
):
    folder, notes = tmp_path / "run", tmp_path / "notes"
    notes.mkdir()
    more = {"features": {"shard_bytes": 1024, "rows_per_file": 64}, "tracking": {"enabled": False}}
    values = small_values(folder, feature_values, more, {"index": {"shard_bytes": 1024}})
    values["engine"] = {"address": cluster.address}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(values))
    command = COMMAND.format(names=LOST_IN, notes=str(notes))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "--config", str(tmp_path / "run.toml")],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            for name in LOST_IN:
                node_id, pid = said_by(notes / name.replace("/", "-"), process)
                node = next(node for node in cluster.worker_nodes if node.node_id == node_id)
                lose(cluster, node_with(cluster, "ray::RangeActor") if name == "judge_shard" else node, pid)
            status = process.wait(LONGEST_S)
        finally:
            process.kill()
    said = (tmp_path / "log").read_text()
    assert status == 0, said
    for name in LOST_IN:
        assert re.search(f"{name}: a .* was lost", said), said
    undisturbed = features_run.folder
    same_tables(undisturbed, folder, by_row, rtol=1e-4, atol=1e-5)  # that run has one shard
    numbers = [json.loads((one / "metrics.json").read_text()) for one in (folder, undisturbed)]
    assert numbers[0]["classification"] == numbers[1]["classification"]
