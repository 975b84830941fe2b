"""Settings of a sweep: a file in TOML, over the settings of the run that it is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cleanscale import config
from cleanscale.config import Settings
from cleanscale.detectors import DETECTORS
from cleanscale.engine.search import Dimension
from cleanscale.errors import ConfigError
from cleanscale.tuning import objective
from cleanscale.tuning import space as spaces

PROGRAM = "cleanscale tune"
FROZEN = ConfigDict(frozen=True, extra="forbid")


class TuneSettings(BaseModel):
    """How a sweep is run."""

    model_config = FROZEN

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Folder of the sweep below <run.uri>/tune [default: the file's name].",
    )
    run: str | None = Field(None, description="Settings file of the run; --config wins over it.")
    trials: int = Field(20, ge=1, description="Settings tried in a search of [space].")
    seed: int = Field(0, ge=0, description="Seed of the search, and of which verification labels a budget draws.")
    stop_bad: bool = Field(
        False, description="Stop trials that are behind (ASHA on optimiser steps); detector cleannet only."
    )
    stop_bad_after: int = Field(200, ge=1, description="Steps of CleanNet after which a trial may be stopped.")
    reduction: int = Field(3, ge=2, description="ASHA goes on with one in so many trials.")
    max_concurrent: int = Field(0, ge=0, description="Trials at a time; 0: as many as the cluster holds.")
    cpus_per_trial: float = Field(1.0, gt=0, description="Cores of a trial.")
    limit_s: float | None = Field(None, gt=0, description="Seconds after which trials end; by default all are whole.")


class BudgetSettings(BaseModel):
    """Verification budgets to compare: a share of the verified classes times labels in each of them."""

    model_config = FROZEN

    classes: tuple[float, ...] = Field(
        (), description="Shares of the verified classes that a budget may use, each in (0, 1]."
    )
    labels_per_class: tuple[int, ...] = Field((), description="Verification labels in each of those classes.")
    repeats: int = Field(2, ge=1, description="Draws of each budget, each judged on other verified classes.")
    evaluation_folds: int = Field(
        5, ge=2, description="Verified classes are cut into so many folds; a repeat leaves one out and is judged on it."
    )
    cleannet: bool = Field(
        False,
        description="Fit CleanNet to every budget too: for its own error and for its part in transfer's.",
    )
    margin: float = Field(
        1.0, gt=0, description="Points of error: more verification pays when it is sure to gain or may gain so much."
    )


class SweepSettings(Settings):
    """The settings of a run and what a sweep does with it."""

    tune: TuneSettings = TuneSettings()
    budget: BudgetSettings = BudgetSettings()
    space: dict[str, Any] = Field({}, description="Settings to search, as in the files of tune/.")

    @property
    def dimensions(self) -> dict[str, Dimension]:
        return spaces.dimensions(self.space)

    @property
    def base(self) -> Settings:
        """The run alone."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})


def load(arguments: Sequence[str]) -> SweepSettings:
    """The sweep of `FILE [--config RUN.toml] [--section.name value ...]`. `--help` prints all settings and exits.

    Settings come from the run's file, then the sweep's own sections, then the command line. Raises: ConfigError.
    """
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        file, rest = arguments[0], arguments[1:]
        values = config.read_toml(file)
    elif set(arguments) & {"-h", "--help"}:
        file, rest, values = "FILE", arguments, {}
    else:
        raise ConfigError(
            f"no sweep is named; expected `{PROGRAM} FILE [--section.name value ...]`; tune/ has files to begin with"
        )
    _check_tables(file, values)
    run = values.get("tune", {}).get("run")
    if run and "--config" not in rest and not any(a.startswith("--config=") for a in rest):
        rest = ["--config", run, *rest]
    gathered = config.gather(rest, values, SweepSettings, f"{PROGRAM} FILE [--config RUN.toml]")
    sweep = config.validate(gathered, SweepSettings, PROGRAM)
    if sweep.tune.name is None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(file.rstrip("/")).stem)
        sweep = sweep.model_copy(update={"tune": sweep.tune.model_copy(update={"name": name})})
    check(sweep, file)
    return sweep


def _check_tables(file: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name not in SweepSettings.model_fields:
            known = ", ".join(["tune", "space", "budget"])
            raise ConfigError(
                f"[{name}] in {file} is no table of a sweep; expected {known} or a section of a run, such as [data]; "
                f"`{PROGRAM} --help` lists them"
            )
        if not isinstance(value, dict):
            raise ConfigError(f"{name} in {file} is {value!r}; expected a table, [{name}]; put it under its section")


def check(sweep: SweepSettings, file: str) -> None:
    """What cannot be seen in one setting alone. Raises: ConfigError."""
    budget = sweep.budget
    wants_budget = bool(budget.classes or budget.labels_per_class)
    if bool(sweep.space) == wants_budget:
        found = "both [space] and [budget]" if wants_budget else "neither [space] nor [budget]"
        raise ConfigError(
            f"{file} has {found}; expected one of them: settings to search, or budgets (classes and labels_per_class) "
            "to compare; tune/README.md shows both"
        )
    if wants_budget:
        _check_budget(budget, sweep.tune)
        return
    dimensions = sweep.dimensions
    spaces.reference_cases(dimensions)
    detectors = {sweep.detector.name, *getattr(dimensions.get("detector.name"), "values", ())}
    _check_judged_in_held_out_classes(detectors)
    for name in dimensions:
        _check_changes_something(name, detectors)
    if sweep.tune.stop_bad and detectors != {"cleannet"}:
        raise ConfigError(
            f"--tune.stop_bad is true with detector {', '.join(sorted(detectors))}; expected cleannet, whose error is "
            'known while it is fitted; set name = "cleannet" under [detector], or stop_bad = false'
        )


def _check_judged_in_held_out_classes(detectors: set[str]) -> None:
    """A trial is judged in classes that it has no labels of, from signals that every run has."""
    own = sorted(name for name in detectors if DETECTORS[name].own_signals)
    if own:
        fitting = [name for name, entry in DETECTORS.items() if not entry.own_signals]
        raise ConfigError(
            f"detector {', '.join(own)} makes signals of its own, mostly in verified classes alone, and a search is "
            f"judged in classes that are left out; expected one of {', '.join(fitting)}; compare it by budgets "
            "instead, with [budget] and --detector.compare"
        )


def _check_changes_something(name: str, detectors: set[str]) -> None:
    """A setting that no searched detector looks at would be tuned by chance."""
    section = name.split(".")[0]
    by_section = {"cleannet": objective.needs_cleannet, "heads": objective.needs_evidence}
    by_section["references"] = objective.needs_references
    if section in by_section and not any(by_section[section](one) for one in detectors):
        fitting = [one for one, entry in DETECTORS.items() if by_section[section](one) and not entry.own_signals]
        raise ConfigError(
            f"space.{name} changes nothing that detector {', '.join(sorted(detectors))} looks at; expected one of "
            f"{', '.join(fitting)}; name it under [detector], or search other settings"
        )


def _check_budget(budget: BudgetSettings, tune: TuneSettings) -> None:
    for share in budget.classes:
        if not 0 < share <= 1:
            raise ConfigError(f"--budget.classes has {share!r}; expected shares of the verified classes, in (0, 1]")
    for labels in budget.labels_per_class:
        if labels < 1:
            raise ConfigError(f"--budget.labels_per_class has {labels!r}; expected at least 1")
    for name in ("classes", "labels_per_class"):
        values = getattr(budget, name)
        if not values or len(set(values)) != len(values):
            raise ConfigError(f"--budget.{name} is {list(values)!r}; expected at least one value, each once")
    if budget.repeats > budget.evaluation_folds:
        raise ConfigError(
            f"--budget.repeats is {budget.repeats} and --budget.evaluation_folds {budget.evaluation_folds}; expected "
            "at most as many repeats as folds, since each repeat is judged on other classes; change one of them"
        )
    if tune.stop_bad:
        raise ConfigError("--tune.stop_bad is true with [budget]; expected false: every budget is a point of the curve")


def shown(sweep: SweepSettings) -> dict[str, Any]:
    """The sweep's own settings as plain values."""
    return config.without_none(
        {
            "tune": sweep.tune.model_dump(mode="json"),
            "space": sweep.space,
            "budget": sweep.budget.model_dump(mode="json"),
        }
    )
