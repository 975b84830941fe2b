"""classifier on features: only the fully connected layers train: the backbone is frozen or the input is features.

From round 2 the paper fixes the convolutional layers; with --backbone.frozen they are fixed from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cleanscale.engine.train import Worker, train_on_workers
from cleanscale.models.backbones import BackboneSettings
from cleanscale.models.classifier import Classifier, FeatureProjection, build_classifier, classifier_to_bytes
from cleanscale.models.heads import Head, head_from_bytes, head_to_bytes
from cleanscale.stages import classifier as classifier_stage
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.features import load_projection
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.training.classifier import ClassifierSettings
from cleanscale.training.heads import HeadSettings, fit_head

HEAD = "head.safetensors"


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    num_classes: int
    settings: HeadSettings
    weights_uri: str | None
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
    weights: tuple[str, str] | None,
    backbone: str | None,
    start: tuple[str, str] | None = None,
    name: str = "classifier",
) -> Manifest:
    """Train a head on features into `folder`.

    weights: (URI of weights by row, fingerprint); None: all 1. backbone: file of the classifier whose backbone made the
    features; None for an input that is features. start: (folder of the classifier to fine-tune, its fingerprint).
    """
    stage = open_stage(
        folder,
        name,
        {"heads": settings.model_dump(mode="json"), "run": {"seed": place.seed}},
        {"features": features.fingerprint}
        | ({"weights": weights[1]} if weights else {})
        | ({"classifier": start[1]} if start else {}),
    )
    if stage.complete:
        return stage.complete
    job = Job(
        features,
        num_classes,
        settings,
        weights[0] if weights else None,
        backbone,
        start[0] if start else None,
        place.seed,
    )
    images = features.num_images * settings.epochs
    with place.timed("classifier", images, folder=folder), place.progress.step(f"{name} on features", images) as step:
        train_on_workers(fit_loop, job, uri=folder, settings=place.engine, on_progress=place.follow(step, name))
    return stage.finish(notes={"epochs": settings.epochs})


def fit_loop(worker: Worker, job: Job) -> None:
    own = job.features.read_all(job.features.deal(worker.world)[worker.rank])
    weight_N = np.ones(len(own), np.float32)
    if job.weights_uri is not None:
        weight_N = np.nan_to_num(read_array(job.weights_uri)[own.row_N])
    total = job.settings.epochs * job.features.num_images

    history: list[dict[str, float]] = []

    def on_epoch(epoch: int, loss: float) -> None:
        history.append({"step": epoch, "loss": loss})
        worker.say((epoch + 1) * job.features.num_images, total, "images", history)

    head = fit_head(
        own.feature_ND,
        own.label_N.astype(np.int64),
        weight_N,
        job.num_classes,
        job.settings,
        seed=job.seed,
        collectives=worker.collectives,
        device=worker.device,
        on_epoch=on_epoch,
        start=load_head(job.start) if job.start else None,
    )
    if worker.rank == 0:
        uris.write_bytes(uris.join(worker.uri, HEAD), head_to_bytes(head))
        if job.backbone_uri is not None:
            model, settings = classifier_stage.load_with_settings(job.backbone_uri)
            project = load_projection(job.features.projection)
            projection = None if project is None else FeatureProjection(torch.from_numpy(project.to_array()))
            content = classifier_to_bytes(Classifier(model.backbone, head, projection), settings)
            uris.write_bytes(uris.join(worker.uri, classifier_stage.MODEL), content)


def load_head(folder: str) -> Head:
    """The fully connected layers of the classifier in `folder`, whether it was trained on images or on features."""
    content = uris.read_if_there(uris.join(folder, HEAD))
    return classifier_stage.load(folder).head if content is None else head_from_bytes(content)
