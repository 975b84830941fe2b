"""The main job on images with lists of labels: a classifier on noisy labels, features, label cleaning, evaluation.

What judges one label per image (CleanNet, the detectors, the relevance table) has no part in it: `labels/` is the
product, a cleaned value for every (image, label) pair.
"""

from __future__ import annotations

import time

import numpy as np

from cleanscale.classifiers import (
    Inputs,
    frozen_features,
    make_features,
    make_test_features,
    on_features,
    train_with,
    train_with_cleaning,
)
from cleanscale.config import Settings, versions
from cleanscale.errors import ConfigError
from cleanscale.judging import Made
from cleanscale.reporting.terminal import Found, Summary
from cleanscale.stages import label_cleaning, multi_label_metrics, outcome
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.settings import DetectorSettings
from cleanscale.stages.supervision import Supervision
from cleanscale.storage import uris
from cleanscale.storage.manifests import defined, write_json
from cleanscale.storage.tables import read_table


def run(settings: Settings, place: Place, inputs: Inputs) -> Summary:
    """The whole job after ingestion. Raises: ConfigError for what needs one label per image."""
    check(settings, inputs)
    backbone, shards = noisy_features(settings, place.of_round(0), inputs)
    trained = train_with_cleaning(settings, place.of_round(1), inputs, 1, shards, backbone)
    metrics = measure(settings, place, inputs, shards, backbone, trained.made[0])
    place.report("round", {"multi_label": metrics}, 1)
    return tell(settings, place, inputs, shards, metrics)


def check(settings: Settings, inputs: Inputs) -> None:
    """Raises: ConfigError for settings that need one label per image."""
    several = f"the labels of {settings.data.train} are lists"
    name = settings.treatment.name
    if name != "label_cleaning":
        raise ConfigError(
            f"{several} and --treatment.name {name} needs one label per image; expected label_cleaning, which learns "
            "and cleans lists; add --treatment.name label_cleaning"
        )
    default = DetectorSettings()
    named = [one for one in settings.detector.named if one != default.name]
    if named:
        raise ConfigError(
            f"{several} and the detector {named[0]} judges one label per image; expected none: label_cleaning judges "
            "every label of an image itself; leave out --detector.name and --detector.compare"
        )
    if settings.run.rounds > 1:
        raise ConfigError(
            f"{several} and --run.rounds is {settings.run.rounds}; expected 1: rounds repeat what judges one label per "
            "image; leave it out"
        )
    if inputs.clean is not None:
        raise ConfigError(
            f"{several} and --data.clean is given, which treatments of single labels train on; expected verdicts on "
            "labels of the training images; give them with --data.verification"
        )
    if inputs.test is not None and not inputs.test.multi_label:
        raise ConfigError(
            f"{several} and those of {settings.data.test} are not; expected lists in both; store lists of one"
        )


def noisy_features(settings: Settings, place: Place, inputs: Inputs) -> tuple[Made | None, FeatureShards]:
    """(backbone, features): given, of a frozen backbone, or of one that learns all noisy labels first."""
    if on_features(settings, inputs, 0):
        return frozen_features(settings, place, inputs)
    given = Supervision((("lists", inputs.train.fingerprint),), lists=inputs.train)
    trained = train_with(settings, place, inputs, 0, None, given)
    return trained.made, make_features(settings, place, inputs.train, place.round_path(0, "features"), trained.made)


def measure(
    settings: Settings, place: Place, inputs: Inputs, shards: FeatureShards, backbone: Made | None, folder: str
) -> dict:
    """The multi_label table of metrics.json."""
    found: dict = {}
    with place.timed("evaluate"):
        if inputs.test is not None:
            test = make_test_features(settings, place, inputs.test, backbone)
            names = settings.cleaning.trained()
            heads = {name: label_cleaning.folder_of(folder, settings.cleaning, name) for name in names}
            resamples = settings.evaluate.resamples
            found |= multi_label_metrics.classifiers(
                place, inputs.train, inputs.test, test, heads, shards.projection, resamples
            )
        labels = multi_label_metrics.labels(
            place, inputs.train, shards, folder, settings.cleaning.threshold, settings.evaluate.resamples
        )
    return found | ({"labels": labels} if labels else {})


def tell(settings: Settings, place: Place, inputs: Inputs, shards: FeatureShards, metrics: dict) -> Summary:
    """metrics.json, rejected.parquet, and what the terminal shows."""
    parts = [name for name in ("train", "test") if getattr(inputs, name) is not None]
    rejected = outcome.gather_rejected(place, parts)
    numbers = defined(
        {"multi_label": metrics} | outcome.measurements(place, 1) | {"rejected": rejected, "versions": versions()}
    )
    write_json(place.path("metrics.json"), numbers)
    return Summary(
        title=place.uri.rstrip("/").rsplit("/", 1)[-1],
        found=count_found(place, shards, settings.cleaning.threshold),
        class_names=inputs.train.label_map().names,
        metrics=numbers,
        detector="label_cleaning",
        rejected=rejected,
        places={
            "cleaned labels": place.path(label_cleaning.LABELS),
            "metrics": place.path("metrics.json"),
            "rejected rows": place.path("rejected.parquet"),
        },
        seconds=time.monotonic() - place.started,
    )


def count_found(place: Place, shards: FeatureShards, threshold: float) -> Found:
    """How many of the labels that images came with are called wrong, by class."""
    counts = []
    for shard in shards.shards:
        table = read_table(uris.join(place.path(label_cleaning.LABELS), f"{shard.name}.parquet"))
        noisy_E = table["noisy"].to_numpy() > 0
        value_E = table["cleaned"].to_numpy()[noisy_E].astype(np.float64)
        counts.append(Found.count(table["label"].to_numpy()[noisy_E], value_E < threshold, value_E))
    return Found.merge(counts)
