"""What a run costs, from its size and the cluster alone: core and GPU seconds of each stage, and the bytes it moves.

Every constant that was measured stands in RATES with where it comes from; formulas are sums of products of them. A
model, within a factor of two or so of what runs on idle machines (tests/test_plan.py holds it against recorded runs).
What a run holds, and what breaks first, is in `capacity.py`.

# N images, C classes, D feature width, K references of a class, E width of class embeddings
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MEASURED = "this machine (2 x86 cores, busy), 128-d features"


class Rate(NamedTuple):
    value: float
    unit: str
    source: str


RATES: dict[str, Rate] = {
    "ingest": Rate(3.0e-6, "core-s per row", f"stages/ingest on 1e6 rows, {MEASURED}"),
    "copy_features": Rate(
        15e-6, "core-s per row at D = 128", f"feature_files.copy_features on 262,144 rows, {MEASURED}"
    ),
    "gather_features": Rate(15e-6, "core-s per row at D = 128", "as copy_features: read, sort and write once more"),
    "decode": Rate(1 / 700, "core-s per image", "measured earlier, 700 images/s/core"),
    "backbone_gpu": Rate(8.2e9 * 2500, "FLOP/s per GPU", "published: ResNet-50 features at 2.5k images/s"),
    "backbone_core": Rate(1e11, "FLOP/s per core", "arithmetic: fp32 with AVX2, sustained"),
    "references": Rate(1 / 1471, "core-s per class of 300 images, D = 256", "measured earlier, Gram-matrix k-means"),
    "reference_rows": Rate(12e-6, "core-s per row at D = 128", f"300,000 rows of 100,000 classes, {MEASURED}"),
    "head_start": Rate(
        33e-6, "core-s per class", f"training.sharded_heads before its first step, 1e6 classes, {MEASURED}"
    ),
    "head_flops": Rate(5e10, "FLOP/s per core", f"dense heads of 1000 classes, {MEASURED}"),
    "head_gpu": Rate(2e13, "FLOP/s per GPU", "arithmetic: a tenth of a card's bf16 matrix rate, small matrices"),
    "head_row": Rate(1.1e-5, "core-s per sample", f"28,500 samples/s with 512 negatives, less its FLOPs, {MEASURED}"),
    "step_latency": Rate(1e-3, "s per step of several nodes", "arithmetic: a gather and four all-reduces, 200 us each"),
    "candidates": Rate(1 / 8000, "core-s per search among 1e6", f"39 us among 98,000, recall .7, {MEASURED}"),
    "suggestions": Rate(
        6e-6, "core-s per image called wrong", f"neighbours of two classes, and of one more, {MEASURED}"
    ),
    "evidence": Rate(72e-6, "core-s per image and head", "measured earlier: 20 core-h for 1e9, 32 candidates"),
    "class_signals": Rate(4e-6, "core-s per image of a class", f"evidence.class_shard on 2e6 of one class, {MEASURED}"),
    "class_signals_held": Rate(265, "bytes per image of a class", "the same: tables, signals and what is sorted"),
    "head_image": Rate(
        100, "bytes per image of a worker", f"labels, rows, weights and orders: a dense head's worker, {MEASURED}"
    ),
    "cleannet_step": Rate(0.0176, "core-s per step", f"1000 steps of 64 classes x 8 queries, {MEASURED}"),
    "class_embedding": Rate(1 / 3300, "core-s per class of 50 references", "measured earlier; of 3: 92 us"),
    "relevance": Rate(1 / 0.7e6, "core-s per image", "measured earlier: a gather and a dot product"),
    "table_row": Rate(4e-6, "core-s per row and table", f"Parquet, {MEASURED}"),
    "bootstrap": Rate(20.0, "s", "95 % intervals of the evaluation, whatever the size"),
    "stage_start": Rate(8.0, "s", "a worker group or the first tasks of a stage"),
}

IN_MEMORY_BYTES = 256 << 20  # features of which a worker has no more are read into memory (storage/rows.py)


@dataclass(frozen=True)
class Workload:
    """What is to be done. source: features that are given, or images. width: of a stored feature."""

    images: int
    classes: int
    width: int = 128
    source: str = "features"
    image_bytes: int = 110_000
    image_gflop: float = 8.2
    backbone_width: int = 2048
    backbone_parameters: int = 23_508_032
    frozen: bool = False  # the backbone stays as it was loaded: only heads train, on features
    classifier_epochs: int = 30  # on images, in round 0
    finetune_epochs: int = 10  # on images, in round 1; from round 2 on only heads train
    head_epochs: int = 1
    negatives: int = 512
    head_batch: int = 512
    hidden_width: int = 512  # of a head that is not sharded
    sharded_from: int = 100_000
    exact_classes: int = 1024
    row_folds: int = 4
    references: int = 50
    reference_images: int = 500
    embedding: int = 128
    cleannet_steps: int = 1000
    wrong: float = 0.3
    shard_bytes: int = 64 << 20
    rounds: int = 1
    largest_share: float = 0.0  # of the images, in one class; 0: as in generated data

    @property
    def on_images(self) -> bool:
        """Whether classifiers are trained on images, those of the first two rounds."""
        return self.source == "images" and not self.frozen

    @property
    def made_width(self) -> int:
        """Of a feature before it is projected: how it lies in the files of rows."""
        return self.backbone_width if self.source == "images" else self.width

    @property
    def largest_class(self) -> float:
        """Images of the largest class; where its share is not given, by Zipf's law with exponent 1/2."""
        return self.images * (self.largest_share or 1 / (2 * self.classes**0.5 - 1))

    @property
    def sharded(self) -> bool:
        return self.classes >= self.sharded_from


@dataclass(frozen=True)
class Cluster:
    """What it is to be done on; memory, disk and network of one node."""

    nodes: int = 1
    cores: int = 2
    memory_bytes: float = 16e9
    gpus: int = 0
    gpu_memory_bytes: float = 80e9
    disk_bytes: float = 1e12
    disk_bytes_per_s: float = 4e8
    network_bytes_per_s: float = 1.25e9

    @property
    def all_cores(self) -> int:
        return self.nodes * self.cores

    @property
    def all_gpus(self) -> int:
        return self.nodes * self.gpus

    @property
    def node_workers(self) -> int:
        """Training workers of a node: one for each GPU, else one."""
        return max(1, self.gpus)


@dataclass(frozen=True)
class Stage:
    """One stage: work, what it moves to and from disk, what it leaves there, and what it sends."""

    name: str
    core_s: float = 0.0
    gpu_s: float = 0.0
    alone_s: float = 0.0  # that no second node shortens
    moved_bytes: float = 0.0
    left_bytes: float = 0.0
    sent_bytes: float = 0.0  # over the network, by one node

    def seconds(self, cluster: Cluster) -> float:
        """Work on cores and GPUs, disk and network overlap: the slowest decides."""
        return self.alone_s + max(
            self.core_s / cluster.all_cores,
            self.gpu_s / max(1, cluster.all_gpus),
            self.moved_bytes / (cluster.nodes * cluster.disk_bytes_per_s),
            self.sent_bytes / cluster.network_bytes_per_s,
        )


def rate(name: str) -> float:
    return RATES[name].value


def row_bytes(width: int) -> float:
    """Bytes of a feature with its row, id and label, stored."""
    return 2.0 * width + 26


def head_flops(work: Workload) -> float:
    """Operations of a forward and backward pass of the head for one image."""
    if work.sharded:
        return 6.0 * work.width * (work.negatives + 2 * work.head_batch)
    return 6.0 * work.hidden_width * (work.width + work.classes)


def head_values(work: Workload) -> float:
    """Numbers of the output layer."""
    return float(work.classes) * (work.width if work.sharded else work.hidden_width)


def head_stage(work: Workload, cluster: Cluster, name: str, passes: float, heads: int) -> Stage:
    """Training of heads: `passes` over the images, `heads` kept."""
    samples = passes * work.images
    operations = samples * head_flops(work)
    on_gpu = cluster.all_gpus > 0
    start = heads * work.classes * rate("head_start") if work.sharded else 0.0
    steps = samples / work.head_batch
    read = samples if work.sharded else 3 * work.images  # the dense one holds what it has read, through scratch or not
    return Stage(
        name,
        core_s=start + samples * rate("head_row") + (0.0 if on_gpu else operations / rate("head_flops")),
        gpu_s=operations / rate("head_gpu") if on_gpu else 0.0,
        alone_s=rate("stage_start") + (steps * rate("step_latency") if cluster.nodes > 1 else 0.0),
        moved_bytes=read * 2 * work.width,
        left_bytes=4 * head_values(work) * heads,
        sent_bytes=steps * step_bytes(work, cluster)["head"],
    )


def step_bytes(work: Workload, cluster: Cluster) -> dict[str, float]:
    """Bytes that one node sends in one training step."""
    others = (cluster.nodes - 1) / cluster.nodes
    head = 2 * others * work.head_batch * (4 * work.width + 16) if work.sharded else 8 * others * head_values(work)
    cleannet = 2 * others * 4 * (2 * work.width * 256 + 4 * 256 * work.embedding + 2 * work.width * work.embedding)
    # Of images: gradients of the backbone and of a head that is whole, or embeddings there and back.
    above = 256 * (4 * work.backbone_width + 16) if work.sharded else 4 * work.classes * work.backbone_width
    backbone = 2 * others * (4 * work.backbone_parameters + above) if work.on_images else 0.0
    return {"head": head, "cleannet": cleannet, "backbone": backbone}


def stages(work: Workload, cluster: Cluster) -> list[Stage]:
    """All stages of a run, in order; those of a round once for each."""
    n = work.images
    ingest = Stage("ingest", n * rate("ingest"), alone_s=rate("stage_start"), moved_bytes=100 * n, left_bytes=33 * n)
    rounds = [stage for number in range(work.rounds) for stage in one_round(work, cluster, number)]
    evaluate = Stage("evaluate", n * 3 * rate("table_row"), alone_s=rate("bootstrap"), left_bytes=50 * n)
    return [ingest, *rounds, classifier(work, cluster, work.rounds, "weighted classifier"), evaluate]


def classifier(work: Workload, cluster: Cluster, number: int, name: str = "classifier") -> Stage:
    """Of round `number`: from round 2 on the backbone stays."""
    if not work.on_images or number >= 2:
        return head_stage(work, cluster, name, work.head_epochs, 1)
    return backbone(work, cluster, name, 3 * (work.finetune_epochs if number else work.classifier_epochs))


def one_round(work: Workload, cluster: Cluster, number: int) -> list[Stage]:
    """Features are made anew where the backbone has changed."""
    made = [classifier(work, cluster, number)]
    if work.on_images and number < 2:
        made = [*made, features(work, cluster)]
    elif number == 0:
        made = [features(work, cluster), *made]
    return [*made, references(work), *judgement(work, cluster)]


def judgement(work: Workload, cluster: Cluster) -> list[Stage]:
    """From features and references to the relevance table."""
    n, c, wide = work.images, work.classes, work.width / 128
    signals = rate("evidence") * wide + searched(work) + 6 * rate("table_row")
    cleannet_s = work.cleannet_steps * rate("cleannet_step") * max(1.0, wide) / speed(cluster)
    return [
        head_stage(work, cluster, "out-of-fold heads", work.head_epochs * (work.row_folds - 1), work.row_folds),
        Stage(
            "evidence",
            n * signals,
            alone_s=rate("stage_start") + work.largest_class * rate("class_signals"),  # a class is one task
            moved_bytes=3 * n * (row_bytes(work.width) + 160),
            left_bytes=60 * n + 4 * c * (work.width + 24),
        ),
        Stage(
            "cleannet",
            alone_s=rate("stage_start") + cleannet_s,
            sent_bytes=work.cleannet_steps * step_bytes(work, cluster)["cleannet"],
            left_bytes=4e6,
        ),
        Stage(
            "class_index",
            c * rate("class_embedding") * max(0.3, min(1.0, n / c / work.references)),
            alone_s=rate("stage_start"),
            left_bytes=5.2 * c * work.embedding,
        ),
        Stage(
            "relevance",
            n * (rate("relevance") + 5 * rate("table_row")) + n * work.wrong * rate("suggestions"),
            alone_s=rate("stage_start"),
            moved_bytes=n * (row_bytes(work.width) + 200),
            left_bytes=110 * n,
        ),
    ]


def speed(cluster: Cluster) -> float:
    """How much faster than on one core a step of CleanNet is: more nodes take larger steps, not quicker ones."""
    return 5.0 if cluster.gpus else max(1.0, min(cluster.cores - 1, 8) / 2)  # on a GPU, starting kernels decides


def searched(work: Workload) -> float:
    """Core seconds of finding an image's candidates, which grow with the root of the number of classes: none where it
    is compared with all of them."""
    return rate("candidates") * (work.classes / 1e6) ** 0.5 if work.classes > work.exact_classes else 0.0


def backbone(work: Workload, cluster: Cluster, name: str, passes: float) -> Stage:
    """The backbone over all images so often; a training step counts as three passes. Decoding goes on beside it."""
    operations = passes * work.images * work.image_gflop * 1e9
    decoded = max(1.0, passes / 3) * work.images
    on_gpu = cluster.all_gpus > 0
    steps = work.images * passes / 3 / 256 if passes >= 3 else 0
    return Stage(
        name,
        decoded * rate("decode") + (0.0 if on_gpu else operations / rate("backbone_core")),
        operations / rate("backbone_gpu") if on_gpu else 0.0,
        rate("stage_start"),
        moved_bytes=decoded * work.image_bytes,
        left_bytes=1e8,
        sent_bytes=steps / max(1, cluster.all_gpus or cluster.nodes) * step_bytes(work, cluster)["backbone"],
    )


def features(work: Workload, cluster: Cluster) -> Stage:
    """Features in rows, as wide as they are made, then by class: written twice, kept once."""
    rows, kept = (work.images * row_bytes(width) for width in (work.made_width, work.width))
    made = backbone(work, cluster, "features", 1) if work.source == "images" else Stage("features")
    core_s = work.images * (rate("copy_features") + rate("gather_features")) * work.width / 128
    others = (cluster.nodes - 1) / cluster.nodes
    return Stage(
        "features",
        made.core_s + core_s,
        made.gpu_s,
        rate("stage_start"),
        made.moved_bytes + 2 * rows + kept,
        kept,
        sent_bytes=others * rows / cluster.nodes,
    )


def references(work: Workload) -> Stage:
    """k-means for classes with more than K images, pointers for the others."""
    mean = min(work.images / work.classes, work.reference_images)
    clustered = work.classes * mean / 300 * work.width / 256 * rate("references") if mean > work.references else 0.0
    vectors = work.classes * min(mean, work.references)
    left = reference_bytes(work) or 8 * vectors
    read = work.classes * mean * rate("reference_rows") * work.width / 128
    return Stage("references", clustered + read, alone_s=rate("stage_start"), moved_bytes=left, left_bytes=left)


def reference_bytes(work: Workload) -> float:
    """Of the vectors that are stored: of none where references are images."""
    alone = work.images / work.classes <= work.references
    return 0.0 if alone else 2.0 * work.width * work.classes * work.references
