"""A run's classifier as a model: the folder that `serving.classifier` loads, with its own test predictions beside.

# N test images, K best classes
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from cleanscale.models.classifier import classifier_to_bytes
from cleanscale.models.heads import head_to_bytes
from cleanscale.registry.finished_run import FinishedRun, predicted_array
from cleanscale.registry.model_artifacts import (
    SETTINGS,
    Artifacts,
    class_names,
    copy,
    example_inputs,
    input_column,
    input_description,
    measured,
)
from cleanscale.serving import classifier as served
from cleanscale.serving.model_folder import write_description
from cleanscale.stages import head_classifier
from cleanscale.stages.features import PROJECTION
from cleanscale.storage import uris
from cleanscale.storage.tables import write_table

PREDICTIONS = "test_predictions.parquet"
OUTPUTS = Schema(
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


def classifier_artifacts(run: FinishedRun, folder: Path) -> Artifacts:
    """The run's classifier: its weights as the stage wrote them, and its own predictions of the test images."""
    folder.mkdir(parents=True)
    described = input_description(run) | {"labels": run.ingested("train").label_map().to_json()}
    if run.kind == "images":
        whole = head_classifier.load_classifier(run.classifier_folder)  # rows that lie by range of classes, together
        (folder / served.WEIGHTS).write_bytes(classifier_to_bytes(*whole))
    else:
        (folder / served.HEAD).write_bytes(head_to_bytes(head_classifier.load_head(run.classifier_folder)))
        if (projection := run.features().projection) is not None:
            copy(uris.join(projection, PROJECTION), folder / served.PROJECTION)
    write_description(folder, served.KIND, described)
    copy(run.path(SETTINGS), folder / SETTINGS)
    if run.tests:
        write_table(str(folder / PREDICTIONS), named_predictions(run))
    return Artifacts(
        served.KIND,
        served.__name__,
        folder,
        ModelSignature(
            inputs=Schema([input_column(run)]),
            outputs=OUTPUTS,
            params=ParamSchema([ParamSpec("top_k", DataType.long, served.TOP_K)]),
        ),
        example_inputs(run),
        run.manifest(run.classifier_folder).fingerprint,
        measured(run.metrics().get("classification", {}).get(run.classifier, {})),
    )


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
