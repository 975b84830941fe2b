"""A run's detector as a model: everything that judging a new image takes, gathered from the stages of the last round.

With it go the decisions about verified images that the class folds give: each made by a detector that saw no
verification label of the image's class. They are what two detectors are compared on (registry.promotion).

# V verified images
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from cleanscale.detectors import DETECTORS
from cleanscale.maths.keyed_random import class_fold_masks
from cleanscale.models.heads import head_to_bytes
from cleanscale.registry.finished_run import FinishedRun
from cleanscale.registry.model_artifacts import (
    LABEL_COLUMN,
    SETTINGS,
    Artifacts,
    class_names,
    copy,
    example_inputs,
    input_column,
    input_description,
    measured,
)
from cleanscale.schema import RIGHT
from cleanscale.serving import detector as served
from cleanscale.serving.class_statistics import ClassStatistics
from cleanscale.serving.model_folder import write_description
from cleanscale.stages import class_index, evidence_heads, head_files, relevance
from cleanscale.stages import classifier as classifier_stage
from cleanscale.stages import cleannet as cleannet_stage
from cleanscale.stages import evidence as evidence_stage
from cleanscale.stages import references as references_stage
from cleanscale.stages.features import PROJECTION
from cleanscale.stages.judged_shard import Sources
from cleanscale.storage import uris
from cleanscale.storage.arrays import write_array
from cleanscale.storage.manifests import read_json
from cleanscale.storage.tables import read_table, write_table

DECISIONS = "verified_decisions.parquet"
SPECS = (
    ("relevance", DataType.double),
    ("probability_correct", DataType.double),
    ("mislabeled", DataType.boolean),
    ("suggested_label", DataType.long),
    ("suggested_class", DataType.string),
    ("suggested_relevance", DataType.double),
    ("error", DataType.string),
)
OUTPUTS = Schema([ColSpec(kind, name, required=False) for name, kind in SPECS])


def detector_artifacts(run: FinishedRun, folder: Path) -> Artifacts:
    """The run's detector, of the round that its relevance table comes from."""
    folder.mkdir(parents=True)
    sources = sources_of(run)
    copy_weights(run, sources, folder)
    write_classes(run, sources, folder)
    (folder / served.STATISTICS).write_bytes(statistics_of(sources).to_bytes())
    write_description(folder, served.KIND, description(run))
    copy(run.path(SETTINGS), folder / SETTINGS)
    decisions = verified_decisions(run, sources)
    write_table(str(folder / DECISIONS), decisions)
    labels = run.ingested("train").label_map()
    example = example_inputs(run).assign(label=[labels.name_of(labels.ids[0])])
    return Artifacts(
        served.KIND,
        served.__name__,
        folder,
        ModelSignature(inputs=Schema([input_column(run), LABEL_COLUMN]), outputs=OUTPUTS),
        example,
        run.manifest(run.round_path(run.last_round, "relevance")).fingerprint,
        class_fold_error(decisions) | detection_metrics(run),
    )


def sources_of(run: FinishedRun) -> Sources:
    names = ("references", "cleannet", "class_index", "evidence")
    references, cleannet, index, evidence = (run.round_path(run.last_round, name) for name in names)
    return Sources(run.features(), references, cleannet, index, evidence)


def copy_weights(run: FinishedRun, sources: Sources, folder: Path) -> None:
    if run.kind == "images":
        copy(uris.join(run.backbone_folder, classifier_stage.MODEL), folder / served.BACKBONE)
    if sources.features.projection is not None:
        copy(uris.join(sources.features.projection, PROJECTION), folder / served.PROJECTION)
    assert sources.cleannet is not None, "a run fits CleanNet; only trials of sweeps may leave it out"
    copy(uris.join(sources.cleannet, cleannet_stage.MODEL), folder / served.CLEANNET)
    for fold, name in enumerate(head_names(run)):
        head = head_files.load_dense(uris.join(sources.evidence, evidence_heads.head_name(fold)))
        (folder / name).write_bytes(head_to_bytes(head))  # a sharded one put together


def head_names(run: FinishedRun) -> list[str]:
    return [f"{evidence_heads.head_name(fold)}{head_files.DENSE}" for fold in range(run.settings.evidence.row_folds)]


def write_classes(run: FinishedRun, sources: Sources, folder: Path) -> None:
    """The arrays of `serving.detector.KnownClasses`."""
    assert sources.class_index is not None, "as CleanNet"
    classes = class_index.read(sources.class_index)
    for name, array in zip(served.EMBEDDED, (classes.label_C, classes.embedding_CE), strict=True):
        write_array(str(folder / f"{name}.npy"), array)
    known = evidence_stage.read_prototypes(sources.evidence, run.ingested("train").num_classes)
    for name in served.EVIDENCE:
        write_array(str(folder / f"{name}.npy"), known[name])
    needed = "reference_cosine" in DETECTORS[run.settings.detector.name].signals
    if needed or run.ingested("train").num_classes > run.settings.evidence.exact_classes:
        means = references_stage.means(sources.references, sources.features)
        for name, array in zip(served.MEANS, means, strict=True):
            write_array(str(folder / f"{name}.npy"), array)


def statistics_of(sources: Sources) -> ClassStatistics:
    """From the evidence of all images, a range of classes after the other."""
    parts = []
    for shards in sources.features.class_ranges():
        tables = [read_table(uris.join(sources.evidence, f"{shard.name}.parquet")) for shard in shards]
        table = pa.concat_tables(tables)
        if not table.num_rows:
            continue
        signals = {name: table[name].to_numpy() for name in table.column_names}
        parts.append(ClassStatistics.of_signals(signals, signals["label"], signals["best_other"]))
    return ClassStatistics.concatenate(parts)


def description(run: FinishedRun) -> dict[str, Any]:
    """model.json: what is not an array."""
    train, settings = run.ingested("train"), run.settings
    fitted = read_json(uris.join(run.round_path(run.last_round, "relevance"), relevance.DETECTORS_FILE))
    return input_description(run) | {
        "labels": train.label_map().to_json(),
        "num_classes": train.num_classes,
        "seed": settings.run.seed,
        "heads": head_names(run),
        "evidence": settings.evidence.model_dump(include={"exact_classes", "candidates", "tail"}),
        "detector": {
            "name": settings.detector.name,
            "delta": settings.detector.delta,
            "fitted": fitted[settings.detector.name],
        },
    }


def verified_decisions(run: FinishedRun, sources: Sources) -> pa.Table:
    """row, id, label, wrong (as verified), mislabeled (as decided without the class's verification labels)."""
    train, settings = run.ingested("train"), run.settings
    evidence, verified_V = relevance.verified_evidence(sources, train.verification(), one_by_one)
    detector = DETECTORS[settings.detector.name]
    sure: dict[str, int] = {"class_folds": settings.evidence.class_folds, "seed": settings.run.seed}
    mislabeled_V = np.zeros(len(evidence), bool)
    decided_V = np.zeros(len(evidence), bool)
    for left_V in class_fold_masks(evidence.label_N, **sure) if len(evidence) else []:
        fitted = detector.fit(evidence.select(~left_V), verified_V[~left_V], **sure)
        decision = relevance.with_delta(settings.detector, fitted.decide(evidence.select(left_V)))
        mislabeled_V[left_V], decided_V[left_V] = decision.mislabeled_N, True
    table = pa.table(
        {
            "row": evidence.row_N,
            "id": train.ids(np.sort(evidence.row_N)).take(pa.array(np.argsort(np.argsort(evidence.row_N)))),
            "label": class_names(train.label_map(), evidence.label_N),
            "wrong": verified_V != RIGHT,
            "mislabeled": mislabeled_V,
        }
    )
    return table.filter(pa.array(decided_V))


def one_by_one(run: Callable[..., Any], items: Sequence[Any], *arguments: Any) -> Iterator[tuple[int, Any]]:
    """As `engine.tasks.map_shards`, here: verified images are few."""
    return ((position, run(item, *arguments)) for position, item in enumerate(items))


def class_fold_error(decisions: pa.Table) -> dict[str, float]:
    if not decisions.num_rows:
        return {}
    differ_V = decisions["wrong"].to_numpy() != decisions["mislabeled"].to_numpy()
    return {"class_fold_error": 100 * float(differ_V.mean()), "verified": float(len(differ_V))}


def detection_metrics(run: FinishedRun) -> dict[str, float]:
    """What metrics.json says of the detector; nothing where the truth is not known."""
    found = run.metrics().get("detection", {}).get(run.settings.detector.name, {})
    return measured(found) | {
        f"error_{group}": value["value"]
        for group, value in found.get("error_per_class", {}).items()
        if value["value"] is not None
    }
