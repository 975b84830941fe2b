"""The cluster files pass the checks of what will read them, and start what they say they start."""

from __future__ import annotations

import copy
import re
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cleanscale.config import load

ROOT = Path(__file__).parents[1]
LAUNCHED = ["ray_cluster.yaml", "clusters/on_premise.yaml"]
KUBERAY = ["clusters/kuberay/raycluster.yaml", "clusters/kuberay/rayjob.yaml"]
# What a job uploads to every node; the package and its settings have some 0.7 MB.
UPLOAD_BYTES = 2_000_000


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    return read("ray_cluster.yaml")


@pytest.fixture(scope="module")
def kuberay_schema() -> jsonschema.Draft202012Validator:
    schema = read("tests/data/kuberay_v1.yaml")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def cluster_spec(name: str) -> dict[str, Any]:
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def start_commands(cluster: dict[str, Any]) -> list[str]:
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launcher_accepts_the_file(name):
    # Private to Ray, and the only check that needs no account; constraints.txt pins the version that has it.
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(read(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert any(kind["max_workers"] > 0 for kind in prepared["available_node_types"].values())


def test_the_launcher_refuses_a_misspelt_field(aws):
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config(aws | {"idle_timeout": 10}))


def test_the_head_takes_no_tasks_and_has_no_gpu(aws):
    head = aws["available_node_types"][aws["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert not re.match(r"[gp]\d", head["node_config"]["InstanceType"])


def test_workers_are_spot_nodes_that_scale_from_none(aws):
    (worker,) = [kind for name, kind in aws["available_node_types"].items() if name != aws["head_node_type"]]
    assert worker["min_workers"] == 0 < worker["max_workers"] <= aws["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_all_of_your_own_machines_are_used():
    cluster = read("clusters/on_premise.yaml")
    workers = len(cluster["provider"]["worker_ips"])
    assert cluster["min_workers"] == cluster["max_workers"] == workers
    assert cluster["provider"]["head_ip"] not in cluster["provider"]["worker_ips"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_install_the_pinned_project_with_bytecode(name):
    cluster = read(name)
    for there, local in cluster["file_mounts"].items():
        assert (ROOT / local).exists() or there == local == "~/.ray/auth_token", local
    (install,) = [command for command in cluster["setup_commands"] if "uv pip install" in command]
    assert "--compile-bytecode" in install
    assert "-c ~/cleanscale/constraints.txt" in install


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_states_its_auth_mode_and_how_long_a_stopped_job_may_take(name):
    starts = start_commands(read(name))
    assert len(starts) == 2
    for variable in ("RAY_AUTH_MODE", "RAY_JOB_STOP_WAIT_TIME_S", "RAY_worker_niceness"):
        assert len({re.search(rf"{variable}=(\w+)", start)[1] for start in starts}) == 1


def test_your_own_machines_share_a_token():
    cluster = read("clusters/on_premise.yaml")
    assert all("RAY_AUTH_MODE=token" in start for start in start_commands(cluster))
    assert "~/.ray/auth_token" in cluster["file_mounts"]


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_knows_every_field(kuberay_schema, name):
    assert [error.message for error in kuberay_schema.iter_errors(read(name))] == []


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ([], "rayClusterSpecs", {}),
        (["rayClusterSpec", "workerGroupSpecs", 0], "maxReplica", 8),
        (["rayClusterSpec", "workerGroupSpecs", 0], "maxReplicas", "8"),
        (["rayClusterSpec", "headGroupSpec"], "rayStartParams", {"num-cpus": 0}),
        (["rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0], "volumeMount", []),
        (["rayClusterSpec", "authOptions"], "mode", "tokens"),
    ],
)
def test_a_misspelt_field_or_a_wrong_type_is_caught(kuberay_schema, place, name, value):
    job = copy.deepcopy(read("clusters/kuberay/rayjob.yaml"))
    part = job["spec"]
    for step in place:
        part = part[step]
    part[name] = value
    assert not kuberay_schema.is_valid(job)


def test_both_kuberay_files_start_the_same_cluster():
    assert cluster_spec(KUBERAY[0]) == cluster_spec(KUBERAY[1])


def test_on_kubernetes_the_head_takes_no_tasks_and_gpu_nodes_are_spot_nodes_that_scale_from_none():
    spec = cluster_spec(KUBERAY[0])
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"]
    assert workers["minReplicas"] == 0 < workers["maxReplicas"]
    pod = workers["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "spot" in pod["nodeSelector"].values()
    assert spec["authOptions"]["mode"] == "token"


@pytest.mark.parametrize("name", KUBERAY)
def test_every_mount_of_a_pod_has_its_volume(name):
    spec = cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounts) == volumes
        assert "/dev/shm" in mounts.values()  # the object store, which would otherwise lie on the disk


def test_a_lost_cluster_is_made_anew_and_ends_with_the_run():
    job = read("clusters/kuberay/rayjob.yaml")["spec"]
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]


def test_the_command_of_the_kubernetes_job_is_one_that_the_program_takes():
    python, option, module, *arguments = read("clusters/kuberay/rayjob.yaml")["spec"]["entrypoint"].split()
    assert (python, option, module) == ("python", "-m", "cleanscale.train")
    in_image = "/home/ray/cleanscale/"
    settings = load([argument.replace(in_image, f"{ROOT}/") for argument in arguments])
    assert settings.run_uri.startswith("s3://")
    assert settings.engine.num_workers <= cluster_spec(KUBERAY[1])["workerGroupSpecs"][0]["maxReplicas"]


def test_every_image_and_version_of_ray_is_the_pinned_one():
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert f"FROM rayproject/ray:{pinned}-" in (ROOT / "clusters/Dockerfile").read_text()
    assert {cluster_spec(name)["rayVersion"] for name in KUBERAY} == {pinned}


def test_the_image_is_built_from_what_is_there():
    dockerfile = (ROOT / "clusters/Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY \S+ (.+)$", dockerfile, flags=re.M) for name in line.split()[:-1]]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert "--compile-bytecode -c constraints.txt" in dockerfile


def test_the_example_of_a_cluster_reads_and_writes_where_every_node_can():
    settings = load(["--config", str(ROOT / "examples/food.toml")])
    assert settings.engine.use_gpu
    for uri in (settings.run_uri, settings.data.train, settings.data.test, settings.data.verification):
        assert uri is not None
        assert uri.startswith("s3://")


def test_a_job_uploads_the_package_and_little_else(tmp_path):
    """What `ray job submit --working-dir .` sends, by Ray's own packaging."""
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "working_dir.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=[])
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
    assert package.stat().st_size < UPLOAD_BYTES
    assert {"cleanscale/train.py", "examples/food.toml", "pyproject.toml", "README.md"} <= set(names)
    unwanted = (".git/", ".venv/", "docs/", "tests/", "runs/")
    assert [name for name in names if name.startswith(unwanted) or "__pycache__" in name] == []
