"""A cluster of three nodes that loses one in each long stage: the run ends with the tables of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from ray.cluster_utils import Cluster
from run_tables import same_tables

from cleanscale.engine.memory import descendants

pytestmark = pytest.mark.slow
LONGEST_S = 400
# What runs on a node while a stage is at work: a shard's task, a training worker, the classes of an index.
TASK, TRAINING, INDEX = "ray::_run", "ray::RayTrainWorker", "ray::RangeActor"
BEGUN = {TASK: "started.json", TRAINING: "attempts.json", INDEX: "decisions"}  # in the stage's folder
LOST_IN = (
    ("rounds/00/features", TASK),
    ("rounds/00/classifier", TRAINING),
    ("rounds/00/references", TASK),
    ("rounds/00/evidence", TRAINING),
    ("rounds/00/cleannet", TRAINING),
    ("rounds/00/relevance", INDEX),
)
# The command, for which no index is too small to be on actors.
COMMAND = """
from cleanscale.engine import class_index
from cleanscale.train import main

class_index.SMALL_BYTES = 0
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


def at_work(node, title: str) -> int | None:
    """A process of the node that is named so, which a task's is only while it runs."""
    for pid in descendants(node.all_processes["raylet"][0].process.pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode()):
                return pid
    return None


def lose_a_node(cluster: Cluster, title: str, process: subprocess.Popen) -> None:
    """SIGKILL for a node in the middle of such work; another one comes in its place."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before a node could be lost"
        for node in cluster.worker_nodes:
            pid = at_work(node, title)
            if pid is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)  # what it does takes milliseconds: it is not to come to its end
                cluster.add_node(num_cpus=1, wait=False)
                cluster.remove_node(node, allow_graceful=False)
                os.kill(pid, signal.SIGKILL)
                return
        time.sleep(0.003)
    raise AssertionError(f"no node ran {title}")


def test_a_node_lost_in_each_long_stage_changes_no_result(
    cluster, features_run, feature_values, small_values, tmp_path, by_row
):
    folder = tmp_path / "run"
    more = {"features": {"shard_bytes": 1024, "rows_per_file": 64}, "tracking": {"enabled": False}}
    values = small_values(folder, feature_values, more, {"index": {"shard_bytes": 1024}})
    values["engine"] = {"address": cluster.address}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(values))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "--config", str(tmp_path / "run.toml")],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            for stage, title in LOST_IN:
                while not (folder / stage / BEGUN[title]).exists():
                    assert process.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.003)
                lose_a_node(cluster, title, process)
            status = process.wait(LONGEST_S)
        finally:
            process.kill()
    said = (tmp_path / "log").read_text()
    assert status == 0, said
    for work in ("copy_features", "rounds/00/classifier", "make_shard", "rounds/00/evidence", "rounds/00/cleannet"):
        assert re.search(f"{work}: a .* was lost", said), said
    undisturbed = features_run.folder
    same_tables(undisturbed, folder, by_row, rtol=1e-4, atol=1e-5)  # that run has one shard
    numbers = [json.loads((one / "metrics.json").read_text()) for one in (folder, undisturbed)]
    assert numbers[0]["classification"] == numbers[1]["classification"]
