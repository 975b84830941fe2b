"""relevance: what the run is for. Every image's label judged, by the chosen detector and by those it is compared with.

Detectors are fitted here, on the evidence of verified images alone; applied shard by shard.

# N images of a shard, V verified images, E embedding width
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale import schema
from cleanscale.detectors import DETECTORS, Decision, Evidence
from cleanscale.engine.tasks import map_shards
from cleanscale.stages import class_index as class_index_stage
from cleanscale.stages import cleannet as cleannet_stage
from cleanscale.stages import references as references_stage
from cleanscale.stages.class_index import ClassEmbeddings
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.settings import DetectorSettings, TreatmentSettings
from cleanscale.storage import uris
from cleanscale.storage.arrays import scatter, write_array
from cleanscale.storage.manifests import Manifest, open_stage, write_json
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table
from cleanscale.training.cleannet import query_embeddings, relevance
from cleanscale.treatments import TREATMENTS, Judged

WEIGHTS, DETECTORS_FILE = "weights.npy", "detectors.json"
NOT_SIGNALS = ("row", "label", "best_other", "best_other_log_probability")
PUBLISHED = "cleannet_published"


@dataclass(frozen=True)
class Sources:
    """Folders that the judgement is made from."""

    features: FeatureShards
    references: str
    cleannet: str
    class_index: str
    evidence: str
    published: str | None = None  # CleanNet as published, reported beside


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
            "treatment": treatment.model_dump(mode="json"),
            "evidence": {"class_folds": class_folds},
            "run": {"seed": place.seed},
        },
        inputs | {"verification": cleannet_stage.fingerprint_of(verification)},
    )
    if stage.complete:
        return stage.complete
    job = Job(sources, verification, settings, treatment, place.seed, folder)
    images = sources.features.num_images
    with place.timed("relevance", images), place.progress.step("relevance", images) as step:
        evidence, verified_N = verified_evidence(job)
        fitted = fit_detectors(job, evidence, verified_N, class_folds)
        write_json(stage.path(DETECTORS_FILE), {name: f.to_dict() for name, f in fitted.items()})
        shards = list(sources.features.shards)
        weights: list[Any] = [None] * len(shards)
        for position, weight in map_shards(judge_shard, shards, job):
            weights[position] = weight
            step.advance(shards[position].rows)
        write_array(stage.path(WEIGHTS), scatter(num_rows, weights, 0.0, np.float32))
    return stage.finish([{"file": f"{s.name}.parquet", "rows": s.rows} for s in shards])


def verified_evidence(job: Job) -> tuple[Evidence, np.ndarray]:
    """Evidence of verified images, with cosines of CleanNets that saw no verification label of their class."""
    row_V = job.verification["row"].to_numpy()
    label_V = job.verification["label"].to_numpy()
    wanted = [s for s in job.sources.features.shards if s.contains(label_V, row_V).any()]
    found: dict[int, Evidence] = dict(map_shards(evidence_of_rows, wanted, job, np.sort(row_V)))
    pieces = [found[k] for k in sorted(found)]
    if not pieces:
        names = [*evidence_columns(job), "cleannet_cosine", "reference_cosine"]
        nothing = np.empty(0, np.int64)
        return Evidence(nothing, nothing, {n: np.empty(0, np.float32) for n in names}), np.empty(0, np.int8)
    evidence = Evidence(
        np.concatenate([p.row_N for p in pieces]),
        np.concatenate([p.label_N for p in pieces]),
        {n: np.concatenate([p.signals[n] for p in pieces]) for n in pieces[0].signals},
    )
    evidence.signals["cleannet_cosine"] = crossfitted_cosines(job.sources.cleannet, evidence.row_N)
    order = np.argsort(row_V)
    verified_N = job.verification["verified"].to_numpy()[order][np.searchsorted(row_V[order], evidence.row_N)]
    return evidence, verified_N


def fit_detectors(job: Job, evidence: Evidence, verified_N: np.ndarray, class_folds: int) -> dict[str, Any]:
    """Every detector on the verified images; and CleanNet as published, on cosines of its own class folds."""
    sure: dict[str, int] = {"class_folds": class_folds, "seed": job.seed}
    fitted = {name: d.fit(evidence, verified_N, **sure) for name, d in DETECTORS.items()}
    if job.sources.published is not None:
        cosines = crossfitted_cosines(job.sources.published, evidence.row_N)
        published = Evidence(evidence.row_N, evidence.label_N, {"cleannet_cosine": cosines})
        fitted[PUBLISHED] = DETECTORS["cleannet"].fit(published, verified_N, **sure)
    return fitted


def crossfitted_cosines(cleannet: str, row_N: np.ndarray) -> np.ndarray:
    """Cosines of verified images by CleanNets that saw no verification label of their class."""
    fitted_row, cosine_V = cleannet_stage.cross_fitted(cleannet)
    return cosine_V[np.searchsorted(fitted_row, row_N)] if len(row_N) else np.empty(0, np.float32)


def evidence_columns(job: Job) -> list[str]:
    table = read_table(uris.join(job.sources.evidence, f"{job.sources.features.shards[0].name}.parquet"))
    return [n for n in table.column_names if n not in NOT_SIGNALS]


def evidence_of_rows(shard: Shard, job: Job, row_V: np.ndarray) -> Evidence:
    evidence, _ = evidence_of_shard(shard, job)
    return evidence.select(np.isin(evidence.row_N, row_V))


def evidence_of_shard(shard: Shard, job: Job) -> tuple[Evidence, pa.Table]:
    """(signals of a shard with CleanNet's and the average baseline's cosines, the evidence table they came from)."""
    sources = job.sources
    table = read_table(uris.join(sources.evidence, f"{shard.name}.parquet"))
    features = sources.features.read(shard)
    table = table.take(pa.array(places(table["row"].to_numpy(), features.row_N)))
    signals = {n: table[n].to_numpy() for n in table.column_names if n not in NOT_SIGNALS}
    embeddings = class_index_stage.read(sources.class_index)
    query_NE = query_embeddings(cleannet_stage.load(sources.cleannet), features.feature_ND.astype(np.float32))
    signals["cleannet_cosine"] = cosine(query_NE, embeddings.of(features.label_N))
    signals["reference_cosine"] = reference_cosine(shard, sources, features)
    return Evidence(features.row_N, features.label_N, signals), table


def published_evidence(shard: Shard, job: Job) -> Evidence:
    """Cosines by CleanNet as published."""
    assert job.sources.published is not None
    features = job.sources.features.read(shard)
    references = references_stage.read(job.sources.references, [[shard]], features.feature_ND.shape[1])
    model = cleannet_stage.load(job.sources.published)
    cosine_N = relevance(model, references, features.feature_ND.astype(np.float32), features.label_N)
    return Evidence(features.row_N, features.label_N, {"cleannet_cosine": cosine_N})


def places(row_M: np.ndarray, row_N: np.ndarray) -> np.ndarray:
    """Where each of row_N stands in row_M (the same rows in another order)."""
    order_M = np.argsort(row_M)
    return order_M[np.searchsorted(row_M[order_M], row_N)]


def cosine(query_NE: np.ndarray, class_NE: np.ndarray) -> np.ndarray:
    return np.einsum("ne,ne->n", query_NE, class_NE).clip(-1, 1)


def reference_cosine(shard: Shard, sources: Sources, features: Features) -> np.ndarray:
    """Average baseline: cosine of each image's feature to the mean reference of its class."""
    references = references_stage.read(sources.references, [[shard]], sources.features.width)
    mean_ND = references.mean_CD()[references.position(features.label_N)]
    feature_ND = features.feature_ND.astype(np.float32)
    lengths_N = np.linalg.norm(mean_ND, axis=1) * np.linalg.norm(feature_ND, axis=1)
    return (np.einsum("nd,nd->n", mean_ND, feature_ND) / np.maximum(lengths_N, 1e-12)).astype(np.float32)


def judge_shard(shard: Shard, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Write the shard's relevance table and what every detector decided; returns (rows, weights)."""
    evidence, table = evidence_of_shard(shard, job)
    with_uri = uris.join(job.folder, DETECTORS_FILE)
    values = json.loads(uris.read_bytes(with_uri))
    decisions = {n: DETECTORS[n].from_dict(v).decide(evidence) for n, v in values.items() if n != PUBLISHED}
    if PUBLISHED in values:
        decisions[PUBLISHED] = DETECTORS["cleannet"].from_dict(values[PUBLISHED]).decide(published_evidence(shard, job))
    judged = relevance_table(shard, job, evidence, decisions[job.settings.name], table)
    write_table(uris.join(job.folder, f"{shard.name}.parquet"), judged)
    columns: dict[str, Any] = {"row": evidence.row_N, "label": evidence.label_N}
    for name, decision in decisions.items():
        columns[f"{name}.mislabeled"] = decision.mislabeled_N
        columns[f"{name}.score"] = decision.score_N
        if decision.probability_correct_N is not None:
            columns[f"{name}.probability"] = decision.probability_correct_N
    write_table(uris.join(job.folder, "decisions", f"{shard.name}.parquet"), pa.table(columns))
    return evidence.row_N, judged["weight"].to_numpy()


def relevance_table(shard: Shard, job: Job, evidence: Evidence, decision: Decision, table: pa.Table) -> pa.Table:
    verified_N = verified_of(job.verification, evidence.row_N)
    probability_N = decision.probability_correct_N
    certain_N = (~decision.mislabeled_N).astype(np.float32)  # a detector without probabilities
    probability_N = certain_N if probability_N is None else probability_N
    mislabeled_N = called_wrong(job.settings, decision)
    mislabeled_N = np.where(verified_N == schema.UNSEEN, mislabeled_N, verified_N == schema.WRONG)
    relevance_N = evidence.signals["cleannet_cosine"]
    weight_N = TREATMENTS[job.treatment.name](Judged(relevance_N, probability_N, mislabeled_N, verified_N))
    suggested_N, similarity_N = suggestions(shard, job, table, mislabeled_N)
    columns = {
        "row": evidence.row_N,
        "id": job.sources.features.read(shard).id_N,
        "label": evidence.label_N,
        "relevance": relevance_N,
        "probability_correct": probability_N,
        "weight": weight_N,
        "mislabeled": mislabeled_N,
        "suggested_label": suggested_N,
        "suggested_relevance": similarity_N,
        "verified": verified_N,
    }
    return pa.table(columns).cast(schema.RELEVANCE)


def called_wrong(settings: DetectorSettings, decision: Decision) -> np.ndarray:
    """The detector's own decision, or that of a delta which the user chose."""
    if settings.delta is None:
        return decision.mislabeled_N
    by_probability = settings.name == "transfer" and decision.probability_correct_N is not None
    score_N = decision.probability_correct_N if by_probability else decision.score_N
    return np.asarray(score_N) < settings.delta


def verified_of(verification: pa.Table, row_N: np.ndarray) -> np.ndarray:
    """int8 [N]: 1, 0 or -1 of these rows."""
    row_V, seen_V = verification["row"].to_numpy(), verification["verified"].to_numpy()
    if not len(row_V):
        return np.full(len(row_N), schema.UNSEEN, np.int8)
    order_V = np.argsort(row_V)
    place_N = np.minimum(np.searchsorted(row_V[order_V], row_N), len(row_V) - 1)
    found_N = row_V[order_V][place_N] == row_N
    return np.where(found_N, seen_V[order_V][place_N], schema.UNSEEN).astype(np.int8)


def suggestions(shard: Shard, job: Job, table: pa.Table, mislabeled_N: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """For labels called wrong, the most probable other class and the image's relevance to it; null for the rest."""
    best_N = table["best_other"].to_numpy()
    known_N = mislabeled_N & (best_N >= 0)
    embeddings: ClassEmbeddings = class_index_stage.read(job.sources.class_index)
    features = job.sources.features.read(shard)
    query_ME = query_embeddings(
        cleannet_stage.load(job.sources.cleannet), features.feature_ND[known_N].astype(np.float32)
    )
    similarity_N = np.zeros(len(best_N), np.float32)
    similarity_N[known_N] = np.nan_to_num(cosine(query_ME, embeddings.of(best_N[known_N])))
    return pa.array(best_N, pa.int32(), mask=~known_N), pa.array(similarity_N, pa.float32(), mask=~known_N)
