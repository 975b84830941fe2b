"""Images as Ray Data streams: read and decoded in tasks, order kept, each task one window of rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from cleanscale.engine.session import cluster_address, cluster_cpus, cluster_gpus, prepare_data
from cleanscale.engine.settings import EngineSettings
from cleanscale.engine.tasks import one_thread, users_error

log = logging.getLogger(__name__)

Block = dict[str, np.ndarray]
MAX_TASKS = 4096


def stream(items: Sequence[Any], read: Callable[[Any], Block], *, num_cpus: float = 1.0) -> ray.data.Dataset:
    """A data set whose k-th block is `read(items[k])`: equally long arrays by name, images as uint8 [n, H, W, 3].

    The function and its items travel to tasks on any node; blocks arrive in the order of the items.
    """
    prepare_data()
    shared = ray.put(list(items))

    def read_positions(batch: Block) -> Iterator[Block]:
        one_thread()
        things = ray.get(shared)
        for position in batch["id"]:
            yield read(things[int(position)])

    positions = ray.data.range(len(items), override_num_blocks=max(1, min(len(items), MAX_TASKS)))
    return positions.map_batches(read_positions, batch_size=1, num_cpus=num_cpus)  # pyright: ignore[reportArgumentType]


def blocks(dataset: ray.data.Dataset) -> Iterator[Block]:
    """The blocks of a stream in order, the next ones fetched ahead; a block may arrive in several pieces."""
    try:
        found: Iterable[Any] = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
        yield from found
    except ray.exceptions.RayError as error:
        raise users_error(error) or error from error


def decode_cpus() -> float:
    """Cores of one decoding task: a small machine's last half is shared with training workers and actors."""
    return min(1.0, cluster_cpus() / 2)


def actor_count(settings: EngineSettings) -> int:
    """How many feature actors a cluster carries: one per GPU, or one per 8 cores, whose threads they share.

    A cluster that starts nodes as work asks for them is to have as many GPUs as training takes.
    """
    if settings.feature_actors:
        return settings.feature_actors
    if not settings.use_gpu:
        return max(1, int(cluster_cpus() // 8))
    return max(1, int(cluster_gpus()), settings.num_workers if cluster_address(settings) else 0)


def through_actors(
    dataset: ray.data.Dataset,
    actor: type,
    arguments: dict[str, Any],
    *,
    rows_per_write: int,
    write: Callable[[pa.Table], dict[str, Any]],
    settings: EngineSettings,
) -> Iterator[dict[str, Any]]:
    """Blocks through a pool of actors (a model each), their results in files of `rows_per_write` rows.

    actor: a class made once per actor with `arguments` and called with a block; `write` runs in tasks and says what it
    wrote in a few numbers, which this yields as files are complete.
    """
    actors = actor_count(settings)
    per_actor: dict[str, Any] = {"num_gpus": 1} if settings.use_gpu else {"num_cpus": min(1.0, cluster_cpus() / 4)}
    threads = max(1, int(cluster_cpus()) // actors)

    def write_table(table: pa.Table) -> dict[str, np.ndarray]:
        return {name: np.array([value]) for name, value in write(table).items()}

    written = dataset.map_batches(
        actor,
        fn_constructor_kwargs={**arguments, "threads": threads},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=actors),
        **per_actor,
    ).map_batches(write_table, batch_size=rows_per_write, batch_format="pyarrow", num_cpus=0.25)
    try:
        for batch in cast(Iterable[Block], written.iter_batches(batch_size=1, batch_format="numpy")):
            yield {name: values[0] for name, values in batch.items()}
    except ray.exceptions.RayError as error:
        raise users_error(error) or error from error
