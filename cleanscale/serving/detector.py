"""A detector that was registered: an image (or feature) and its label in, how surely the label is right out.

A new image is in no fold of the run: it is scored by the mean of all out-of-fold heads, and ranked among the images
that the run found in its class. `_load_pyfunc` is what MLflow calls to load a model of this kind.

# N rows of a request, X usable ones, D feature width, E embedding width, C classes, F heads, H width of a hidden layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from cleanscale.datasets.labels import MISSING, UNKNOWN, LabelMap
from cleanscale.detectors import DETECTORS, Decision, Evidence, FittedDetector
from cleanscale.maths.class_embeddings import ClassEmbeddings, cosine, suggested, unit
from cleanscale.maths.compared_classes import Compared, blocks_of_rows
from cleanscale.maths.evidence import ImageSignals, OutOfFold, image_signals, other_class_signals
from cleanscale.maths.projection import Projection
from cleanscale.models.classifier import classifier_from_bytes
from cleanscale.models.cleannet import CleanNet
from cleanscale.models.heads import FrozenHead, head_from_bytes
from cleanscale.serving.class_statistics import ClassStatistics
from cleanscale.serving.features import FromFeatures, FromImages, Made
from cleanscale.serving.model_folder import read_description, read_npy
from cleanscale.serving.threads import threads_for
from cleanscale.training.cleannet import query_embeddings

KIND = "detector"
BACKBONE, PROJECTION, CLEANNET = "backbone.safetensors", "projection.npy", "cleannet.safetensors"
STATISTICS = "class_statistics.safetensors"
# Arrays of the run, as .npy: labels and embeddings of classes; prototypes, centre and statistics of the evidence; mean
# references and their labels.
EMBEDDED = ("embedded_label", "embedding")
EVIDENCE = ("prototypes", "centre", "statistics")
MEANS = ("means_label", "means")


@dataclass(frozen=True)
class MeanHead:
    """The mean of several heads' logits, as one head (`maths.evidence.Scorer`)."""

    heads: Sequence[FrozenHead]
    weight_CH: np.ndarray
    bias_C: np.ndarray

    @classmethod
    def of(cls, heads: Sequence[FrozenHead]) -> MeanHead:
        weight_CH = np.concatenate([head.weight_CH for head in heads], axis=1) / len(heads)
        return cls(heads, weight_CH, np.stack([head.bias_C for head in heads]).mean(axis=0, dtype=np.float32))

    def embed(self, feature_BD: np.ndarray) -> np.ndarray:
        """float32 [B, F * H]"""
        return np.concatenate([head.embed(feature_BD) for head in self.heads], axis=1)


@dataclass(frozen=True)
class KnownClasses:
    """What the run knew of its classes, as arrays: see EMBEDDED, EVIDENCE and MEANS."""

    embeddings: ClassEmbeddings
    prototype_CD: np.ndarray
    centre_D: np.ndarray
    statistic_C2: np.ndarray
    means_label: np.ndarray | None
    means: np.ndarray | None

    @classmethod
    def load(cls, folder: Path) -> KnownClasses:
        names = EMBEDDED + EVIDENCE + (MEANS if (folder / f"{MEANS[0]}.npy").exists() else ())
        arrays = {name: read_npy(folder / f"{name}.npy") for name in names}
        return cls(
            ClassEmbeddings(*(arrays[name] for name in EMBEDDED)),
            *(arrays[name] for name in EVIDENCE),
            *(arrays.get(name) for name in MEANS),
        )

    def reference_cosine(self, feature_XD: np.ndarray, label_X: np.ndarray) -> np.ndarray:
        """float32 [X]: cosine to the mean reference of the label's class."""
        assert self.means is not None
        assert self.means_label is not None
        mean_XD = self.means[np.searchsorted(self.means_label, label_X)]
        length_X = np.linalg.norm(mean_XD, axis=1) * np.linalg.norm(feature_XD, axis=1)
        return (np.einsum("xd,xd->x", mean_XD, feature_XD) / np.maximum(length_X, 1e-12)).astype(np.float32)

    def nearest(self, feature_XD: np.ndarray, most: int) -> np.ndarray:
        """int64 [X, M]: the classes whose mean reference is most like each image, by cosine."""
        assert self.means is not None
        assert self.means_label is not None
        most = min(most, len(self.means))
        nearest_XM = np.empty((len(feature_XD), most), np.int64)
        unit_CD = unit(self.means)
        for rows in blocks_of_rows(len(feature_XD), len(unit_CD)):
            cosine_BC = unit(feature_XD[rows]) @ unit_CD.T
            at_BM = np.argpartition(-cosine_BC, most - 1, axis=1)[:, :most]
            nearest_XM[rows] = self.means_label[at_BM]
        return nearest_XM


@dataclass(frozen=True)
class ServedDetector:
    """features: from a request's column to features. described: model.json."""

    features: FromImages | FromFeatures
    projection: Projection | None
    cleannet: CleanNet
    heads: MeanHead
    classes: KnownClasses
    statistics: ClassStatistics
    detector: FittedDetector
    labels: LabelMap
    described: dict[str, Any]
    threads: int

    @classmethod
    def load(cls, folder: Path) -> ServedDetector:
        """Raises: DataError for another model or for weights that are none."""
        described = read_description(folder, KIND)
        if described["input"] == "images":
            model, _ = classifier_from_bytes((folder / BACKBONE).read_bytes(), source=str(folder / BACKBONE))
            backbone = model.backbone.eval().requires_grad_(False)
            source: FromImages | FromFeatures = FromImages(backbone, described["evaluation_crop"])
        else:
            source = FromFeatures(described["feature_width"])
        heads = [head_from_bytes((folder / name).read_bytes()).frozen() for name in described["heads"]]
        projected = (folder / PROJECTION).exists()
        return cls(
            source,
            Projection.of_array(read_npy(folder / PROJECTION)) if projected else None,
            CleanNet.from_bytes((folder / CLEANNET).read_bytes()).eval(),
            MeanHead.of(heads),
            KnownClasses.load(folder),
            ClassStatistics.from_bytes((folder / STATISTICS).read_bytes()),
            DETECTORS[described["detector"]["name"]].from_dict(described["detector"]["fitted"]),
            LabelMap.from_json(described["labels"]),
            described,
            torch.get_num_threads(),
        )

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row for each row, named as in the relevance table: `relevance`, `probability_correct`, `mislabeled`, and
        where the label is called wrong `suggested_label`, `suggested_class` and `suggested_relevance`; and `error`.

        A row that cannot be used has an `error` and nothing else.
        """
        with threads_for(len(model_input), self.threads):
            return self.answered(model_input)

    def answered(self, model_input: pd.DataFrame) -> pd.DataFrame:
        made = self.features(model_input[self.features.column].tolist())
        label_N, error_N = self.class_ids(model_input["label"].tolist())
        error_N = [one or other for one, other in zip(made.error_N, error_N, strict=True)]
        both_X = np.array([error_N[position] is None for position in made.usable], bool)
        at_X = made.usable[both_X]
        names = ("relevance", "probability_correct", "mislabeled", "suggested_label", "suggested_class")
        rows: list[dict[str, Any]] = [
            dict.fromkeys((*names, "suggested_relevance")) | {"error": error} for error in error_N
        ]
        if len(at_X):
            judged = self.judge(self.projected(Made(made.feature_XD[both_X], [])), label_N[at_X])
            for position, row in zip(at_X.tolist(), judged, strict=True):
                rows[position] |= row
        return pd.DataFrame(rows, index=model_input.index, dtype=object)

    def class_ids(self, label_N: Sequence[Any]) -> tuple[np.ndarray, list[str | None]]:
        """(class ids, why a label cannot be judged): labels are class names, or class ids as numbers or text."""
        text_N = [None if label is None or label != label else as_text(label) for label in label_N]
        id_N = self.labels.encode_text(pa.array(text_N, pa.string()))
        known_N = self.statistics.known(id_N) & np.isin(id_N, self.classes.embeddings.label_C)
        error_N: list[str | None] = [None] * len(id_N)
        for position in np.flatnonzero(~known_N).tolist():
            label = label_N[position]
            error_N[position] = {
                MISSING: "no label",
                UNKNOWN: f"the label {label!r} is none of the {len(self.labels.ids)} classes of the run",
            }.get(int(id_N[position]), f"the run had no images of the class {label!r} to compare with")
        return id_N, error_N

    def projected(self, made: Made) -> np.ndarray:
        """float32 [X, D], rounded as the job keeps features."""
        feature_XD = made.feature_XD.astype(np.float32)
        if self.projection is None:
            return feature_XD
        return self.projection(feature_XD).astype(np.float16).astype(np.float32)

    def judge(self, feature_XD: np.ndarray, label_X: np.ndarray) -> list[dict[str, Any]]:
        """What is said of images whose labels are classes that the run knows."""
        with torch.inference_mode():
            query_XE = query_embeddings(self.cleannet, feature_XD)
        relevance_X = cosine(query_XE, self.classes.embeddings.of(label_X))
        evidence, found = self.evidence(feature_XD, label_X, relevance_X)
        decision = self.decide(evidence)
        probability_X = decision.probability_correct_N
        if probability_X is None:  # as in the relevance table
            probability_X = (~decision.mislabeled_N).astype(np.float32)
        other_X, similarity_X = suggested(
            found.best_other_N,
            found.best_other_log_probability_N,
            cosine(query_XE, self.classes.embeddings.of(found.best_other_N)),
            *self.classes.embeddings.nearest_other(query_XE, label_X),
        )
        similarity_X = np.nan_to_num(similarity_X)
        return [
            {"relevance": relevance, "probability_correct": probability, "mislabeled": wrong}
            | (
                {"suggested_label": other, "suggested_class": self.labels.name_of(other), "suggested_relevance": like}
                if wrong and other >= 0
                else {}
            )
            for relevance, probability, wrong, other, like in zip(
                relevance_X.tolist(),
                probability_X.tolist(),
                decision.mislabeled_N.tolist(),
                other_X.tolist(),
                similarity_X.tolist(),
                strict=True,
            )
        ]

    def evidence(
        self, feature_XD: np.ndarray, label_X: np.ndarray, relevance_X: np.ndarray
    ) -> tuple[Evidence, ImageSignals]:
        """(signals as the run's evidence and relevance stages make them, what was found of each image alone)."""
        row_X, class_X = np.zeros(len(label_X), np.int64), label_X.astype(np.int64)
        found = image_signals(
            OutOfFold([self.heads], self.described["seed"]),
            self.classes.prototype_CD,
            feature_XD,
            class_X,
            row_X,
            self.classes.centre_D,
            self.compared(feature_XD),
        )
        signals = found.signals | self.statistics.signals(found.signals, class_X, found.best_other_N)
        signals |= other_class_signals(self.classes.statistic_C2, class_X, found.best_other_N)
        signals["cleannet_cosine"] = relevance_X
        if self.classes.means is not None:
            signals["reference_cosine"] = self.classes.reference_cosine(feature_XD, label_X)
        return Evidence(row_X, label_X, signals, feature_XD), found

    def compared(self, feature_XD: np.ndarray) -> Compared:
        """All classes, or, where the run compared with candidates, those that it would have taken."""
        num_classes, settings = self.described["num_classes"], self.described["evidence"]
        if num_classes <= settings["exact_classes"]:
            return Compared(num_classes)
        nearest_XM = self.classes.nearest(feature_XD, settings["candidates"])
        return Compared.candidates(nearest_XM, num_classes, tail=settings["tail"], seed=self.described["seed"])

    def decide(self, evidence: Evidence) -> Decision:
        decision, delta = self.detector.decide(evidence), self.described["detector"]["delta"]
        return decision if delta is None else replace(decision, mislabeled_N=decision.score_N < delta)


def as_text(label: Any) -> str:
    """12, 12.0 (a column of numbers with a gap) and "12" are one label."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _load_pyfunc(path: str) -> ServedDetector:
    return ServedDetector.load(Path(path))
