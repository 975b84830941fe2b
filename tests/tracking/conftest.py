"""A database that need not be made anew for every test, which takes MLflow seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cleanscale.tracking import TrackingSettings, tracked
from cleanscale.tracking.store import connect


@pytest.fixture(scope="session")
def made_database(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("database")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with tracked(TrackingSettings(system_metrics_s=0), str(root / "first")):
            pass
    return root / "mlflow.db"


@pytest.fixture
def beside(made_database, tmp_path, monkeypatch) -> Path:
    """A place for run folders, with a database that holds the finished run `first`."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(made_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="session")
def runs_in() -> Callable[[str | Path], dict[str, Any]]:
    """runs_in(store): the runs of a database or server by name."""

    def find(store: str | Path) -> dict[str, Any]:
        client = connect(f"sqlite:///{store}" if isinstance(store, Path) else store)
        experiment = client.get_experiment_by_name("cleanscale")
        found = client.search_runs([experiment.experiment_id])
        assert len({run.info.run_name for run in found}) == len(found)
        return {run.info.run_name: run for run in found}

    return find
