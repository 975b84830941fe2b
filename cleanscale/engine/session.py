"""One Ray session for a run: joined when there is a cluster, started here when there is none."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator

import ray
import ray.data
import ray.exceptions
from ray.data import ExecutionResources

from cleanscale.engine.settings import EngineSettings
from cleanscale.errors import ConfigError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
STREAM_BYTES = 256 << 20  # blocks of images under way on a node
# Set before Ray reads them; a user's own value wins.
DEFAULT_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray makes its workers nice (15): on a machine that does anything else they would starve.
    "RAY_worker_niceness": "0",
    # Threads that spin while they wait for each other slow a busy machine down many times over.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ray's core writes messages to the terminal that mean nothing to a user; its errors still arrive as exceptions.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
# The same for a cluster that is joined, whose own processes have the environment of its `ray start`.
JOINED_ENVIRONMENT = {
    # A cloud takes minutes to start a node, and longer when it has none to give.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
}


@contextlib.contextmanager
def session(settings: EngineSettings) -> Iterator[None]:
    """Join or start Ray for the time of a `with`; a Ray that was already there is left running.

    Raises: ConfigError when the named cluster cannot be reached.
    """
    if ray.is_initialized():
        prepare_data()
        yield
        return
    address = cluster_address(settings)
    for name, value in (DEFAULT_ENVIRONMENT | (JOINED_ENVIRONMENT if address else {})).items():
        os.environ.setdefault(name, value)
    with own_signals():
        start(settings, address)
    try:
        prepare_data()
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts; whoever asked for it before is to have it still."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def start(settings: EngineSettings, address: str | None) -> None:
    # Ray's own messages of level INFO say nothing that a user of this tool can act on.
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False, "configure_logging": True}
    if address is None:
        # Ray's default holds: a token in ~/.ray, without which other users of this machine could run code as this one.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # which it announces at length
        # One machine is not pre-empted by a cloud: the watcher would only take 110 MB beside every training stage.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # "local" starts one of its own: without an address Ray would join whatever else runs on this machine.
        ray.init(
            address="local",
            num_cpus=settings.num_cpus,
            object_store_memory=settings.object_store_bytes,
            include_dashboard=False,
            **quiet,
        )
        return
    try:
        knock(address)
        ray.init(address=address, **quiet)
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"the Ray cluster at {address!r} did not take this process's token; expected the mode and the token "
            "of the cluster; set its RAY_AUTH_MODE, and give its token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from error
    except OSError as error:  # ConnectionError and what a socket raises
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({error}); expected a running head; "
            "start one with `ray start --head`, or leave out --engine.address and RAY_ADDRESS to run on this machine"
        ) from error


def knock(address: str) -> None:
    """Raise OSError within seconds where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def prepare_data() -> None:
    """Ray Data as every stage expects it: order kept (it reaches training), no bars of its own, quiet logs.

    What is under way is bounded, however large the object stores: reading waits for whoever uses the blocks.
    """
    context = ray.data.DataContext.get_current()
    nodes = max(1, sum(node["Alive"] for node in ray.nodes()))
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=STREAM_BYTES * nodes)
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It logs a task's error with its traceback and then raises it: a user's error is to be one message.
    logging.getLogger("ray.data._internal.execution.streaming_executor_state").setLevel(logging.CRITICAL)


def cluster_address(settings: EngineSettings) -> str | None:
    """The cluster that a run joins, and that may grow while it runs; None: Ray starts here and has what is here."""
    return settings.address or os.environ.get("RAY_ADDRESS")


def cluster_cpus() -> float:
    """Cores at this moment; a cluster that starts nodes as work asks for them may have none yet: that counts as one."""
    return ray.cluster_resources().get("CPU") or 1.0


def cluster_gpus() -> float:
    return ray.cluster_resources().get("GPU", 0.0)
