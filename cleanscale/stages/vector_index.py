"""Building a class index by shard tasks: vectors, one quantiser, codes, and how many cells a query looks into.

Ranges of classes are put together to pieces of a target size. What is found does not depend on that size.

# C classes of a range, Q sampled queries, E width, K neighbours
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cleanscale.engine.class_index import ClassIndex, opened
from cleanscale.engine.tasks import map_shards
from cleanscale.maths import class_search
from cleanscale.maths.class_embeddings import unit
from cleanscale.maths.class_graph import ClassGraph
from cleanscale.maths.class_search import SearchPlan, without
from cleanscale.maths.keyed_random import Purpose, hash_rows
from cleanscale.stages.settings import ClassIndexSettings
from cleanscale.storage import class_arrays, uris
from cleanscale.storage.arrays import read_array
from cleanscale.storage.index_files import (
    INDEX,
    TRAINED,
    ClassRange,
    IndexFiles,
    mapped_array,
    read_faiss,
    write_faiss,
    write_vectors,
)
from cleanscale.storage.shards import Shard

log = logging.getLogger(__name__)

NEIGHBOURS = "neighbours"
ANSWERS = 10  # recall is that of so many
QUERIES = 512  # that it is measured with
LEAST_QUERIES = 64  # of those that will come; classes, which are found more easily, make up for what is missing
FLAT_AFFORDABLE = 200_000  # classes: of more, comparing all of them takes milliseconds for each query
WORTH_IT = 1 / 8  # of the cells: searching more of them takes longer than comparing all classes

# (sorted labels, vectors) of a range of classes; picklable, called in a task.
ReadVectors = Callable[[Sequence[Shard]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Build:
    """What the tasks are given. made: fingerprint of what the index is made from."""

    folder: str
    made: str
    width: int
    settings: ClassIndexSettings
    seed: int
    read: ReadVectors


def build(
    job: Build,
    ranges: Sequence[Sequence[Shard]],
    queries: Callable[[], np.ndarray] | None = None,
    *,
    use_gpu: bool = False,
) -> IndexFiles:
    """Make the index in job.folder, and the nearest other classes of each class; index.json is written last.

    ranges: of classes, as `FeatureShards.class_ranges` has them. queries: vectors [Q, E] such as will be searched for,
    called in a task, to measure recall with; by default classes themselves.
    """
    pieces = grouped(ranges, job.width, job.settings.shard_bytes)
    counts = dict(map_shards(write_piece, pieces, job))
    spans = [ClassRange(p[0][0].label_start, p[-1][0].label_stop, counts[k]) for k, p in enumerate(pieces)]
    plan = SearchPlan("flat", job.width)
    files = IndexFiles(job.folder, job.made, plan, tuple(spans))
    if not compares_all(job.settings, files.classes):
        lists = dict(map_shards(train_quantiser, [files], job))[0]
        for _ in map_shards(write_codes, spans, job):
            pass
        plan = SearchPlan("ivf_sq8", job.width, lists, probes=1)
    replace(files, plan=plan, made=f"{job.made}, but how to search it is not known yet").write()
    with opened(job.folder, use_gpu=use_gpu) as index:
        if plan.lists:
            query_QE = dict(map_shards(sampled_queries, [files], job, queries))[0]
            most = plan.lists if job.settings.kind != "auto" else max(1, int(plan.lists * WORTH_IT))
            probes, measured = probes_for(index, query_QE, job.settings.recall, most)
            enough = measured["reached"] or job.settings.kind != "auto" or files.classes > FLAT_AFFORDABLE
            if enough and not measured["reached"]:
                log.warning(
                    "%s: the index finds less of the nearest classes than was asked for: %s", job.folder, measured
                )
            plan = replace(plan, probes=probes) if enough else SearchPlan("flat", job.width)
            files = replace(files, measured=measured)
        files = replace(files, plan=plan)
        log.info(
            "index of %d classes: %s, %d of %d cells looked into", files.classes, plan.kind, plan.probes, plan.lists
        )
        write_neighbours(index, plan.probes or None, job.settings.neighbours)
    files.write()
    return files


def compares_all(settings: ClassIndexSettings, classes: int) -> bool:
    return settings.kind == "flat" or classes < 2 or (settings.kind == "auto" and classes <= settings.flat_classes)


def grouped(ranges: Sequence[Sequence[Shard]], width: int, shard_bytes: int) -> list[list[Sequence[Shard]]]:
    """Neighbouring ranges of classes together, of about so many bytes by the labels that they span."""
    pieces: list[list[Sequence[Shard]]] = []
    room = 0
    for shards in ranges:
        size = 4 * width * (shards[0].label_stop - shards[0].label_start)
        if not pieces or size > room:
            pieces.append([])
            room = shard_bytes
        pieces[-1].append(shards)
        room -= size
    return pieces


def write_piece(piece: Sequence[Sequence[Shard]], job: Build) -> int:
    """Labels and vectors of some neighbouring ranges; returns how many classes they have."""
    found = [job.read(shards) for shards in piece]
    label_C = np.concatenate([label for label, _ in found])
    vector_CE = np.concatenate([np.asarray(vector, np.float32).reshape(-1, job.width) for _, vector in found])
    one = ClassRange(piece[0][0].label_start, piece[-1][0].label_stop, len(label_C))
    write_vectors(job.folder, one, label_C, unit(vector_CE))
    return len(label_C)


def train_quantiser(files: IndexFiles, job: Build) -> int:
    """Train on a sample of all classes; returns the number of cells."""
    parts = []
    for one in files.ranges:
        label_C = read_array(uris.join(job.folder, one.file("labels")))
        taken_C = class_search.training_sample(job.seed, label_C, files.classes)
        parts.append(mapped_array(uris.join(job.folder, one.file("vectors")))[taken_C])
    trained = class_search.train(np.concatenate(parts), class_search.lists_for(files.classes), job.seed)
    write_faiss(uris.join(job.folder, TRAINED), trained)
    return trained.nlist


def write_codes(one: ClassRange, job: Build) -> None:
    trained = read_faiss(uris.join(job.folder, TRAINED))
    vector_CE = mapped_array(uris.join(job.folder, one.file("vectors")))
    write_faiss(uris.join(job.folder, one.file("codes")), class_search.filled(trained, vector_CE))


def sampled_queries(files: IndexFiles, job: Build, queries: Callable[[], np.ndarray] | None) -> np.ndarray:
    """float32 [Q, E]: what the caller will search for, and some classes where that is little."""
    query_QE = np.empty((0, job.width), np.float32) if queries is None else queries()
    short = LEAST_QUERIES - len(query_QE)
    return query_QE if short <= 0 else np.concatenate([query_QE, sampled_classes(files, job.seed)[:short]])


def sampled_classes(files: IndexFiles, seed: int) -> np.ndarray:
    """float32 [Q, E]: the vectors of some classes, the same however they are cut into ranges."""
    keys, vectors = [], []
    for one in files.ranges:
        label_C = read_array(uris.join(files.folder, one.file("labels")))
        key_C = hash_rows(seed, Purpose.CLASS_INDEX, ~label_C.astype(np.int64))
        at_X = np.argsort(key_C)[:QUERIES]
        keys.append(key_C[at_X])
        vectors.append(mapped_array(uris.join(files.folder, one.file("vectors")))[at_X])
    return np.concatenate(vectors)[np.argsort(np.concatenate(keys))[:QUERIES]]


def probes_for(index: ClassIndex, query_QE: np.ndarray, target: float, most: int) -> tuple[int, dict[str, Any]]:
    """(the fewest cells, of those tried, with which the target recall is reached; what was measured)."""
    true_QK, _ = index.search(query_QE, ANSWERS, exact=True)
    recalls, probes, reached = {}, 1, False
    for probes in class_search.tried_probes(most):
        found_QK, _ = index.search(query_QE, ANSWERS, probes=probes)
        recalls[str(probes)] = round(class_search.recall(found_QK, true_QK), 4)
        reached = recalls[str(probes)] >= target
        if reached:
            break
    said = {"queries": len(query_QE), "answers": ANSWERS, "target": target, "reached": reached, "recall": recalls}
    return probes, said


# ---- the nearest other classes of each class -------------------------------------------------------------------------


def write_neighbours(index: ClassIndex, probes: int | None, most: int) -> None:
    """For every range of the index an int32 array [stop - first, K]: a row per class id, -1 where there is none."""
    for _ in map_shards(neighbours_of_range, index.files.ranges, index, probes, most, waits=True):
        pass


def neighbours_of_range(one: ClassRange, index: ClassIndex, probes: int | None, most: int) -> None:
    folder = index.files.folder
    label_C = read_array(uris.join(folder, one.file("labels")))
    vector_CE = mapped_array(uris.join(folder, one.file("vectors")))
    found_CK, _ = without(*index.search(vector_CE, most + 1, probes=probes, exact=probes is None), label_C)
    neighbour_XK = np.full((one.stop - one.first, most), -1, np.int32)
    neighbour_XK[label_C - one.first] = found_CK
    class_arrays.write_range(folder, NEIGHBOURS, one.first, neighbour_XK)


def read_neighbours(folder: str, start: int, stop: int, most: int | None = None) -> np.ndarray:
    """int32 [stop - start, K]: nearest other classes of these class ids, best first; -1 where there is none.

    most: columns to read; None: all that are kept.
    """
    found: np.ndarray | None = None
    for one in IndexFiles.read(folder).ranges:
        low, high = max(start, one.first), min(stop, one.stop)
        if low < high:
            whole_XK = mapped_array(uris.join(folder, class_arrays.file_name(NEIGHBOURS, one.first)))
            part_XK = whole_XK[low - one.first : high - one.first, :most]
            if found is None:
                found = np.full((stop - start, part_XK.shape[1]), -1, np.int32)
            found[low - start : high - start] = part_XK
    return np.full((stop - start, 0), -1, np.int32) if found is None else found


def class_graph(folder: str) -> ClassGraph:
    """All classes of an index and their neighbours, by class id, in the memory of whoever asks."""
    files = IndexFiles.read(folder)
    stop = max((one.stop for one in files.ranges), default=0)
    vector_CE = np.zeros((stop, files.plan.width), np.float32)
    for one in files.ranges:
        label_C = read_array(uris.join(folder, one.file("labels")))
        vector_CE[label_C] = mapped_array(uris.join(folder, one.file("vectors")))
    return ClassGraph(vector_CE, read_neighbours(folder, 0, stop))


def complete(folder: str, made: str) -> bool:
    """Whether an interrupted run has made this index already."""
    return uris.exists(uris.join(folder, INDEX)) and IndexFiles.read(folder).made == made
