"""Trials of a sweep with Ray Tune: what to try next, how many at a time, which to stop, and how to go on after a kill.

A trial is a plain function (configuration, Reporter). It runs in one process of its own (`engine.here`); trials run
beside each other.
"""

from __future__ import annotations

import logging
import math
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from cleanscale.engine.here import Here, in_this_process
from cleanscale.engine.session import cluster_cpus, cluster_gpus
from cleanscale.errors import CleanscaleError, ConfigError, StageError
from cleanscale.storage import uris
from cleanscale.storage.manifests import fingerprint, read_json, write_json

log = logging.getLogger(__name__)

OBJECTIVE, TIME = "objective", "steps"
STATE = "search"  # Ray Tune's own files, in the sweep's folder
# Set before Tune reads them; a user's own value wins.
DEFAULT_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A stop is a KeyboardInterrupt, as everywhere in the project: tracking closes its runs, Ray goes down.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Seconds between two writings of the search's state: what a killed driver can forget.
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


@dataclass(frozen=True)
class Dimension:
    """What a setting may be: a range (`uniform`, `log_uniform`, `integers`; ends included) or `choice` among values."""

    kind: Literal["uniform", "log_uniform", "integers", "choice"]
    values: tuple[Any, ...]

    def domain(self) -> Any:
        if self.kind == "choice":
            return tune.choice(list(self.values))
        low, high = self.values
        if self.kind == "integers":
            return tune.randint(low, high + 1)
        return (tune.uniform if self.kind == "uniform" else tune.loguniform)(low, high)


@dataclass(frozen=True)
class Plan:
    """How a sweep is searched.

    space: dimensions to search in with Optuna; or `cases`, all of which are tried, in their order.
    stop_bad_after: steps after which ASHA may stop a trial, None: it never does. most_steps: of a whole trial.
    """

    folder: str
    seed: int
    space: Mapping[str, Dimension] | None = None
    cases: Sequence[Mapping[str, Any]] = ()
    trials: int = 1
    begin_with: Sequence[Mapping[str, Any]] = ()
    stop_bad_after: int | None = None
    most_steps: int = 1
    reduction: int = 3
    max_concurrent: int = 0
    cpus_per_trial: float = 1.0
    use_gpu: bool = False
    limit_s: float | None = None
    max_failures: int = 0


class Listener(Protocol):
    """Who hears of trials, on the driver."""

    def started(self, config: Mapping[str, Any]) -> None: ...

    def reported(self, config: Mapping[str, Any], numbers: Mapping[str, Any]) -> None: ...

    def ended(self, config: Mapping[str, Any], *, failed: bool) -> None: ...


class Reporter:
    """What a trial tells while it runs."""

    def report(self, objective: float, steps: int) -> None:
        """The objective after so many steps; the trial may be stopped here."""
        tune.report({OBJECTIVE: objective, TIME: steps})


Work = Callable[[dict[str, Any], Reporter], None]


class _Tell(tune.Callback):
    """Passes events on. It is pickled with Tune's state and so holds nothing itself; the listener is the session's."""

    listener: Listener | None = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if _Tell.listener:
            _Tell.listener.started(trial.config)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any) -> None:
        if _Tell.listener and OBJECTIVE in result:
            _Tell.listener.reported(trial.config, {name: result[name] for name in (OBJECTIVE, TIME)})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if _Tell.listener:
            _Tell.listener.ended(trial.config, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if _Tell.listener:
            _Tell.listener.ended(trial.config, failed=True)


@dataclass(frozen=True)
class Tried:
    """A trial that ended. error: what went wrong; a stopped trial has its last objective and no error."""

    config: dict[str, Any]
    objective: float | None
    steps: int
    error: str | None


def concurrency(plan: Plan) -> int:
    """Trials at a time: as many as the cluster's cores and GPUs hold, and no more than the plan says."""
    fits = int(cluster_cpus() / plan.cpus_per_trial)
    if plan.use_gpu:
        fits = min(fits, int(cluster_gpus()))
    if fits < 1:
        raise ConfigError(
            f"a trial needs {plan.cpus_per_trial:g} cores{' and a GPU' if plan.use_gpu else ''}, and the cluster has "
            f"{cluster_cpus():g} cores and {cluster_gpus():g} GPUs; expected room for one trial; lower "
            "--tune.cpus_per_trial or leave out --engine.use_gpu"
        )
    return min(fits, plan.max_concurrent) if plan.max_concurrent else fits


def run_trials(work: Work, plan: Plan, listener: Listener) -> list[Tried]:
    """Run the plan's trials. The same call after a killed driver goes on: finished trials are not run again.

    Raises: StageError with the first trial's error when all of them failed.
    """
    quiet()
    filesystem, path = uris.arrow_filesystem(uris.join(plan.folder, STATE))
    state = uris.join(plan.folder, STATE)
    trainable = tune.with_resources(_trainable(work, plan), _resources(plan))
    _Tell.listener = listener
    try:
        # Killed in its first seconds, a search has nothing to go on from.
        begun = uris.exists(state) and any("experiment_state" in file.path for file in uris.list_files(state))
        if begun and tune.Tuner.can_restore(path, storage_filesystem=filesystem):
            log.info("the search goes on where it was interrupted")
            tuner = tune.Tuner.restore(
                path,
                trainable=trainable,
                resume_unfinished=True,
                resume_errored=True,
                param_space=None if plan.space else _cases(plan),
                storage_filesystem=filesystem,
            )
        else:
            uris.remove_tree(state)
            tuner = _new_tuner(trainable, plan, path.rsplit("/", 1)[0], filesystem)
        grid = tuner.fit()
    finally:
        _Tell.listener = None
    tried = [_tried(grid[k]) for k in range(len(grid))]
    errors = [one.error for one in tried if one.error]
    if errors and len(errors) == len(tried):
        raise StageError(f"all {len(tried)} trials failed; the first one: {errors[0]}")
    return tried


def _new_tuner(trainable: Any, plan: Plan, path: str, filesystem: Any) -> tune.Tuner:
    limit = concurrency(plan)
    searcher = None
    if plan.space:
        optuna = OptunaSearch(
            OptunaSearch.convert_search_space({name: each.domain() for name, each in plan.space.items()}),
            metric=OBJECTIVE,
            mode="min",
            seed=plan.seed,
            points_to_evaluate=[dict(point) for point in plan.begin_with] or None,
        )
        searcher = ConcurrencyLimiter(optuna, max_concurrent=limit)
    scheduler = FIFOScheduler()
    if plan.stop_bad_after is not None:
        scheduler = ASHAScheduler(
            time_attr=TIME,
            metric=OBJECTIVE,
            mode="min",
            max_t=plan.most_steps,
            grace_period=plan.stop_bad_after,
            reduction_factor=plan.reduction,
            stop_last_trials=False,  # a trial ends by itself: what follows its last report is part of it
        )
    return tune.Tuner(
        trainable,
        param_space={} if plan.space else _cases(plan),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=plan.trials if plan.space else 1,
            max_concurrent_trials=None if plan.space else limit,
            time_budget_s=plan.limit_s,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[_Tell()],
            failure_config=tune.FailureConfig(max_failures=plan.max_failures),
            verbose=0,
        ),
    )


def _cases(plan: Plan) -> dict[str, Any]:
    return {"case": tune.grid_search([dict(case) for case in plan.cases])}


def _resources(plan: Plan) -> dict[str, float]:
    return {"CPU": plan.cpus_per_trial} | ({"GPU": 1.0} if plan.use_gpu else {})


def _trainable(work: Work, plan: Plan) -> Callable[[dict[str, Any]], None]:
    """The trial as Tune wants it: a function of its configuration."""
    how = Here(max(1, math.floor(plan.cpus_per_trial)), "cuda" if plan.use_gpu else "cpu")

    failures = uris.join(plan.folder, "failed", uuid.uuid4().hex)  # of this call: the next one tries again

    def trial(config: dict[str, Any]) -> None:
        from cleanscale.engine.tasks import one_thread

        failed = uris.join(failures, f"{fingerprint(config)}.json")
        before = read_json(failed)
        if before is not None:  # a user's error is final: only what a lost node or process did is tried again
            raise StageError(before["message"])
        one_thread()
        torch.set_num_threads(how.threads)
        with in_this_process(how):
            try:
                work(config, Reporter())
            except CleanscaleError as error:
                write_json(failed, {"message": str(error)})
                raise

    return trial


def _tried(result: Any) -> Tried:
    metrics = result.metrics or {}
    found = metrics.get(OBJECTIVE)
    error = None if result.error is None else _message(str(result.error))
    return Tried(dict(result.config or {}), None if found is None else float(found), int(metrics.get(TIME, 0)), error)


def _message(text: str) -> str:
    """What a traceback ends with; of our own errors without the name of their class."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^cleanscale\.errors\.\w+: ", "", lines[-1]) if lines else "no message"


def quiet() -> None:
    """Tune's own output stays out of the way of ours."""
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "optuna"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failed trials are told of by the listener
