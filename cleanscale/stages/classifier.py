"""classifier: backbone and head on images, one Ray Train worker group (paper, section 3.3, steps 1 and 3).

Each worker reads its own part of every epoch through Ray Data: which rows in which order follows from (seed, epoch,
rank) alone, so an interrupted training goes on exactly where its last checkpoint stood.

# M rows of a window, B images of one worker's batch
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from cleanscale.engine.data import batches, decode_cpus, stream
from cleanscale.engine.train import Worker, train_on_workers
from cleanscale.maths.epoch_plan import epoch_windows, steps_per_epoch
from cleanscale.models.backbones import BackboneSettings
from cleanscale.models.classifier import Classifier, build_classifier, classifier_from_bytes, classifier_to_bytes
from cleanscale.stages.images import Images, request
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.training.classifier import Batch, ClassifierSettings, course_of_round, fit_classifier
from cleanscale.training.transforms import AugmentationSettings

MODEL = "model.safetensors"
CHUNK_IMAGES, WINDOW_CHUNKS = 64, 16


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs; travels to it as it is."""

    data: Ingested
    backbone: BackboneSettings
    augmentation: AugmentationSettings
    classifier: ClassifierSettings
    round_number: int
    seed: int
    weights_uri: str | None
    start_uri: str | None
    fine_tuning: bool


def run(
    place: Place,
    folder: str,
    data: Ingested,
    backbone: BackboneSettings,
    augmentation: AugmentationSettings,
    classifier: ClassifierSettings,
    *,
    round_number: int,
    weights: tuple[str, str] | None = None,
    start: tuple[str, str] | None = None,
    name: str = "classifier",
) -> Manifest:
    """Train a classifier into `folder`.

    weights: (URI of weights by row, fingerprint of what made them); None: all 1.
    start: (folder of the classifier to fine-tune, its fingerprint); None: a new one.
    """
    stage = open_stage(
        folder,
        name,
        {
            "backbone": backbone.model_dump(mode="json"),
            "augmentation": augmentation.model_dump(mode="json"),
            "classifier": relevant(classifier, round_number),
            "run": {"seed": place.seed},
        },
        {"ingest": data.fingerprint}
        | ({"weights": weights[1]} if weights else {})
        | ({"classifier": start[1]} if start else {}),
    )
    if stage.complete:
        return stage.complete
    job = Job(
        data,
        backbone,
        augmentation,
        classifier,
        round_number,
        place.seed,
        weights[0] if weights else None,
        uris.join(start[0], MODEL) if start else None,
        start is not None,
    )
    epochs = course_of_round(classifier, round_number).epochs
    total = epochs * data.num_accepted
    with place.timed("classifier", total), place.progress.step(f"{name} (round {round_number})", total) as step:
        train_on_workers(
            train_loop,
            job,
            uri=folder,
            settings=place.engine,
            on_progress=place.follow(step, f"round_{round_number}/{name}"),
        )
    return stage.finish(notes={"epochs": epochs, "model": MODEL})


def relevant(settings: ClassifierSettings, round_number: int) -> dict[str, Any]:
    """The settings that change this round's result: fine-tuning's do not concern round 0, nor the other way round."""
    values = settings.model_dump(mode="json")
    unused = ("finetune_epochs", "finetune_learning_rate", "finetune_warmup_epochs")
    unused = unused if round_number == 0 else ("epochs", "learning_rate", "warmup_epochs")
    return {name: value for name, value in values.items() if name not in unused}


def train_loop(worker: Worker, job: Job) -> None:
    data = job.data
    plan = data.plan()
    row_N = data.accepted_rows()
    label_R = data.labels()
    weight_R = read_array(job.weights_uri) if job.weights_uri else None
    model = first_model(job, data.num_classes)
    images = Images(data.settings, job.augmentation, model.backbone.image_size, job.seed)
    batch = max(1, job.classifier.batch_size // worker.world)
    steps = steps_per_epoch(len(row_N), batch, worker.world)
    course = course_of_round(job.classifier, job.round_number)

    def epoch_batches(epoch: int) -> Iterator[Batch]:
        windows = epoch_windows(len(row_N), CHUNK_IMAGES, WINDOW_CHUNKS, job.seed, epoch, worker.rank, worker.world)
        requests = [request(plan, row_N[position_M]) for position_M in windows]
        blocks = batches(stream(requests, partial(images.training, epoch=epoch), num_cpus=decode_cpus()), batch)
        for step, block in enumerate(filled(blocks, batch, steps)):
            worker.say((epoch + step / steps) * len(row_N), course.epochs * len(row_N), "images")
            yield as_batch(block, label_R, weight_R)

    def on_epoch(epoch: int, metrics: dict[str, float], state: Any) -> None:
        worker.save(state, metrics)
        worker.say((epoch + 1) * len(row_N), course.epochs * len(row_N), "images", **metrics)

    fit_classifier(
        model,
        epoch_batches,
        job.classifier,
        steps_per_epoch=steps,
        seed=job.seed,
        course=course,
        start=worker.checkpoint(),
        collectives=worker.collectives,
        device=worker.device,
        on_epoch=on_epoch,
    )
    if worker.rank == 0:
        uris.write_bytes(uris.join(worker.uri, MODEL), classifier_to_bytes(model, job.backbone))


def first_model(job: Job, num_classes: int) -> Classifier:
    """A new classifier, or the one to fine-tune; the same on every worker."""
    if job.start_uri is not None:
        return classifier_from_bytes(uris.read_bytes(job.start_uri), source=job.start_uri)[0]
    return build_classifier(
        job.backbone,
        num_classes,
        hidden_width=job.classifier.hidden_width,
        dropout=job.classifier.dropout,
        seed=job.seed,
    )


def filled(blocks: Iterator[dict[str, np.ndarray]], batch: int, steps: int) -> Iterator[dict[str, np.ndarray]]:
    """Exactly `steps` blocks of exactly `batch` images: what lacks at the end is repeated, marked as not ok."""
    last: dict[str, np.ndarray] | None = None
    given = 0
    for block in blocks:
        last = block if len(block["row"]) == batch else repeated(block, batch)
        given += 1
        yield last
    while given < steps and last is not None:
        given += 1
        yield last | {"ok": np.zeros(batch, bool)}


def repeated(block: dict[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    length = len(block["row"])
    take = np.arange(batch) % length
    return {name: values[take] for name, values in block.items()} | {
        "ok": block["ok"][take] & (np.arange(batch) < length)
    }


def as_batch(block: dict[str, np.ndarray], label_R: np.ndarray, weight_R: np.ndarray | None) -> Batch:
    """Labels and weights come to the images by position. An image that could not be decoded weighs nothing."""
    row_B = block["row"]
    weight_B = block["ok"].astype(np.float32)
    if weight_R is not None:
        weight_B *= np.nan_to_num(weight_R[row_B])
    image_B3SS = block["image"]
    return Batch(
        torch.from_numpy(image_B3SS if image_B3SS.flags.writeable else image_B3SS.copy()),
        torch.from_numpy(label_R[row_B].astype(np.int64)),
        torch.from_numpy(weight_B),
    )


def load(folder: str) -> Classifier:
    """The classifier that `run` left in `folder`."""
    return load_with_settings(uris.join(folder, MODEL))[0]


def load_with_settings(uri: str) -> tuple[Classifier, BackboneSettings]:
    return classifier_from_bytes(uris.read_bytes(uri), source=uri)
