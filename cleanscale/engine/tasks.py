"""Shard-sized pieces of work as Ray tasks: one thread each, some in flight, done again when their node is lost."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.exceptions

from cleanscale.engine.here import here
from cleanscale.engine.session import cluster_cpus
from cleanscale.errors import CleanscaleError, StageError

log = logging.getLogger(__name__)

MAX_RETRIES = 3


def one_thread() -> None:
    """Two threads on a busy node are many times slower than one (k-means: 70x): a task computes on one."""
    import sys

    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


# Lost work is begun again here, where it can be said; what others read of a lost node is made again by Ray.
@ray.remote(max_retries=0)
def _run(function: Callable[..., Any], item: Any, shared: tuple[Any, ...]) -> Any:
    one_thread()
    # References inside a tuple are not resolved by Ray: the task fetches them once per node here.
    return function(item, *[ray.get(s) if isinstance(s, ray.ObjectRef) else s for s in shared])


def map_shards(
    function: Callable[..., Any], items: Sequence[Any], *shared: Any, num_cpus: float = 1.0, waits: bool = False
) -> Iterator[tuple[int, Any]]:
    """Yield (position, function(item, *shared)) as tasks finish, in any order.

    `shared` values go to the object store once, those of `shared_value` are there already: every node has one copy,
    whose arrays all its tasks read in place. What a task returns must be small: shards write their results to disk.
    waits: the tasks ask actors. Ray starts another for each that waits, so that all that are handed out would be in
    memory at once: these are no more than the cores and one, whose wait is what makes a cluster grow.
    In a trial (`engine.here`) they are done one after the other instead. Raises: the CleanscaleError of a task.
    """
    if here() is not None:
        yield from ((position, function(item, *shared)) for position, item in enumerate(items))
        return
    references = [s if isinstance(s, ray.ObjectRef) else ray.put(s) for s in shared]
    waiting = collections.deque(range(len(items)))
    lost = collections.Counter[int]()
    in_flight: dict[Any, int] = {}
    while waiting or in_flight:
        # Asked again each time: tasks that wait are what makes a cluster start nodes, whose cores then take more.
        most = max(2, int(2 * cluster_cpus()) if not waits else int(cluster_cpus()) + 1)
        while waiting and len(in_flight) < most:
            position = waiting.popleft()
            task = _run.options(num_cpus=num_cpus).remote(function, items[position], tuple(references))
            in_flight[task] = position
        done, _ = ray.wait(list(in_flight), num_returns=1)
        for task in done:
            position = in_flight.pop(task)
            try:
                result = fetch(task)
            except WorkLostError as error:
                lost[position] += 1
                if lost[position] > MAX_RETRIES:
                    raise StageError(
                        f"a piece of work of '{function.__name__}' lost its process {lost[position]} times ({error}); "
                        "expected it to live that long; give the nodes more memory, or lower --features.shard_bytes"
                    ) from error
                log.warning(
                    "%s: a process or its node was lost (%s); its piece is done again", function.__name__, error
                )
                waiting.appendleft(position)
            else:
                yield position, result


class WorkLostError(Exception):
    """The process that did a piece of work is gone, or the node that it was on, or what it read there."""


def shared_value(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` gives, made in a task and left in the object store: for the shared values of `map_shards`.

    The driver never holds it. A lost copy is made again. In a trial (`engine.here`) it is the plain value.
    """
    if here() is not None:
        return function(*args)
    return _run.options(max_retries=MAX_RETRIES).remote(_apply, args, (function,))


def _apply(args: tuple[Any, ...], function: Callable[..., Any]) -> Any:
    return function(*args)


def fetch(task: Any) -> Any:
    """A task's result. Raises: CleanscaleError of the task, WorkLostError, or what else the task raised."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        # What the task was to read is gone, or whom it asked (the class index).
        if isinstance(error.cause, ray.exceptions.RayError | WorkLostError):
            raise WorkLostError(type(error.cause).__name__) from error
        raise users_error(error) or error from error
    except ray.exceptions.RayError as error:
        raise WorkLostError(type(error).__name__) from error


def users_error(error: BaseException) -> CleanscaleError | None:
    """The CleanscaleError at the root of an engine's exception, if there is one."""
    seen: list[BaseException | None] = [error]
    while seen:
        e = seen.pop()
        if e is None:
            continue
        if isinstance(e, CleanscaleError):
            plain = type(e).__mro__  # Ray makes a class that is both its own error and ours; give ours alone.
            ours = next(c for c in plain if c.__module__ == "cleanscale.errors")
            # Ray Data writes advice of its own behind the message.
            return ours(str(getattr(e, "cause", None) or e).split("\nFailed to apply UDF")[0])
        seen += [getattr(e, "cause", None), e.__cause__]
        failures = getattr(e, "worker_failures", None)
        if isinstance(failures, dict):
            seen += list(failures.values())
    return None
