"""What all trials of a sweep share, made once: an ordinary run up to its features, reference sets and evidence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from cleanscale import classifiers, judging, pipeline
from cleanscale.config import Settings
from cleanscale.errors import ConfigError, DataError
from cleanscale.judging import Made
from cleanscale.pipeline import Inputs, Trained
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import fingerprint
from cleanscale.storage.tables import fingerprint_columns
from cleanscale.treatments import WEIGHING_TREATMENTS
from cleanscale.tuning.settings import SweepSettings
from cleanscale.tuning.space import reference_cases, with_values

FEWEST_CLASSES = 2


@dataclass(frozen=True)
class Shared:
    """Small: folders and fingerprints, which every trial gets."""

    settings: Settings
    inputs: Inputs
    trained: Trained  # on noisy labels, weights 1
    features: FeatureShards
    test: FeatureShards | None
    references: dict[str, Made]  # by `case_name` of what they are made with
    evidence: Made

    def verification(self) -> pa.Table:
        return self.inputs.train.verification()

    def references_of(self, settings: Settings) -> Made:
        return self.references[references_name(settings)]


def references_name(settings: Settings) -> str:
    """Reference sets are the same for settings of one name."""
    per_class = settings.references.per_class or settings.cleannet.resolved().references_per_class
    return f"{per_class:03d}-{fingerprint(settings.references.model_dump(mode='json', exclude={'per_class'}))[:6]}"


def make(sweep: SweepSettings, place: Place) -> Shared:
    """Make what is missing of it; the stages of a finished run with these settings are taken as they are.

    Raises: DataError when there are too few verified classes to hold some of them out.
    """
    settings = sweep.base
    check_treatment(settings)
    if not uris.exists(place.path("settings.toml")):
        pipeline.write_settings(settings, place)
    inputs = pipeline.read_inputs(settings, place)
    check_single_labels(settings, inputs.train)
    check_verification(inputs.train.verification())
    trained, features = pipeline.classifier_and_features(settings, place, inputs, 0, None)
    test = inputs.test and classifiers.make_test_features(settings, place, inputs.test, trained.backbone)
    folder = partial(place.round_path, 0)
    first = judging.make_references(settings, place, features, folder("references"))
    seen = judging.make_evidence(settings, place, inputs.train, features, first, folder("evidence"))
    sets = {references_name(settings): first}
    for values in reference_cases(sweep.dimensions) if sweep.space else []:
        case = with_values(settings, values)
        name = references_name(case)
        if name not in sets:
            sets[name] = judging.make_references(case, place, features, place.path("tune", "references", name))
    return Shared(settings, inputs, trained, features, test, sets, seen)


def check_treatment(settings: Settings) -> None:
    """Raises: ConfigError for a treatment that a sweep does not train with."""
    if settings.treatment.name not in WEIGHING_TREATMENTS:
        raise ConfigError(
            f"--treatment.name is {settings.treatment.name}; a sweep trains classifiers with weights alone and expects "
            f"one of {', '.join(WEIGHING_TREATMENTS)}; compare others by runs of `python -m cleanscale.train`"
        )


def check_single_labels(settings: Settings, train: Ingested) -> None:
    """Raises: ConfigError for lists of labels, which detectors do not judge."""
    if train.multi_label:
        raise ConfigError(
            f"the labels of {settings.data.train} are lists; a sweep tunes detectors and expects one label per image; "
            "compare settings of label_cleaning by runs of `python -m cleanscale.train`"
        )


def check_verification(checked: pa.Table) -> None:
    labels: Any = checked["label"].to_numpy()
    classes = len(set(labels.tolist()))
    if classes < FEWEST_CLASSES:
        raise DataError(
            f"found {len(labels)} verification labels in {classes} classes; expected at least {FEWEST_CLASSES} "
            "verified classes, since a sweep is judged on classes that it leaves out; verify labels of more classes"
        )


def key(shared: Shared) -> dict[str, str]:
    """Fingerprints of everything that a sweep reads."""
    found = {"features": shared.features.fingerprint, "evidence": shared.evidence[1]}
    found |= {f"references {name}": made[1] for name, made in shared.references.items()}
    found["verification"] = fingerprint_columns(shared.verification())
    if shared.test is not None:
        found["test"] = shared.test.fingerprint
    return found


def place_of_trial(shared: Shared, folder: str) -> Place:
    """Where a trial lives: its own folder, quietly, on one worker."""
    from cleanscale.reporting.progress import Progress

    engine = shared.settings.engine.model_copy(update={"num_workers": 1})
    return Place(folder, shared.settings.run.seed, engine, Progress(silent=True))
