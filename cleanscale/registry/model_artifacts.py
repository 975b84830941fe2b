"""What of a run becomes a model: the folder that `cleanscale.serving` loads, with MLflow's signature and an example.

# N rows
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array

from cleanscale.datasets.fragments import read_fragment
from cleanscale.datasets.labels import LabelMap
from cleanscale.registry.finished_run import FinishedRun, predicted_array
from cleanscale.serving import classifier as served_classifier
from cleanscale.serving.model_folder import write_description
from cleanscale.stages import classifier as classifier_stage
from cleanscale.stages import head_classifier
from cleanscale.stages.features import PROJECTION
from cleanscale.stages.ingest import Ingested
from cleanscale.storage import uris
from cleanscale.storage.tables import write_table

SETTINGS, PREDICTIONS = "settings.toml", "test_predictions.parquet"
CLASSIFIER_OUTPUTS = Schema(
    [
        ColSpec(DataType.long, "label", required=False),
        ColSpec(DataType.string, "class_name", required=False),
        ColSpec(DataType.double, "probability", required=False),
        ColSpec(Array(DataType.long), "top_labels"),
        ColSpec(Array(DataType.string), "top_classes"),
        ColSpec(Array(DataType.double), "top_probabilities"),
        ColSpec(DataType.string, "error", required=False),
    ]
)


@dataclass(frozen=True)
class Artifacts:
    """A model ready for MLflow. fingerprint: of the stage that made the weights."""

    kind: str
    loader_module: str
    folder: Path
    signature: ModelSignature
    example: pd.DataFrame
    fingerprint: str
    metrics: dict[str, float] = field(default_factory=dict)


def classifier_artifacts(run: FinishedRun, folder: Path) -> Artifacts:
    """The run's classifier: its weights as the stage wrote them, and its own predictions of the test images."""
    folder.mkdir(parents=True)
    described = input_description(run) | {"labels": run.ingested("train").label_map().to_json()}
    if run.kind == "images":
        copy(uris.join(run.classifier_folder, classifier_stage.MODEL), folder / served_classifier.WEIGHTS)
    else:
        copy(uris.join(run.classifier_folder, head_classifier.HEAD), folder / served_classifier.HEAD)
        if (projection := run.features().projection) is not None:
            copy(uris.join(projection, PROJECTION), folder / served_classifier.PROJECTION)
    write_description(folder, served_classifier.KIND, described)
    copy(run.path(SETTINGS), folder / SETTINGS)
    if run.tests:
        write_table(str(folder / PREDICTIONS), named_predictions(run))
    example = example_inputs(run)
    return Artifacts(
        served_classifier.KIND,
        served_classifier.__name__,
        folder,
        ModelSignature(
            inputs=Schema([input_column(run)]),
            outputs=CLASSIFIER_OUTPUTS,
            params=ParamSchema([ParamSpec("top_k", DataType.long, served_classifier.TOP_K)]),
        ),
        example,
        run.manifest(run.classifier_folder).fingerprint,
        measured(run.metrics().get("classification", {}).get(run.classifier, {})),
    )


def input_description(run: FinishedRun) -> dict[str, Any]:
    train = run.ingested("train")
    if run.kind == "images":
        return {"input": "images", "evaluation_crop": run.settings.augmentation.evaluation_crop}
    return {"input": "features", "feature_width": train.feature_width}


def input_column(run: FinishedRun) -> ColSpec:
    """`image`, encoded, or `feature` for a run whose input was features and which therefore has no backbone."""
    return (
        ColSpec(DataType.binary, "image") if run.kind == "images" else ColSpec(Array(DataType.double), "feature")
    )


LABEL_COLUMN = ColSpec(AnyType(), "label")  # a class name or a class id


def named_predictions(run: FinishedRun) -> pa.Table:
    """id, label and predicted classes (best first) of the test images, by name: classes of two runs may be numbered
    differently."""
    table = run.test_predictions()
    test = run.ingested("test")
    labels = run.ingested("train").label_map()
    predicted_NK = predicted_array(table)
    names = np.array([labels.name_of(int(label)) for label in np.unique(predicted_NK)], object)
    flat = names[np.searchsorted(np.unique(predicted_NK), predicted_NK.reshape(-1))]
    return pa.table(
        {
            "row": table["row"],
            "id": test.ids(table["row"].to_numpy()),
            "label": class_names(labels, table["label"].to_numpy()),
            "predicted": pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.string()), predicted_NK.shape[1]),
        }
    )


def class_names(labels: LabelMap, label_N: np.ndarray) -> pa.Array:
    return pa.array([labels.name_of(int(label)) for label in label_N], pa.string())


def example_inputs(run: FinishedRun) -> pd.DataFrame:
    """The first image (or feature) of the test set, or else of the training set."""
    data = run.ingested("test" if run.tests else "train")
    row_N = data.accepted_rows()[:1]
    contents = read_inputs(data, row_N)
    return pd.DataFrame({"image" if data.kind == "images" else "feature": [contents[int(row_N[0])]]})


def read_inputs(data: Ingested, row_M: np.ndarray) -> dict[int, Any]:
    """Encoded images, or features as lists of numbers, of these rows."""
    column = "image" if data.kind == "images" else "feature"
    found: dict[int, Any] = {}
    for fragment, _ in data.plan().fragments_of(row_M):
        for table in read_fragment(fragment, data.settings, (column,), row_M):
            found |= dict(zip(table["row"].to_pylist(), table[column].to_pylist(), strict=True))
    return found


def measured(part: dict[str, Any]) -> dict[str, float]:
    """{"top1": {"value": ..}} -> {"top1": ..}: what metrics.json says, without what was not defined."""
    found: dict[str, float] = {}
    for name, one in part.items():
        with contextlib.suppress(KeyError, TypeError):
            found |= {f"{name}{end}": float(one[key]) for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))}
    return found


def copy(uri: str, path: Path) -> None:
    path.write_bytes(uris.read_bytes(uri))
