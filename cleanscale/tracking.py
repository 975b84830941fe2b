"""MLflow: one run for a training run, written by the driver alone. A server that fails later never ends a run."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cleanscale.errors import ConfigError
from cleanscale.storage import uris
from cleanscale.storage.manifests import flatten, read_json, write_json

log = logging.getLogger(__name__)

RECORD = "tracking.json"
# A user's own value wins. By itself MLflow tries a server that does not answer for four minutes.
DEFAULT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class TrackingSettings(BaseModel):
    """Where metrics, figures and settings are logged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="Log the run with MLflow.")
    uri: str | None = Field(
        None,
        description="MLflow tracking URI; by default MLFLOW_TRACKING_URI, else mlflow.db beside the run folders.",
    )
    experiment: str = Field("cleanscale", min_length=1, description="MLflow experiment that the run belongs to.")


class Silent:
    """Tracking that is switched off or has nowhere to go."""

    def report(self, stage: str, numbers: Mapping[str, Any], step: int | None = None) -> None:
        pass

    def parameters(self, settings: Mapping[str, Any]) -> None:
        pass

    def artifact(self, name: str, content: bytes) -> None:
        pass


class Tracker(Silent):
    """One MLflow run. Every call is a try: what fails is logged as a warning, once per kind."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.warned: set[str] = set()

    def report(self, stage: str, numbers: Mapping[str, Any], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        found = flatten({stage: numbers})
        metrics = [
            Metric(name.replace(".", "/"), float(value), now_ms, step or 0)
            for name, value in found.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        ]
        for start in range(0, len(metrics), 500):
            self.attempt("metrics", self.client.log_batch, self.run_id, metrics=metrics[start : start + 500])

    def parameters(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        # Tags, unlike parameters, may change when an interrupted run goes on with other settings.
        tags = [RunTag(f"setting/{name}", str(value)[:4000]) for name, value in flatten(settings).items()]
        self.attempt("settings", self.client.log_batch, self.run_id, tags=tags)
        for name, value in flatten(settings).items():
            with contextlib.suppress(Exception):  # set by an earlier attempt of this run; the tag has the newest value
                self.client.log_param(self.run_id, name, str(value)[:500])

    def artifact(self, name: str, content: bytes) -> None:
        import tempfile

        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / file
            path.write_bytes(content)
            self.attempt("artifacts", self.client.log_artifact, self.run_id, str(path), folder or None)

    def attempt(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:  # the run is worth more than its log
            if what not in self.warned:
                log.warning(
                    "MLflow did not take the %s (%s); the run folder has them", what, str(error).splitlines()[0]
                )
            self.warned.add(what)


@contextlib.contextmanager
def tracked(settings: TrackingSettings, run_uri: str) -> Iterator[Silent]:
    """The MLflow run of a run folder, the same one when an interrupted run goes on; it always ends with a status."""
    store = tracking_uri(settings, run_uri)
    if store is None:
        if settings.enabled:
            log.warning(
                "no MLflow store: %s is no local folder and MLFLOW_TRACKING_URI is not set; "
                "only the run folder holds the metrics",
                run_uri,
            )
        yield Silent()
        return
    tracker = open_run(settings, run_uri, store)
    try:
        yield tracker
    except BaseException as error:
        status = "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"
        tracker.attempt("status", tracker.client.set_terminated, tracker.run_id, status)
        raise
    tracker.attempt("status", tracker.client.set_terminated, tracker.run_id, "FINISHED")


def tracking_uri(settings: TrackingSettings, run_uri: str) -> str | None:
    """Where to log: the setting, MLFLOW_TRACKING_URI, or mlflow.db beside local run folders; None: nowhere."""
    if not settings.enabled:
        return None
    chosen = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if chosen or not uris.is_local(run_uri):
        return chosen or None
    return f"sqlite:///{beside(run_uri) / 'mlflow.db'}"


def beside(run_uri: str) -> Path:
    return Path(run_uri.removeprefix("file://")).resolve().parent


def open_run(settings: TrackingSettings, run_uri: str, store: str) -> Tracker:
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if store.startswith("sqlite:///"):
        Path(store.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    client = mlflow.MlflowClient(tracking_uri=store)
    try:
        experiment_id = experiment(client, settings.experiment, run_uri, store)
        record = read_json(uris.join(run_uri, RECORD))
        if record is not None and record["store"] == store:
            with contextlib.suppress(Exception):  # deleted there since: begin a new one
                client.update_run(record["run_id"], status="RUNNING")
                return Tracker(client, record["run_id"])
        run = client.create_run(
            experiment_id, run_name=run_uri.rstrip("/").rsplit("/", 1)[-1], tags={"run.uri": run_uri}
        )
    except Exception as error:
        raise ConfigError(
            f"MLflow at {store!r} does not answer ({str(error).splitlines()[0]}); expected a server or a database; "
            "start it, correct MLFLOW_TRACKING_URI or --tracking.uri, or give --tracking.enabled false"
        ) from error
    write_json(uris.join(run_uri, RECORD), {"store": store, "run_id": run.info.run_id})
    return Tracker(client, run.info.run_id)


def experiment(client: Any, name: str, run_uri: str, store: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # Without a server MLflow would put artifacts below the working directory, which for a cluster job is temporary.
    place = beside(run_uri) / "mlflow-artifacts" if store.startswith("sqlite:///") and uris.is_local(run_uri) else None
    return client.create_experiment(name, artifact_location=place.as_uri() if place else None)
