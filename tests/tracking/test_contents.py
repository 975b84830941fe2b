"""What of a run folder is logged."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cleanscale.datasets.settings import DataSettings
from cleanscale.storage.manifests import open_stage
from cleanscale.tracking import Silent
from cleanscale.tracking.contents import log_files, log_inputs


class Listener(Silent):
    """Remembers what it was told."""

    def __init__(self):
        self.files: dict[str, str] = {}
        self.named: dict[str, str] = {}
        self.inputs: dict[str, tuple] = {}

    def artifact_at(self, name, uri):
        self.files[name] = uri

    def tags(self, tags):
        self.named |= tags

    def dataset(self, context, name, uri, digest, rows, columns=None):
        self.inputs[context] = (name, uri, digest, rows)


@pytest.fixture
def tracker() -> Listener:
    return Listener()


@pytest.fixture
def folder(tmp_path):
    for name in ("metrics.json", "settings.toml", "figures/roc.png", "relevance/shard-000000.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0123456789")
    return tmp_path


def test_files_tables_and_figures_are_artifacts(tracker, folder):
    log_files(tracker, str(folder), table_bytes=10)
    names = {"metrics.json", "settings.toml", "figures/roc.png", "relevance/shard-000000.parquet"}
    assert tracker.files == {name: str(folder / name) for name in names}


def test_of_a_large_relevance_table_the_place_is_told_and_the_surest_finds(tracker, folder):
    (folder / "most_surely_wrong.parquet").write_bytes(b"table")
    log_files(tracker, str(folder), table_bytes=9)
    assert not [name for name in tracker.files if name.startswith("relevance")]
    assert "most_surely_wrong.parquet" in tracker.files
    assert tracker.named == {"relevance.uri": f"{folder}/relevance"}


def ingested(folder, settings: DataSettings, fingerprint: str, checked: int = 0):
    return SimpleNamespace(
        folder=str(folder),
        settings=settings,
        fingerprint=fingerprint,
        num_accepted=7,
        kind="images",
        verification=lambda: SimpleNamespace(num_rows=checked),
    )


def test_inputs_are_told_with_the_fingerprints_that_ingest_gave_them(tracker, tmp_path):
    open_stage(str(tmp_path), "ingest", {}, {"data": "d", "verification": "v" * 32}).finish()
    settings = DataSettings(train="s3://bucket/photos/", test="test", verification="checked.csv")
    log_inputs(tracker, ingested(tmp_path, settings, "f1", 3), ingested(tmp_path, settings, "f2"), None)
    assert tracker.inputs == {
        "training": ("photos", "s3://bucket/photos/", "f1", 7),
        "test": ("test", "test", "f2", 7),
        "verification": ("checked.csv", "checked.csv", "v" * 32, 3),
    }


def test_verification_labels_in_a_column_lie_where_the_images_do(tracker, tmp_path):
    made = open_stage(str(tmp_path), "ingest", {}, {"data": "d"}).finish()
    settings = DataSettings(train="photos", verified="verified")
    log_inputs(tracker, ingested(tmp_path, settings, "f1", 3), None, None)
    assert tracker.inputs["verification"] == ("photos", "photos", made.fingerprint, 3)


def test_without_verification_labels_there_is_no_such_input(tracker, tmp_path):
    log_inputs(tracker, ingested(tmp_path, DataSettings(train="photos"), "f1"), None, None)
    assert set(tracker.inputs) == {"training"}


def test_a_finished_run_is_logged_whole(glyphs_run, runs_in):
    """Rounds, inputs, tables and figures of a run by the command line."""
    runs = runs_in(glyphs_run.folder.parent / "mlflow.db")
    parent = runs["small"]
    assert set(runs) == {"small", "round_0", "round_1"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert parent.data.tags["run.uri"] == str(glyphs_run.folder)
    assert parent.data.params["glyphs.classes"] == "8"
    assert parent.data.params["cleannet.steps"] == "8"
    assert {"classifier/loss", "cleannet/supervised", "evidence/loss"} <= set(runs["round_0"].data.metrics)
    assert "detection/transfer/auroc/value" in runs["round_0"].data.metrics
    assert {"classifier/loss", "classification/top1/value"} <= set(runs["round_1"].data.metrics)
    assert "round/classification/round_1/top1/value" in parent.data.metrics
    assert "round/seconds/features" in parent.data.metrics
    assert "system/cpu_utilization_percentage" in parent.data.metrics
    contexts = {one.tags[0].value for one in parent.inputs.dataset_inputs}
    assert contexts == {"training", "test", "verification"}
    root = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert root.is_relative_to(glyphs_run.folder.parent)
    kept = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
    figures = {f"figures/{file.name}" for file in (glyphs_run.folder / "figures").iterdir()}
    assert kept >= figures | {
        "settings.toml", "metrics.json", "rejected.parquet", "per_class.parquet", "most_surely_wrong.parquet",
        "relevance/shard-000000.parquet",
    }  # fmt: skip
