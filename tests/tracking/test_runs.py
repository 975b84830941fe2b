"""What MLflow is told, and what happens when it is not there."""

import logging
import shutil
import time
from pathlib import Path

import mlflow
import pytest

from cleanscale.errors import ConfigError, DataError
from cleanscale.tracking import Tracker, TrackingSettings, tracked, tracking_uri


def runs_of(database: Path) -> list:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("cleanscale")
    return list(client.search_runs([experiment.experiment_id]))


@pytest.fixture
def beside(glyphs_run, tmp_path) -> Path:
    """A place for run folders with a database that need not be made anew, which takes MLflow seconds."""
    shutil.copy(glyphs_run.folder.parent / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


def test_the_store_is_a_database_beside_the_run_folders(glyphs_run):
    assert (glyphs_run.folder.parent / "mlflow.db").is_file()
    (run,) = runs_of(glyphs_run.folder.parent / "mlflow.db")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == glyphs_run.folder.name
    assert run.data.tags["run.uri"] == str(glyphs_run.folder)


def test_a_run_has_its_settings_its_metrics_by_epoch_and_round_and_its_files(glyphs_run):
    (run,) = runs_of(glyphs_run.folder.parent / "mlflow.db")
    assert run.data.params["glyphs.classes"] == "8"
    assert run.data.params["cleannet.steps"] == "8"
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{glyphs_run.folder.parent / 'mlflow.db'}")
    epochs = client.get_metric_history(run.info.run_id, "round_0/classifier/loss")
    assert [metric.step for metric in epochs] == [0, 1, 2]
    rounds = client.get_metric_history(run.info.run_id, "round/classification/round_0/top1/value")
    assert [metric.step for metric in rounds] == [1, 2]
    assert "round/detection/transfer/auroc/value" in run.data.metrics
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    assert root.is_relative_to(glyphs_run.folder.parent)
    assert {path.name for path in root.iterdir()} >= {"settings.toml", "metrics.json", "rejected.parquet", "figures"}
    figures = {path.name for path in (glyphs_run.folder / "figures").iterdir()}
    assert {path.name for path in (root / "figures").iterdir()} == figures


def test_a_run_that_goes_on_stays_the_same_run(beside):
    folder = beside / "small"
    with pytest.raises(DataError), tracked(TrackingSettings(), str(folder)) as first:
        raise DataError("stopped here")
    found = {run.info.run_id: run.info.status for run in runs_of(beside / "mlflow.db")}
    assert found[first.run_id] == "FAILED"
    with tracked(TrackingSettings(), str(folder)) as again:
        assert {run.info.status for run in runs_of(beside / "mlflow.db")} == {"RUNNING", "FINISHED"}
    assert again.run_id == first.run_id
    found = {run.info.run_id: run.info.status for run in runs_of(beside / "mlflow.db")}
    assert found[first.run_id] == "FINISHED"
    with tracked(TrackingSettings(), str(beside / "other")) as other:
        pass
    assert other.run_id != first.run_id


def test_a_run_that_is_stopped_is_killed(beside):
    with pytest.raises(KeyboardInterrupt), tracked(TrackingSettings(), str(beside / "small")) as tracker:
        raise KeyboardInterrupt
    assert {run.info.run_id: run.info.status for run in runs_of(beside / "mlflow.db")}[tracker.run_id] == "KILLED"


def test_the_users_store_is_honoured(beside, monkeypatch):
    shutil.move(beside / "mlflow.db", beside / "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{beside / 'elsewhere.db'}")
    before = len(runs_of(beside / "elsewhere.db"))
    with tracked(TrackingSettings(), str(beside / "runs" / "small")):
        pass
    assert len(runs_of(beside / "elsewhere.db")) == before + 1
    assert not (beside / "runs" / "mlflow.db").exists()


def test_which_store_is_chosen(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = str(tmp_path / "runs" / "food")
    assert tracking_uri(TrackingSettings(), local) == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    assert tracking_uri(TrackingSettings(), "s3://bucket/runs/food") is None
    assert tracking_uri(TrackingSettings(uri="http://server"), local) == "http://server"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert tracking_uri(TrackingSettings(), local) == "http://environment"
    assert tracking_uri(TrackingSettings(), "s3://bucket/runs/food") == "http://environment"
    assert tracking_uri(TrackingSettings(uri="http://server"), local) == "http://server"
    assert tracking_uri(TrackingSettings(enabled=False), local) is None


def test_a_run_on_s3_without_a_store_goes_on_with_a_warning(monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with caplog.at_level(logging.WARNING, "cleanscale"), tracked(TrackingSettings(), "s3://bucket/runs/x") as tracker:
        tracker.report("stage", {"loss": 1.0}, 1)
        tracker.artifact("metrics.json", b"{}")
    assert "only the run folder holds the metrics" in caplog.text
    caplog.clear()
    with tracked(TrackingSettings(enabled=False), "s3://bucket/runs/x"):
        pass
    assert caplog.text == ""


def test_a_server_that_does_not_answer_is_the_users_error_within_a_minute(tmp_path):
    started = time.monotonic()
    settings = TrackingSettings(uri="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="does not answer"), tracked(settings, str(tmp_path / "small")):
        pass
    assert time.monotonic() - started < 60


class Unreachable:
    """A tracking server that has gone away in the middle of a run."""

    def __getattr__(self, name):
        def fail(*_, **__):
            raise ConnectionError("gone away\nand more lines")

        return fail


def test_a_server_that_goes_away_is_warned_of_once_and_ends_no_run(caplog):
    tracker = Tracker(Unreachable(), "run")
    with caplog.at_level(logging.WARNING, "cleanscale"):
        for _ in range(3):
            tracker.report("stage", {"loss": 1.0, "nothing": None, "name": "text", "nan": float("nan")}, 1)
            tracker.artifact("figures/roc.png", b"")
        tracker.parameters({"run": {"seed": 0}})
    assert len([r for r in caplog.records if "metrics" in r.getMessage()]) == 1
    assert "gone away" in caplog.text
    assert "and more lines" not in caplog.text
