"""relevance: what the run is for. Every image's label judged, by the chosen detector and by those it is compared with.

Detectors are fitted here, on the evidence of verified images alone; applied shard by shard.

# N images of a shard, V verified images, E embedding width
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale import schema
from cleanscale.detectors import DETECTORS, Decision, Evidence
from cleanscale.engine.class_index import ClassIndex, opened
from cleanscale.engine.tasks import map_shards, shared_value
from cleanscale.maths.class_graph import ClassGraph
from cleanscale.stages import class_index as class_index_stage
from cleanscale.stages import open_set, vector_index
from cleanscale.stages.judged_shard import (
    JudgedShard,
    Nearest,
    Sources,
    crossfitted_cosines,
    evidence_of_rows,
    published_evidence,
)
from cleanscale.stages.place import Place
from cleanscale.stages.settings import DetectorSettings, TreatmentSettings
from cleanscale.storage import uris
from cleanscale.storage.arrays import scatter, write_array
from cleanscale.storage.index_files import IndexFiles
from cleanscale.storage.manifests import Manifest, open_stage, write_json
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import fingerprint_columns, read_table, write_table
from cleanscale.treatments import TREATMENTS, Judged

WEIGHTS, DETECTORS_FILE = "weights.npy", "detectors.json"
PUBLISHED = "cleannet_published"


@dataclass(frozen=True)
class Job:
    sources: Sources
    verification: pa.Table
    settings: DetectorSettings
    treatment: TreatmentSettings
    seed: int
    folder: str


def run(
    place: Place,
    folder: str,
    sources: Sources,
    inputs: dict[str, str],
    verification: pa.Table,
    settings: DetectorSettings,
    treatment: TreatmentSettings,
    *,
    class_folds: int,
    num_rows: int,
) -> Manifest:
    """Judge all labels. inputs: fingerprints of what `sources` holds. verification: row, label, verified."""
    stage = open_stage(
        folder,
        "relevance",
        {
            "detector": settings.model_dump(mode="json", exclude={"published_steps"}),
            "index": {"suggestions": sources.suggestions},
            "treatment": treatment.model_dump(mode="json", include={"name"}),
            "evidence": {"class_folds": class_folds},
            "run": {"seed": place.seed},
        },
        inputs | {"verification": fingerprint_columns(verification)},
    )
    if stage.complete:
        return stage.complete
    job = Job(sources, verification, settings, treatment, place.seed, folder)
    images = sources.features.num_images
    with place.timed("relevance", images, folder=folder), place.progress.step("relevance", images) as step:
        evidence, verified_N = verified_evidence(sources, verification)
        fitted = fit_detectors(job, evidence, verified_N, class_folds)
        write_json(stage.path(DETECTORS_FILE), {name: f.to_dict() for name, f in fitted.items()})
        write_json(stage.path(open_set.THRESHOLD), open_set.threshold(evidence, verified_N))
        shards = list(sources.features.shards)
        with known_classes(sources, use_gpu=place.engine.use_gpu) as classes:
            waits = isinstance(classes, ClassIndex)
            for position, _ in map_shards(judge_shard, shards, job, classes, waits=waits):
                step.advance(shards[position].rows)
        for _ in map_shards(gather_weights, [num_rows], job):
            pass
    return stage.finish([{"file": f"{s.name}.parquet", "rows": s.rows} for s in shards])


@contextlib.contextmanager
def known_classes(sources: Sources, *, use_gpu: bool) -> Iterator[Any]:
    """What suggestions come from, for tasks, for the time of a `with`: the index of class embeddings, or, where it does
    not compare all of them, their graph of neighbours; None without CleanNet."""
    if sources.class_index is None:
        yield None
        return
    folder = class_index_stage.index_folder(sources.class_index)
    if sources.suggestions == "neighbours" and IndexFiles.read(folder).plan.kind != "flat":
        yield shared_value(vector_index.class_graph, folder)
        return
    with opened(folder, use_gpu=use_gpu) as index:
        yield index


def verified_evidence(sources: Sources, verification: pa.Table, each: Any = map_shards) -> tuple[Evidence, np.ndarray]:
    """Evidence of verified images, with cosines of CleanNets that saw no verification label of their class.

    each: what goes through the shards, as `map_shards` does.
    """
    row_V = verification["row"].to_numpy()
    label_V = verification["label"].to_numpy()
    wanted = [s for s in sources.features.shards if s.contains(label_V, row_V).any()]
    found: dict[int, Evidence] = dict(each(evidence_of_rows, wanted, sources, np.sort(row_V)))
    pieces = [found[k] for k in sorted(found)]
    if not pieces:
        nothing = np.empty(0, np.int64)
        signals = {n: np.empty(0, np.float32) for n in sources.signal_names()}
        return Evidence(nothing, nothing, signals), np.empty(0, np.int8)
    evidence = Evidence(
        np.concatenate([p.row_N for p in pieces]),
        np.concatenate([p.label_N for p in pieces]),
        {n: np.concatenate([p.signals[n] for p in pieces]) for n in pieces[0].signals},
        np.concatenate([p.feature_ND for p in pieces if p.feature_ND is not None]),
    )
    if sources.cleannet is not None:
        evidence.signals["cleannet_cosine"] = crossfitted_cosines(sources.cleannet, evidence.row_N)
    return evidence, verified_of(verification, evidence.row_N)


def fit_detectors(job: Job, evidence: Evidence, verified_N: np.ndarray, class_folds: int) -> dict[str, Any]:
    """Every detector that has its signals; and CleanNet as published, on cosines of its own class folds."""
    sure: dict[str, int] = {"class_folds": class_folds, "seed": job.seed}
    able = {name: d for name, d in DETECTORS.items() if set(d.signals) <= set(evidence.signals)}
    fitted = {name: d.fit(evidence, verified_N, **sure) for name, d in able.items()}
    if job.sources.published is not None:
        cosines = crossfitted_cosines(job.sources.published, evidence.row_N)
        published = Evidence(evidence.row_N, evidence.label_N, {"cleannet_cosine": cosines})
        fitted[PUBLISHED] = DETECTORS["cleannet"].fit(published, verified_N, **sure)
    return fitted


def judge_shard(shard: Shard, job: Job, classes: ClassIndex | ClassGraph | None) -> None:
    """Write the shard's relevance table and what every detector decided."""
    known = JudgedShard.read(shard, job.sources)
    fitted = json.loads(uris.read_bytes(uris.join(job.folder, DETECTORS_FILE)))
    decisions: dict[str, Decision] = {}
    for name, values in fitted.items():
        published = name == PUBLISHED
        detector = DETECTORS["cleannet" if published else name].from_dict(values)
        evidence = published_evidence(known.features, shard, job.sources) if published else known.evidence
        decisions[name] = detector.decide(evidence)
    decisions[job.settings.name] = with_delta(job.settings, decisions[job.settings.name])
    verified_N = verified_of(job.verification, known.features.row_N)
    decision = decisions[job.settings.name]
    # Where somebody looked, what they found stands; elsewhere what the detector says.
    wrong_N = np.where(verified_N == schema.UNSEEN, decision.mislabeled_N, verified_N == schema.WRONG)
    near = known.nearest(wrong_N, classes)
    judged = relevance_table(job, known, decision, verified_N, wrong_N, near)
    write_table(uris.join(job.folder, f"{shard.name}.parquet"), judged)
    if near is not None:
        least = json.loads(uris.read_bytes(uris.join(job.folder, open_set.THRESHOLD)))["relevance"]
        far = open_set.table(known.features, wrong_N, near, least)
        write_table(uris.join(job.folder, open_set.FOLDER, f"{shard.name}.parquet"), far)
    columns: dict[str, Any] = {"row": known.features.row_N, "label": known.features.label_N}
    for name, decision in decisions.items():
        columns[f"{name}.mislabeled"] = decision.mislabeled_N
        columns[f"{name}.score"] = decision.score_N
        if decision.probability_correct_N is not None:
            columns[f"{name}.probability"] = decision.probability_correct_N
    write_table(uris.join(job.folder, "decisions", f"{shard.name}.parquet"), pa.table(columns))


def gather_weights(num_rows: int, job: Job) -> None:
    """Weights by row, which is how they come back to the images; in a task, where they may take some memory."""
    files = [uris.join(job.folder, f"{shard.name}.parquet") for shard in job.sources.features.shards]
    tables = (read_table(file, ["row", "weight"]) for file in files)
    weights = ((table["row"].to_numpy(), table["weight"].to_numpy()) for table in tables)
    write_array(uris.join(job.folder, WEIGHTS), scatter(num_rows, weights, 0.0, np.float32))


def with_delta(settings: DetectorSettings, decision: Decision) -> Decision:
    """The detector's own decision, or that of a delta which the user chose."""
    if settings.delta is None:
        return decision
    return replace(decision, mislabeled_N=decision.score_N < settings.delta)


def relevance_table(
    job: Job,
    known: JudgedShard,
    decision: Decision,
    verified_N: np.ndarray,
    mislabeled_N: np.ndarray,
    near: Nearest | None,
) -> pa.Table:
    """The shard of the product. mislabeled_N: what is called wrong in the end; near: of those images."""
    probability_N = decision.probability_correct_N
    if probability_N is None:  # a detector without probabilities is certain of what it says
        probability_N = (~decision.mislabeled_N).astype(np.float32)
    relevance_N = known.evidence.signals.get("cleannet_cosine", np.full(len(verified_N), np.nan, np.float32))
    weight_N = TREATMENTS[job.treatment.name](Judged(relevance_N, probability_N, mislabeled_N, verified_N))
    suggested_N, similarity_N = known.suggestions(mislabeled_N, near)
    columns = {
        "row": known.features.row_N,
        "id": known.features.id_N,
        "label": known.features.label_N,
        "relevance": relevance_N,
        "probability_correct": np.where(verified_N == schema.UNSEEN, probability_N, verified_N),
        "weight": weight_N,
        "mislabeled": mislabeled_N,
        "suggested_label": suggested_N,
        "suggested_relevance": similarity_N,
        "verified": verified_N,
    }
    return pa.table(columns).cast(schema.RELEVANCE)


def verified_of(verification: pa.Table, row_N: np.ndarray) -> np.ndarray:
    """int8 [N]: 1, 0 or -1 of these rows."""
    row_V, seen_V = verification["row"].to_numpy(), verification["verified"].to_numpy()
    if not len(row_V):
        return np.full(len(row_N), schema.UNSEEN, np.int8)
    order_V = np.argsort(row_V)
    place_N = np.minimum(np.searchsorted(row_V[order_V], row_N), len(row_V) - 1)
    found_N = row_V[order_V][place_N] == row_N
    return np.where(found_N, seen_V[order_V][place_N], schema.UNSEEN).astype(np.int8)
