"""What every model made of a run has: its folder, MLflow's signature, an example of its input.

# M rows
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType
from mlflow.types.schema import AnyType, Array

from cleanscale.datasets.fragments import read_fragment
from cleanscale.datasets.labels import LabelMap
from cleanscale.registry.finished_run import FinishedRun
from cleanscale.stages.ingest import Ingested
from cleanscale.storage import uris

SETTINGS = "settings.toml"

LABEL_COLUMN = ColSpec(AnyType(), "label")  # a class name or a class id


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


def input_description(run: FinishedRun) -> dict[str, Any]:
    train = run.ingested("train")
    if run.kind == "images":
        return {"input": "images", "evaluation_crop": run.settings.augmentation.evaluation_crop}
    return {"input": "features", "feature_width": train.feature_width}


def input_column(run: FinishedRun) -> ColSpec:
    """`image`, encoded, or `feature` for a run whose input was features and which therefore has no backbone."""
    return ColSpec(DataType.binary, "image") if run.kind == "images" else ColSpec(Array(DataType.double), "feature")


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
    ends = (("value", ""), ("low", "_low"), ("high", "_high"))
    found = {name + end: one.get(key) for name, one in part.items() for key, end in ends}
    return {name: float(value) for name, value in found.items() if value is not None}


def copy(uri: str, path: Path) -> None:
    path.write_bytes(uris.read_bytes(uri))
