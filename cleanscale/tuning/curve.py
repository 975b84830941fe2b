"""The curve of a budget sweep: error and accuracy against verification labels, and where more of them stop paying.

What is chosen by is the error on verification labels of classes that the repeat left out, whole. Errors by true labels
and test accuracies stand beside it and choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.maths import budgets
from cleanscale.maths.budgets import Budget
from cleanscale.maths.detection_metrics import ClassCounts, count_by_class
from cleanscale.maths.intervals import Measured, measured_errors, paired_errors
from cleanscale.storage import uris
from cleanscale.storage.tables import read_table
from cleanscale.tuning.settings import SweepSettings
from cleanscale.tuning.trial import CORRECT, JUDGED, TRUTH, Case, folder_of

GROUPS = ("evaluation", "verified_classes", "unverified_classes")


def cases(sweep: SweepSettings) -> list[Case]:
    """Every budget and repeat: the cheapest budgets first, whole repeats of each."""
    grid = [Budget(share, labels) for share in sweep.budget.classes for labels in sweep.budget.labels_per_class]
    grid.sort(key=lambda b: (b.classes * b.labels_per_class, b))
    return [Case(b.classes, b.labels_per_class, repeat) for b in grid for repeat in range(sweep.budget.repeats)]


def summarise(
    folder: str, sweep: SweepSettings, done: Mapping[Case, Mapping[str, Any]], unweighted: np.ndarray | None
) -> dict[str, Any]:
    """budget.json. done: what finished trials found; unweighted: [N] which test images the classifier had right before.

    Budgets of which no repeat ended are left out.
    """
    by_budget: dict[Budget, list[Case]] = {}
    for case in done:
        by_budget.setdefault(case.budget, []).append(case)
    top = budgets.largest(list(by_budget))
    labels = {b: float(np.mean([done[case]["labels"] for case in each])) for b, each in by_budget.items()}
    points, gaps = [], {}
    for budget in sorted(by_budget, key=lambda b: (labels[b], b)):
        point, gap = _point(folder, sweep, by_budget, budget, top, done)
        points.append(point | {"labels": labels[budget]})
        if gap is not None and gap.value is not None:
            gaps[budget] = gap
    chosen = budgets.stops_paying(labels, gaps, margin=sweep.budget.margin)
    enough = chosen is not None and chosen != top
    found = {
        "detector": sweep.detector.name,
        "margin": sweep.budget.margin,
        "stops_paying": _named(chosen, labels) if enough else None,
        "largest": _named(top, labels),
        "budgets": points,
    }
    if unweighted is not None:
        found["accuracy_without_verification"] = budgets.mean_accuracy(unweighted[None]).to_json()
    return found


def _named(budget: Budget | None, labels: Mapping[Budget, float]) -> dict[str, Any] | None:
    if budget is None:
        return None
    return {"classes": budget.classes, "labels_per_class": budget.labels_per_class, "labels": labels[budget]}


def _point(
    folder: str,
    sweep: SweepSettings,
    by_budget: Mapping[Budget, Sequence[Case]],
    budget: Budget,
    top: Budget,
    done: Mapping[Case, Mapping[str, Any]],
) -> tuple[dict[str, Any], Measured | None]:
    """What is known of one budget, and its error on evaluation classes minus that of the largest budget."""
    each, detector = by_budget[budget], sweep.detector.name
    sure: dict[str, int] = {"resamples": sweep.evaluate.resamples, "seed": sweep.run.seed}
    rows = _judged(folder, each)
    point: dict[str, Any] = {
        "classes": budget.classes,
        "labels_per_class": budget.labels_per_class,
        "verified_classes": float(np.mean([done[case]["verified_classes"] for case in each])),
        "repeats": len(each),
        "seconds": float(np.mean([done[case]["seconds"] for case in each])),
    }
    point["error"] = {
        name: {group: _error(rows, name, group, sure).to_json() for group in GROUPS} for name in _detectors(rows)
    }
    both = {case.repeat for case in each} & {case.repeat for case in by_budget[top]}
    gap = None
    if both:
        gap = _paired(
            *(_judged(folder, [c for c in by_budget[b] if c.repeat in both]) for b in (budget, top)), detector, sure
        )
        point["error_minus_largest"] = gap.to_json()
    known = _truth(folder, each)
    if known:
        point["true_error"] = {name: measured_errors(counts, **sure)[0].to_json() for name, counts in known.items()}
    correct = _correct(folder, each)
    if correct is not None:
        point["accuracy"] = budgets.mean_accuracy(correct, None, **sure).to_json()
        best = _correct(folder, by_budget[top])
        point["accuracy_minus_largest"] = budgets.mean_accuracy(correct, best, **sure).to_json()
    return point, gap


def _judged(folder: str, each: Sequence[Case]) -> pa.Table:
    """Verdicts of several repeats. `class` tells the classes of different repeats apart."""
    tables = []
    for case in each:
        table = read_table(uris.join(_folder(folder, case), JUDGED))
        unique = table["label"].to_numpy().astype(np.int64) * 1_000 + case.repeat
        tables.append(table.append_column("class", pa.array(unique)))
    return pa.concat_tables(tables, promote_options="permissive")


def _folder(folder: str, case: Case) -> str:
    from dataclasses import asdict

    return folder_of(folder, {"case": asdict(case)})


def _detectors(rows: pa.Table) -> list[str]:
    return [name.removesuffix(".mislabeled") for name in rows.column_names if name.endswith(".mislabeled")]


def _columns(rows: pa.Table, group: str, *names: str) -> list[np.ndarray]:
    rows = rows.filter(pa.array(rows["group"].to_numpy(zero_copy_only=False) == group))
    return [rows[name].to_numpy(zero_copy_only=False) for name in names]


def _error(rows: pa.Table, detector: str, group: str, sure: dict[str, int]) -> Measured:
    counts = count_by_class(*_columns(rows, group, "class", "wrong", f"{detector}.mislabeled"))
    return measured_errors(counts, **sure)[0]


def _paired(rows: pa.Table, best: pa.Table, detector: str, sure: dict[str, int]) -> Measured:
    """Difference of mean errors per class on the same evaluation images, which neither budget had."""
    order = [("class", "ascending"), ("row", "ascending")]
    names = ("class", "row", "wrong", f"{detector}.mislabeled")
    ours, theirs = (_columns(t.sort_by(order), "evaluation", *names) for t in (rows, best))
    assert (ours[1] == theirs[1]).all(), "repeats of all budgets are judged on the same images"
    return paired_errors(ours[0], ours[2], ours[3], theirs[3], **sure)[0]


def _truth(folder: str, each: Sequence[Case]) -> dict[str, ClassCounts]:
    """Counts by detector. Errors of a class are the mean over repeats, so that an interval is that of one draw."""
    places = [uris.join(_folder(folder, case), TRUTH) for case in each]
    tables = [read_table(place) for place in places if uris.exists(place)]
    if not tables:
        return {}
    label_C, images_C = tables[0]["label"].to_numpy(), tables[0]["images"].to_numpy()
    names = [name for name in tables[0].column_names if name.endswith(".errors")]
    return {
        name.removesuffix(".errors"): ClassCounts(
            label_C, images_C, np.mean([t[name].to_numpy() for t in tables], axis=0).round().astype(np.int64)
        )
        for name in names
    }


def _correct(folder: str, each: Sequence[Case]) -> np.ndarray | None:
    """bool [R, N]: which test images each repeat's classifier has right."""
    places = [uris.join(_folder(folder, case), CORRECT) for case in each]
    found = [read_table(place)["correct"].to_numpy(zero_copy_only=False) for place in places if uris.exists(place)]
    return np.stack(found) if found else None


def to_table(summary: Mapping[str, Any]) -> pa.Table:
    """budget.parquet: a row per budget, measures of the run's own detector with the ends of their intervals."""
    rows = []
    for point in summary["budgets"]:
        row = {
            name: point[name]
            for name in ("classes", "labels_per_class", "labels", "verified_classes", "repeats", "seconds")
        }
        measures = {"error": point["error"][summary["detector"]]["evaluation"]}
        measures["error_in_verified_classes"] = point["error"][summary["detector"]]["verified_classes"]
        measures["error_minus_largest"] = point.get("error_minus_largest")
        measures["true_error"] = point.get("true_error", {}).get(summary["detector"])
        measures["accuracy"] = point.get("accuracy")
        for name, measured in measures.items():
            for end in ("value", "low", "high"):
                column = name if end == "value" else f"{name}_{end}"
                row[column] = None if measured is None else measured[end]
        rows.append(row)
    return pa.Table.from_pylist(rows)
