"""What one message means to MLflow. Sending it twice is the same as sending it once: an answer may get lost."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cleanscale.errors import DataError
from cleanscale.storage import uris
from cleanscale.tracking.delivery import Message, RunHandle
from cleanscale.tracking.settings import DEFAULT_ENVIRONMENT

SQLITE = "sqlite:///"
PARENT, NAME = "mlflow.parentRunId", "mlflow.runName"
METRICS_AT_ONCE, TAGS_AT_ONCE, NAME_LENGTH = 500, 100, 250
TAG_LENGTH, PARAMETER_LENGTH, DATASET_NAME_LENGTH, DIGEST_LENGTH = 4000, 500, 500, 36
# Wrong use, not a store that is away.
OWN_FAULTS = (TypeError, ValueError, KeyError, ImportError, PermissionError, FileNotFoundError, NotADirectoryError)


def connect(store: str) -> Any:
    """An MlflowClient. Importing MLflow takes seconds, so nothing here does when it is imported."""
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not store.startswith(SQLITE):
        return mlflow.MlflowClient(tracking_uri=store)
    with one_at_a_time(Path(store.removeprefix(SQLITE))):
        return mlflow.MlflowClient(tracking_uri=store)


@contextlib.contextmanager
def one_at_a_time(database: Path) -> Iterator[None]:
    """Two jobs that make one database at the same moment break it: MLflow's migrations meet each other's columns."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class MlflowStore:
    """Delivers messages to one tracking store (delivery.Store). Used by one thread."""

    def __init__(self, client: Any, parent_id: str) -> None:
        self.client, self.parent_id = client, parent_id
        self.experiment_id: str | None = None

    def send(self, message: Message) -> None:
        getattr(self, f"_{message.kind}")(self.run_id(message.run), **message.content)

    def answers(self) -> bool:
        try:
            self.client.get_run(self.parent_id)
        except Exception:
            return False
        return True

    def refuses(self, error: Exception) -> bool:
        return refused(error)

    def run_id(self, run: RunHandle) -> str:
        """The id of a run; one without is found by its name below its parent, or made, so it stays the same run."""
        if run.id is None:
            run.id = self.find_or_create(run)
        return run.id

    def find_or_create(self, run: RunHandle) -> str:
        assert run.parent is not None
        parent_id = self.run_id(run.parent)
        if self.experiment_id is None:
            self.experiment_id = self.client.get_run(self.parent_id).info.experiment_id
        same = self.client.search_runs(
            [self.experiment_id], f"tags.`{PARENT}` = '{parent_id}' and tags.`{NAME}` = '{quoted(run.name)}'"
        )
        if same:
            return same[0].info.run_id
        tags = {PARENT: parent_id, **run.tags}
        return self.client.create_run(self.experiment_id, run_name=run.name, tags=tags).info.run_id

    def _begin(self, run_id: str) -> None:
        self.client.update_run(run_id, status="RUNNING")

    def _status(self, run_id: str, status: str, end_ms: int) -> None:
        self.client.set_terminated(run_id, status, end_ms)

    def _metrics(self, run_id: str, metrics: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(metrics), METRICS_AT_ONCE):
            some = metrics[start : start + METRICS_AT_ONCE]
            batch = [Metric(permitted(name), value, at_ms, step) for name, value, at_ms, step in some]
            self.client.log_batch(run_id, metrics=batch)

    def _tags(self, run_id: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        found = [RunTag(permitted(name), value[:TAG_LENGTH]) for name, value in tags.items()]
        for start in range(0, len(found), TAGS_AT_ONCE):
            self.client.log_batch(run_id, tags=found[start : start + TAGS_AT_ONCE])

    def _parameters(self, run_id: str, parameters: dict[str, str]) -> None:
        from mlflow.entities import Param

        # MLflow never changes a parameter: those of an earlier attempt stay, and tags have the newest values.
        known = self.client.get_run(run_id).data.params
        named = {permitted(name): value[:PARAMETER_LENGTH] for name, value in parameters.items()}
        found = [Param(name, value) for name, value in named.items() if name not in known]
        for start in range(0, len(found), TAGS_AT_ONCE):
            self.client.log_batch(run_id, params=found[start : start + TAGS_AT_ONCE])

    def _dataset(
        self, run_id: str, context: str, name: str, uri: str, digest: str, rows: int, columns: dict[str, str]
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        schema = [{"name": column, "type": kind, "required": True} for column, kind in columns.items()]
        dataset = Dataset(
            name=name[:DATASET_NAME_LENGTH],
            digest=digest[:DIGEST_LENGTH],
            source_type=uri.split("://")[0] if "://" in uri else "local",
            source=json.dumps({"uri": uri}),
            schema=json.dumps({"mlflow_colspec": schema}) if schema else None,
            profile=json.dumps({"num_rows": rows}),
        )
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def _artifact(self, run_id: str, name: str, content: bytes | None = None, uri: str | None = None) -> None:
        """From memory, or from a file of the run folder that is read when it is sent."""
        if content is None:
            assert uri is not None
            content = uris.read_bytes(uri)
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / file
            path.write_bytes(content)
            self.client.log_artifact(run_id, str(path), folder or None)

    def _end_abandoned(self, run_id: str) -> None:
        end_children(self.client, run_id)


def end_children(client: Any, parent_id: str) -> None:
    """Nested runs that nobody ended, because what drove them was killed, end as KILLED; theirs first."""
    experiment_id = client.get_run(parent_id).info.experiment_id
    running = f"tags.`{PARENT}` = '{parent_id}' and attributes.status = 'RUNNING'"
    while found := client.search_runs([experiment_id], running):
        for run in found:
            end_children(client, run.info.run_id)
            client.set_terminated(run.info.run_id, "KILLED")


def refused(error: Exception) -> bool:
    """Whether the store is there and does not want it, so that trying again would not help."""
    from mlflow.exceptions import MlflowException

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    if status is not None:
        return 400 <= status < 500 and status not in (408, 409, 429)
    return isinstance(error, (DataError, *OWN_FAULTS)) and not isinstance(error, json.JSONDecodeError)


def permitted(name: str) -> str:
    """A name that MLflow takes: one that it does not take would make it refuse all that come with it."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:NAME_LENGTH]


def quoted(name: str) -> str:
    return name.replace("'", "")
