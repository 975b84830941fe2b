"""Training stages as Ray Train worker groups: a loop gets a `Worker` and never sees Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cleanscale import errors
from cleanscale.engine.here import Here, here
from cleanscale.engine.session import cluster_address, cluster_cpus, cluster_gpus
from cleanscale.engine.settings import EngineSettings
from cleanscale.engine.tasks import users_error
from cleanscale.errors import CleanscaleError, ConfigError
from cleanscale.storage import uris
from cleanscale.storage.manifests import read_json, stage_name, write_json
from cleanscale.training.collectives import Alone, Collectives, collectives

log = logging.getLogger(__name__)

STATE = "state.pt"
PROGRESS = "progress.json"
ATTEMPTS = "attempts.json"
ANSWER_TIMEOUT_S = 10.0
UNUSED_CALLBACKS = (DatasetsCallback, PlacementGroupCleanerCallback)


@dataclass
class Worker:
    """What a training loop knows of where it runs."""

    uri: str  # the stage's folder
    device: str
    collectives: Collectives
    scratch: str | None = None  # folder for what does not fit in memory; None: the system's for temporary files
    last_said_s: float = 0.0

    @property
    def rank(self) -> int:
        return self.collectives.rank

    @property
    def world(self) -> int:
        return self.collectives.world

    def checkpoint(self) -> dict[str, Any] | None:
        """The state that the last `save` of an interrupted attempt gave; None at the first start."""
        found = ray.train.get_checkpoint()
        if found is None:
            return None
        with found.as_directory() as folder:
            return torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)

    def save(self, state: Callable[[], dict[str, Any]], metrics: dict[str, Any]) -> None:
        """A barrier: every worker calls it; rank 0's `state()` (tensors, numbers, strings) is the checkpoint."""
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state(), Path(folder) / STATE)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))

    def say(self, done: float, total: float, unit: str, history: Sequence[Mapping[str, Any]] = ()) -> None:
        """Progress for the driver, from rank 0, now and then. history: numbers so far, with their `step`."""
        if self.rank == 0 and (time.monotonic() - self.last_said_s > news_every_s(self.uri) or done >= total):
            self.last_said_s = time.monotonic()
            said = {"done": done, "total": total, "unit": unit, "history": list(history)}
            write_json(uris.join(self.uri, PROGRESS), said)


def news_every_s(uri: str) -> float:
    """How often progress is told through the run folder: every word costs a request where that is an object store."""
    return 1.0 if uris.is_local(uri) else 15.0


class LoneWorker(Worker):
    """The only worker, in a process that is no worker group's: nobody restarts it, so it keeps no checkpoints."""

    def __init__(self, uri: str, device: str, on_progress: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(uri, device, Alone())
        self.on_progress = on_progress

    def checkpoint(self) -> dict[str, Any] | None:
        return None

    def save(self, state: Callable[[], dict[str, Any]], metrics: dict[str, Any]) -> None:
        pass

    def say(self, done: float, total: float, unit: str, history: Sequence[Mapping[str, Any]] = ()) -> None:
        self.on_progress({"done": done, "total": total, "unit": unit, "history": list(history)})


def train_here(loop: Callable[[Worker, Any], None], config: Any, how: Here, uri: str, on_progress: Any) -> None:
    """Run the loop in this process, with the threads of a worker and this process's own afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(how.threads)
    try:
        loop(LoneWorker(uri, how.device, on_progress), config)
    finally:
        torch.set_num_threads(threads)


class Group(WorkerGroup):
    """Ray Train's; what it has reserved is known to its process."""

    reserved: ClassVar[list[PlacementGroup]] = []

    def _create_placement_group(self, *args: Any) -> Any:
        handle = super()._create_placement_group(*args)
        self.reserved.append(handle.placement_group)
        return handle


class Controller(TrainController):
    worker_group_cls = Group


class ControllerHost:
    """An actor for the controllers of all worker groups of a driver: another for each would import torch again."""

    def run(self, arguments: dict[str, Any]) -> Any:
        Group.reserved.clear()
        controller = Controller(**arguments)
        asyncio.run(controller.run())
        return controller.get_result()

    def lives(self) -> bool:
        return True

    def reserved(self) -> list[PlacementGroup]:
        return Group.reserved


hosts: dict[tuple[str, str], Any] = {}  # by Ray session and job


class Trainer(TorchTrainer):
    """Ray Train's, whose groups start faster, and under which Ctrl-C is a KeyboardInterrupt at once.

    Ray's own handler asks the controller, which does not answer while it waits for nodes. It also stays when training
    has ended: the first two Ctrl-C of all later stages were lost in it, and the third ended the process without a word.
    """

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        host = controller_host()
        try:
            return ray.get(host.run.remote(arguments))
        except BaseException:  # Ctrl-C too: the group is not to outlive whoever asked for it
            end_of(host)
            raise

    def _create_default_callbacks(self) -> list[Any]:
        """Without two that start a process for every group (3 s of a core): no loop gets its data from Ray Train, and
        `end_of` frees what an interrupted group has reserved."""
        return [c for c in super()._create_default_callbacks() if not isinstance(c, UNUSED_CALLBACKS)]


def controller_host() -> Any:
    """This driver's, on its node as Ray Train's own controllers are; a new one where the last has died."""
    context = ray.get_runtime_context()
    key = context.get_session_name(), context.get_job_id()
    with contextlib.suppress(KeyError, ray.exceptions.RayActorError):
        ray.get(hosts[key].lives.remote())
        return hosts[key]
    hosts.clear()
    on_this_node = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
    environment = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"} | get_env_vars_to_propagate()
    own = {"scheduling_strategy": on_this_node, "runtime_env": {"env_vars": environment}}
    # Two at a time: it answers while a controller runs.
    hosts[key] = ray.remote(num_cpus=0, max_concurrency=2, **own)(ControllerHost).remote()
    return hosts[key]


def end_of(host: Any) -> None:
    """End a host with the group that it may have; what that has reserved would stay so until the driver ends."""
    hosts.clear()
    reserved = []
    with contextlib.suppress(ray.exceptions.RayError):
        reserved = ray.get(host.reserved.remote(), timeout=ANSWER_TIMEOUT_S)
    ray.kill(host)
    for group in reserved:
        remove_placement_group(group)


def train_on_workers(
    loop: Callable[[Worker, Any], None],
    config: Any,
    *,
    uri: str,
    settings: EngineSettings,
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Run `loop(worker, config)` on a group of workers; lost workers restart it from the last checkpoint.

    The loop writes its results into `uri`. The same call after a killed driver goes on from the last checkpoint.
    In a trial (`engine.here`) it runs in the calling process, alone.
    Raises: CleanscaleError as raised by the loop; RuntimeError when the group failed more than `max_failures` times.
    """
    how = here()
    if how is not None:
        train_here(loop, config, how, uri, on_progress)
        return
    filesystem, path = uris.arrow_filesystem(uris.join(uri, "ray_train"))
    failed = uris.join(uri, "failed.json")
    uris.remove_tree(failed)
    trainer = Trainer(
        _train_loop,
        train_loop_config={
            "loop": loop,
            "config": config,
            "uri": uri,
            "threads": settings.threads_per_worker,
            "scratch": settings.scratch,
        },
        scaling_config=scaling(settings),
        run_config=RunConfig(
            name="run",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    with watch(uri, on_progress):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise users_error(error) or RuntimeError(f"the training workers of {uri} failed: {error}") from error


def scaling(settings: EngineSettings) -> ScalingConfig:
    """Raises: ConfigError when this machine has fewer GPUs than workers; a cluster that was joined may get more."""
    if settings.use_gpu and (found := cluster_gpus()) < settings.num_workers:
        if cluster_address(settings) is None:
            raise ConfigError(
                f"--engine.num_workers is {settings.num_workers} with GPUs, but the cluster has {found:.0f}; "
                "expected a GPU per worker; lower --engine.num_workers or leave out --engine.use_gpu"
            )
        log.warning(
            "the cluster has %.0f GPUs and --engine.num_workers is %d: waiting for it to start more; "
            "a cluster that cannot needs a lower --engine.num_workers",
            found,
            settings.num_workers,
        )
    # Workers read and decode through Ray Data tasks, which need cores of their own: half of them.
    cpus = min(1.0, cluster_cpus() / (2 * settings.num_workers))
    return ScalingConfig(
        num_workers=settings.num_workers,
        use_gpu=settings.use_gpu,
        # A GPU's worker has its card and wants the others near; one on CPUs wants the cores and memory of a node.
        placement_strategy="PACK" if settings.use_gpu else "SPREAD",
        resources_per_worker={"CPU": cpus} | ({"GPU": 1.0} if settings.use_gpu else {}),
    )


def threads_per_worker() -> int:
    """Torch threads of this worker: its share of its node's cores but one, which decodes, reads and drives.

    On two cores that is one thread: for small networks it was 2.5 times as fast as two that wait for each other.
    """
    here = ray.get_runtime_context().get_node_id()
    cores = next(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["NodeID"] == here)
    return max(1, (cores - 1) // ray.train.get_context().get_local_world_size())


def _train_loop(settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["threads"] or threads_per_worker())
    failed = uris.join(settings["uri"], "failed.json")
    before = read_json(failed)
    if before is not None:  # a user's error is final: Ray would start the group again
        raise getattr(errors, before["kind"])(before["message"])
    device = str(ray.train.torch.get_device())
    if ray.train.get_context().get_world_rank() == 0:
        count_attempt(settings["uri"])
    worker = Worker(settings["uri"], device, collectives(), settings["scratch"])
    try:
        settings["loop"](worker, settings["config"])
    except CleanscaleError as error:
        write_json(failed, {"kind": type(error).__name__, "message": str(error)})
        raise


def count_attempt(uri: str) -> None:
    """One more start of the stage's workers; whoever waits for them tells of those that were not the first."""
    write_json(uris.join(uri, ATTEMPTS), {"attempts": attempts(uri) + 1})


def attempts(uri: str) -> int:
    return int((read_json(uris.join(uri, ATTEMPTS)) or {"attempts": 0})["attempts"])


@contextlib.contextmanager
def watch(uri: str, on_progress: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Pass on what rank 0 says while the group runs (workers and driver share the run folder and nothing else)."""
    stop = threading.Event()
    last = ""
    known = attempts(uri) + 1

    def look() -> None:
        nonlocal last, known
        with contextlib.suppress(Exception):  # a progress line is never worth a run
            if attempts(uri) > known:
                known = attempts(uri)
                log.warning("%s: a training worker was lost; all go on from the last checkpoint", stage_name(uri))
            said = read_json(uris.join(uri, PROGRESS))
            if said is not None and (text := json.dumps(said, sort_keys=True)) != last:
                last = text
                on_progress(said)

    def keep_looking() -> None:
        while not stop.wait(news_every_s(uri)):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()  # the last word
