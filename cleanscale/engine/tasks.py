"""Shard-sized pieces of work as Ray tasks: one thread each, a bounded number in flight, retried when a node is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.exceptions

from cleanscale.engine.here import here
from cleanscale.engine.session import cluster_cpus
from cleanscale.errors import CleanscaleError


def one_thread() -> None:
    """Two threads on a busy node are many times slower than one (k-means: 70x): a task computes on one."""
    import sys

    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@ray.remote(max_retries=3)
def _run(function: Callable[..., Any], item: Any, shared: tuple[Any, ...]) -> Any:
    one_thread()
    # References inside a tuple are not resolved by Ray: the task fetches them once per node here.
    return function(item, *[ray.get(s) if isinstance(s, ray.ObjectRef) else s for s in shared])


def map_shards(
    function: Callable[..., Any], items: Sequence[Any], *shared: Any, num_cpus: float = 1.0
) -> Iterator[tuple[int, Any]]:
    """Yield (position, function(item, *shared)) as tasks finish, in any order.

    `shared` values go to the object store once, those of `shared_value` are there already: every node has one copy,
    whose arrays all its tasks read in place. What a task returns must be small: shards write their results to disk.
    In a trial (`engine.here`) they are done one after the other instead. Raises: the CleanscaleError of a task.
    """
    if here() is not None:
        yield from ((position, function(item, *shared)) for position, item in enumerate(items))
        return
    references = [s if isinstance(s, ray.ObjectRef) else ray.put(s) for s in shared]
    remaining = iter(range(len(items)))
    in_flight: dict[Any, int] = {}

    def submit() -> None:
        # Asked again each time: tasks that wait are what makes a cluster start nodes, whose cores then take more.
        limit = max(2, int(2 * cluster_cpus()))
        for position in itertools.islice(remaining, max(0, limit - len(in_flight))):
            task = _run.options(num_cpus=num_cpus).remote(function, items[position], tuple(references))
            in_flight[task] = position

    submit()
    while in_flight:
        done, _ = ray.wait(list(in_flight), num_returns=1)
        for task in done:
            position = in_flight.pop(task)
            yield position, fetch(task)
        submit()


def shared_value(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` gives, made in a task and left in the object store: for the shared values of `map_shards`.

    The driver never holds it. A lost copy is made again. In a trial (`engine.here`) it is the plain value.
    """
    return function(*args) if here() is not None else _run.remote(_apply, args, (function,))


def _apply(args: tuple[Any, ...], function: Callable[..., Any]) -> Any:
    return function(*args)


def fetch(task: Any) -> Any:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise users_error(error) or error from error


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
