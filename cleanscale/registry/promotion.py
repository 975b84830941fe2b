"""Is a version better than the one that has the alias? Both judged on the same rows, with a paired 95 % interval.

Classifiers are compared by top-1 accuracy on the run's test images: the new one with the predictions that its own job
stored, the champion with its stored ones when the test files are the same and by predicting otherwise. A new classifier
is better when the whole interval of the difference lies above 0.

Detectors are compared by their errors on images that both runs have verification labels of, each decided by a detector
that saw none of the class (class folds). True labels, where a run knows them, are for its evaluation alone and have no
say here. A new detector goes with its classifier unless the whole interval says that it is worse.

# N test images, V verified images
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cleanscale.errors import DataError
from cleanscale.maths.intervals import Measured, measured_accuracy, paired_accuracy
from cleanscale.registry.classifier_artifacts import PREDICTIONS, named_predictions
from cleanscale.registry.detector_artifacts import DECISIONS
from cleanscale.registry.finished_run import FinishedRun
from cleanscale.registry.model_artifacts import read_inputs
from cleanscale.registry.store import INPUT, TEST, Store
from cleanscale.storage.tables import read_table

BATCH = 1024
KEY = ["id", "label"]


@dataclass(frozen=True)
class Comparison:
    """passed: whether it allows the promotion. measured: new, champion and difference (new minus champion), in %."""

    model: str
    passed: bool
    reason: str
    measured: dict[str, Measured]
    against: str | None = None  # the version that had the alias

    def lines(self) -> list[str]:
        """What a person is shown."""
        shown = [f"{self.model}: {self.reason}"]
        for name, one in self.measured.items():
            if one.value is not None:
                sign = "+" if name == "difference" else ""
                interval = "" if one.low is None else f" [{one.low:{sign}.2f}, {one.high:{sign}.2f}]"
                shown.append(f"  {name:<10} {one.value:{sign}.2f} %{interval}, n = {one.n}")
        return shown

    def to_json(self) -> dict[str, Any]:
        numbers = {name: one.to_json() for name, one in self.measured.items()}
        return {"passed": self.passed, "reason": self.reason, "against_version": self.against} | numbers


def compare_classifiers(run: FinishedRun, store: Store, model: str, version: str, champion: ModelVersion) -> Comparison:
    """Top-1 accuracy of two versions on the run's test images."""
    holder = str(champion.version)
    if not run.tests:
        reason = "the run has no test set, so nothing says that it is better (train with --data.test, or give --force)"
        return Comparison(model, False, reason, {}, holder)
    own = named_predictions(run)
    theirs_N = champion_predictions(run, store, model, champion, own)
    truth_N = own["label"].to_numpy(zero_copy_only=False)
    if not np.isin(theirs_N, truth_N).any():
        raise DataError(
            f"{model} version {holder} gives none of the classes of this run's test set; expected a model for the same "
            "classes; promote with --force to replace it, or register under another --name"
        )
    correct_N, other_N = first_of(own) == truth_N, theirs_N == truth_N
    difference = paired_accuracy(correct_N, other_N)
    better = difference.low is not None and difference.low > 0
    word = "better than" if better else "not better than"
    return Comparison(
        model,
        better,
        f"top-1 accuracy on the run's test images: version {version} is {word} version {holder}",
        {"new": measured_accuracy(correct_N), "champion": measured_accuracy(other_N), "difference": difference},
        holder,
    )


def champion_predictions(
    run: FinishedRun, store: Store, model: str, champion: ModelVersion, own: pa.Table
) -> np.ndarray:
    """Class names [N] that the champion gives to the images of `own`; a class that it does not know is never right."""
    stored = stored_table(store, model, str(champion.version), f"data/classifier/{PREDICTIONS}")
    if champion.tags.get(TEST) == run.test_files() and stored.num_rows:
        position = {row: n for n, row in enumerate(stored["row"].to_pylist())}
        if all(row in position for row in own["row"].to_pylist()):
            return first_of(stored)[[position[row] for row in own["row"].to_pylist()]]
    if champion.tags.get(INPUT) != run.kind:
        raise DataError(
            f"{model} version {champion.version} takes {champion.tags.get(INPUT)} and this run {run.kind}; expected "
            "the same to compare them on the same rows; promote with --force, or register under another --name"
        )
    served = mlflow.pyfunc.load_model(f"models:/{model}/{champion.version}")
    test = run.ingested("test")
    column = "image" if run.kind == "images" else "feature"
    row_N = own["row"].to_numpy()
    found = []
    for start in range(0, len(row_N), BATCH):
        row_B = row_N[start : start + BATCH]
        contents = read_inputs(test, row_B)
        predicted = served.predict(pd.DataFrame({column: [contents[row] for row in row_B.tolist()]}))
        if predicted["error"].notna().all():
            reason = predicted["error"].iloc[0]
            raise DataError(
                f"{model} version {champion.version} can use none of this run's test rows ({reason}); "
                "expected the same kind of input; promote with --force to replace it, or register under another --name"
            )
        found.append(predicted["class_name"].to_numpy(object))
    return np.concatenate(found)


def compare_detectors(store: Store, model: str, version: str, champion: ModelVersion) -> Comparison:
    """Errors of two versions on images that both have verification labels of; each decision by class folds."""
    holder = str(champion.version)
    path = f"data/detector/{DECISIONS}"
    own = stored_table(store, model, version, path).to_pandas()
    theirs = stored_table(store, model, holder, path).to_pandas()
    # One person's later opinion may differ: the newest verification label counts for both.
    both = own.merge(theirs, on=KEY, suffixes=("", "_champion")) if len(own) and len(theirs) else own.head(0)
    if not len(both):
        reason = f"no image has a verification label in both runs: version {version} goes with its classifier"
        return Comparison(model, True, reason, {}, holder)
    correct_V = both["mislabeled"].to_numpy() == both["wrong"].to_numpy()
    other_V = both["mislabeled_champion"].to_numpy() == both["wrong"].to_numpy()
    difference = paired_accuracy(correct_V, other_V)
    worse = difference.high is not None and difference.high < 0
    return Comparison(
        model,
        not worse,
        f"labels judged rightly, of verified images by class folds: version {version} is "
        f"{'worse than' if worse else 'not worse than'} version {holder}",
        {"new": measured_accuracy(correct_V), "champion": measured_accuracy(other_V), "difference": difference},
        holder,
    )


def stored_table(store: Store, model: str, version: str, path: str) -> pa.Table:
    """A table that lies in a version; an empty one where it has none."""
    assert store.client is not None  # the store is the one that MLflow asks from here on
    with tempfile.TemporaryDirectory() as scratch:
        try:
            local = mlflow.artifacts.download_artifacts(f"models:/{model}/{version}/{path}", dst_path=scratch)
        except (MlflowException, OSError):
            return pa.table({})
        return read_table(str(Path(local)))


def first_of(predictions: pa.Table) -> np.ndarray:
    """object [N]: the most probable class of each row."""
    column = predictions["predicted"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(predictions.num_rows, -1)[:, 0]
