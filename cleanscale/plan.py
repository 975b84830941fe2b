"""`cleanscale plan`: what a run of a given size would take on a given cluster, before anything runs.

    cleanscale plan --images 1e9 --classes 1e7 --nodes 64 --cores 32 --memory 256 --gpus 8 --from images

Prints hours, disk and network of each stage, what a node and the driver hold, and what breaks first, with the remedy.
The formulas and the measured constants they are built from are those of `maths/cost_model.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cleanscale.errors import CleanscaleError, ConfigError
from cleanscale.maths import cost_model
from cleanscale.maths.cost_model import RATES, Cluster, Limit, Workload

GFLOP = {"resnet18": 3.6, "resnet50": 8.2, "resnet101": 15.7, "convnext_tiny": 9.0, "vit_small_patch16_224": 9.2,
         "vit_base_patch16_224": 35.2}  # fmt: skip
TIGHT = 0.7  # share of a limit from which on it is mentioned


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        work, cluster = asked(options)
    except CleanscaleError as error:
        sys.stderr.write(f"cleanscale: {error}\n")
        return error.exit_status
    found = plan(work, cluster)
    sys.stdout.write((json.dumps(found, indent=2) if options.json else in_words(found)) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "cleanscale plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    work, cluster = Workload(0, 1), Cluster()
    work_group = made.add_argument_group("what is to be done")
    work_group.add_argument("--images", type=number, required=True, help="training images, such as 1e9")
    work_group.add_argument("--classes", type=number, required=True, help="classes, such as 1e6")
    work_group.add_argument("--from", dest="source", choices=("features", "images"), default=work.source)
    work_group.add_argument("--frozen", action="store_true", help="images: the backbone stays; only heads train")
    work_group.add_argument("--width", type=number, default=work.width, help="numbers of a stored feature")
    work_group.add_argument("--backbone", default="resnet50", help="for images: " + ", ".join(GFLOP))
    work_group.add_argument("--gflop", type=float, help="of one image through another backbone, at --image-size")
    work_group.add_argument("--image-size", type=number, default=224, help="side in pixels that the backbone takes")
    work_group.add_argument("--image-bytes", type=number, default=work.image_bytes, help="of an encoded image")
    work_group.add_argument("--head-epochs", type=number, default=None, help="passes of each head over the images")
    work_group.add_argument("--head-batch", type=number, default=work.head_batch, help="images of a step, all workers")
    work_group.add_argument("--row-folds", type=number, default=work.row_folds, help="of the out-of-fold heads")
    work_group.add_argument("--rounds", type=number, default=work.rounds)
    where = made.add_argument_group("what it is to be done on; of each node")
    where.add_argument("--nodes", type=number, default=cluster.nodes)
    where.add_argument("--cores", type=number, default=cluster.cores)
    where.add_argument("--memory", type=float, default=cluster.memory_bytes / 1e9, help="GB")
    where.add_argument("--gpus", type=int, default=cluster.gpus)
    where.add_argument("--gpu-memory", type=float, default=cluster.gpu_memory_bytes / 1e9, help="GB of each GPU")
    where.add_argument("--disk", type=float, default=cluster.disk_bytes / 1e9, help="GB")
    where.add_argument("--disk-speed", type=float, default=cluster.disk_bytes_per_s / 1e6, help="MB/s")
    where.add_argument("--network", type=float, default=cluster.network_bytes_per_s * 8 / 1e9, help="Gbit/s")
    made.add_argument("--json", action="store_true", help="everything as JSON, with the constants and their sources")
    return made


def number(text: str) -> int:
    """A whole number, also as 1e9."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; expected such as 20000000 or 2e7") from None
    if not (value == int(value) and value >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(value)


def asked(options: argparse.Namespace) -> tuple[Workload, Cluster]:
    """Raises: ConfigError for a backbone whose cost is not known, or more classes than images."""
    if options.classes > options.images:
        raise ConfigError(
            f"found {options.images} images for {options.classes} classes; expected one for each at least; correct"
            " --images or --classes"
        )
    gflop = options.gflop
    if gflop is None and options.source == "images":
        if options.backbone not in GFLOP:
            raise ConfigError(
                f"found the backbone {options.backbone!r}; expected one of {', '.join(GFLOP)}, or what one image costs"
                " through it; give --gflop"
            )
        gflop = GFLOP[options.backbone] * (options.image_size / 224) ** 2
    work = Workload(
        images=options.images,
        classes=options.classes,
        width=options.width,
        source=options.source,
        frozen=options.frozen,
        image_bytes=options.image_bytes,
        image_gflop=gflop or Workload.image_gflop,
        head_batch=options.head_batch,
        row_folds=options.row_folds,
        rounds=options.rounds,
    )
    # A head that one worker holds whole goes through the images eight times (training/head_settings.py).
    epochs = options.head_epochs or (1 if work.sharded else 8)
    work = replace(work, head_epochs=epochs)
    return work, Cluster(
        nodes=options.nodes,
        cores=options.cores,
        memory_bytes=options.memory * 1e9,
        gpus=options.gpus,
        gpu_memory_bytes=options.gpu_memory * 1e9,
        disk_bytes=options.disk * 1e9,
        disk_bytes_per_s=options.disk_speed * 1e6,
        network_bytes_per_s=options.network * 1e9 / 8,
    )


def plan(work: Workload, cluster: Cluster) -> dict[str, Any]:
    """Everything that is printed, as plain values."""
    stages = cost_model.stages(work, cluster)
    held = cost_model.memory(work, cluster)
    limits = cost_model.limits(work, cluster)
    return {
        "work": work.__dict__,
        "cluster": cluster.__dict__,
        "stages": [
            {
                "stage": stage.name,
                "hours": stage.seconds(cluster) / 3600,
                "core_hours": stage.core_s / 3600,
                "gpu_hours": stage.gpu_s / 3600,
                "left_bytes": stage.left_bytes,
                "moved_bytes": stage.moved_bytes,
                "sent_bytes_per_node": stage.sent_bytes,
            }
            for stage in stages
        ],
        "hours": sum(stage.seconds(cluster) for stage in stages) / 3600,
        "class_shards": cost_model.shards(work),
        "memory_bytes": held | {"node": cost_model.memory_per_node(work, cluster)},
        "disk_bytes": cost_model.disk(work, cluster),
        "step_bytes_per_node": cost_model.step_bytes(work, cluster),
        "limits": [limit._asdict() | {"share": limit.share} for limit in limits],
        "breaks_first": limits[0].what,
        "constants": {name: rate._asdict() for name, rate in RATES.items()},
    }


def in_words(found: dict[str, Any]) -> str:
    """The plan for a person."""
    work, cluster = found["work"], found["cluster"]
    head = "sharded by class, sampled" if Workload(**work).sharded else "one dense matrix"
    lines = [
        f"{work['images']:,} images, {work['classes']:,} classes, from {work['source']}, {work['width']} numbers each;"
        f" {cluster['nodes']} x ({cluster['cores']} cores, {cluster['gpus']} GPUs,"
        f" {size(cluster['memory_bytes'])} memory)",
        f"{found['class_shards']:,} class shards; classifier head: {head}",
        "",
        f"{'stage':<20}{'time':>10}{'core-hours':>13}{'GPU-hours':>12}{'leaves':>11}{'sent a node':>13}",
    ]
    lines += [
        f"{one['stage']:<20}{duration(one['hours']):>10}{one['core_hours']:>13.2f}{one['gpu_hours']:>12.2f}"
        f"{size(one['left_bytes']):>11}{size(one['sent_bytes_per_node']):>13}"
        for one in found["stages"]
    ]
    lines += [f"{'all':<20}{duration(found['hours']):>10}", ""]
    lines += [f"disk at its fullest    {size(found['disk_bytes'])}"]
    held = found["memory_bytes"]
    parts = ", ".join(f"{name} {size(held[name])}" for name in held if name != "node")
    lines += [f"memory of the fullest node    {size(held['node'])} ({parts})"]
    steps = ", ".join(f"{name} {size(value)}" for name, value in found["step_bytes_per_node"].items() if value)
    lines += [f"network of a node in a training step    {steps or 'nothing: one node'}", ""]
    return "\n".join(lines + verdict([Limit(*list(one.values())[:5]) for one in found["limits"]]))


def verdict(limits: list[Limit]) -> list[str]:
    """What breaks, or would break first if everything grew."""
    broken = [limit for limit in limits if limit.share > 1]
    if broken:
        return ["This breaks, the worst first:", *(f"  {described(limit)}; {limit.remedy}" for limit in broken)]
    lines = [f"It fits. What would break first: {described(limits[0])}; then: {limits[0].remedy}"]
    return lines + [f"  also tight: {described(limit)}" for limit in limits[1:] if limit.share > TIGHT]


def described(limit: Limit) -> str:
    if limit.unit == "bytes":
        return f"{limit.what}: {size(limit.needed)} of {size(limit.there)}"
    return f"{limit.what}: {limit.needed:,.1f} {limit.unit}, expected at most {limit.there:,.0f}"


def size(amount: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} PB"


def duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"


if __name__ == "__main__":
    sys.exit(main())
