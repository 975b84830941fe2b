"""A classifier that was registered: images (or features) in, classes and probabilities out.

`_load_pyfunc` is what MLflow calls to load a model of this kind (`loader_module`).

# N rows of a request, X usable ones, C classes, K best classes, D feature width
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from cleanscale.datasets.labels import LabelMap
from cleanscale.models.classifier import FeatureProjection, classifier_from_bytes
from cleanscale.models.heads import head_from_bytes
from cleanscale.serving.features import FromFeatures, FromImages
from cleanscale.serving.model_folder import read_description, read_npy
from cleanscale.serving.threads import threads_for

KIND = "classifier"
WEIGHTS, HEAD, PROJECTION = "classifier.safetensors", "head.safetensors", "projection.npy"
TOP_K = 5


@dataclass(frozen=True)
class ServedClassifier:
    """features: from a request's column to features. layers: from those to logits, projection included."""

    features: FromImages | FromFeatures
    layers: nn.Module
    labels: LabelMap
    num_classes: int
    threads: int

    @classmethod
    def load(cls, folder: Path) -> ServedClassifier:
        """Raises: DataError for another model or for weights that are none."""
        described = read_description(folder, KIND)
        labels = LabelMap.from_json(described["labels"])
        if described["input"] == "images":
            path = folder / WEIGHTS
            model, _ = classifier_from_bytes(path.read_bytes(), source=str(path))
            model.eval().requires_grad_(False)
            layers = nn.Sequential(model.projection or nn.Identity(), model.head)
            source: FromImages | FromFeatures = FromImages(model.backbone, described["evaluation_crop"])
            return cls(source, layers.eval(), labels, model.num_classes, torch.get_num_threads())
        head = head_from_bytes((folder / HEAD).read_bytes())
        projected = (folder / PROJECTION).exists()
        first = FeatureProjection(torch.from_numpy(read_npy(folder / PROJECTION))) if projected else nn.Identity()
        layers, source = nn.Sequential(first, head).eval(), FromFeatures(described["feature_width"])
        return cls(source, layers, labels, head.config["num_classes"], torch.get_num_threads())

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row for each row: `label`, `class_name`, `probability`, the `top_*` lists, best first, and `error`.

        params: `top_k`, how many classes the lists hold. A row that cannot be used has an `error` and nothing else.
        """
        top = min(int((params or {}).get("top_k") or TOP_K), self.num_classes)
        with threads_for(len(model_input), self.threads):
            made = self.features(model_input[self.features.column].tolist())
            label_XK, probability_XK = self.best(made.feature_XD, top)
        rows: list[dict[str, Any]] = [
            {"label": None, "class_name": None, "probability": None}
            | {"top_labels": [], "top_classes": [], "top_probabilities": [], "error": error}
            for error in made.error_N
        ]
        for position, label_K, probability_K in zip(
            made.usable, label_XK.tolist(), probability_XK.tolist(), strict=True
        ):
            names = [self.labels.name_of(label) for label in label_K]
            rows[position] |= {"label": label_K[0], "class_name": names[0], "probability": probability_K[0]}
            rows[position] |= {"top_labels": label_K, "top_classes": names, "top_probabilities": probability_K}
        return pd.DataFrame(rows, index=model_input.index, dtype=object)

    @torch.inference_mode()
    def best(self, feature_XD: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """(labels int64 [X, K], probabilities float32 [X, K]) of the most probable classes."""
        label = [np.empty((0, top), np.int64)]
        probability = [np.empty((0, top), np.float32)]
        for start in range(0, len(feature_XD), 4096):
            feature_BD = torch.from_numpy(feature_XD[start : start + 4096].astype(np.float32))
            best = self.layers(feature_BD).softmax(dim=1).topk(top, dim=1)
            label.append(best.indices.numpy())
            probability.append(best.values.numpy())
        return np.concatenate(label), np.concatenate(probability)


def _load_pyfunc(path: str) -> ServedClassifier:
    return ServedClassifier.load(Path(path))
