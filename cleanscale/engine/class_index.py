"""The class index of a run, answered by Ray actors that each own ranges of classes.

Whoever holds a `ClassIndex`, the driver or a shard's task, asks it in batches; what the ranges answer is merged by
score. An actor takes no core of its own: it computes while the tasks that ask it wait. One that dies is started again
by Ray, loads its ranges from the run's folder, and is asked again. A small index is loaded by whoever asks, and so is
any in a trial (`engine.here`).

# Q queries, N labels, E width, K answers
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cleanscale.engine.here import here
from cleanscale.engine.session import cluster_cpus, cluster_gpus
from cleanscale.engine.tasks import fetch, one_thread
from cleanscale.maths.class_embeddings import unit
from cleanscale.maths.class_search import Candidates, joined, merged, probed_lists
from cleanscale.maths.references import ReferenceSets
from cleanscale.storage.index_files import ClassRange, IndexFiles

BATCH = 4096  # queries of one call: 2 MiB at a width of 128
AHEAD = 2  # calls that each actor has waiting
SMALL_BYTES = 32 << 20  # vectors of an index that is loaded rather than asked for
RESTARTS = 100  # of an actor: nodes may come and go for as long as a run takes

# The reference sets of some classes, None where they have none; must be picklable.
ReadReferences = Callable[[np.ndarray], ReferenceSets | None]


class Ranges:
    """Some ranges of an index in this process, in order. gpu: faiss's resources of the card that searches them."""

    def __init__(self, files: IndexFiles, ranges: Sequence[ClassRange], gpu: Any | None = None) -> None:
        self.files = files
        self.index = joined([files.load(one) for one in ranges])
        if gpu is not None:
            self.index.to_gpu(gpu)

    def search(self, query_QE: np.ndarray, list_QP: np.ndarray | None, most: int) -> Candidates:
        """The candidates for `most` answers. list_QP: cells to look into; None compares all classes."""
        candidates = most if list_QP is None else self.files.plan.candidates(most)
        return self.index.search(query_QE, list_QP, candidates)

    def embeddings(self, label_N: np.ndarray) -> np.ndarray:
        """float32 [N, E]; NaN for classes that are not here."""
        return self.index.embeddings(label_N)


@ray.remote
class RangeActor:
    """`Ranges` in a process of their own."""

    def __init__(
        self, folder: str, ranges: Sequence[ClassRange], read: ReadReferences | None, threads: int, use_gpu: bool
    ) -> None:
        import faiss

        one_thread()
        faiss.omp_set_num_threads(threads)
        self.read = read
        self.ranges = Ranges(IndexFiles.read(folder), ranges, gpu_resources() if use_gpu else None)

    def search(self, query_QE: np.ndarray, list_QP: np.ndarray | None, most: int) -> Candidates:
        return self.ranges.search(query_QE, list_QP, most)

    def embeddings(self, label_N: np.ndarray) -> np.ndarray:
        return self.ranges.embeddings(label_N)

    def references(self, label_N: np.ndarray) -> ReferenceSets | None:
        assert self.read is not None, "this index was opened without reference sets"
        return self.read(label_N)

    def process(self) -> int:
        return os.getpid()


class ClassIndex:
    """All classes of an index. Picklable: tasks get it as one of the shared values of `map_shards`.

    actors: (handle, its ranges) each; None: the ranges are loaded by whoever asks.
    """

    def __init__(
        self,
        files: IndexFiles,
        actors: Sequence[tuple[Any, tuple[ClassRange, ...]]] | None = None,
        read: ReadReferences | None = None,
    ) -> None:
        self.files, self.actors, self.read = files, actors, read

    def search(
        self, vector_QE: np.ndarray, most: int, *, probes: int | None = None, exact: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """(int32 [Q, K] labels, float32 [Q, K] cosines), best first; -1 and -inf where there are fewer classes.

        probes: cells to look into; by default as many as the recall that was asked for takes. exact: compare all.
        """
        plan = self.files.plan
        vector_QE = unit(vector_QE)
        batches = [vector_QE[first : first + BATCH] for first in range(0, len(vector_QE), BATCH)]
        trained = None if exact or plan.kind == "flat" else trained_here(self.files)

        def asked(query_BE: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, int]:
            lists = None if trained is None else probed_lists(trained, query_BE, probes or plan.probes)
            return query_BE, lists, most

        candidates = most if trained is None else plan.candidates(most)
        label_QK = np.full((len(vector_QE), most), -1, np.int32)
        score_QK = np.full(label_QK.shape, -np.inf, np.float32)
        for position, parts in enumerate(self._searched(map(asked, batches))):
            best = merged(parts, candidates).best(most)
            rows = slice(position * BATCH, position * BATCH + len(best[0]))
            label_QK[rows], score_QK[rows] = best
        return label_QK, score_QK

    def embeddings(self, label_N: np.ndarray) -> np.ndarray:
        """float32 [N, E] of length 1; NaN for classes that have none."""
        label_N = np.asarray(label_N)
        if self.actors is None:
            return loaded_here(self.files).embeddings(label_N)
        found_NE = np.full((len(label_N), self.files.plan.width), np.nan, np.float32)
        asked = [(at_X, actor.embeddings.remote(label_N[at_X])) for actor, at_X in self._owners(label_N)]
        for at_X, answer in asked:
            found_NE[at_X] = fetch(answer)
        return found_NE

    def references(self, label_N: np.ndarray) -> ReferenceSets | None:
        """The reference sets of these classes, each once; classes without are left out. None where there are none."""
        label_N = np.unique(label_N)
        if self.actors is None:
            assert self.read is not None, "this index was opened without reference sets"
            return self.read(label_N)
        asked = [actor.references.remote(label_N[at_X]) for actor, at_X in self._owners(label_N)]
        parts = [part for part in map(fetch, asked) if part is not None]
        return ReferenceSets.concatenate(parts) if parts else None

    def _owners(self, label_N: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
        """Each actor, with the places of the labels that it owns."""
        first_R = np.array([one.first for one in self.files.ranges])
        range_N = np.searchsorted(first_R, label_N, side="right") - 1
        for actor, own in self.actors or ():
            at_X = np.flatnonzero(np.isin(range_N, [self.files.ranges.index(one) for one in own]))
            if len(at_X):
                yield actor, at_X

    def _searched(self, asked: Iterator[tuple[Any, ...]]) -> Iterator[list[Candidates]]:
        """What every part of the index answers to each call; the next calls wait at the actors meanwhile."""
        if self.actors is None:
            yield from ([loaded_here(self.files).search(*args)] for args in asked)
            return
        waiting: list[list[Any]] = []
        for args in asked:
            shared = [ray.put(a) if isinstance(a, np.ndarray) else a for a in args]  # once, whoever asks for it
            waiting.append([actor.search.remote(*shared) for actor, _ in self.actors])
            if len(waiting) > AHEAD:
                yield [fetch(answer) for answer in waiting.pop(0)]
        yield from ([fetch(answer) for answer in answers] for answers in waiting)


@contextlib.contextmanager
def opened(
    folder: str, read: ReadReferences | None = None, *, threads: int = 1, use_gpu: bool = False
) -> Iterator[ClassIndex]:
    """The index saved in `folder` for the time of a `with`, on actors where it is large.

    read: gives the reference sets of classes. threads: of each actor. use_gpu: search on GPUs, where faiss can.
    """
    files = IndexFiles.read(folder)
    if here() is not None or files.vector_bytes <= SMALL_BYTES:
        yield ClassIndex(files, None, read)
        return
    gpu = use_gpu and cluster_gpus() >= 1
    most = max(1, int(cluster_gpus() if gpu else cluster_cpus() // threads))
    hands = [files.ranges[k :: min(most, len(files.ranges))] for k in range(min(most, len(files.ranges)))]
    options = {"num_cpus": 0, "num_gpus": 1 if gpu else 0, "max_restarts": RESTARTS, "max_task_retries": -1}
    turns = nodes_in_turn(ray.nodes())
    started: list[Any] = []
    for k, hand in enumerate(hands):
        where = "SPREAD" if gpu or not turns else NodeAffinitySchedulingStrategy(turns[k % len(turns)], soft=True)
        actor = RangeActor.options(scheduling_strategy=where, **options)
        started.append(actor.remote(folder, hand, read, threads, gpu))
    try:
        yield ClassIndex(files, list(zip(started, hands, strict=True)), read)
    finally:
        for actor in started:
            ray.kill(actor)


def nodes_in_turn(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the living nodes of `ray.nodes()`, each as often as it has cores, no node twice while another has more.

    Actors that take no core are anywhere to Ray: under SPREAD two of them came to one node, or to one without cores.
    """
    cores = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]}
    return [node for turn in range(max(cores.values(), default=0)) for node in cores if cores[node] > turn]


@functools.lru_cache(maxsize=2)
def trained_here(files: IndexFiles) -> Any:
    """The quantiser of an index, read once by each process that asks."""
    return files.trained()


@functools.lru_cache(maxsize=2)
def loaded_here(files: IndexFiles) -> Ranges:
    """The whole index in this process, read once however often it is asked for."""
    return Ranges(files, files.ranges)


def gpu_resources() -> Any | None:
    """faiss's memory on the GPU of this process; None without a faiss that has GPUs, or without a GPU."""
    import faiss

    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        return None
    return faiss.StandardGpuResources()
