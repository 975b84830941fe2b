"""Whether all nodes of a cluster see the local places that a run names: a shared disk, or a mistake found in time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cleanscale.engine.tasks import WorkLostError, fetch
from cleanscale.errors import CleanscaleError, ConfigError
from cleanscale.storage import uris

log = logging.getLogger(__name__)

PATIENCE_S = 60.0


def check_seen_by_all_nodes(written: str, read: Sequence[str]) -> None:
    """Ask every other node for local places: `written`, a file that this process wrote, and what the run will read.

    Raises: ConfigError that names the nodes which do not see them. Places on object stores are not asked for.
    """
    places = {uri: None for uri in read if uris.is_local(uri) and not set("*?[") & set(uri)}
    expected = places | ({written: digest(written)} if uris.is_local(written) else {})
    if not expected:
        return
    address = {_unseen_on(node["NodeID"], expected): node["NodeManagerAddress"] for node in other_nodes()}
    if not address and not ray.cluster_resources().get("CPU"):
        log.warning("no node that takes tasks is there yet; those that start later must see %s", ", ".join(expected))
        return
    answered, late = ray.wait(list(address), num_returns=len(address), timeout=PATIENCE_S) if address else ([], [])
    blind = [(address[task], missing) for task in answered if (missing := answer(task))]
    if blind:
        raise ConfigError(
            f"{len(blind)} of {len(address) + 1} nodes do not see local places of this run ({blind[0][0]}: "
            f"{', '.join(blind[0][1])}); expected places that all nodes read and write; use s3://... or a disk that is "
            "mounted at the same path everywhere"
        )
    if late:
        log.warning("%d of %d nodes did not say whether they see %s", len(late), len(address), ", ".join(expected))


def answer(task: Any) -> list[str]:
    """What a node does not see; a node that is lost meanwhile has nothing to say."""
    try:
        return fetch(task)
    except WorkLostError as error:
        log.warning("a node did not say which places it sees (%s)", error)
        return []


def other_nodes() -> list[dict[str, Any]]:
    """Living nodes that take tasks, without the one where this process runs."""
    here = ray.get_runtime_context().get_node_id()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU")]


def _unseen_on(node_id: str, expected: dict[str, str | None]) -> Any:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _unseen.options(num_cpus=0, scheduling_strategy=there).remote(expected)


@ray.remote(max_retries=1)
def _unseen(expected: dict[str, str | None]) -> list[str]:
    return unseen(expected)


def unseen(expected: dict[str, str | None]) -> list[str]:
    """Which places are not there, or are others than those with the same path elsewhere. place -> digest or None."""
    return [place for place, known in expected.items() if not uris.exists(place) or known not in (None, digest(place))]


def digest(uri: str) -> str:
    try:
        return hashlib.sha256(uris.read_bytes(uri)).hexdigest()
    except CleanscaleError:
        return ""
