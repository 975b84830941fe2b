"""One case of a table: everything that follows from a set of verification labels, on features that all cases share.

A case runs in one process through the stages of the main job: CleanNet, signals and the judgement of every label, then
a head for each treatment on the same features; one that retrains the backbone starts a Ray for that. What it found lies
in its folder as arrays; a case that has them is not run again, unless what they were made from has changed.

# N images that nobody verified, T test images
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from table_data import DataSet, verification

from cleanscale import classifiers, judging, pipeline
from cleanscale.classifiers import Inputs, Round, Trained
from cleanscale.config import Settings, load
from cleanscale.engine.here import Here, in_this_process
from cleanscale.engine.session import session
from cleanscale.judging import Made
from cleanscale.reporting.progress import Progress
from cleanscale.stages import evaluate, head_classifier, predictions
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.judged_shard import read_parts
from cleanscale.stages.place import Place
from cleanscale.stages.supervision import AS_LABELLED, Supervision
from cleanscale.storage import uris
from cleanscale.storage.arrays import write_array
from cleanscale.storage.manifests import fingerprint, read_json, write_json
from cleanscale.storage.tables import fingerprint_columns
from cleanscale.treatments import TREATMENTS, WEIGHING_TREATMENTS, Judged

# References that no user has: labels that are right alone (every image verified), and the true label of every image.
EVERY, TRUE = "every_image_verified", "true_labels"
RIGHT_ONLY = "verified_images_only"  # those whose label was found right or whose true class was named
CLEAN = "+clean"  # behind a treatment's name: then fine-tuned on those
NEXT = "next_round"
BULKY = ("cleannet", "class_index", "relevance", "signals", "work", NEXT)
# Fully connected layers on features: what the paper does from round 2, and all that trains here.
ON_FEATURES = 2
# Settings that change no result of a case, or are in the fingerprints of the stages it begins with.
NOT_OF_CASES = {
    **dict.fromkeys(("run", "data", "glyphs", "generated", "backbone", "augmentation", "features", "references"), True),
    **dict.fromkeys(("evaluate", "engine", "tracking"), True),
    "detector": {"compare"},
    "treatment": {"name"},
}


@dataclass(frozen=True)
class Case:
    """Which labels are verified, and what is then compared."""

    name: str
    seed: int  # of what is verified and of every fit
    classes: tuple[int, ...] = ()
    per_class: int = 0
    detectors: tuple[str, ...] = ()  # beside those that every run has
    treatments: tuple[str, ...] = ()
    rounds: int = 1  # judgements; before each further one the heads of the evidence are weighted by the last
    retrained: bool = False  # the last judgement is on features of a backbone that was trained with weights


@dataclass(frozen=True)
class Base:
    """What all cases of a data set share. Small: folders and fingerprints."""

    settings: Settings
    inputs: Inputs
    features: FeatureShards
    test: FeatureShards
    classifier: Trained
    references: dict[int, Made]  # by seed
    evidence: dict[int, Made]

    @property
    def label_R(self) -> np.ndarray:
        return self.inputs.train.labels()

    @property
    def class_C(self) -> np.ndarray:
        return np.unique(self.label_R[self.label_R >= 0])


@dataclass(frozen=True)
class Drawn(Ingested):
    """An input with other verification labels than those that it came with."""

    checked: pa.Table | None = None

    def verification(self) -> pa.Table:
        assert self.checked is not None
        return self.checked


def prepare(data: DataSet, folder: Path, seeds: list[int], arguments: list[str]) -> Base:
    """The main job up to its evidence, which no verification label has a part in; stages that are there stay.

    Features are those of the run's own seed, references and evidence are made for each seed.
    """
    settings = load([*data.settings, "--run.uri", str(folder), "--tracking.enabled", "false", *arguments])
    place = Place(settings.run_uri, settings.run.seed, settings.engine, Progress())
    with session(settings.engine):
        inputs = pipeline.read_inputs(settings, place)
        trained, shards = classifiers.classifier_and_features(settings, place, inputs, 0, None)
        assert inputs.test is not None
        test = classifiers.make_test_features(settings, place, inputs.test, trained.backbone)
        sets, seen = {}, {}
        for seed in seeds:
            own = replace(place, seed=seed)
            sets[seed] = judging.make_references(settings, own, shards, place.path("references", str(seed)))
            folder_of_seed = place.path("evidence", str(seed))
            seen[seed] = judging.make_evidence(settings, own, inputs.train, shards, sets[seed], folder_of_seed)
    return Base(settings, inputs, shards, test, trained, sets, seen)


def run_case(base: Base, case: Case, folder: Path) -> dict[str, Any]:
    """Raises: what the stages raise. Returns case.json; arrays are beside it."""
    started = time.monotonic()
    done, about = str(folder / "case.json"), made_from(base, case)
    kept = read_json(done) or {}
    if kept.get("made_from") != about:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(done, {"made_from": about})
    elif has_all(kept, case):
        return kept
    place = Place(
        str(folder), case.seed, base.settings.engine.model_copy(update={"num_workers": 1}), Progress(silent=True)
    )
    judged = judged_labels(base, case, place) if case.classes else None
    with in_this_process(Here()):
        if judged is not None:
            keep_decisions(base, case, judged, folder)
        for name in case.treatments:
            file = folder / f"correct-{name}.npy"
            if not file.exists():
                trained = train(base, case, place, judged, name)
                predicted = place.path("work", name, "test_predictions")
                found = predictions.run(place, predicted, base.test, trained.made, trained.projection)
                np.save(file, found.correct(1))
    for name in BULKY:
        uris.remove_tree(uris.join(str(folder), name))
    found = {
        "made_from": about,
        "name": case.name,
        "seed": case.seed,
        "classes": len(case.classes),
        "labels": 0 if judged is None else checked_labels(base, case).num_rows,
        "images": base.features.num_images,
        "detectors": case.detectors,
        "treatments": case.treatments,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(done, found)
    return found


def has_all(kept: dict[str, Any], case: Case) -> bool:
    """Whether a case came to its end with what is asked for; one that was only begun says no treatments."""
    return "treatments" in kept and all(set(getattr(case, n)) <= set(kept[n]) for n in ("treatments", "detectors"))


def made_from(base: Base, case: Case) -> str:
    """Fingerprint of what the arrays of a case follow from, but for the code."""
    true_R = base.inputs.train.true_labels()
    return fingerprint(
        {
            "settings": settings_of_cases(base.settings),
            "evidence": base.evidence[case.seed][1],
            "classifier": base.classifier.made[1],
            "test": base.test.fingerprint,
            "truth": fingerprint_columns(pa.table({"true": true_R}), ["true"]),
            "verification": verdicts(checked_labels(base, case)) if case.classes else None,
            "case": [case.seed, case.rounds, case.retrained],
        }
    )


def settings_of_cases(settings: Settings) -> dict[str, Any]:
    """The settings that change what follows from evidence, presets and epochs of heads filled in."""
    heads = head_classifier.head_settings(settings.heads, settings.classifier)
    resolved = settings.model_copy(update={"heads": heads, "cleannet": settings.cleannet.resolved()})
    return resolved.model_dump(mode="json", exclude=NOT_OF_CASES)


def verdicts(checked: pa.Table) -> str:
    """Fingerprint of verification labels."""
    return fingerprint_columns(checked, checked.column_names)


def checked_labels(base: Base, case: Case) -> pa.Table:
    train = base.inputs.train
    return verification(train.labels(), train.true_labels(), np.array(case.classes), case.per_class, case.seed)


def judged_labels(base: Base, case: Case, place: Place) -> Round:
    """The last judgement of the case."""
    with in_this_process(Here()):
        last = judge(base, case, place, base.evidence[case.seed])
        for _ in range(case.rounds - 1):
            place = replace(place, uri=place.path(NEXT))
            sets = base.references[case.seed]
            seen = judging.make_evidence(
                *(base.settings, place, base.inputs.train, base.features, sets),
                *(place.path("evidence"), last.weights),
            )
            last = judge(base, case, place, seen)
    if case.retrained:
        with session(base.settings.engine):
            own = replace(place, uri=place.path(NEXT))
            last = pipeline.one_round(settings_of(base, case), own, inputs_of(base, case), 1, last)
    return last


def judge(base: Base, case: Case, place: Place, seen: Made) -> Round:
    """Judge every label by this evidence."""
    checked = checked_labels(base, case)
    sets, train = base.references[case.seed], base.inputs.train
    made = judging.judge(settings_of(base, case), place, train, base.features, sets, seen, checked, place.path)
    return Round(base.classifier, base.features, made, seen)


def settings_of(base: Base, case: Case) -> Settings:
    """The settings of the run, with the detectors that are to be compared."""
    return base.settings.model_copy(
        update={"detector": base.settings.detector.model_copy(update={"compare": case.detectors})}
    )


def inputs_of(base: Base, case: Case) -> Inputs:
    return replace(base.inputs, train=Drawn(**vars(base.inputs.train), checked=checked_labels(base, case)))


def keep_decisions(base: Base, case: Case, judged: Round, folder: Path) -> None:
    """What each detector said of images that nobody verified, and what is true of them."""
    drawn, images = inputs_of(base, case).train, judged.features.num_images
    known = evaluate.judgements(judged.relevance[0], judged.features, drawn, images, case.seed)
    assert known is not None, "the tables need true labels"
    arrays: dict[str, Any] = {"label": known.label_N, "wrong": known.wrong_N, "held_out": known.held_out_N}
    arrays |= {f"called.{name}": called_N for name, called_N in known.mislabeled.items()}
    np.savez_compressed(folder / "decisions.npz", **arrays)


def train(base: Base, case: Case, place: Place, judged: Round | None, treatment: str) -> Trained:
    """A head under this treatment or reference."""
    own = replace(place, uri=place.path("work", treatment))
    if treatment.endswith(CLEAN):
        start = train(base, case, place, judged, treatment.removesuffix(CLEAN)).made
        given = reference(base, case, own, RIGHT_ONLY)
        return classifiers.train_head(
            base.settings, own, base.inputs, ON_FEATURES, base.features, None, given, start=start
        )
    if treatment in (EVERY, TRUE, RIGHT_ONLY, *WEIGHING_TREATMENTS):
        given = supervised(base, case, own, judged, treatment)
        return classifiers.train_head(base.settings, own, base.inputs, ON_FEATURES, base.features, None, given)
    assert judged is not None, f"{treatment} follows from a judgement"
    chosen = base.settings.treatment.model_copy(update={"name": treatment})
    settings = base.settings.model_copy(update={"treatment": chosen})
    return classifiers.train_classifier(settings, own, inputs_of(base, case), ON_FEATURES, judged)


def supervised(base: Base, case: Case, place: Place, judged: Round | None, name: str) -> Supervision:
    """What a head is given under a reference, or under a treatment that weighs labels."""
    if name == "none":
        return AS_LABELLED
    if name not in WEIGHING_TREATMENTS:
        return reference(base, case, place, name)
    assert judged is not None, f"{name} follows from a judgement"
    table = read_parts(judged.relevance[0], base.features.shards)
    columns = (table[n].to_numpy() for n in ("relevance", "probability_correct", "mislabeled", "verified"))
    weight_R = np.zeros(len(base.label_R), np.float32)
    weight_R[table["row"].to_numpy()] = TREATMENTS[name](Judged(*columns))
    write_array(place.path("weights.npy"), weight_R)
    return Supervision.of_weights((place.path("weights.npy"), name))


def reference(base: Base, case: Case, place: Place, name: str) -> Supervision:
    """Targets and weights by row of a reference that knows more than the verification labels."""
    label_R, true_R = base.label_R, base.inputs.train.true_labels()
    weight_R = (label_R == true_R).astype(np.float32)
    if name == TRUE:
        weight_R = (true_R >= 0).astype(np.float32)
    if name == RIGHT_ONLY:
        weight_R = np.zeros(len(label_R), np.float32)
        row_V = checked_labels(base, case)["row"].to_numpy()
        weight_R[row_V] = true_R[row_V] >= 0
    write_array(place.path("weights.npy"), weight_R)
    write_array(place.path("targets.npy"), np.where(name == EVERY, label_R, np.maximum(true_R, 0)).astype(np.int32))
    return Supervision((("reference", name),), weights=place.path("weights.npy"), targets=place.path("targets.npy"))
