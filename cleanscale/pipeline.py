"""The main job, in order: ingest, rounds of the alternating scheme, the last weighted classifier, evaluation.

A round (CleanNet, section 3.3): a classifier; features from its backbone; references and CleanNet on the features; the
relevance of every image to its label, which gives the weights of the next round's classifier.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cleanscale.config import Settings, resolved_toml, versions
from cleanscale.datasets.glyphs import EMBEDDED
from cleanscale.engine.session import session
from cleanscale.engine.shared_places import check_seen_by_all_nodes
from cleanscale.judging import Made, judge, make_evidence, make_references, stage
from cleanscale.reporting.progress import Progress
from cleanscale.reporting.terminal import Summary
from cleanscale.stages import (
    cache,
    classifier,
    detector_signals,
    features,
    glyphs,
    head_classifier,
    ingest,
    predictions,
    relevance,
)
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place, Report
from cleanscale.stages.predictions import Predictions
from cleanscale.storage import uris

REPORTED_OF_ALL = ("difference", "seconds", "images_per_second", "peak_memory_bytes")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a run reads, ingested."""

    train: Ingested
    test: Ingested | None
    clean: Ingested | None


@dataclass(frozen=True)
class Trained:
    """A classifier, the stage whose file holds its backbone (None where the input is features), and the folder of the
    features that its fully connected layers were trained on (None where it was trained on images)."""

    made: Made
    backbone: Made | None
    projection: str | None


@dataclass(frozen=True)
class Round:
    """What a finished round left: the features it worked on, its classifier, the judgement and its weights."""

    classifier: Trained
    features: FeatureShards
    relevance: Made

    @property
    def weights(self) -> Made:
        return uris.join(self.relevance[0], relevance.WEIGHTS), self.relevance[1]


def run(
    settings: Settings,
    *,
    progress: Progress | None = None,
    report: Report = lambda *_: None,
    on_inputs: Callable[[Inputs], None] = lambda _: None,
) -> Summary:
    """The whole job; complete stages of an earlier, interrupted run are not done again.

    report(stage, numbers, step) hears of metrics as they come, those of round 0 as stage `round_0/...`; on_inputs of
    what is read, once. Returns what the terminal shows at the end.
    Raises: ConfigError, DataError and StageError for what a user can mend.
    """
    place = Place(settings.run_uri, settings.run.seed, settings.engine, progress or Progress(), report)
    write_settings(settings, place)
    uris.abort_uploads(place.uri)  # of a run that was killed
    with session(settings.engine), place.memory:
        check_seen_by_all_nodes(place.path("settings.toml"), local_inputs(settings))
        inputs = read_inputs(settings, place)
        write_settings(settings, place, inputs.train.label_map().names)
        on_inputs(inputs)
        detector_signals.check(settings.detector, images=inputs.train.num_rows, classes=inputs.train.num_classes)
        classifiers: dict[str, Trained] = {}
        last, summary = None, None
        for number in range(settings.run.rounds):
            last = one_round(settings, place.of_round(number), inputs, number, last)
            classifiers[f"round_{number}"] = last.classifier
            summary = round_ended(settings, place, inputs, classifiers, last, number)
        assert last is not None
        number = settings.run.rounds
        final = train_classifier(settings, place.of_round(number), inputs, number, last)
        classifiers[f"round_{number}"] = final
        if inputs.clean is not None:
            classifiers["fine_tuned_on_clean"] = fine_tune_on_clean(settings, place.of_round(number), inputs, final)
        return round_ended(settings, place, inputs, classifiers, last, number, summary)


def local_inputs(settings: Settings) -> list[str]:
    """What the run reads besides its run folder; the embedded data set is drawn into that."""
    data, weights = settings.data, settings.backbone.weights
    named = [data.train, data.test, data.clean, data.verification, weights]
    return [uri for uri in named if uri not in (None, "", "pretrained", EMBEDDED)]


def read_inputs(settings: Settings, place: Place) -> Inputs:
    """Ingest training, test and clean data; the embedded data set is drawn first."""
    data = settings.data
    if data.train == EMBEDDED:
        data = glyphs.run(place, place.path("glyphs"), settings.glyphs, data)
    assert data.train is not None
    train = ingest.run(place, place.path("ingest", "train"), data.train, data)
    others = {}
    labelled = data.model_copy(update={"true_label": None, "verified": None})  # their labels are the truth
    for name in ("test", "clean"):
        uri = getattr(data, name)
        others[name] = ingest.run(place, place.path("ingest", name), uri, labelled, like=train) if uri else None
    inputs = Inputs(train, others["test"], others["clean"])
    if data.cache_size is None or train.kind == "features":
        return inputs
    cached = {
        name: part and cache.run(place, place.path("cache", name), part, data.cache_size)
        for name, part in (("train", inputs.train), ("test", inputs.test), ("clean", inputs.clean))
    }
    return replace(inputs, **cached)


def one_round(settings: Settings, place: Place, inputs: Inputs, number: int, last: Round | None) -> Round:
    """Classifier, features, references, CleanNet, evidence, class index and the judgement of round `number`."""
    log.info("round %d", number)
    trained, shards = classifier_and_features(settings, place, inputs, number, last)
    folder = partial(place.round_path, number)
    sets = make_references(settings, place, shards, folder("references"))
    seen = make_evidence(
        settings, place, inputs.train, shards, sets, folder("evidence"), last.weights if last else None
    )
    return Round(
        trained, shards, judge(settings, place, inputs.train, shards, sets, seen, inputs.train.verification(), folder)
    )


def classifier_and_features(
    settings: Settings, place: Place, inputs: Inputs, number: int, last: Round | None
) -> tuple[Trained, FeatureShards]:
    """The first half of a round, which no verification label has a part in until there are weights."""
    if last is not None and on_features(settings, inputs, number):
        return train_classifier(settings, place, inputs, number, last), last.features
    if on_features(settings, inputs, number):
        backbone, shards = frozen_features(settings, place, inputs)
        return train_head(settings, place, inputs, number, shards, backbone, None), shards
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
    """The classifier of round `number`: on noisy labels in round 0, with the last round's weights afterwards."""
    weights = last.weights if last and settings.treatment.name != "none" else None
    if last is not None and on_features(settings, inputs, number):
        return train_head(settings, place, inputs, number, last.features, last.classifier.backbone, weights)
    made = stage(
        place.round_path(number, "classifier"),
        classifier.run,
        place,
        inputs.train,
        settings.backbone,
        settings.augmentation,
        settings.classifier,
        round_number=number,
        weights=weights,
        start=last.classifier.made if last else None,
    )
    return Trained(made, made, None)


def train_head(
    settings: Settings,
    place: Place,
    inputs: Inputs,
    number: int,
    shards: FeatureShards,
    backbone: Made | None,
    weights: Made | None,
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
        weights=weights,
        backbone=uris.join(backbone[0], classifier.MODEL) if backbone else None,
        start=start,
        name=name,
    )
    return Trained(made, backbone, shards.projection)


def fine_tune_on_clean(settings: Settings, place: Place, inputs: Inputs, final: Trained) -> Trained:
    """The last row of the paper's Table 4: the weighted classifier, fine-tuned on images whose labels are right."""
    assert inputs.clean is not None
    number, name = settings.run.rounds, "classifier_clean"
    if on_features(settings, inputs, number):
        folder = place.round_path(number, "features_clean")
        shards = make_features(settings, place, inputs.clean, folder, final.backbone, final.projection)
        return train_head(settings, place, inputs, number, shards, final.backbone, None, start=final.made, name=name)
    made = stage(
        place.round_path(number, name),
        classifier.run,
        place,
        inputs.clean,
        settings.backbone,
        settings.augmentation,
        settings.classifier,
        round_number=number,
        start=final.made,
        name=name,
    )
    return Trained(made, made, None)


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


def round_ended(
    settings: Settings,
    place: Place,
    inputs: Inputs,
    classifiers: dict[str, Trained],
    last: Round,
    number: int,
    earlier: Summary | None = None,
) -> Summary:
    """Measure what there is so far and put the product where it is looked for.

    The last time, with figures, nothing new was judged: `earlier` says what that round had come to.
    """
    from cleanscale.stages import outcome  # what it needs to measure and draw stays out of memory while workers train

    predicted = predict_test(settings, place, inputs, classifiers)
    summary = outcome.run(
        place,
        inputs.train,
        last.features,
        last.relevance[0],
        predicted,
        settings.evaluate,
        detector=settings.detector.name,
        class_index=uris.join(last.relevance[0].rsplit("/", 1)[0], "class_index"),
        versions=versions(),
        newest_round=number,
        parts=[name for name in ("train", "test", "clean") if getattr(inputs, name) is not None],
        earlier=earlier,
        draw=earlier is not None and settings.evaluate.figures,
    )
    report_round(place, summary.metrics, number, judged=earlier is None)
    return summary


def report_round(place: Place, metrics: Mapping[str, Any], number: int, *, judged: bool) -> None:
    """What was measured, to the run itself at the step of the round, and to the round what is its own."""
    measured = {k: metrics[k] for k in ("detection", "calibration", "classification") if k in metrics}
    accuracy = measured.get("classification", {}).get(f"round_{number}")
    own = {k: v for k, v in measured.items() if k != "classification"} if judged else {}
    place.report(f"round_{number}", own | ({"classification": accuracy} if accuracy else {}), number)
    place.report("round", measured | {k: metrics[k] for k in REPORTED_OF_ALL}, number + 1)


def write_settings(settings: Settings, place: Place, class_names: tuple[str, ...] | None = None) -> None:
    uris.write_bytes(place.path("settings.toml"), resolved_toml(settings, class_names))
