"""Classifiers of a run: trained on images or on features, as the treatment has it; their features and predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cleanscale.config import Settings
from cleanscale.judging import Made, stage
from cleanscale.stages import (
    classifier,
    features,
    head_classifier,
    label_cleaning,
    noise_types,
    predictions,
    relevance,
    supervision,
)
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.outcome import publish
from cleanscale.stages.place import Place
from cleanscale.stages.predictions import Predictions
from cleanscale.stages.supervision import AS_LABELLED, Supervision
from cleanscale.storage import uris
from cleanscale.treatments import WEIGHING_TREATMENTS


@dataclass(frozen=True)
class Inputs:
    """What a run reads, ingested."""

    train: Ingested
    test: Ingested | None
    clean: Ingested | None


@dataclass(frozen=True)
class Trained:
    """A classifier, the stage whose file holds its backbone (None where the input is features), and the folder of the
    projection that its fully connected layers stand behind (None where they take features as the backbone gives
    them)."""

    made: Made
    backbone: Made | None
    projection: str | None


@dataclass(frozen=True)
class Round:
    """What a finished round left: the features it worked on, its classifier, the judgement and its weights."""

    classifier: Trained
    features: FeatureShards
    relevance: Made
    evidence: Made

    @property
    def weights(self) -> Made:
        return uris.join(self.relevance[0], relevance.WEIGHTS), self.relevance[1]


def classifier_and_features(
    settings: Settings, place: Place, inputs: Inputs, number: int, last: Round | None
) -> tuple[Trained, FeatureShards]:
    """The first half of a round, which no verification label has a part in until there are weights."""
    if last is not None and on_features(settings, inputs, number):
        return train_classifier(settings, place, inputs, number, last), last.features
    if on_features(settings, inputs, number):
        backbone, shards = frozen_features(settings, place, inputs)
        return train_head(settings, place, inputs, number, shards, backbone, AS_LABELLED), shards
    trained = train_classifier(settings, place, inputs, number, last)
    return trained, make_features(settings, place, inputs.train, place.round_path(number, "features"), trained.backbone)


def on_features(settings: Settings, inputs: Inputs, number: int) -> bool:
    """Whether only the fully connected layers train: always with a frozen backbone, and from round 2 (section 3.3)."""
    return inputs.train.kind == "features" or settings.backbone.frozen or number >= 2


def frozen_features(settings: Settings, place: Place, inputs: Inputs) -> tuple[Made | None, FeatureShards]:
    """(backbone, features) that no round changes: given by the user, or of a backbone that stays as it was loaded."""
    backbone = None
    if inputs.train.kind == "images":
        folder = place.round_path(0, "backbone")
        backbone = folder, head_classifier.backbone_as_loaded(place, folder, settings.backbone).fingerprint
    return backbone, make_features(settings, place, inputs.train, place.round_path(0, "features"), backbone)


def make_features(
    settings: Settings,
    place: Place,
    data: Ingested,
    folder: str,
    backbone: Made | None,
    projection: str | None = features.FIT,
) -> FeatureShards:
    name = folder.rsplit("/", 1)[-1]
    backbone = backbone if data.kind == "images" else None
    made = features.run(
        place,
        folder,
        data,
        settings.features,
        settings.augmentation,
        classifier=backbone,
        projection=projection,
        name=name,
    )
    return FeatureShards.of(folder, made)


def train_classifier(settings: Settings, place: Place, inputs: Inputs, number: int, last: Round | None) -> Trained:
    """The classifier of round `number`: on noisy labels in round 0, as the treatment has it afterwards."""
    if last is None:
        return train_with(settings, place, inputs, number, None, AS_LABELLED)
    if settings.treatment.name == "label_cleaning":
        return train_with_cleaning(settings, place, inputs, number, last.features, last.classifier.backbone)
    given = supervised(settings, place, inputs, number, last)
    if settings.treatment.name != "noise_em":
        return train_with(settings, place, inputs, number, last, given)
    start = None
    if given.certain and not on_features(settings, inputs, number):
        # Both networks begin with what is known for sure (Xiao et al., section 4), on top of the last round's
        # classifier. Heads on features begin anew: one that learnt the noisy labels holds to them, and verified images
        # alone teach it nothing that it does not learn anyway (CIFAR-100N).
        sure, name = replace(given, verified_only=True), "classifier_pretrained"
        start = train_with(settings, place, inputs, number, last, sure, name=name).made
    trained = train_with(settings, place, inputs, number, last, given, start=start)
    write_noise_types(settings, place, inputs, number, last, trained, given)
    return trained


def train_with_cleaning(
    settings: Settings, place: Place, inputs: Inputs, number: int, shards: FeatureShards, backbone: Made | None
) -> Trained:
    """The classifier that learns with the label cleaning network, on features (Veit et al. 2017)."""
    folder = place.round_path(number, "classifier")
    made = stage(
        folder,
        label_cleaning.run,
        place,
        shards,
        inputs.train,
        settings.cleaning,
        head_classifier.head_settings(settings.heads, settings.classifier),
        backbone=uris.join(backbone[0], classifier.MODEL) if backbone else None,
    )
    publish(place, uris.join(folder, label_cleaning.LABELS), label_cleaning.LABELS, shards)
    return Trained(made, backbone, shards.projection)


def supervised(settings: Settings, place: Place, inputs: Inputs, number: int, last: Round) -> Supervision:
    """What the treatment makes of the last round's judgement."""
    if settings.treatment.name == "none":
        return AS_LABELLED
    if settings.treatment.name in WEIGHING_TREATMENTS:
        return Supervision.of_weights(last.weights)
    return supervision.run(
        place,
        place.round_path(number, "supervision"),
        settings.treatment,
        last.features,
        inputs.train,
        relevance=last.relevance,
        evidence=last.evidence,
        row_folds=settings.evidence.row_folds,
    )


def train_with(
    settings: Settings,
    place: Place,
    inputs: Inputs,
    number: int,
    last: Round | None,
    given: Supervision,
    *,
    start: Made | None = None,
    name: str = "classifier",
) -> Trained:
    """A classifier from what it is given: on features where only its head trains, otherwise fine-tuned on images."""
    if last is not None and on_features(settings, inputs, number):
        backbone = last.classifier.backbone
        return train_head(settings, place, inputs, number, last.features, backbone, given, start=start, name=name)
    start = start or (last.classifier.made if last else None)
    return train_on_images(settings, place, inputs.train, number, given, start=start, name=name)


def train_on_images(
    settings: Settings,
    place: Place,
    data: Ingested,
    number: int,
    given: Supervision,
    *,
    start: Made | None,
    name: str,
) -> Trained:
    """A classifier whose backbone trains too; round 0's settings where `number` is 0, else those of fine-tuning."""
    made = stage(
        place.round_path(number, name),
        classifier.run,
        place,
        data,
        settings.backbone,
        settings.augmentation,
        settings.classifier,
        settings.heads,
        round_number=number,
        supervision=given,
        start=start,
        name=name,
    )
    return Trained(made, made, None)


def train_head(
    settings: Settings,
    place: Place,
    inputs: Inputs,
    number: int,
    shards: FeatureShards,
    backbone: Made | None,
    given: Supervision,
    *,
    start: Made | None = None,
    name: str = "classifier",
) -> Trained:
    """A classifier whose backbone stays: its fully connected layers, on features."""
    made = stage(
        place.round_path(number, name),
        head_classifier.run,
        place,
        shards,
        inputs.train.num_classes,
        head_classifier.head_settings(settings.heads, settings.classifier),
        supervision=given,
        backbone=uris.join(backbone[0], classifier.MODEL) if backbone else None,
        start=start,
        name=name,
    )
    return Trained(made, backbone, shards.projection)


def write_noise_types(
    settings: Settings, place: Place, inputs: Inputs, number: int, last: Round, trained: Trained, given: Supervision
) -> None:
    """The noise type of every image, by the two networks of noise_em."""
    seen, seen_by_types = last.features, last.features
    if not on_features(settings, inputs, number):
        folder, made = trained.made
        types = uris.join(folder, classifier.NOISE_TYPES), f"{made}-{classifier.NOISE_TYPES}"
        seen = make_features(settings, place, inputs.train, f"{folder}_train_features", trained.made, None)
        seen_by_types = make_features(settings, place, inputs.train, f"{folder}_types_train_features", types, None)
    noise_types.run(place, place.round_path(number, "noise_types"), seen, seen_by_types, trained.made, given)


def fine_tune_on_clean(settings: Settings, place: Place, inputs: Inputs, final: Trained) -> Trained:
    """The last row of the paper's Table 4: the weighted classifier, fine-tuned on images whose labels are right."""
    assert inputs.clean is not None
    number, name = settings.run.rounds, "classifier_clean"
    if on_features(settings, inputs, number):
        folder = place.round_path(number, "features_clean")
        shards = make_features(settings, place, inputs.clean, folder, final.backbone, final.projection)
        return train_head(
            settings, place, inputs, number, shards, final.backbone, AS_LABELLED, start=final.made, name=name
        )
    tuned = train_on_images(settings, place, inputs.clean, number, AS_LABELLED, start=final.made, name=name)
    # A head behind a projection (label_cleaning's) stays behind it: the network that is fine-tuned holds both.
    return replace(tuned, projection=final.projection)


def predict_test(
    settings: Settings, place: Place, inputs: Inputs, classifiers: dict[str, Trained]
) -> dict[str, Predictions]:
    """Each classifier on the test set: features of the test images by its backbone, then its head."""
    if inputs.test is None:
        return {}
    found: dict[str, Predictions] = {}
    for name, trained in classifiers.items():
        shards = make_test_features(settings, place, inputs.test, trained.backbone)
        folder = trained.made[0] + "_test_predictions"
        found[name] = predictions.run(place, folder, shards, trained.made, trained.projection)
    return found


def make_test_features(settings: Settings, place: Place, test: Ingested, backbone: Made | None) -> FeatureShards:
    """Features of the test images. Beside the backbone: classifiers that share one share them."""
    home = backbone[0] if backbone else place.round_path(0, "features")
    return make_features(settings, place, test, home + "_test_features", backbone, None)
