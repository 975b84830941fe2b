"""What a run holds, from its size and the cluster alone: memory, GPU memory, disk, and which of them breaks first.

Built from the same constants as the cost of its stages (`cost_model.py`).

# N images, C classes, D feature width
"""

from __future__ import annotations

from typing import NamedTuple

from cleanscale.maths.cost_model import (
    IN_MEMORY_BYTES,
    Cluster,
    Workload,
    head_values,
    rate,
    reference_bytes,
    row_bytes,
    stages,
)

DRIVER_SHARE = 0.1  # of a node's memory, which also runs tasks
TASK_COPIES = 20  # of a shard's features: measured with 2e7 images of 1e6 classes
GATHER_COPIES = 6  # of a shard's features as they are made: four shards are projected together
WINDOW_IMAGES = 2 * 64 * 1024  # of a sharded head, in float32 (training/streamed_features.py)


class Limit(NamedTuple):
    """Something that is used up: found against expected, and what to do."""

    what: str
    needed: float
    there: float
    unit: str
    remedy: str

    @property
    def share(self) -> float:
        return self.needed / self.there


def shards(work: Workload) -> int:
    """Class shards: cut by the features as they are made, before a projection."""
    return max(1, -(-work.images * 2 * work.made_width // work.shard_bytes))


def task_bytes(work: Workload) -> float:
    """Of one task at most, but for that with the largest class."""
    made = min(work.shard_bytes, 2 * work.made_width * work.images)
    return max(TASK_COPIES * made * work.width / work.made_width, GATHER_COPIES * made)


def tasks_bytes(work: Workload, cluster: Cluster) -> float:
    """Of all tasks of a node: the signals of a whole class are one task's, however many parts the class has."""
    # A task that waits for the class index gives its core back, and one more begins beside it (`engine.tasks`).
    at_once = min(cluster.cores + work.sharded, shards(work))
    largest = max(task_bytes(work), work.largest_class * rate("class_signals_held"))
    return (at_once - 1) * task_bytes(work) + largest


def worker_features(work: Workload, cluster: Cluster) -> float:
    """Bytes of the features that a training worker reads, as they are stored."""
    return 2.0 * work.width * work.images / (cluster.nodes * cluster.node_workers)


def seen_bytes(work: Workload, cluster: Cluster) -> float:
    """Of a worker's float32 copy [seen_N] of the images that an out-of-fold head learns from; on its GPU too."""
    return 2 * worker_features(work, cluster) * (work.row_folds - 1) / work.row_folds


def worker_images(work: Workload, cluster: Cluster) -> float:
    """What a head's worker holds of its images: a dense one all features in float32 and a copy of those that are seen,
    a sharded one windows of them (the others lie in scratch, where they are many)."""
    stored = worker_features(work, cluster)
    numbers = rate("head_image") * work.images / (cluster.nodes * cluster.node_workers)
    held = WINDOW_IMAGES * 4.0 * work.width if work.sharded else 2 * stored + seen_bytes(work, cluster)
    return numbers + held + (stored if stored <= IN_MEMORY_BYTES else 0.0)


def worker_head(work: Workload, cluster: Cluster) -> float:
    """A dense head is whole on every worker: weights, gradients and two moments, then the heads that are done.
    Of a sharded one each has its share: weights, the optimiser, the start's sums."""
    if work.sharded:
        return 12 * head_values(work) / (cluster.nodes * cluster.node_workers)
    return 4 * head_values(work) * (4 + work.row_folds - 1)


def memory(work: Workload, cluster: Cluster) -> dict[str, float]:
    """Bytes: what one node holds at most, by holder; `driver` is on one node only."""
    values = head_values(work)
    of_classes = 4.0 * work.classes * (work.width + 24)  # prototypes and statistics
    scorers = 4.0 * values * work.row_folds
    predictor = 4.0 * work.classes * work.backbone_width if work.on_images else 0.0
    return {
        "processes": 1.2e9 + 0.25e9 * cluster.cores,
        "tasks": tasks_bytes(work, cluster),
        "object store": max(predictor, scorers + of_classes, 4.0 * work.classes * work.embedding + of_classes),
        "class index": 10.0 * work.classes * max(work.width, work.embedding) / cluster.nodes,
        # Those on GPUs come here when they are written.
        "heads": 4.0 * values / (cluster.nodes if work.sharded else 1) if cluster.gpus else worker_head(work, cluster),
        "images of heads": cluster.node_workers * worker_images(work, cluster),
        # Every worker reads the weights of all images by row; where it trains on images their labels and rows too.
        "values by row": cluster.node_workers * work.images * (16.0 if work.on_images else 8.0),
        "driver": 0.6e9 + 12.0 * work.images + 60.0 * work.classes,
    }


def memory_per_node(work: Workload, cluster: Cluster) -> float:
    """Bytes on the node that has the driver: heads are trained before what tasks read of all classes is there."""
    held = memory(work, cluster)
    judging = held["tasks"] + held["object store"] + held["class index"]
    training = held["heads"] + held["images of heads"] + held["values by row"]
    return held["processes"] + held["driver"] + max(judging, training)


def gpu_memory(work: Workload, cluster: Cluster) -> float:
    """Bytes on one GPU, but for what a network holds of a batch: heads on features, or a backbone with its head."""
    on_features = worker_head(work, cluster) + (0.0 if work.sharded else seen_bytes(work, cluster))
    if not work.on_images:
        return on_features
    # Weights, gradients and the optimiser on every GPU; of a sharded head weights, of which each has a share.
    rows = work.classes * work.backbone_width
    head = 4.0 * rows / max(1, cluster.all_gpus) if work.sharded else 16.0 * rows
    return max(on_features, head + 16.0 * work.backbone_parameters)


def scratch(work: Workload, cluster: Cluster) -> float:
    """Bytes of a node's own disk, in the page cache as far as there is room: what its training workers read where it
    lies, features and CleanNet's references, where they are too many for memory."""
    kept = (worker_features(work, cluster), reference_bytes(work) / (cluster.nodes * cluster.node_workers))
    return cluster.node_workers * sum(one for one in kept if one > IN_MEMORY_BYTES)


def disk(work: Workload, cluster: Cluster) -> float:
    """Bytes of the run folder and scratch at their fullest: features are there twice for a while."""
    kept = sum(stage.left_bytes for stage in stages(work, cluster))
    return kept + max(work.images * row_bytes(work.made_width), cluster.nodes * scratch(work, cluster))


def limits(work: Workload, cluster: Cluster) -> list[Limit]:
    """What is used up, most of it first."""
    held = memory(work, cluster)
    hours = sum(stage.seconds(cluster) for stage in stages(work, cluster)) / 3600
    found = [
        Limit(
            "memory of a node", memory_per_node(work, cluster), cluster.memory_bytes, "bytes",
            memory_remedy(work, held),
        ),
        Limit(
            "object store of a node", held["object store"], 0.3 * cluster.memory_bytes, "bytes",
            "raise --engine.object_store_bytes, or nodes with more memory",
        ),
        Limit(
            "memory of the driver", held["driver"], DRIVER_SHARE * cluster.memory_bytes, "bytes",
            "start the driver on a node that can spare more: it holds one label for each image",
        ),
        Limit(
            "disk of the run folder", disk(work, cluster), cluster.nodes * cluster.disk_bytes, "bytes",
            "a run folder on s3://, or smaller features: --features.dimensions",
        ),
        Limit(
            "scratch disk of a node", scratch(work, cluster), cluster.disk_bytes, "bytes",
            "--engine.scratch on a larger disk, or more nodes: each has the features of its own images",
        ),
        Limit(
            "time", hours, 24 * 7, "hours",
            "more nodes; GPUs where images are decoded",
        ),
    ]  # fmt: skip
    if cluster.gpus:
        found.append(
            Limit(
                "memory of a GPU", gpu_memory(work, cluster), cluster.gpu_memory_bytes, "bytes",
                "--heads.sharded on, and then more GPUs: each has the rows of its share of the classes",
            )
        )  # fmt: skip
    return sorted(found, key=lambda limit: -limit.share)


def memory_remedy(work: Workload, held: dict[str, float]) -> str:
    """By what holds most of it."""
    if held["images of heads"] > held["tasks"] + held["object store"]:
        if work.sharded:
            return "more nodes: each has a share of the images"
        return "more nodes, or --heads.sharded on, which reads features from disk: a dense head's workers hold them"
    if work.largest_class * rate("class_signals_held") > task_bytes(work):
        return "nodes with more memory: the signals of the largest class come together in one task"
    return "nodes with more memory; fewer --evidence.row_folds, whose heads every node holds"
