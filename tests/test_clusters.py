"""The cluster files pass the cluster launcher's own checks and start what they say they start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def aws() -> dict:
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def test_the_launcher_accepts_the_aws_file(aws):
    # Private to Ray, and the only check that needs no account; constraints.txt pins the version that has it.
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(aws))


def test_the_head_takes_no_tasks_and_has_no_gpu(aws):
    head = aws["available_node_types"][aws["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert not re.match(r"[gp]\d", head["node_config"]["InstanceType"])


def test_workers_are_spot_nodes_that_scale_from_none(aws):
    (worker,) = [kind for name, kind in aws["available_node_types"].items() if name != aws["head_node_type"]]
    assert worker["min_workers"] == 0 < worker["max_workers"] <= aws["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_nodes_install_the_pinned_project_with_bytecode(aws):
    for local in aws["file_mounts"].values():
        assert (ROOT / local).exists(), local
    (install,) = [command for command in aws["setup_commands"] if "uv pip install" in command]
    assert "--compile-bytecode" in install
    assert "-c ~/cleanscale/constraints.txt" in install


def test_every_node_states_its_auth_mode(aws):
    for commands in (aws["head_start_ray_commands"], aws["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=" in start
