"""Jobs as users submit them: `ray job submit` to a real head without tasks, whose node starts when work asks for it.

Slow: the head, the node and each job are processes of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray.util
import tomli_w
from waiting import kill_all, wait_until

from cleanscale.config import merge

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
LONGEST_S = 240
OBJECT_STORE_BYTES = 100 * 2**20


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on; the others of a Ray are chosen by the system."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Cluster:
    """A cluster and the environment of somebody who submits jobs to it."""

    environment: dict[str, str]
    project: Path  # what is submitted as the working directory
    folder: Path  # Ray's own files
    started: list[subprocess.Popen]

    def ray(self, *arguments: str, timeout_s: float = LONGEST_S) -> subprocess.CompletedProcess:
        command = [str(RAY), *arguments]
        return subprocess.run(
            command, cwd=self.project, env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )

    def begin(self, *arguments: str) -> subprocess.Popen:
        """A command that goes on in the background; what it says comes from its `communicate`."""
        process = subprocess.Popen(
            [str(RAY), *arguments],
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def submit(self, *arguments: str, name: str, wait: bool = True, uv: bool = False) -> subprocess.Popen:
        """The command of the README, with a name by which the job is asked for afterwards."""
        no_wait = [] if wait else ["--no-wait"]
        python = ["uv", "run", "--active", "--no-sync", "python"] if uv else ["python"]
        program = [*python, "-m", "cleanscale.train", *arguments]
        return self.begin("job", "submit", "--submission-id", name, *no_wait, "--working-dir", ".", "--", *program)

    def status(self, name: str) -> str:
        """What `ray job status` asks for, without the seconds in which it starts: "failed: what was the matter"."""
        address, token = (self.environment[f"RAY_{part}"] for part in ("API_SERVER_ADDRESS", "AUTH_TOKEN"))
        request = urllib.request.Request(f"{address}/api/jobs/{name}", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=LONGEST_S) as answer:
            job = json.loads(answer.read())
        return f"{job['status'].lower()}: {job['message']}"


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def sigterm_waits(pid: int) -> bool:
    """Whether a process was sent SIGTERM and has not come to it yet."""
    status = Path(f"/proc/{pid}/status").read_text()
    waiting = next(line for line in status.splitlines() if line.startswith("ShdPnd:")).split()[1]
    return bool(int(waiting, 16) >> (signal.SIGTERM - 1) & 1)


def cluster_file(address: str) -> dict[str, Any]:
    """What `ray up` would write on the head."""
    node = {"resources": {"CPU": 2, "object_store_memory": OBJECT_STORE_BYTES}, "node_config": {}}
    return {
        "cluster_name": "grows",
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "max_workers": 1,
        "idle_timeout_minutes": 10,
        "upscaling_speed": 1.0,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "node": node | {"min_workers": 0, "max_workers": 1},
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """`ray start` for a head that takes no tasks and starts a node of two cores when work asks for it, by token.

    As the cluster files do it, with the provider that Ray has for its own tests: nodes are processes of this machine.
    """
    # Short: the path of a socket in it may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="cs-"))
    (folder / "ray").mkdir()
    project = tmp_path_factory.mktemp("project")
    for name in ("cleanscale", "examples"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    port, dashboard, client, agent = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",  # a job runs what was submitted
        "VIRTUAL_ENV": sys.prefix,  # what `uv run --active` takes
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
        "RAY_worker_niceness": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    made = Cluster(environment, project, folder, [])
    address = f"{ray.util.get_node_ip_address()}:{port}"
    growing = folder / "cluster.json"
    growing.write_text(json.dumps(cluster_file(address)))
    head = ["--block", f"--port={port}", f"--ray-client-server-port={client}", "--num-cpus=0", "--num-gpus=0"]
    head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    head += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory", str(OBJECT_STORE_BYTES)]
    head += [f"--temp-dir={folder}/ray", f"--autoscaling-config={growing}"]
    try:
        made.begin("start", "--head", *head)
        wait_until(lambda: listens(dashboard), "dashboard", longest_s=LONGEST_S)
        wait_until(lambda: made.ray("job", "list").returncode == 0, "dashboard", longest_s=LONGEST_S)
        yield made
    finally:
        for process in reversed(made.started):
            kill_all(process)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Ended:
    """A job that was waited for: exit status of `ray job submit`, everything it showed, and the job's status."""

    returncode: int
    said: str
    status: str


def collect(cluster: Cluster, submitted: subprocess.Popen, name: str) -> Ended:
    said, _ = submitted.communicate(timeout=LONGEST_S)
    return Ended(submitted.returncode, said, cluster.status(name))


@dataclass
class Told:
    """What became of the jobs of `jobs`, and where their run folders are."""

    folder: Path
    ended: dict[str, Ended]
    stopped: str  # status of the stopped job
    complete_when_stopped: dict[str, int]
    first_line_came_while_it_ran: bool


@pytest.fixture(scope="module")
def jobs(cluster, features_run, feature_values, small_values, stages_done, tmp_path_factory) -> Told:
    """One job begins; others come while it runs; it is stopped and submitted again.

    Two of its stages are those of a finished run: what they are made from comes out the same, so they are not redone.
    After its first stage of training it is held until the others have ended and the stop has come to it.
    """
    folder = tmp_path_factory.mktemp("job_runs")
    shutil.copytree(features_run.folder, folder / "finished")
    for stage in ("evidence", "cleannet"):
        shutil.copytree(features_run.folder / "rounds/00" / stage, folder / "main/rounds/00" / stage)
    values = merge(small_values(folder, feature_values), {"tracking": {"enabled": False}})
    (cluster.project / "job.toml").write_text(tomli_w.dumps(values))

    def submit(name: str, run_uri: Path | str, *more: str, **how: bool) -> subprocess.Popen:
        return cluster.submit("--config", "job.toml", "--run.uri", str(run_uri), *more, name=name, **how)

    main = folder / "main"
    assert submit("main", main, wait=False).wait(LONGEST_S) == 0
    wait_until((main / "ingest/train/manifest.json").exists, "ingested data", longest_s=LONGEST_S)
    beside = {
        "other_folder": submit("other_folder", folder / "finished"),
        "same_folder": submit("same_folder", main),
        "relative": submit("relative", "runs/lost"),
    }
    wait_until((main / "rounds/00/classifier/manifest.json").exists, "classifier", longest_s=LONGEST_S)
    driver = json.loads((main / "lease.json").read_text())["pid"]
    os.kill(driver, signal.SIGSTOP)
    ended = {name: collect(cluster, submitted, name) for name, submitted in beside.items()}
    stop = cluster.begin("job", "stop", "main")
    wait_until(lambda: sigterm_waits(driver), "SIGTERM for the job", longest_s=LONGEST_S)
    os.kill(driver, signal.SIGCONT)
    assert stop.wait(LONGEST_S) == 0
    stopped, complete = cluster.status("main"), stages_done(main)
    again = submit("again", main, uv=True)
    assert again.stdout is not None
    first = next(line for line in again.stdout if "round 0" in line)
    while_it_ran = again.poll() is None
    said, _ = again.communicate(timeout=LONGEST_S)
    ended["again"] = Ended(again.returncode, first + said, cluster.status("again"))
    return Told(folder, ended, stopped, complete, while_it_ran)


def test_a_job_that_is_done_has_succeeded_and_left_its_results(jobs):
    done = jobs.ended["other_folder"]
    assert done.returncode == 0, done.said
    assert "succeeded" in done.status
    assert (jobs.folder / "finished/metrics.json").exists()


def test_what_a_job_says_is_shown_while_it_runs(jobs):
    assert jobs.first_line_came_while_it_ran
    assert "metrics.json" in jobs.ended["again"].said  # the summary at the end


def test_a_run_folder_that_would_not_outlive_the_job_is_refused_and_fails_the_job_with_one_message(jobs):
    done = jobs.ended["relative"]
    assert done.returncode == 1
    assert "failed" in done.status
    (message,) = {line for line in done.said.splitlines() if line.startswith("cleanscale: ")}
    assert "runs/lost is in the job's copy of its working directory" in message
    assert "--run.uri s3://" in message
    assert "exit code 2" in done.status


def test_a_second_job_in_the_same_folder_is_refused_and_named(jobs):
    done = jobs.ended["same_folder"]
    assert done.returncode == 1
    (message,) = {line for line in done.said.splitlines() if line.startswith("cleanscale: ")}
    assert f"{jobs.folder / 'main'} is in use by a run on {socket.gethostname()}" in message
    assert "job main" in message


def test_a_stopped_job_goes_on_when_it_is_submitted_again(jobs, stages_done):
    assert "stopped" in jobs.stopped
    done = jobs.ended["again"]
    assert done.returncode == 0, done.said
    now = stages_done(jobs.folder / "main")
    assert jobs.complete_when_stopped
    assert {stage: now[stage] for stage in jobs.complete_when_stopped} == jobs.complete_when_stopped
    assert set(now) > set(jobs.complete_when_stopped)
    assert not (jobs.folder / "main/lease.json").exists()


def test_jobs_beside_each_other_and_a_stop_change_no_result(jobs, features_run, by_row):
    for name in ("main", "finished"):
        assert by_row(jobs.folder / name / "relevance").equals(by_row(features_run.folder / "relevance"))
        numbers = [json.loads((f / "metrics.json").read_text()) for f in (jobs.folder / name, features_run.folder)]
        assert numbers[0]["detection"] == numbers[1]["detection"]
