"""classifier on features: only the fully connected layers train: the backbone is frozen or the input is features.

From round 2 the paper fixes the convolutional layers; with --backbone.frozen they are fixed from the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cleanscale.engine.train import Worker, train_on_workers
from cleanscale.maths.noise_types import NUM_TYPES
from cleanscale.models.backbones import BackboneSettings
from cleanscale.models.classifier import Classifier, FeatureProjection, build_classifier, classifier_to_bytes
from cleanscale.models.heads import FrozenHead, Head, Layers, head_from_bytes, head_to_bytes
from cleanscale.models.noise_models import WithNoiseTypes
from cleanscale.stages import classifier as classifier_stage
from cleanscale.stages import head_files
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.stages.features import load_projection
from cleanscale.stages.head_files import HEAD
from cleanscale.stages.judged_shard import places
from cleanscale.stages.place import Place
from cleanscale.stages.sharded_training import fit_or_go_on
from cleanscale.stages.supervision import AS_LABELLED, Supervision, Taught
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.rows import in_memory
from cleanscale.training.classifier import ClassifierSettings
from cleanscale.training.head_settings import HeadPlan, HeadSettings
from cleanscale.training.heads import fit_head, fit_noisy_head
from cleanscale.training.losses import Loss

NOISE_TYPES_HEAD = "noise_types.safetensors"


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    num_classes: int
    plan: HeadPlan
    supervision: Supervision
    backbone_uri: str | None
    start: str | None
    seed: int


def backbone_as_loaded(place: Place, folder: str, backbone: BackboneSettings) -> Manifest:
    """The frozen backbone as a file, so that features are made from it as from a trained classifier."""
    stage = open_stage(
        folder, "backbone", {"backbone": backbone.model_dump(mode="json"), "run": {"seed": place.seed}}, {}
    )
    if stage.complete:
        return stage.complete
    with place.timed("backbone", folder=folder):
        model = build_classifier(backbone, 1, seed=place.seed)
        uris.write_bytes(stage.path(classifier_stage.MODEL), classifier_to_bytes(model, backbone))
    return stage.finish()


def head_settings(heads: HeadSettings, classifier: ClassifierSettings) -> HeadSettings:
    """Heads' settings, with the passes over the images that --classifier.epochs asks for when it is given."""
    return heads.model_copy(update={"epochs": classifier.epochs}) if "epochs" in classifier.model_fields_set else heads


def run(
    place: Place,
    folder: str,
    features: FeatureShards,
    num_classes: int,
    settings: HeadSettings,
    *,
    supervision: Supervision = AS_LABELLED,
    backbone: str | None,
    start: tuple[str, str] | None = None,
    name: str = "classifier",
) -> Manifest:
    """Train a head on features into `folder`, beside it the head of noise types where the supervision has such.

    backbone: file of the classifier whose backbone made the features; None for an input that is features.
    start: (folder of the classifier to fine-tune, its fingerprint).
    """
    stage = open_stage(
        folder,
        name,
        {"heads": settings.relevant(num_classes), "run": {"seed": place.seed}},
        {"features": features.fingerprint} | supervision.inputs() | ({"classifier": start[1]} if start else {}),
    )
    if stage.complete:
        return stage.complete
    plan = settings.resolved(num_classes)
    job = Job(
        features,
        num_classes,
        plan,
        supervision,
        backbone,
        start[0] if start else None,
        place.seed,
    )
    images = features.num_images * plan.epochs
    with place.timed("classifier", images, folder=folder), place.progress.step(f"{name} on features", images) as step:
        train_on_workers(fit_loop, job, uri=folder, settings=place.engine, on_progress=place.follow(step, name))
    return stage.finish(notes={"epochs": plan.epochs})


def fit_loop(worker: Worker, job: Job) -> None:
    own = job.features.read_share(worker.rank, worker.world, worker.scratch)
    taught = job.supervision.read()
    if job.plan.sharded == "on":
        fit_sharded(worker, job, own, taught)
        return
    total = job.plan.epochs * job.features.num_images

    history: list[dict[str, float]] = []

    def on_epoch(epoch: int, loss: float) -> None:
        history.append({"step": epoch, "loss": loss})
        worker.say((epoch + 1) * job.features.num_images, total, "images", history)

    common = {
        "seed": job.seed,
        "collectives": worker.collectives,
        "device": worker.device,
        "on_epoch": on_epoch,
        "start": load_head(job.start) if job.start else None,
    }
    target_N, weight_N = taught.targets(own.row_N, own.label_N), taught.weights(own.row_N)
    loss = taught.loss(worker.device)
    if loss is None:
        head = fit_head(in_memory(own.feature_ND), target_N, weight_N, job.num_classes, job.plan, **common)
    else:
        head = fit_with_noise(own, target_N, taught, loss, job, worker, common)
    if worker.rank == 0:
        head_files.write_dense(uris.join(worker.uri, HEAD), head)
        write_classifier(worker.uri, head, job.features, job.backbone_uri)


def fit_sharded(worker: Worker, job: Job, own: Features, taught: Taught) -> None:
    """Every worker writes the rows that it owns; rank 0 what is below them, with the backbone where there is one."""
    each = job.features.num_images
    history: list[dict[str, float]] = []
    layers = fit_or_go_on(
        worker,
        uris.join(worker.uri, HEAD),
        own.feature_ND,
        taught.targets(own.row_N, own.label_N),
        taught.weights(own.row_N),
        job.num_classes,
        job.plan,
        seed=job.seed,
        start=sharded_start(job.start),
        on_progress=lambda epochs: worker.say(epochs * each, job.plan.epochs * each, "images", history),
        on_loss=lambda epoch, loss: history.append({"step": epoch, "loss": loss}),
    )
    worker.say(job.plan.epochs * each, job.plan.epochs * each, "images", history)
    if worker.rank == 0:
        write_classifier(worker.uri, layers, job.features, job.backbone_uri)


def sharded_start(folder: str | None) -> str | None:
    """The sharded head to fine-tune; a new one where the start's is not sharded."""
    if folder is None or not uris.exists(uris.join(folder, HEAD, head_files.LAYERS)):
        return None
    return uris.join(folder, HEAD)


def write_classifier(folder: str, head: Layers, features: FeatureShards, backbone_uri: str | None) -> None:
    """The head on the backbone that made its features, as a classifier of images; nothing where there is none.

    A sharded head's rows are not in the file: `load_classifier` puts them together.
    """
    if backbone_uri is None:
        return
    model, settings = classifier_stage.load_with_settings(backbone_uri)
    project = load_projection(features.projection)
    projection = None if project is None else FeatureProjection(torch.from_numpy(project.to_array()))
    content = classifier_to_bytes(Classifier(model.backbone, head, projection), settings)
    uris.write_bytes(uris.join(folder, classifier_stage.MODEL), content)


def fit_with_noise(
    own: Features,
    target_N2: np.ndarray,
    taught: Taught,
    loss: Loss,
    job: Job,
    worker: Worker,
    common: dict[str, Any],
) -> Head:
    """The head, by a loss that knows the noise; rank 0 writes the head of noise types where there is one."""
    place_N = places(own.row_N, taught.rows(own.row_N))  # of every row as often as it is to be seen

    def wrap(head: Head) -> nn.Module:
        if taught.noise is None or taught.noise.confusion is None:
            return taught.layered(head)
        return WithNoiseTypes(head, noise_type_head(head, job.plan), job.num_classes)

    model = fit_noisy_head(
        own.feature_ND[place_N], target_N2[place_N], job.num_classes, job.plan, wrap=wrap, loss=loss, **common
    )
    if isinstance(model, WithNoiseTypes) and isinstance(model.noise_types, Head) and worker.rank == 0:
        uris.write_bytes(uris.join(worker.uri, NOISE_TYPES_HEAD), head_to_bytes(model.noise_types))
    classifier = model if isinstance(model, Head) else model.classifier
    assert isinstance(classifier, Head)
    return classifier


def noise_type_head(head: Head, plan: HeadPlan) -> Head:
    """A new head of noise types, for the features that `head` is for."""
    types = Head(head.config["num_features"], NUM_TYPES, plan.hidden_width, plan.dropout)
    types.mean_D, types.scale_D = head.mean_D.clone(), head.scale_D.clone()
    return types


def load_noise_type_head(folder: str) -> Head:
    """The fully connected layers of the network of noise types beside the classifier in `folder`."""
    content = uris.read_if_there(uris.join(folder, NOISE_TYPES_HEAD))
    if content is not None:
        return head_from_bytes(content)
    return whole(classifier_stage.load(uris.join(folder, classifier_stage.NOISE_TYPES)).head)


def load_head(folder: str) -> Head:
    """The fully connected layers of the classifier in `folder`, whether it was trained on images or on features."""
    uri = uris.join(folder, HEAD)
    return head_files.load_dense(uri) if head_files.exists(uri) else whole(classifier_stage.load(folder).head)


def whole(head: Layers) -> Head:
    assert isinstance(head, Head), "rows in files of their own"
    return head


def load_classifier(folder: str) -> tuple[Classifier, BackboneSettings]:
    """The classifier of images in `folder`, with the rows of all classes in memory, however they lie on disk."""
    model, settings = classifier_stage.load_with_settings(uris.join(folder, classifier_stage.MODEL))
    return Classifier(model.backbone, load_head(folder), model.projection), settings


def load_frozen(folder: str) -> FrozenHead:
    """The same as arrays, for scoring: put together once for each node (`engine.tasks.shared_value`)."""
    uri = uris.join(folder, HEAD)
    return head_files.load_frozen(uri) if head_files.exists(uri) else load_head(folder).frozen()
