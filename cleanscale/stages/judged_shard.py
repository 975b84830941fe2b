"""What is known of the images of one class shard when their labels are judged: features, evidence, embeddings.

# N images of a shard, V verified images, E embedding width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cleanscale.detectors import DETECTORS, Evidence
from cleanscale.engine.class_index import ClassIndex
from cleanscale.maths.class_embeddings import cosine, suggested
from cleanscale.maths.class_graph import ClassGraph
from cleanscale.maths.class_search import without
from cleanscale.stages import class_index as class_index_stage
from cleanscale.stages import cleannet as cleannet_stage
from cleanscale.stages import references as references_stage
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.storage import uris
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table
from cleanscale.training.cleannet import query_embeddings, relevance

NOT_SIGNALS = ("row", "label", "best_other", "best_other_log_probability", "nearest_other")


@dataclass(frozen=True)
class Sources:
    """Folders that the judgement is made from. Without CleanNet only detectors that do without it can judge."""

    features: FeatureShards
    references: str
    cleannet: str | None
    class_index: str | None
    evidence: str
    published: str | None = None  # CleanNet as published, reported beside
    signals: Mapping[str, str] = field(default_factory=dict)  # of detectors that make their own: folder of each
    suggestions: str = "neighbours"  # or "search": of a class index that does not compare all classes

    def signal_names(self) -> list[str]:
        """What an Evidence made here holds."""
        table = read_table(uris.join(self.evidence, f"{self.features.shards[0].name}.parquet"))
        stored = [n for n in table.column_names if n not in NOT_SIGNALS]
        own = [signal for name in self.signals for signal in DETECTORS[name].signals]
        return [*stored, *(["cleannet_cosine"] if self.cleannet else []), "reference_cosine", *own]


@dataclass(frozen=True)
class JudgedShard:
    """One shard, read once. best_other_N: the most probable class but the own; nearest_other_N: the one whose prototype
    is nearest; -1 where there is none.

    query_NE: None without CleanNet.
    """

    features: Features
    evidence: Evidence
    best_other_N: np.ndarray
    best_other_log_probability_N: np.ndarray
    nearest_other_N: np.ndarray
    query_NE: np.ndarray | None

    @classmethod
    def read(cls, shard: Shard, sources: Sources, row_V: np.ndarray | None = None) -> JudgedShard:
        """row_V: only those of these rows that are in the shard."""
        features = sources.features.read(shard, ids=row_V is None)
        table = read_table(uris.join(sources.evidence, f"{shard.name}.parquet"))
        mean_CD, position_N = mean_references(shard, sources, features)
        if row_V is not None:
            chosen_N = np.isin(features.row_N, row_V)
            features, position_N = features.take(chosen_N), position_N[chosen_N]
        table = table.take(pa.array(places(table["row"].to_numpy(), features.row_N)))
        signals = {n: table[n].to_numpy() for n in table.column_names if n not in NOT_SIGNALS}
        feature_ND = features.feature_ND.astype(np.float32)
        query_NE = None
        if sources.cleannet is not None and sources.class_index is not None:
            classes = class_index_stage.read_range(sources.class_index, [shard])
            query_NE = query_embeddings(cleannet_stage.load(sources.cleannet), feature_ND)
            signals["cleannet_cosine"] = cosine(query_NE, classes.of(features.label_N))
        signals["reference_cosine"] = cosine_to_means(feature_ND, mean_CD, position_N)
        for folder in sources.signals.values():
            signals |= stored_signals(uris.join(folder, f"{shard.name}.parquet"), features.row_N)
        evidence = Evidence(features.row_N, features.label_N, signals, features.feature_ND)
        best = (table[name].to_numpy() for name in ("best_other", "best_other_log_probability", "nearest_other"))
        return cls(features, evidence, *best, query_NE)

    def suggestions(self, mislabeled_N: np.ndarray, near: Nearest | None) -> tuple[pa.Array, pa.Array]:
        """For labels called wrong, the best other class and the image's relevance to it; null for the rest.

        near: of the images called wrong; None without CleanNet.
        """
        label_N = self.best_other_N.astype(np.int32)
        relevance_N = np.full(len(label_N), np.nan, np.float32)
        wrong_X = np.flatnonzero(mislabeled_N)
        if near is not None:
            log_probability_X = self.best_other_log_probability_N[wrong_X]
            label_N[wrong_X], relevance_N[wrong_X] = suggested(
                label_N[wrong_X], log_probability_X, near.found_relevance_X, near.label_X, near.relevance_X
            )
        known_N = mislabeled_N & (label_N >= 0)
        relevance = pa.array(np.nan_to_num(relevance_N), pa.float32(), mask=~known_N)
        if near is None:
            relevance = pa.nulls(len(label_N), pa.float32())
        return pa.array(label_N, pa.int32(), mask=~known_N), relevance

    def nearest(self, mislabeled_N: np.ndarray, classes: ClassIndex | ClassGraph | None) -> Nearest | None:
        """What the class index says of the images called wrong, by a search or by neighbours; None without CleanNet."""
        if classes is None or self.query_NE is None:
            return None
        wrong_X = np.flatnonzero(mislabeled_N)
        query_XE, own_X, found_X = self.query_NE[wrong_X], self.features.label_N[wrong_X], self.best_other_N[wrong_X]
        if isinstance(classes, ClassGraph):
            start_XS = np.stack([found_X, self.nearest_other_N[wrong_X]], axis=1)
            label_X, relevance_X = classes.nearest_other(query_XE, own_X, start_XS)
        else:
            label_XK, relevance_XK = without(*classes.search(query_XE, 2), own_X)
            label_X = label_XK[:, 0]
            relevance_X = np.where(label_X >= 0, relevance_XK[:, 0].clip(-1, 1), np.nan)
        own_relevance_X = self.evidence.signals["cleannet_cosine"][wrong_X]
        found_relevance_X = cosine(query_XE, classes.embeddings(found_X))
        return Nearest(own_X, own_relevance_X, found_X, found_relevance_X, label_X, relevance_X)


@dataclass(frozen=True)
class Nearest:
    """Of each image called wrong: its class, the best other class of the evidence, and that of the class index.

    Labels -1 where there is none; relevance NaN where it is not known.
    """

    own_X: np.ndarray
    own_relevance_X: np.ndarray
    found_X: np.ndarray
    found_relevance_X: np.ndarray
    label_X: np.ndarray
    relevance_X: np.ndarray

    def of_all(self) -> tuple[np.ndarray, np.ndarray]:
        """(int32 [X], float32 [X]): the class that is nearest of the three, and how relevant the image is to it."""
        label_3X = np.stack([self.own_X, self.found_X, self.label_X]).astype(np.int32)
        relevance_3X = np.stack([self.own_relevance_X, self.found_relevance_X, self.relevance_X])
        best_X = np.nan_to_num(relevance_3X, nan=-np.inf).argmax(axis=0)
        image_X = np.arange(len(best_X))
        return label_3X[best_X, image_X], relevance_3X[best_X, image_X].astype(np.float32)


def stored_signals(uri: str, row_N: np.ndarray) -> dict[str, np.ndarray]:
    """What `stages.detector_signals` wrote of these images."""
    table = read_table(uri)
    table = table.take(pa.array(places(table["row"].to_numpy(), row_N)))
    return {name: table[name].to_numpy() for name in table.column_names if name != "row"}


def evidence_of_rows(shard: Shard, sources: Sources, row_V: np.ndarray) -> Evidence:
    """Evidence of those of these rows that are in the shard."""
    return JudgedShard.read(shard, sources, row_V).evidence


def published_evidence(features: Features, shard: Shard, sources: Sources) -> Evidence:
    """Cosines by CleanNet as published."""
    assert sources.published is not None
    references = references_stage.of_shard(sources.references, shard, features)
    model = cleannet_stage.load(sources.published)
    cosine_N = relevance(model, references, features.feature_ND.astype(np.float32), features.label_N)
    return Evidence(features.row_N, features.label_N, {"cleannet_cosine": cosine_N})


def crossfitted_cosines(cleannet: str, row_N: np.ndarray) -> np.ndarray:
    """Cosines of verified images by CleanNets that saw no verification label of their class."""
    fitted_row, cosine_V = cleannet_stage.cross_fitted(cleannet)
    return cosine_V[np.searchsorted(fitted_row, row_N)] if len(row_N) else np.empty(0, np.float32)


def read_parts(folder: str, shards: Sequence[Shard], columns: Sequence[str] | None = None) -> pa.Table:
    """The tables of some shards in a stage's folder, one behind the other."""
    return pa.concat_tables([read_table(uris.join(folder, f"{shard.name}.parquet"), columns) for shard in shards])


def places(row_M: np.ndarray, row_N: np.ndarray) -> np.ndarray:
    """Where each of row_N stands in row_M (the same rows in another order)."""
    order_M = np.argsort(row_M)
    return order_M[np.searchsorted(row_M[order_M], row_N)]


def mean_references(shard: Shard, sources: Sources, features: Features) -> tuple[np.ndarray, np.ndarray]:
    """(mean reference of each class of the shard [C, D], the place of each image's class among them [N])."""
    references = references_stage.of_shard(sources.references, shard, features)
    return references.mean_CD(), references.position(features.label_N)


def cosine_to_means(feature_ND: np.ndarray, mean_CD: np.ndarray, position_N: np.ndarray) -> np.ndarray:
    """Average baseline: cosine of each image's feature to the mean reference of its class."""
    cosine_N = np.einsum("nd,nd->n", mean_CD[position_N], feature_ND)
    lengths_N = np.linalg.norm(mean_CD, axis=1)[position_N] * np.linalg.norm(feature_ND, axis=1)
    return (cosine_N / np.maximum(lengths_N, 1e-12)).astype(np.float32)
