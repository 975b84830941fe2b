"""The main job, in order: ingest, rounds of the alternating scheme, the last weighted classifier, evaluation.

A round (CleanNet, section 3.3): a classifier; features from its backbone; references and CleanNet on the features; the
relevance of every image to its label, which gives the weights of the next round's classifier.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cleanscale import multi_label
from cleanscale.classifiers import (
    Inputs,
    Round,
    Trained,
    classifier_and_features,
    fine_tune_on_clean,
    predict_test,
    train_classifier,
)
from cleanscale.config import Settings, resolved_toml, versions
from cleanscale.datasets.generated import GENERATED
from cleanscale.datasets.glyphs import EMBEDDED
from cleanscale.engine.session import session
from cleanscale.engine.shared_places import check_seen_by_all_nodes
from cleanscale.judging import judge, make_evidence, make_references
from cleanscale.reporting.progress import Progress
from cleanscale.reporting.terminal import Summary
from cleanscale.stages import cache, detector_signals, generated, glyphs, ingest, supervision
from cleanscale.stages.place import Place, Report
from cleanscale.storage import uris

REPORTED_OF_ALL = ("difference", "seconds", "images_per_second", "peak_memory_bytes")
log = logging.getLogger(__name__)


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
        if inputs.train.multi_label:
            return multi_label.run(settings, place, inputs)
        supervision.check(settings.treatment, settings.heads, inputs.train.num_classes)
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
    """What the run reads besides its run folder; what it makes itself is written into that."""
    data, weights = settings.data, settings.backbone.weights
    named = [data.train, data.test, data.clean, data.verification, weights]
    return [uri for uri in named if uri not in (None, "", "pretrained", EMBEDDED, GENERATED)]


def read_inputs(settings: Settings, place: Place) -> Inputs:
    """Ingest training, test and clean data; the embedded data set, or generated features, are made first."""
    data = settings.data
    if data.train == EMBEDDED:
        data = glyphs.run(place, place.path("glyphs"), settings.glyphs, data)
    if data.train == GENERATED:
        data = generated.run(place, place.path("generated"), settings.generated, data)
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
    judged = judge(settings, place, inputs.train, shards, sets, seen, inputs.train.verification(), folder)
    return Round(trained, shards, judged, seen)


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
        evidence=last.evidence[0],
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


def write_settings(settings: Settings, place: Place, class_names: Sequence[str] | None = None) -> None:
    uris.write_bytes(place.path("settings.toml"), resolved_toml(settings, class_names))
