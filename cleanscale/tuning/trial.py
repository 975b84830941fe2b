"""One trial: a try of settings, which gives its objective; or a verification budget, which gives a judgement.

Both begin at the features that all trials share and run in one process. What a trial found lies in its folder as
`trial.json`, written last; a trial that has one is not run again.

# V verified images, N test images
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale import judging, pipeline
from cleanscale.config import Settings
from cleanscale.engine.search import Reporter
from cleanscale.judging import Made
from cleanscale.maths import budgets
from cleanscale.maths.budgets import Budget
from cleanscale.maths.detection_metrics import count_by_class, error_per_class
from cleanscale.stages import cleannet, evaluate, head_classifier, predictions
from cleanscale.stages.place import Place
from cleanscale.stages.supervision import AS_LABELLED, Supervision
from cleanscale.storage import uris
from cleanscale.storage.manifests import fingerprint, read_json, write_json
from cleanscale.storage.tables import read_table, write_table
from cleanscale.tuning import objective
from cleanscale.tuning.settings import BudgetSettings
from cleanscale.tuning.shared import Shared, check_treatment, place_of_trial
from cleanscale.tuning.space import with_values

RESULT, JUDGED, TRUTH, CORRECT = "trial.json", "judged.parquet", "truth.parquet", "correct.parquet"
# Folders of a judgement that only its trial reads; what is found in them stays.
BULKY = ("cleannet", "cleannet_published", "class_index", "relevance", "classifier", "test_predictions")


@dataclass(frozen=True)
class Case:
    """A budget and the repeat that draws it: what a trial of a budget sweep is about."""

    classes: float
    labels_per_class: int
    repeat: int

    @property
    def budget(self) -> Budget:
        return Budget(self.classes, self.labels_per_class)

    @property
    def name(self) -> str:
        return f"{self.budget.name.replace('%', 'pct')}-{self.repeat}"


def name_of(config: Mapping[str, Any]) -> str:
    """Folder of a trial: says which budget, or stands for the values that are tried."""
    if "case" in config:
        return Case(**config["case"]).name
    return fingerprint(dict(config))[:10]


def folder_of(sweep: str, config: Mapping[str, Any]) -> str:
    return uris.join(sweep, "trials", name_of(config))


def finished(sweep: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a trial found; None where it did not end."""
    return read_json(uris.join(folder_of(sweep, config), RESULT))


# ---- a try of settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Try:
    """Callable with a trial's values: the error on verified classes, fold by fold, of a run with those settings."""

    shared: Shared
    sweep: str
    every: int  # steps of CleanNet between two reports
    own_evidence: bool  # heads or evidence are searched, so each trial makes its own

    def __call__(self, config: dict[str, Any], reporter: Reporter) -> None:
        done = finished(self.sweep, config)
        if done is None:
            done = self.run(config, reporter)
            write_json(uris.join(folder_of(self.sweep, config), RESULT), done)
        reporter.report(done["objective"], done["steps"])

    def run(self, config: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
        started = time.monotonic()
        settings = with_values(self.shared.settings, config)
        place = place_of_trial(self.shared, folder_of(self.sweep, config))
        history: list[list[float]] = []

        def hear(error: float, steps: int) -> None:
            history.append([steps, round(error, 4)])
            reporter.report(error, steps)

        error, steps = try_settings(settings, place, self.shared, self.every, self.own_evidence, hear)
        return {
            "values": dict(config),
            "objective": error,
            "steps": steps,
            "reports": history,
            "seconds": round(time.monotonic() - started, 2),
        }


def try_settings(
    settings: Settings, place: Place, shared: Shared, every: int, own_evidence: bool, hear: Any
) -> tuple[float, int]:
    """(error on verified classes, optimiser steps of CleanNet); hear(error, steps) before it is whole."""
    checked = shared.verification()
    detector = settings.detector.name
    sets = shared.references_of(settings)
    seen: Made | None = shared.evidence if objective.needs_evidence(detector) else None
    if seen is not None and own_evidence:
        seen = evidence_of(settings, place, shared)

    def error_with(cosines: tuple[np.ndarray, np.ndarray] | None) -> float | None:
        evidence, verified_N = objective.verified_evidence(
            shared.features,
            checked,
            detector,
            evidence=seen and seen[0],
            references=sets[0],
            cosines=cosines,
        )
        known_N = np.isfinite(evidence.signals[objective.COSINE]) if cosines else np.ones(len(evidence), bool)
        return objective.class_fold_error(
            detector,
            evidence.select(known_N),
            verified_N[known_N],
            class_folds=settings.evidence.class_folds,
            seed=place.seed,
            delta=settings.detector.delta,
        )

    cosines, steps = None, 1
    if objective.needs_cleannet(detector):

        def on_cosines(step: int, row_V: np.ndarray, cosine_V: np.ndarray) -> None:
            order_V = np.argsort(row_V)
            error = error_with((row_V[order_V], cosine_V[order_V]))
            if error is not None:
                hear(error, step)

        folder, resolved = place.path("cleannet"), settings.cleannet.resolved()
        cleannet.run(
            place,
            folder,
            shared.features,
            sets,
            checked,
            settings.cleannet,
            on_cosines=on_cosines,
            cosines_every=every,
        )
        cosines, steps = cleannet.cross_fitted(folder), most_steps(resolved)
    error = error_with(cosines)
    assert error is not None, "a sweep has at least two verified classes"
    return error, steps


def evidence_of(settings: Settings, place: Place, shared: Shared) -> Made:
    """A trial's own heads and signals, where settings of theirs are searched."""
    sets, folder = shared.references_of(settings), place.path("evidence")
    return judging.make_evidence(settings, place, shared.inputs.train, shared.features, sets, folder)


def most_steps(resolved: Any) -> int:
    """Optimiser steps of CleanNet and its folds."""
    start = resolved.start_steps if resolved.fold_start == "unverified" else 0
    return start + (resolved.class_folds + 1) * resolved.steps


# ---- a judgement: of a budget, and of the best settings --------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """Callable with a case: everything that follows from so many verification labels, and how good it is."""

    shared: Shared
    sweep: str
    budget: BudgetSettings
    seed: int

    def __call__(self, config: dict[str, Any], reporter: Reporter) -> None:
        done = finished(self.sweep, config)
        if done is None:
            done = self.run(Case(**config["case"]))
            write_json(uris.join(folder_of(self.sweep, config), RESULT), done)
        reporter.report(done["error"], max(1, done["labels"]))

    def run(self, case: Case) -> dict[str, Any]:
        started = time.monotonic()
        place = place_of_trial(self.shared, folder_of(self.sweep, {"case": asdict(case)}))
        checked = self.shared.verification()
        row_V, label_V = checked["row"].to_numpy(), checked["label"].to_numpy()
        how: dict[str, int] = {"seed": self.seed, "repeat": case.repeat, "folds": self.budget.evaluation_folds}
        drawn_V = budgets.draw(row_V, label_V, case.budget, **how)
        judges_V = np.isin(label_V, budgets.evaluation_classes(label_V, **how))
        given = checked.filter(pa.array(drawn_V))
        judged = judge(self.shared.settings, place, self.shared, given, cleannet=self.budget.cleannet)
        table = verdicts(judged, self.shared, checked, judges_V, drawn_V)
        write_table(place.path(JUDGED), table)
        known = truth(judged, self.shared)
        if known is not None:
            write_table(place.path(TRUTH), known)
        found = {
            **asdict(case),
            "labels": int(drawn_V.sum()),
            "verified_classes": len(np.unique(label_V[drawn_V])),
            "error": error_of(table, self.shared.settings.detector.name, "evaluation"),
            "top1": top1(self.shared.settings, place, self.shared, judged),
            "seconds": round(time.monotonic() - started, 2),
            "stage_seconds": {name: round(s, 2) for name, s in place.seconds.items()},
        }
        for name in BULKY:
            uris.remove_tree(place.path(name))
        return found


def judge(
    settings: Settings, place: Place, shared: Shared, given: pa.Table, own_evidence: bool = False, cleannet: bool = True
) -> Made:
    """The judgement of every label from these verification labels, with CleanNet or without it."""
    sets, seen = shared.references_of(settings), shared.evidence
    if own_evidence:
        seen = evidence_of(settings, place, shared)
    return judging.judge(
        settings,
        place,
        shared.inputs.train,
        shared.features,
        sets,
        seen,
        given,
        place.path,
        with_cleannet=cleannet or objective.needs_cleannet(settings.detector.name) or settings.treatment.name == "soft",
    )


def verdicts(judged: Made, shared: Shared, checked: pa.Table, judges_V: np.ndarray, drawn_V: np.ndarray) -> pa.Table:
    """What every detector said of the verified images that this budget did not have, and what is known of them.

    wrong: what the user found. group: evaluation (classes that judge the repeat), verified_classes (the rest of those
    that the budget has labels of), or unverified_classes.
    """
    row_V, label_V = checked["row"].to_numpy(), checked["label"].to_numpy()
    left_V = ~drawn_V
    group_V = np.where(
        judges_V,
        "evaluation",
        np.where(np.isin(label_V, label_V[drawn_V]), "verified_classes", "unverified_classes"),
    )
    pieces = []
    for shard in shared.features.shards:
        if shard.contains(label_V, row_V).any():
            table = read_table(uris.join(judged[0], "decisions", f"{shard.name}.parquet"))
            pieces.append(table.filter(pa.array(np.isin(table["row"].to_numpy(), row_V[left_V]))))
    table = pa.concat_tables(pieces).sort_by("row")
    names = [n for n in table.column_names if n in ("row", "label") or n.endswith(".mislabeled")]
    order_V = np.argsort(row_V)
    at_N = order_V[np.searchsorted(row_V[order_V], table["row"].to_numpy())]
    table = table.select(names)
    return table.append_column("wrong", pa.array(checked["verified"].to_numpy()[at_N] == 0)).append_column(
        "group", pa.array(group_V[at_N])
    )


def error_of(table: pa.Table, detector: str, group: str) -> float | None:
    """Mean error per class in percent on the rows of a group."""
    table = table.filter(pa.array(table["group"].to_numpy(zero_copy_only=False) == group))
    columns = [table[name].to_numpy(zero_copy_only=False) for name in ("label", "wrong", f"{detector}.mislabeled")]
    return error_per_class(count_by_class(*columns))


def truth(judged: Made, shared: Shared) -> pa.Table | None:
    """label, images and `<detector>.errors` of classes without any verification label; None: no truth is known there.

    For the report alone: nothing is chosen by it.
    """
    settings = shared.settings
    known = evaluate.judgements(
        judged[0], shared.features, shared.inputs.train, settings.evaluate.images, settings.run.seed
    )
    held_N = known.groups()["held_out_classes"] if known else np.zeros(0, bool)
    if known is None or not held_N.any():
        return None
    columns: dict[str, np.ndarray] = {}
    for name, mislabeled_N in known.mislabeled.items():
        counts = count_by_class(known.label_N[held_N], known.wrong_N[held_N], mislabeled_N[held_N])
        columns |= {"label": counts.label_C, "images": counts.images_C, f"{name}.errors": counts.errors_C}
    return pa.table(columns)


def top1(settings: Settings, place: Place, shared: Shared, judged: Made | None) -> float | None:
    """Accuracy in percent of fully connected layers on the shared features, weighted by the judgement; None: all 1.

    Which test images are right lies in the folder, for intervals and differences.
    """
    if shared.test is None:
        return None
    trained = shared.trained
    if judged is not None:
        check_treatment(settings)
        weights = uris.join(judged[0], "weights.npy"), judged[1]
        made = judging.stage(
            place.path("classifier"),
            head_classifier.run,
            place,
            shared.features,
            shared.inputs.train.num_classes,
            head_classifier.head_settings(settings.heads, settings.classifier),
            supervision=AS_LABELLED if settings.treatment.name == "none" else Supervision.of_weights(weights),
            backbone=None,
        )
        trained = pipeline.Trained(made, trained.backbone, shared.features.projection)
    found = predictions.run(place, place.path("test_predictions"), shared.test, trained.made, trained.projection)
    correct_N = found.correct(1)
    write_table(place.path(CORRECT), pa.table({"row": found.row_N, "correct": correct_N}))
    return float(100 * correct_N.mean())
