"""classifier: backbone and head on images, one Ray Train worker group (paper, section 3.3, steps 1 and 3).

Each worker reads its own part of every epoch through Ray Data: which rows in which order follows from (seed, epoch,
rank) alone, so an interrupted training goes on exactly where its last checkpoint stood. With very many classes each
worker owns rows of the head (`--heads.sharded`), which lie beside the classifier's file by ranges of classes.

# M rows of a window, B images of one worker's batch
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cleanscale.engine.data import Block, blocks, decode_cpus, stream
from cleanscale.engine.train import Worker, train_on_workers
from cleanscale.errors import ConfigError
from cleanscale.maths.epoch_plan import epoch_windows, steps_per_epoch
from cleanscale.maths.noise_types import NUM_TYPES
from cleanscale.models.backbones import BackboneSettings
from cleanscale.models.classifier import Classifier, build_classifier, classifier_from_bytes, classifier_to_bytes
from cleanscale.models.noise_models import WithNoiseTypes
from cleanscale.stages import head_files
from cleanscale.stages.images import Images, Request, request
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.stages.sharded_training import SpreadHead
from cleanscale.stages.supervision import AS_LABELLED, Supervision, Taught
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.training.classifier import Batch, ClassifierSettings, course_of_round, fit_classifier
from cleanscale.training.head_settings import HeadPlan, HeadSettings
from cleanscale.training.transforms import AugmentationSettings

MODEL = "model.safetensors"
NOISE_TYPES = "noise_types"  # folder of the network of noise types, beside the classifier
CHUNK_IMAGES, WINDOW_CHUNKS = 64, 16
STREAM_WINDOWS = 512  # of one stream at least, where the epochs last


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs; travels to it as it is."""

    data: Ingested
    backbone: BackboneSettings
    augmentation: AugmentationSettings
    classifier: ClassifierSettings
    spread: HeadPlan | None  # how rows are trained that the workers own; None: each worker has the whole head
    round_number: int
    seed: int
    supervision: Supervision
    start: str | None


def run(
    place: Place,
    folder: str,
    data: Ingested,
    backbone: BackboneSettings,
    augmentation: AugmentationSettings,
    classifier: ClassifierSettings,
    heads: HeadSettings,
    *,
    round_number: int,
    supervision: Supervision = AS_LABELLED,
    start: tuple[str, str] | None = None,
    name: str = "classifier",
) -> Manifest:
    """Train a classifier into `folder`, beside it the network of noise types where the supervision has such.

    start: (folder of the classifier to fine-tune, its fingerprint); None: a new one. heads: how a head is sharded.
    """
    spread = spread_plan(heads, classifier, data.num_classes, supervision)
    stage = open_stage(
        folder,
        name,
        {
            "backbone": backbone.model_dump(mode="json"),
            "augmentation": augmentation.model_dump(mode="json"),
            "classifier": relevant(classifier, round_number, spread),
            "run": {"seed": place.seed},
        },
        {"ingest": data.fingerprint} | supervision.inputs() | ({"classifier": start[1]} if start else {}),
    )
    if stage.complete:
        return stage.complete
    job = Job(
        data,
        backbone,
        augmentation,
        classifier,
        spread,
        round_number,
        place.seed,
        supervision,
        start[0] if start else None,
    )
    epochs = course_of_round(classifier, round_number).epochs
    total = epochs * data.num_accepted
    with (
        place.timed("classifier", total, folder=folder),
        place.progress.step(f"{name} (round {round_number})", total) as step,
    ):
        train_on_workers(
            train_loop,
            job,
            uri=folder,
            settings=place.engine,
            on_progress=place.follow(step, name),
        )
    return stage.finish(notes={"epochs": epochs, "model": MODEL})


def spread_plan(
    heads: HeadSettings, classifier: ClassifierSettings, num_classes: int, supervision: Supervision
) -> HeadPlan | None:
    """How the head is trained where its rows are spread over workers; None where it is not. Losses that compare all
    classes of an image keep it whole: those of lists of labels (and of models of the noise, which `supervision.check`
    refuses for so many classes).

    Raises: ConfigError for a setting that a sharded head cannot follow.
    """
    if supervision.lists is not None or not heads.is_sharded(num_classes):
        return None
    assert supervision.noise is None, "supervision.check refuses it"
    if classifier.label_smoothing:
        raise ConfigError(
            f"--classifier.label_smoothing is {classifier.label_smoothing} and the head of {num_classes} classes is "
            "sharded; expected 0, since a share for every class would touch every row; leave it out, or use "
            "--heads.sharded off"
        )
    return heads.resolved(num_classes).model_copy(update={"row_learning_rate": classifier.row_learning_rate})


def relevant(settings: ClassifierSettings, round_number: int, spread: HeadPlan | None = None) -> dict[str, Any]:
    """The settings that change this round's result: fine-tuning's do not concern round 0, nor the other way round."""
    values = settings.model_dump(mode="json")
    unused = ("finetune_epochs", "finetune_learning_rate", "finetune_warmup_epochs")
    unused = unused if round_number == 0 else ("epochs", "warmup_epochs", *(() if spread else ("learning_rate",)))
    unused = unused if spread else (*unused, "row_learning_rate")
    of_rows = {name: getattr(spread, name) for name in ("exact", "negatives")} if spread else {}
    return {name: value for name, value in values.items() if name not in unused} | of_rows


def train_loop(worker: Worker, job: Job) -> None:
    data = job.data
    plan = data.plan()
    taught = job.supervision.read()
    row_N = taught.rows(data.accepted_rows())
    if 0 < len(row_N) < worker.world:  # some workers have the same image
        row_N = np.resize(row_N, worker.world)
    label_R = data.labels()
    classifier = first_model(job, data.num_classes)
    images = Images(data.settings, job.augmentation, classifier.backbone.image_size, job.seed)
    batch = max(1, job.classifier.batch_size // worker.world)
    steps = steps_per_epoch(len(row_N), batch, worker.world)
    course = course_of_round(job.classifier, job.round_number)
    each = data.num_accepted  # images that an epoch counts as, also where it sees some of them more often

    def requests_of(epoch: int) -> list[tuple[int, Request]]:
        windows = epoch_windows(len(row_N), CHUNK_IMAGES, WINDOW_CHUNKS, job.seed, epoch, worker.rank, worker.world)
        return [(epoch, request(plan, row_N[position_M])) for position_M in windows]

    streams = EpochStreams(requests_of, images.training_window, course.epochs)

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        for step, block in enumerate(filled(streams.batches(epoch, batch), batch, steps)):
            worker.say((epoch + step / steps) * each, course.epochs * each, "images", history)
            yield as_batch(block, label_R, taught)

    start = worker.checkpoint()
    head = spread_head(worker, classifier, job, start["next_epoch"] if start else 0)
    history: list[dict[str, float]] = start["history"] if start else []

    def on_epoch(epoch: int, metrics: dict[str, float], state: Callable[[], dict[str, Any]]) -> None:
        history.append({"step": epoch, **metrics})
        if head is not None:
            head.keep(epoch + 1)
        worker.save(lambda: state() | {"history": history}, metrics)
        worker.say((epoch + 1) * each, course.epochs * each, "images", history)

    model = fit_classifier(
        network(classifier, taught, job),
        epoch_batches,
        job.classifier,
        steps_per_epoch=steps,
        seed=job.seed,
        course=course,
        start=start,
        collectives=worker.collectives,
        device=worker.device,
        on_epoch=on_epoch,
        loss=taught.loss(worker.device),
        objective=head.objective if head is not None else None,
    )
    if head is not None:
        head.write()
    if worker.rank == 0:
        uris.write_bytes(uris.join(worker.uri, MODEL), classifier_to_bytes(classifier, job.backbone))
        if isinstance(model, WithNoiseTypes) and isinstance(model.noise_types, Classifier):
            types = classifier_to_bytes(model.noise_types, job.backbone)
            uris.write_bytes(uris.join(worker.uri, NOISE_TYPES, MODEL), types)


def spread_head(worker: Worker, classifier: Classifier, job: Job, epochs_done: int) -> SpreadHead | None:
    """The rows that the workers own; None where each has the whole head."""
    if job.spread is None:
        return None
    rows = uris.join(job.start, head_files.HEAD) if job.start else None
    classes = job.data.num_classes
    return SpreadHead(worker, classifier.head, classes, job.spread, seed=job.seed, epochs_done=epochs_done, start=rows)


def network(classifier: Classifier, taught: Taught, job: Job) -> nn.Module:
    """What learns: the classifier, or what the noise model puts around it.

    The network of noise types begins as the one that the start was trained with, else with the start's backbone.
    """
    if taught.noise is None or taught.noise.confusion is None:
        return taught.layered(classifier)
    if job.start and (content := uris.read_if_there(uris.join(job.start, NOISE_TYPES, MODEL))) is not None:
        return WithNoiseTypes(classifier, classifier_from_bytes(content, source=job.start)[0], classifier.num_classes)
    settings = job.classifier
    shape = {"hidden_width": settings.hidden_width, "dropout": settings.dropout}
    types = build_classifier(job.backbone, NUM_TYPES, **shape, seed=job.seed)
    types.backbone.load_state_dict(classifier.backbone.state_dict())
    return WithNoiseTypes(classifier, types, classifier.num_classes)


class EpochStreams:
    """The images of one epoch after the other, several epochs in one Ray Data stream: starting one takes a second."""

    def __init__(
        self, requests_of: Callable[[int], list[tuple[int, Request]]], read: Callable[..., Block], epochs: int
    ) -> None:
        self.requests_of, self.read, self.epochs = requests_of, read, epochs
        self.blocks: Iterator[Block] = iter(())
        self.rows_left: dict[int, int] = {}
        self.rest: Block | None = None

    def batches(self, epoch: int, batch: int) -> Iterator[Block]:
        """Blocks of `batch` images, the last of the epoch shorter. Epochs are asked for in order."""
        if epoch not in self.rows_left:
            self.begin(epoch)
        left = self.rows_left.pop(epoch)
        while left > 0:
            block, self.rest = self.next_rows(min(batch, left))
            left -= len(block["row"])
            yield block

    def begin(self, epoch: int) -> None:
        requests = self.requests_of(epoch)
        self.rows_left = {epoch: rows_of(requests)}
        while len(requests) < STREAM_WINDOWS and (epoch := epoch + 1) < self.epochs:
            more = self.requests_of(epoch)
            self.rows_left[epoch] = rows_of(more)
            requests += more
        self.blocks, self.rest = blocks(stream(requests, self.read, num_cpus=decode_cpus())), None

    def next_rows(self, wanted: int) -> tuple[Block, Block | None]:
        """(the next `wanted` images, what is left of the block they ended in)."""
        pieces = [self.rest] if self.rest is not None else []
        have = sum(len(piece["row"]) for piece in pieces)
        while have < wanted:
            pieces.append(next(self.blocks))
            have += len(pieces[-1]["row"])
        joined = pieces[0] if len(pieces) == 1 else {n: np.concatenate([p[n] for p in pieces]) for n in pieces[0]}
        rest = {name: values[wanted:] for name, values in joined.items()} if have > wanted else None
        return {name: values[:wanted] for name, values in joined.items()}, rest


def rows_of(requests: list[tuple[int, Request]]) -> int:
    return sum(len(row_M) for _, (row_M, _) in requests)


def first_model(job: Job, num_classes: int) -> Classifier:
    """A new classifier, or the one to fine-tune; the same on every worker."""
    if job.start is not None:
        return load(job.start)
    return build_classifier(
        job.backbone,
        num_classes if job.spread is None else None,
        hidden_width=job.classifier.hidden_width,
        dropout=job.classifier.dropout,
        seed=job.seed,
    )


def filled(given_blocks: Iterator[Block], batch: int, steps: int) -> Iterator[Block]:
    """Exactly `steps` blocks of exactly `batch` images: what lacks at the end is repeated, marked as not ok."""
    last: Block | None = None
    given = 0
    for block in given_blocks:
        last = block if len(block["row"]) == batch else repeated(block, batch)
        given += 1
        yield last
    while given < steps and last is not None:
        given += 1
        yield last | {"ok": np.zeros(batch, bool)}


def repeated(block: Block, batch: int) -> Block:
    length = len(block["row"])
    take = np.arange(batch) % length
    return {name: values[take] for name, values in block.items()} | {
        "ok": block["ok"][take] & (np.arange(batch) < length)
    }


def as_batch(block: Block, label_R: np.ndarray, taught: Taught) -> Batch:
    """Targets and weights come to the images by position. An image that could not be decoded weighs nothing."""
    row_B = block["row"]
    weight_B = block["ok"] * taught.weights(row_B)
    image_B3SS = block["image"]
    return Batch(
        torch.from_numpy(image_B3SS if image_B3SS.flags.writeable else image_B3SS.copy()),
        torch.from_numpy(taught.targets(row_B, label_R[row_B])),
        torch.from_numpy(weight_B),
    )


def load(folder: str) -> Classifier:
    """The classifier that `run` left in `folder`."""
    return load_with_settings(uris.join(folder, MODEL))[0]


def load_with_settings(uri: str) -> tuple[Classifier, BackboneSettings]:
    return classifier_from_bytes(uris.read_bytes(uri), source=uri)
