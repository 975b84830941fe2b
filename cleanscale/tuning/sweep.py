"""A sweep from its settings to its outcome: shared stages, trials, and the curve or the best settings.

The sweep's folder is <run.uri>/tune/<name>, and a stage like any other: its manifest is written last, the same command
after a kill goes on, and a sweep whose settings or inputs changed is done anew.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import tomli_w

from cleanscale import config
from cleanscale.engine.here import Here, in_this_process
from cleanscale.engine.search import OBJECTIVE, TIME, Plan, Tried, run_trials
from cleanscale.engine.session import session
from cleanscale.errors import StageError
from cleanscale.maths.detection_metrics import ClassCounts
from cleanscale.maths.intervals import measured_accuracy, measured_errors
from cleanscale.reporting import formats, sweeps
from cleanscale.reporting.progress import Progress, Step
from cleanscale.reporting.terminal import report_console
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import StageFolder, open_stage, read_json, write_json
from cleanscale.storage.tables import read_table, write_table
from cleanscale.tracking import Silent, TrackingSettings, tracked, tracking_uri
from cleanscale.tuning import curve, shared, trial
from cleanscale.tuning.settings import SweepSettings, shown
from cleanscale.tuning.shared import Shared
from cleanscale.tuning.space import with_values
from cleanscale.tuning.trial import Judgement, Try

log = logging.getLogger(__name__)

BUDGET, SEARCH, BEST, FIGURE = "budget.json", "search.json", "best.toml", "figures/verification_budget.png"
# Sections of the run whose settings trials read; what comes before is in the fingerprints of the shared stages.
AFTER_FEATURES = ("references", "cleannet", "heads", "classifier", "evidence", "detector", "treatment", "evaluate")
# Changing how fast a sweep goes does not make it another sweep.
PACE = {"max_concurrent", "name", "run", "cpus_per_trial"}


def run(sweep: SweepSettings, progress: Progress) -> dict[str, Any]:
    """The whole sweep; returns what budget.json or search.json holds. Raises: ConfigError, DataError, StageError."""
    place = Place(sweep.run_uri, sweep.run.seed, sweep.engine, progress)
    with session(sweep.engine):
        started = time.monotonic()
        parts = shared.make(sweep, place)
        shared_s = time.monotonic() - started
        log.info("shared stages are there after %s", formats.duration(shared_s))
        assert sweep.tune.name is not None
        folder = place.path("tune", sweep.tune.name)
        stage = open_stage(folder, "tune", key(sweep), shared.key(parts))
        name = BUDGET if not sweep.space else SEARCH
        if stage.complete is None:
            uris.write_bytes(stage.path("settings.toml"), settings_toml(sweep))
            with tracked(tracking_beside(sweep), folder) as parent:
                parent.parameters(shown(sweep))
                with Trials(sweep, folder, parent, progress) as listener:
                    tried = run_trials(work(sweep, parts, folder), plan(sweep, parts, folder), listener)
                found = outcome(sweep, parts, stage, tried)
                parent.report("outcome", headline(found))
                for artifact in (name, BEST, FIGURE):
                    if uris.exists(stage.path(artifact)):
                        parent.artifact(artifact, uris.read_bytes(stage.path(artifact)))
            seconds = round(time.monotonic() - started, 1)
            failed = [one.error for one in tried if one.error]
            if failed:
                log.warning(
                    "%d of %d trials failed (%s); the same command tries them again", len(failed), len(tried), failed[0]
                )
            else:
                stage.finish(notes={"seconds": seconds, "shared_seconds": round(shared_s, 1)})
    return read_json(uris.join(folder, name))


def key(sweep: SweepSettings) -> dict[str, Any]:
    """Everything that changes what a sweep finds: a sweep with another key is done anew."""
    own = shown(sweep)
    own["tune"] = {name: value for name, value in own["tune"].items() if name not in PACE}
    run_settings = sweep.base.model_dump(mode="json")
    run_settings["cleannet"] = sweep.base.cleannet.resolved().model_dump(mode="json")
    return own | {name: run_settings[name] for name in AFTER_FEATURES}


def settings_toml(sweep: SweepSettings) -> bytes:
    """The sweep and its run as used: given to `tune` again, it is the same sweep."""
    document = config.plain(sweep.base) | shown(sweep)
    return tomli_w.dumps(document).encode()


def plan(sweep: SweepSettings, parts: Shared, folder: str) -> Plan:
    tune, base = sweep.tune, sweep.base
    pace: dict[str, Any] = {
        "folder": folder,
        "seed": tune.seed,
        "max_concurrent": tune.max_concurrent,
        "cpus_per_trial": tune.cpus_per_trial,
        "use_gpu": sweep.engine.use_gpu,
        "limit_s": tune.limit_s,
        "max_failures": sweep.engine.max_failures,
    }
    if not sweep.space:
        return Plan(cases=[asdict(case) for case in curve.cases(sweep)], **pace)
    dimensions = sweep.dimensions
    return Plan(
        space=dimensions,
        trials=tune.trials,
        stop_bad_after=tune.stop_bad_after if tune.stop_bad else None,
        most_steps=trial.most_steps(base.cleannet.resolved()),
        reduction=tune.reduction,
        **pace,
    )


def work(sweep: SweepSettings, parts: Shared, folder: str) -> Any:
    if not sweep.space:
        return Judgement(parts, folder, sweep.budget, sweep.tune.seed)
    own = any(name.startswith(("heads.", "evidence.")) for name in sweep.dimensions)
    return Try(parts, folder, max(1, sweep.tune.stop_bad_after // 2), own)


def tracking_beside(sweep: SweepSettings) -> TrackingSettings:
    """The store of the run that the sweep is about, not one inside its folder."""
    return sweep.tracking.model_copy(update={"uri": tracking_uri(sweep.tracking, sweep.run_uri)})


class Trials:
    """What is heard of trials: progress, and an MLflow run for each below the sweep's; all of them end."""

    def __init__(self, sweep: SweepSettings, folder: str, parent: Silent, progress: Progress) -> None:
        self.folder, self.parent = folder, parent
        total = sweep.tune.trials if sweep.space else len(curve.cases(sweep))
        self.progress = progress.step("trials", total, "trials")
        self.step: Step | None = None
        self.runs: dict[str, tuple[Silent, contextlib.AbstractContextManager[Silent]]] = {}

    def __enter__(self) -> Trials:
        self.step = self.progress.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for name in list(self.runs):  # whatever ends the sweep ends its trials
            self.close(name, error or KeyboardInterrupt())
        self.progress.__exit__(kind, error, trace)

    def close(self, name: str, error: BaseException | None) -> None:
        _, ending = self.runs.pop(name)
        ending.__exit__(None if error is None else type(error), error, None)

    def started(self, config: Mapping[str, Any]) -> None:
        name = trial.name_of(config)
        if name not in self.runs:
            ending = self.parent.child(name, {"cleanscale.trial": name})
            self.runs[name] = ending.__enter__(), ending
            self.runs[name][0].parameters(config.get("case", config))

    def reported(self, config: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        self.started(config)
        self.runs[trial.name_of(config)][0].report("trial", {OBJECTIVE: numbers[OBJECTIVE]}, int(numbers[TIME]))

    def ended(self, config: Mapping[str, Any], *, failed: bool) -> None:
        name = trial.name_of(config)
        self.started(config)
        done = trial.finished(self.folder, config)
        if done is not None:
            self.runs[name][0].report("trial", {k: v for k, v in done.items() if isinstance(v, (int, float))})
        words = "failed" if failed else "stopped early" if done is None else said(done)
        self.runs[name][0].tags({"cleanscale.ended": words})
        self.close(name, RuntimeError(name) if failed else None)
        assert self.step is not None
        self.step.advance(1)
        log.info("trial %s: %s", name, words)


def said(done: Mapping[str, Any]) -> str:
    """`21.3 % error, 34 s`"""
    error = done.get("objective", done.get("error"))
    words = "no error measured" if error is None else f"{error:.2f} % error"
    accuracy = "" if done.get("top1") is None else f", {done['top1']:.2f} % top-1"
    return f"{words}{accuracy}, {formats.duration(done['seconds'])}"


def headline(found: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers of the sweep's own MLflow run."""
    if "budgets" in found:
        chosen = found["stops_paying"]
        return {
            "stops_paying_labels": chosen["labels"] if chosen else None,
            "largest_labels": found["largest"]["labels"],
        }
    return {"best_objective": found["best"]["objective"], "run_objective": found["run"]["objective"]}


def print_outcome(sweep: SweepSettings, found: Mapping[str, Any]) -> None:
    """The end of a sweep on the terminal."""
    folder = uris.join(sweep.run_uri, "tune", str(sweep.tune.name))
    if "budgets" in found:
        places = {"curve": uris.join(folder, FIGURE), "numbers": uris.join(folder, BUDGET)}
        sweeps.print_budgets(report_console(), found, places)
    else:
        places = {"best settings": uris.join(folder, BEST), "trials": uris.join(folder, SEARCH)}
        sweeps.print_search(report_console(), found, places)


def outcome(sweep: SweepSettings, parts: Shared, stage: StageFolder, tried: list[Tried]) -> dict[str, Any]:
    """Write what the sweep found, and return it."""
    if not sweep.space:
        return budget_outcome(sweep, parts, stage)
    return search_outcome(sweep, parts, stage, tried)


def budget_outcome(sweep: SweepSettings, parts: Shared, stage: StageFolder) -> dict[str, Any]:
    done = {}
    for case in curve.cases(sweep):
        result = trial.finished(stage.uri, {"case": asdict(case)})
        if result is not None:
            done[case] = result
    if not done:
        raise StageError(f"no trial ended within --tune.limit_s {sweep.tune.limit_s}; expected one; give it more time")
    unweighted = None
    if parts.test is not None:
        where = trial.place_of_trial(parts, stage.path("unweighted"))
        with in_this_process(Here()):
            trial.top1(parts.settings, where, parts, None)
        unweighted = read_table(where.path(trial.CORRECT))["correct"].to_numpy(zero_copy_only=False)
    found = curve.summarise(stage.uri, sweep, done, unweighted)
    write_json(stage.path(BUDGET), found)
    write_table(stage.path("budget.parquet"), curve.to_table(found))
    uris.write_bytes(stage.path(FIGURE), sweeps.verification_budget(found))
    return found


def search_outcome(sweep: SweepSettings, parts: Shared, stage: StageFolder, tried: list[Tried]) -> dict[str, Any]:
    """The trials, the best settings as a file, and what nothing was chosen by: how they compare with the run's own."""
    trials = []
    for one in tried:
        done = trial.finished(stage.uri, one.config)
        ended = "failed" if one.error else "whole" if done else "stopped early"
        objective = one.objective if done is None else done["objective"]
        trials.append(
            {
                "name": trial.name_of(one.config),
                "values": one.config,
                "objective": objective,
                "steps": one.steps if done is None else done["steps"],
                "ended": ended,
                "seconds": done and done["seconds"],
                "reports": done and done["reports"],
                "error": one.error,
            }
        )
    whole = [t for t in trials if t["ended"] == "whole"]
    if not whole:
        raise StageError(
            f"none of {len(trials)} trials ran to its end (--tune.limit_s {sweep.tune.limit_s}, --tune.stop_bad "
            f"{sweep.tune.stop_bad}); expected one at least; give them more time"
        )
    trials.sort(key=lambda t: (t["ended"] != "whole", t["objective"] is None, t["objective"] or 0.0, t["name"]))
    best = min(whole, key=lambda t: (t["objective"], t["name"]))
    settings = with_values(parts.settings, best["values"])
    uris.write_bytes(stage.path(BEST), config.resolved_toml(settings))
    found: dict[str, Any] = {"detector": settings.detector.name, "trials": trials}
    own = any(name.startswith(("heads.", "evidence.")) for name in best["values"])
    with in_this_process(Here()):
        found["run"] = compared(parts.settings, parts, stage.path("own_settings"), own)
        found["best"] = best | compared(settings, parts, trial.folder_of(stage.uri, best["values"]), own)
    write_json(stage.path(SEARCH), found)
    return found


def compared(settings: Any, parts: Shared, folder: str, own_evidence: bool) -> dict[str, Any]:
    """A run with these settings: its class-fold error, and what nothing was chosen by (true error, accuracy)."""
    place = trial.place_of_trial(parts, folder)
    objective, _ = trial.try_settings(settings, place, parts, 10**9, own_evidence, lambda *_: None)
    judged = trial.judge(settings, place, parts, parts.verification(), own_evidence)
    known = trial.truth(judged, parts)
    accuracy = trial.top1(settings, place, parts, judged)
    found: dict[str, Any] = {"objective": objective}
    if known is not None:
        columns = [known[name].to_numpy() for name in ("label", "images", f"{settings.detector.name}.errors")]
        found["true_error"] = measured_errors(ClassCounts(*columns), resamples=settings.evaluate.resamples)[0].to_json()
    if accuracy is not None:
        correct_N = read_table(place.path(trial.CORRECT))["correct"].to_numpy(zero_copy_only=False)
        found["accuracy"] = measured_accuracy(correct_N).to_json()
    return found
