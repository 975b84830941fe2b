"""What follows from features: reference sets, CleanNet, evidence and the judgement of every label.

A round of the pipeline does this once; a sweep does the part that depends on what it varies once for each trial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from cleanscale.config import Settings
from cleanscale.stages import class_index, cleannet, detector_signals, evidence, references, relevance
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.judged_shard import Sources
from cleanscale.stages.place import Place

Made = tuple[str, str]  # (folder, fingerprint) of a stage


def make_references(settings: Settings, place: Place, shards: FeatureShards, folder: str) -> Made:
    per_class = settings.references.per_class or settings.cleannet.resolved().references_per_class
    return stage(folder, references.run, place, shards, settings.references, per_class=per_class)


def make_evidence(
    settings: Settings,
    place: Place,
    train: Ingested,
    shards: FeatureShards,
    sets: Made,
    folder: str,
    weights: Made | None = None,
) -> Made:
    return stage(
        folder,
        evidence.run,
        place,
        shards,
        train.num_classes,
        settings.heads,
        settings.evidence,
        settings.index,
        references=sets,
        weights=weights,
    )


def judge(
    settings: Settings,
    place: Place,
    train: Ingested,
    shards: FeatureShards,
    sets: Made,
    seen: Made,
    checked: pa.Table,
    folder: Callable[[str], str],
    *,
    with_cleannet: bool = True,
) -> Made:
    """What follows from verification labels: CleanNet, the class index and the judgement of every label.

    sets, seen: reference sets and evidence. checked: verification labels (row, label, verified). folder: of a stage.
    with_cleannet: fit it; without it there is no cosine, and only detectors that need none decide.
    """
    made: dict[str, Made] = {"evidence": seen}
    if with_cleannet:
        made["cleannet"] = stage(folder("cleannet"), cleannet.run, place, shards, sets, checked, settings.cleannet)
        made["class_index"] = stage(
            folder("class_index"), class_index.run, place, shards, sets, made["cleannet"], settings.index
        )
        published = published_cleannet(settings, place, folder("cleannet_published"), shards, sets, checked)
        made |= {"cleannet_published": published} if published else {}
    own = detector_signals.of_named(
        place, folder("signals"), settings.detector, settings.evidence, shards, checked, evidence=seen
    )
    where = {
        name: made[name][0] if name in made else None for name in ("cleannet", "class_index", "cleannet_published")
    }
    return stage(
        folder("relevance"),
        relevance.run,
        place,
        Sources(
            *(shards, sets[0], where["cleannet"], where["class_index"], seen[0], where["cleannet_published"]),
            {name: uri for name, (uri, _) in own.items()},
            settings.index.suggestions,
        ),
        {"features": shards.fingerprint}
        | {name: fingerprint for name, (_, fingerprint) in made.items()}
        | {f"signals of {name}": fingerprint for name, (_, fingerprint) in own.items()},
        checked,
        settings.detector,
        settings.treatment,
        class_folds=settings.evidence.class_folds,
        num_rows=train.num_rows,
    )


def stage(folder: str, run: Any, place: Place, *args: Any, **kwargs: Any) -> Made:
    """Run a stage in its folder; what others need of it is where it is and what it was made from."""
    return folder, run(place, folder, *args, **kwargs).fingerprint


def published_cleannet(
    settings: Settings, place: Place, folder: str, shards: FeatureShards, sets: Made, checked: pa.Table
) -> Made | None:
    """CleanNet exactly as published, to be reported beside the run's own detector."""
    if not settings.detector.published_steps:
        return None
    preset = type(settings.cleannet)(preset="paper", steps=settings.detector.published_steps)
    return stage(folder, cleannet.run, place, shards, sets, checked, preset, name="cleannet_published")
