"""MLflow's registry behind the commands: versions with tags, aliases, and the history of an alias.

A run's version is found again by its tags, so that registering a run twice makes one version.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cleanscale.errors import ConfigError
from cleanscale.storage import uris
from cleanscale.storage.manifests import read_json
from cleanscale.tracking import RECORD, TrackingSettings, tracking_uri
from cleanscale.tracking.runs import experiment
from cleanscale.tracking.settings import DEFAULT_ENVIRONMENT

# Tags of a version.
RUN, STAGE, DATA, REVISION = "run.uri", "stage_fingerprint", "data_fingerprint", "git_revision"
TEST, INPUT = "test_files", "input"
KINDS = ("classifier", "detector")
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
MOST_ENTRIES = 60  # of an alias's history: a tag holds 5,000 characters


@dataclass(frozen=True)
class Entry:
    """One move of an alias: how (promote, force, rollback), to which version, when (UTC)."""

    how: str
    version: str
    at: str

    def to_text(self) -> str:
        return f"{self.how} {self.version} {self.at}"

    @classmethod
    def of_text(cls, text: str) -> Entry:
        return cls(*text.split(" ", 2))


@dataclass(frozen=True)
class Store:
    """One MLflow store, tracking and registry both."""

    uri: str

    @classmethod
    def of_run(cls, run_uri: str, setting: str | None) -> Store:
        """The store that the run's training used: --tracking.uri, MLFLOW_TRACKING_URI, or mlflow.db beside the runs."""
        found = tracking_uri(TrackingSettings(uri=setting), run_uri)
        if found is None:
            raise ConfigError(
                f"no MLflow store: '{run_uri}' is no local folder; expected a server or database for the registry; "
                "set MLFLOW_TRACKING_URI or give --tracking.uri"
            )
        return cls(found)

    @cached_property
    def client(self) -> MlflowClient:
        """Raises: ConfigError for a store that does not answer."""
        for name, value in (DEFAULT_ENVIRONMENT | QUIET).items():
            os.environ.setdefault(name, value)
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        # MLflow puts it into the environment as well, where a later run of this process would take it for the user's.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
        client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        with self.answering():
            client.search_registered_models(max_results=1)
        return client

    def must_exist(self) -> None:
        """Raises: ConfigError for a database file that is not there, which MLflow would make."""
        if self.uri.startswith("sqlite:///") and not Path(self.uri.removeprefix("sqlite:///")).is_file():
            raise ConfigError(
                f"there is no {self.uri.removeprefix('sqlite:///')}; expected the MLflow database beside the run "
                "folders; name their folder with --runs, or the store with --tracking.uri or MLFLOW_TRACKING_URI"
            )

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """What a store raises as the user's error."""
        try:
            yield
        except MlflowException as error:
            raise ConfigError(
                f"MLflow at {self.uri!r} refused ({str(error).splitlines()[0]}); expected a store with a model "
                "registry; start it, correct MLFLOW_TRACKING_URI or --tracking.uri"
            ) from error

    @contextlib.contextmanager
    def run_of(self, run_uri: str, experiment_name: str) -> Iterator[str]:
        """The MLflow run of a training run, or a new one where the training was not tracked here, as the active run."""
        client = self.client
        record = read_json(uris.join(run_uri, RECORD)) or {}
        run_id = record.get("run_id") if record.get("store") == self.uri else None
        if run_id is None or not self.has_run(run_id):
            experiment_id = experiment(client, experiment_name, run_uri, self.uri)
            name = run_uri.rstrip("/").rsplit("/", 1)[-1]
            run_id = client.create_run(experiment_id, run_name=name, tags={RUN: run_uri}).info.run_id
        with mlflow.start_run(run_id=run_id):
            yield run_id

    def has_run(self, run_id: str) -> bool:
        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    # ---- versions ----------------------------------------------------------------------------------------------------

    def versions(self, model: str) -> list[ModelVersion]:
        """All versions of a registered model, oldest first, with their aliases."""
        found = self.client.search_model_versions(f"name = '{model}'")
        aliases = self.aliases(model)
        for version in found:
            version.aliases = [alias for alias, number in aliases.items() if number == str(version.version)]
        return sorted(found, key=lambda version: int(version.version))

    def version_of(self, model: str, tags: Mapping[str, str]) -> ModelVersion | None:
        """The newest version with all of these tags."""
        fitting = [v for v in self.versions(model) if all(v.tags.get(k) == value for k, value in tags.items())]
        return fitting[-1] if fitting else None

    def tag(self, model: str, version: str, tags: Mapping[str, Any]) -> None:
        for name, value in tags.items():
            self.client.set_model_version_tag(model, version, name, str(value)[:4900])

    def models(self) -> list[str]:
        """Names of registered models that this package made."""
        return sorted(m.name for m in self.client.search_registered_models() if m.name.rpartition("-")[2] in KINDS)

    # ---- aliases -----------------------------------------------------------------------------------------------------

    def aliases(self, model: str) -> dict[str, str]:
        try:
            return {k: str(v) for k, v in self.client.get_registered_model(model).aliases.items()}
        except MlflowException:
            return {}

    def holder(self, model: str, alias: str) -> ModelVersion | None:
        """The version that has the alias; None where none has."""
        number = self.aliases(model).get(alias)
        return None if number is None else self.client.get_model_version(model, number)

    def move_alias(self, model: str, alias: str, version: str, how: str) -> None:
        """Point the alias at the version and write it into the alias's history."""
        self.client.set_registered_model_alias(model, alias, version)
        entries = [*self.history(model, alias), Entry(how, version, datetime.now(UTC).isoformat(timespec="seconds"))]
        text = json.dumps([entry.to_text() for entry in entries[-MOST_ENTRIES:]])
        self.client.set_registered_model_tag(model, history_tag(alias), text)

    def history(self, model: str, alias: str) -> list[Entry]:
        """Moves of the alias, oldest first; none for a model that is not there."""
        try:
            tags = self.client.get_registered_model(model).tags
        except MlflowException:
            return []
        return [Entry.of_text(text) for text in json.loads(tags.get(history_tag(alias), "[]"))]

    def version_before(self, model: str, alias: str) -> str | None:
        """Where a rollback leads: what the alias meant before it meant what it means now; None: to nothing known.

        A rollback takes the newest promotion back, so two of them in a row lead two promotions back.
        """
        stack: list[str] = []
        for entry in self.history(model, alias):
            if entry.how == "rollback":
                stack = stack[:-1] if len(stack) > 1 else [entry.version]
            else:
                stack.append(entry.version)
        now = self.aliases(model).get(alias)
        if stack and stack[-1] == now:
            stack.pop()
        return stack[-1] if stack else None


def history_tag(alias: str) -> str:
    return f"history.{alias}"


def git_revision() -> str:
    """The commit of the working directory, `+changes` where files differ from it; "none" outside a repository."""
    revision = git("rev-parse", "HEAD")
    if revision is None:
        return "none"
    return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
