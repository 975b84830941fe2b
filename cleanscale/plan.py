"""`cleanscale plan`: what a run of a given size would take on a given cluster, before anything runs.

    cleanscale plan --images 1e9 --classes 1e7 --nodes 64 --cores 32 --memory 256 --gpus 8 --from images

Prints hours, disk and network of each stage, what a node and the driver hold, and what breaks first, with the remedy.
The formulas and the measured constants they are built from are those of `maths/cost_model.py` and `maths/capacity.py`.
What no option gives has the default of a run's settings.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from cleanscale.datasets.generated import GeneratedSettings
from cleanscale.errors import CleanscaleError, ConfigError
from cleanscale.maths import capacity, cost_model
from cleanscale.maths.capacity import Limit
from cleanscale.maths.cost_model import RATES, Cluster, Workload
from cleanscale.stages.settings import FeaturesSettings
from cleanscale.training.classifier import ClassifierSettings
from cleanscale.training.head_settings import HeadSettings


class Network(NamedTuple):
    """A backbone without its classifier: what an image of 224 x 224 costs, its feature's width, its parameters."""

    gflop: float
    width: int
    parameters: int


BACKBONES = {
    "resnet18": Network(3.6, 512, 11_176_512),
    "resnet50": Network(8.2, 2048, 23_508_032),
    "resnet101": Network(15.7, 2048, 42_500_160),
    "convnext_tiny": Network(9.0, 768, 27_820_128),
    "vit_small_patch16_224": Network(9.2, 384, 21_665_664),
    "vit_base_patch16_224": Network(35.2, 768, 85_798_656),
}
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
    work, cluster, training = Workload(1, 1), Cluster(), ClassifierSettings()
    images, given = FeaturesSettings().dimensions, GeneratedSettings().width
    whole, from_0 = partial(number, least=1), partial(number, least=0)
    what = made.add_argument_group("what is to be done")
    what.add_argument("--images", type=whole, required=True, help="training images, such as 1e9")
    what.add_argument("--classes", type=whole, required=True, help="classes, such as 1e6")
    what.add_argument("--from", dest="source", choices=("features", "images"), default=work.source)
    what.add_argument("--frozen", action="store_true", help="images: the backbone stays; only heads train")
    what.add_argument(
        "--width",
        type=whole,
        help=f"numbers of a stored feature [of images: {images}, or the backbone's if fewer; else {given}]",
    )
    what.add_argument(
        "--largest-class", type=amount, help="share of the images in the largest class [by Zipf's law, exponent 1/2]"
    )
    what.add_argument("--backbone", default="resnet50", help="for images: " + ", ".join(BACKBONES))
    what.add_argument("--gflop", type=amount, help="of one image through another backbone, at --image-size")
    what.add_argument("--backbone-width", type=whole, help="numbers another backbone gives for an image [2048]")
    what.add_argument("--backbone-parameters", type=whole, help="of another backbone [as resnet50]")
    what.add_argument("--image-size", type=whole, default=224, help="side in pixels that the backbone takes")
    what.add_argument("--image-bytes", type=whole, default=work.image_bytes, help="of an encoded image")
    what.add_argument("--classifier-epochs", type=from_0, default=training.epochs, help="on images, round 0")
    what.add_argument("--finetune-epochs", type=from_0, default=training.finetune_epochs, help="on images, round 1")
    what.add_argument("--head-epochs", type=whole, help="passes of each head over the images")
    what.add_argument("--head-batch", type=whole, default=work.head_batch, help="images of a step, all workers")
    what.add_argument(
        "--row-folds", type=partial(number, least=2), default=work.row_folds, help="of the out-of-fold heads"
    )
    what.add_argument("--rounds", type=whole, default=work.rounds)
    where = made.add_argument_group("what it is to be done on; of each node")
    where.add_argument("--nodes", type=whole, default=cluster.nodes)
    where.add_argument("--cores", type=whole, default=cluster.cores)
    where.add_argument("--memory", type=amount, default=cluster.memory_bytes / 1e9, help="GB")
    where.add_argument("--gpus", type=from_0, default=cluster.gpus)
    where.add_argument("--gpu-memory", type=amount, default=cluster.gpu_memory_bytes / 1e9, help="GB of each GPU")
    where.add_argument("--disk", type=amount, default=cluster.disk_bytes / 1e9, help="GB")
    where.add_argument("--disk-speed", type=amount, default=cluster.disk_bytes_per_s / 1e6, help="MB/s")
    where.add_argument("--network", type=amount, default=cluster.network_bytes_per_s * 8 / 1e9, help="Gbit/s")
    made.add_argument("--json", action="store_true", help="everything as JSON, with the constants and their sources")
    return made


def number(text: str, least: int) -> int:
    """A whole number, also as 1e9."""
    value = finite(text)
    if value != int(value) or value < least:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number from {least} on; correct it")
    return int(value)


def amount(text: str) -> float:
    """A number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number above 0; correct it")
    return value


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a finite number, such as 64 or 2e7; correct it")
    return value


def network(options: argparse.Namespace) -> Network:
    """The backbone at the images' size; what is given for another one counts.

    Raises: ConfigError for a backbone whose cost is not known.
    """
    known = BACKBONES.get(options.backbone)
    if known is None and options.gflop is None and options.source == "images":
        raise ConfigError(
            f"found the backbone {options.backbone!r}; expected one of {', '.join(BACKBONES)}, or what one image costs"
            " through it; give --gflop, with --backbone-width and --backbone-parameters where they are known"
        )
    base = known or BACKBONES["resnet50"]
    return Network(
        options.gflop or base.gflop * (options.image_size / 224) ** 2,
        options.backbone_width or base.width,
        options.backbone_parameters or base.parameters,
    )


def stored_width(options: argparse.Namespace, backbone: Network) -> int:
    """Of a feature: as given, or as a run stores those of images by default, or as generated features are."""
    if options.width is not None:
        return options.width
    if options.source == "features":
        return GeneratedSettings().width
    return min(backbone.width, FeaturesSettings().dimensions)


def asked(options: argparse.Namespace) -> tuple[Workload, Cluster]:
    """Raises: ConfigError for a backbone whose cost is not known, or numbers that cannot be together."""
    if options.classes > options.images:
        raise ConfigError(
            f"found {options.images} images for {options.classes} classes; expected one for each at least; correct"
            " --images or --classes"
        )
    largest = options.largest_class or 0.0
    if largest and not 1 / options.classes <= largest <= 1:
        raise ConfigError(
            f"found {largest:g} of the images in the largest of {options.classes} classes; expected a share from"
            f" {1 / options.classes:.3g} to 1; correct --largest-class"
        )
    backbone = network(options)
    work = Workload(
        images=options.images,
        classes=options.classes,
        width=stored_width(options, backbone),
        source=options.source,
        frozen=options.frozen,
        image_bytes=options.image_bytes,
        image_gflop=backbone.gflop,
        backbone_width=backbone.width,
        backbone_parameters=backbone.parameters,
        classifier_epochs=options.classifier_epochs,
        finetune_epochs=options.finetune_epochs,
        head_epochs=options.head_epochs or HeadSettings().resolved(options.classes).epochs,
        head_batch=options.head_batch,
        row_folds=options.row_folds,
        rounds=options.rounds,
        largest_share=largest,
    )
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
    held = capacity.memory(work, cluster)
    limits = capacity.limits(work, cluster)
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
        "class_shards": capacity.shards(work),
        "memory_bytes": held | {"node": capacity.memory_per_node(work, cluster)},
        "disk_bytes": capacity.disk(work, cluster),
        "scratch_bytes": capacity.scratch(work, cluster),
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
    lines += [
        f"disk at its fullest    {size(found['disk_bytes'])}; scratch of a node    {size(found['scratch_bytes'])}"
    ]
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
