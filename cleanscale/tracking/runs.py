"""Runs of MLflow: one for a run folder, the same one when it goes on, with nested runs for rounds and trials."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cleanscale.errors import ConfigError
from cleanscale.storage import uris
from cleanscale.storage.manifests import flatten, read_json, write_json
from cleanscale.tracking.delivery import Delivery, Message, RunHandle, first_line
from cleanscale.tracking.settings import RECORD, TrackingSettings, tracking_uri
from cleanscale.tracking.store import SQLITE, MlflowStore, connect, end_children, refused
from cleanscale.tracking.system import SystemMetrics

log = logging.getLogger(__name__)

ROUND = re.compile(r"(round_\d+)(?:/(.*))?")
# Somebody waits who has pressed Ctrl-C, or a machine that is about to be taken away.
STOPPED_PATIENCE_S = 5.0


class Silent:
    """Tracking that is switched off or has nowhere to go."""

    def report(self, stage: str, numbers: Mapping[str, Any], step: int | None = None) -> None:
        """Metrics `stage/name` at a step; those of a stage `round_0/...` belong to the nested run of that round."""

    def parameters(self, settings: Mapping[str, Any]) -> None:
        """Settings, as parameters and as tags."""

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Tags of the run."""

    def dataset(
        self,
        context: str,
        name: str,
        uri: str,
        digest: str,
        rows: int,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """An input in its context (training, verification, test, clean): its place, fingerprint, rows and columns."""

    def artifact(self, name: str, content: bytes) -> None:
        """A file, from memory."""

    def artifact_at(self, name: str, uri: str) -> None:
        """A file, read from its place when it is sent."""

    @contextlib.contextmanager
    def child(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Silent]:
        """A nested run for the time of a `with`; it always ends with a status. The same name goes on with the same."""
        yield self


class Tracker(Silent):
    """One MLflow run. No call waits for the store, and none raises because of it."""

    def __init__(self, delivery: Delivery, run: RunHandle) -> None:
        self.delivery, self.run = delivery, run
        self.round: Tracker | None = None

    @property
    def run_id(self) -> str | None:
        """None for a nested run that the store has not made yet."""
        return self.run.id

    def report(self, stage: str, numbers: Mapping[str, Any], step: int | None = None) -> None:
        if of_round := ROUND.fullmatch(stage):
            self.in_round(of_round[1]).report(of_round[2] or "", numbers, step)
            return
        now_ms = int(time.time() * 1000)
        metrics = [
            (name.replace(".", "/"), float(value), now_ms, step or 0)
            for name, value in flatten({stage: numbers} if stage else numbers).items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        ]
        if metrics:
            self.put("metrics", size_bytes=200 * len(metrics), metrics=metrics)

    def parameters(self, settings: Mapping[str, Any]) -> None:
        found = {name: str(value) for name, value in flatten(settings).items()}
        # Tags, unlike parameters, may change when an interrupted run goes on with other settings.
        self.tags({f"setting/{name}": value for name, value in found.items()})
        self.put("parameters", parameters=found)

    def tags(self, tags: Mapping[str, Any]) -> None:
        self.put("tags", tags={name: str(value) for name, value in tags.items()})

    def dataset(
        self,
        context: str,
        name: str,
        uri: str,
        digest: str,
        rows: int,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.put("dataset", context=context, name=name, uri=uri, digest=digest, rows=rows, columns=dict(columns or {}))

    def artifact(self, name: str, content: bytes) -> None:
        self.put("artifact", size_bytes=len(content), name=name, content=content)

    def artifact_at(self, name: str, uri: str) -> None:
        self.put("artifact", name=name, uri=uri)

    @contextlib.contextmanager
    def child(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Tracker]:
        nested = self.begin_child(name, tags)
        with nested.ended():
            yield nested

    def begin_child(self, name: str, tags: Mapping[str, str] | None = None) -> Tracker:
        nested = Tracker(self.delivery, RunHandle(name, parent=self.run, tags=dict(tags or {})))
        nested.put("begin")
        return nested

    def in_round(self, name: str) -> Tracker:
        """The nested run of a round. Rounds follow each other: the next one ends the last."""
        if self.round is None or self.round.run.name != name:
            if self.round is not None:
                self.round.end("FINISHED")
            self.round = self.begin_child(name, {"cleanscale.round": name.removeprefix("round_")})
        return self.round

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """End the run with the status that follows from how a `with` ends."""
        try:
            yield
        except BaseException as error:
            self.end("KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED")
            raise
        self.end("FINISHED")

    def end(self, status: str) -> None:
        if self.round is not None:
            self.round.end(status)
            self.round = None
        self.put("status", status=status, end_ms=int(time.time() * 1000))

    def put(self, kind: str, *, size_bytes: int = 200, **content: Any) -> None:
        self.delivery.put(Message(self.run, kind, content, size_bytes))


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
    measured = SystemMetrics(tracker, settings.system_metrics_s)
    with delivered(tracker.delivery, settings.patience_s), tracker.ended(), measured:
        yield tracker


@contextlib.contextmanager
def tracked_trial(
    store: str, parent_run_id: str, name: str, tags: Mapping[str, str] | None = None, patience_s: float = 30.0
) -> Iterator[Tracker]:
    """As `Tracker.child`, in another process than the parent's: a trial of a sweep. A store that is away is waited for
    in the background."""
    delivery = Delivery(MlflowStore(connect(store), parent_run_id), store)
    parent = Tracker(delivery, RunHandle("", parent_run_id))
    with delivered(delivery, patience_s), parent.child(name, tags) as trial:
        yield trial


def end_abandoned(store: str, parent_run_id: str) -> None:
    """End nested runs that a killed process left RUNNING, as KILLED. Raises what MLflow raises."""
    end_children(connect(store), parent_run_id)


@contextlib.contextmanager
def delivered(delivery: Delivery, patience_s: float) -> Iterator[None]:
    """Wait at the end until everything has arrived: not for ever, and not long when the run was stopped."""
    try:
        yield
    except BaseException:
        close(delivery, min(patience_s, STOPPED_PATIENCE_S), while_it_moves=False)
        raise
    close(delivery, patience_s, while_it_moves=True)


def close(delivery: Delivery, patience_s: float, *, while_it_moves: bool) -> None:
    left = delivery.close(patience_s, while_it_moves=while_it_moves)
    if left or delivery.dropped:
        log.warning(
            "%d messages did not reach MLflow at %s; the run folder has everything, and the same command sends the "
            "final metrics and files again",
            len(left) + delivery.dropped,
            delivery.place,
        )


def open_run(settings: TrackingSettings, run_uri: str, store: str) -> Tracker:
    """Begin or take up the run of a run folder. Raises: ConfigError when the store is not there to begin with."""
    try:
        client = connect(store)
        run = find_or_create(client, settings.experiment, run_uri, store)
    except Exception as error:
        raise ConfigError(
            f"MLflow at {store!r} does not answer ({first_line(error)}); expected a server or a database; "
            "start it, correct MLFLOW_TRACKING_URI or --tracking.uri, or give --tracking.enabled false"
        ) from error
    write_json(uris.join(run_uri, RECORD), {"store": store, "run_id": run.id})
    assert run.id is not None
    tracker = Tracker(Delivery(MlflowStore(client, run.id), store), run)
    tracker.put("end_abandoned")
    return tracker


def find_or_create(client: Any, experiment_name: str, run_uri: str, store: str) -> RunHandle:
    name = run_uri.rstrip("/").rsplit("/", 1)[-1]
    record = read_json(uris.join(run_uri, RECORD))
    if record is not None and record["store"] == store:
        try:
            client.update_run(record["run_id"], status="RUNNING")
            return RunHandle(name, record["run_id"], client.get_run(record["run_id"]).info.start_time)
        except Exception as error:
            if not refused(error):
                raise
            log.info("the MLflow run of this run folder is gone; a new one begins")
    experiment_id = experiment(client, experiment_name, run_uri, store)
    run = client.create_run(experiment_id, run_name=name, tags={"run.uri": run_uri})
    return RunHandle(name, run.info.run_id, run.info.start_time)


def experiment(client: Any, name: str, run_uri: str, store: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # Without a server MLflow would put artifacts below the working directory, which for a cluster job is temporary.
    # They lie beside the database: a sweep's run folder is deeper than those of the runs that come after it.
    database = Path(store.removeprefix(SQLITE)) if store.startswith(SQLITE) else None
    place = database.resolve().parent / "mlflow-artifacts" if database and uris.is_local(run_uri) else None
    try:
        return client.create_experiment(name, artifact_location=place.as_uri() if place else None)
    except Exception:
        made = client.get_experiment_by_name(name)  # by another job since
        if made is None:
            raise
        return made.experiment_id
