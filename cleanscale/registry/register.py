"""Registering a run: its classifier and its detector as versions of two registered models."""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow

import cleanscale
from cleanscale.detectors import DETECTORS
from cleanscale.errors import ConfigError
from cleanscale.registry import served_code
from cleanscale.registry.classifier_artifacts import classifier_artifacts
from cleanscale.registry.detector_artifacts import detector_artifacts
from cleanscale.registry.finished_run import FinishedRun
from cleanscale.registry.model_artifacts import Artifacts
from cleanscale.registry.store import DATA, INPUT, REVISION, RUN, STAGE, TEST, Store, git_revision
from cleanscale.storage.manifests import read_manifest

MAKERS = {"classifier": classifier_artifacts, "detector": detector_artifacts}


@dataclass(frozen=True)
class Registered:
    """A version of a registered model; new: made just now."""

    model: str
    version: str
    new: bool


def register(run: FinishedRun, store: Store, name: str) -> dict[str, Registered]:
    """Versions of `<name>-classifier` and `<name>-detector` for the run; those that are there already stay.

    Raises: ConfigError for a name that MLflow does not take, a store that does not answer or a detector that cannot be
    served.
    """
    if not name or set(name) & set("/:'\""):
        raise ConfigError(f"the name {name!r} cannot be registered; expected one without / : and quotes; give --name")
    refuse_own_signals(run.settings.detector.name)
    found: dict[str, Registered] = {}
    with tempfile.TemporaryDirectory(prefix="cleanscale-register-") as scratch, store.answering():
        for kind, make in MAKERS.items():
            artifacts = make(run, Path(scratch) / kind)
            found[kind] = register_one(run, store, f"{name}-{kind}", artifacts, Path(scratch) / f"{kind}-code")
    return found


def refuse_own_signals(detector: str) -> None:
    """A detector that judges an image by a fit on the run's images themselves would have to carry these with it."""
    if DETECTORS[detector].own_signals:
        served = ", ".join(name for name, entry in DETECTORS.items() if not entry.own_signals)
        raise ConfigError(
            f"the run's detector '{detector}' judges by the images of the run and cannot be served; expected one of "
            f"{served}; run again with --detector.name transfer --detector.compare {detector}: what does not depend on "
            "the judgement is kept"
        )


def register_one(run: FinishedRun, store: Store, model: str, artifacts: Artifacts, scratch: Path) -> Registered:
    sure = {RUN: run.uri, STAGE: artifacts.fingerprint}
    known = store.version_of(model, sure)
    if known is not None:
        return Registered(model, str(known.version), new=False)
    # MLflow prints to standard error what the command says itself.
    with store.run_of(run.uri, run.settings.tracking.experiment) as run_id, contextlib.redirect_stderr(io.StringIO()):
        info = mlflow.pyfunc.log_model(
            name=artifacts.kind,
            loader_module=artifacts.loader_module,
            data_path=str(artifacts.folder),
            code_paths=[str(served_code.copy_modules(scratch))],
            pip_requirements=served_code.requirements_of(artifacts.loader_module),
            signature=artifacts.signature,
            input_example=artifacts.example,
            registered_model_name=model,
            await_registration_for=120,
        )
        version = str(info.registered_model_version)
        for metric, value in artifacts.metrics.items():
            store.client.log_metric(run_id, f"{artifacts.kind}/{metric}", value, model_id=info.model_id)
    store.tag(model, version, sure | described(run) | {f"metric.{k}": f"{v:.6g}" for k, v in artifacts.metrics.items()})
    return Registered(model, version, new=True)


def described(run: FinishedRun) -> dict[str, str]:
    """Tags that say what a version was made from."""
    data = read_manifest(run.path("ingest", "train"))
    assert data is not None
    return {
        DATA: data.fingerprint,
        TEST: run.test_files(),
        REVISION: git_revision(),
        "cleanscale_version": cleanscale.__version__,
        "classifier": run.classifier,
        INPUT: run.kind,
    }
