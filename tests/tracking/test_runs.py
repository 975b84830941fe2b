"""What MLflow is told, in a database without a server."""

import logging
import subprocess
import sys
import time

import pytest

from cleanscale.errors import ConfigError, DataError
from cleanscale.tracking import Tracker, TrackingSettings, end_abandoned, open_run, tracked, tracked_trial, tracking_uri
from cleanscale.tracking.delivery import Delivery, RunHandle
from cleanscale.tracking.store import PARENT, MlflowStore, connect

QUIET = TrackingSettings(system_metrics_s=0)
LONG_S = 60


def store_of(folder) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def history(store: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in connect(store).get_metric_history(run_id, name)]


def test_a_run_that_goes_on_stays_the_same_run(beside, runs_in):
    folder = beside / "small"
    with pytest.raises(DataError), tracked(QUIET, str(folder)) as first:
        raise DataError("stopped here")
    assert runs_in(beside / "mlflow.db")["small"].info.status == "FAILED"
    with tracked(QUIET, str(folder)) as again:
        assert runs_in(beside / "mlflow.db")["small"].info.status == "RUNNING"
    assert again.run_id == first.run_id
    assert runs_in(beside / "mlflow.db")["small"].info.status == "FINISHED"
    with tracked(QUIET, str(beside / "other")) as other:
        pass
    assert other.run_id != first.run_id


def test_a_run_that_is_stopped_is_killed_with_the_round_it_was_in(beside, runs_in):
    def stopped_in_round_1() -> None:
        with tracked(QUIET, str(beside / "small")) as tracker:
            tracker.report("round_0/classifier", {"loss": 1.0}, 0)
            tracker.report("round_1/classifier", {"loss": 1.0}, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_in_round_1()
    found = {name: run.info.status for name, run in runs_in(beside / "mlflow.db").items()}
    assert found == {"first": "FINISHED", "small": "KILLED", "round_0": "FINISHED", "round_1": "KILLED"}


def test_each_round_is_a_nested_run_with_its_own_steps(beside, runs_in):
    with tracked(QUIET, str(beside / "small")) as tracker:
        for step, loss in enumerate((2.0, 1.0)):
            tracker.report("round_0/classifier", {"loss": loss}, step)
        tracker.report("round_0", {"detection": {"auroc": 0.8}}, 0)
        tracker.report("round_1/classifier", {"loss": 0.5, "nothing": None, "name": "text", "nan": float("nan")}, 0)
        tracker.report("round", {"detection": {"auroc": 0.8}}, 1)
    runs = runs_in(beside / "mlflow.db")
    parent = runs["small"]
    assert parent.data.metrics == {"round/detection/auroc": 0.8}
    assert runs["round_0"].data.metrics == {"classifier/loss": 1.0, "detection/auroc": 0.8}
    assert runs["round_1"].data.metrics == {"classifier/loss": 0.5}
    for number in (0, 1):
        run = runs[f"round_{number}"]
        assert run.data.tags[PARENT] == parent.info.run_id
        assert run.data.tags["cleanscale.round"] == str(number)
        assert run.info.status == "FINISHED"
    assert history(store_of(beside), runs["round_0"].info.run_id, "classifier/loss") == [(0, 2.0), (1, 1.0)]


def test_settings_are_parameters_and_newer_ones_are_tags(beside, runs_in):
    many = {f"s{k}": k for k in range(150)}  # more than MLflow takes at once
    for steps in (3, 4):
        with tracked(QUIET, str(beside / "small")) as tracker:
            tracker.parameters({"cleannet": {"steps": steps}, "many": many})
    run = runs_in(beside / "mlflow.db")["small"]
    assert run.data.params["cleannet.steps"] == "3"
    assert run.data.tags["setting/cleannet.steps"] == "4"
    assert run.data.params["many.s149"] == "149"


def test_a_name_that_mlflow_does_not_take_is_written_in_a_way_that_it_does(beside, runs_in):
    with tracked(QUIET, str(beside / "small")) as tracker:
        tracker.report("round", {"top-1 (%)": 1.0, "plain": 2.0}, 1)
        tracker.parameters({"a=b": 3})
    run = runs_in(beside / "mlflow.db")["small"]
    assert run.data.metrics == {"round/top-1 ___": 1.0, "round/plain": 2.0}
    assert run.data.params == {"a_b": "3"}


def test_an_input_is_a_data_set_with_its_fingerprint(beside, runs_in):
    with tracked(QUIET, str(beside / "small")) as tracker:
        for _ in range(2):  # a run that goes on tells it again
            tracker.dataset("training", "photos", "s3://bucket/photos", "0123456789abcdef", 7, {"id": "string"})
            tracker.dataset("verification", "checked.csv", "checked.csv", 40 * "f", 3)
    inputs = {one.tags[0].value: one for one in runs_in(beside / "mlflow.db")["small"].inputs.dataset_inputs}
    assert set(inputs) == {"training", "verification"}
    training = inputs["training"].dataset
    assert (training.name, training.digest, training.source_type) == ("photos", "0123456789abcdef", "s3")
    assert "s3://bucket/photos" in training.source
    assert '"num_rows": 7' in training.profile
    assert '"id"' in training.schema
    assert inputs["verification"].dataset.digest == 36 * "f"


def test_a_trial_is_a_nested_run_from_here_or_from_another_process(beside, runs_in):
    code = """
import sys
from cleanscale.tracking import tracked_trial
with tracked_trial(sys.argv[1], sys.argv[2], "there", {"host": "b"}) as trial:
    trial.report("objective", {"error": 0.25}, 3)
"""
    with tracked(QUIET, str(beside / "sweep")) as tracker:
        with tracker.child("here", {"host": "a"}) as trial:
            trial.report("objective", {"error": 0.5}, 1)
        with pytest.raises(DataError), tracker.child("failed") as trial:
            raise DataError("no such column")
        command = [sys.executable, "-c", code, store_of(beside), tracker.run_id]
        subprocess.run(command, check=True, timeout=LONG_S)
        with tracked_trial(store_of(beside), tracker.run_id, "there") as again:  # restored: the same trial goes on
            again.report("objective", {"error": 0.125}, 4)
    runs = runs_in(beside / "mlflow.db")
    assert {name: run.info.status for name, run in runs.items()} == {
        "first": "FINISHED", "sweep": "FINISHED", "here": "FINISHED", "failed": "FAILED", "there": "FINISHED",
    }  # fmt: skip
    assert {runs[name].data.tags[PARENT] for name in ("here", "failed", "there")} == {runs["sweep"].info.run_id}
    assert runs["there"].data.tags["host"] == "b"
    assert history(store_of(beside), runs["there"].info.run_id, "objective/error") == [(3, 0.25), (4, 0.125)]


def test_nested_runs_of_a_driver_that_was_killed_do_not_stay_running(beside, runs_in):
    settings, folder = QUIET, str(beside / "small")
    killed = open_run(settings, folder, store_of(beside))
    killed.report("round_0/classifier", {"loss": 1.0}, 0)
    killed.begin_child("trial").begin_child("trial of a trial")
    assert killed.delivery.flush(LONG_S)  # and no more: nobody ends it
    assert {run.info.status for name, run in runs_in(beside / "mlflow.db").items() if name != "first"} == {"RUNNING"}
    with tracked(settings, folder) as again:
        again.report("round_0/classifier", {"loss": 0.5}, 1)
        assert again.delivery.flush(LONG_S)
        found = {name: run.info.status for name, run in runs_in(beside / "mlflow.db").items()}
    assert found["round_0"] == "RUNNING"  # taken up again
    assert found["trial"] == found["trial of a trial"] == "KILLED"
    runs = runs_in(beside / "mlflow.db")
    assert runs["round_0"].info.status == "FINISHED"
    assert history(store_of(beside), runs["round_0"].info.run_id, "classifier/loss") == [(0, 1.0), (1, 0.5)]
    killed.delivery.close(0)


def test_nested_runs_can_be_ended_by_hand(beside, runs_in):
    with tracked(QUIET, str(beside / "sweep")) as tracker:
        tracker.begin_child("trial")
        assert tracker.delivery.flush(LONG_S)
        end_abandoned(store_of(beside), tracker.run_id)
        assert runs_in(beside / "mlflow.db")["trial"].info.status == "KILLED"


def test_the_users_store_is_honoured(beside, runs_in, monkeypatch):
    (beside / "mlflow.db").rename(beside / "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{beside / 'elsewhere.db'}")
    with tracked(QUIET, str(beside / "runs" / "small")):
        pass
    assert "small" in runs_in(beside / "elsewhere.db")
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
        with tracker.child("trial") as trial:
            trial.report("stage", {"loss": 1.0}, 1)
    assert "only the run folder holds the metrics" in caplog.text
    caplog.clear()
    with tracked(TrackingSettings(enabled=False), "s3://bucket/runs/x"):
        pass
    assert caplog.text == ""


def test_a_server_that_does_not_answer_at_the_start_is_the_users_error_within_a_minute(tmp_path):
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


def test_a_server_that_stays_away_is_warned_of_once_and_ends_no_run(caplog):
    tracker = Tracker(Delivery(MlflowStore(Unreachable(), "run"), "http://server"), RunHandle("run", "run"))
    with caplog.at_level(logging.WARNING, "cleanscale"):
        for _ in range(3):
            tracker.report("stage", {"loss": 1.0}, 1)
            tracker.report("round_0/stage", {"loss": 1.0}, 1)
            tracker.artifact("figures/roc.png", b"")
        tracker.parameters({"run": {"seed": 0}})
        tracker.end("FINISHED")
        assert len(tracker.delivery.close(0.3)) == 14
    assert len(caplog.records) == 1
    assert "gone away" in caplog.text
    assert "and more lines" not in caplog.text


def test_jobs_that_use_one_database_at_once_lose_nothing(tmp_path, runs_in, monkeypatch):
    """Also when the database does not exist yet, so that both make it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code = """
import sys
from cleanscale.tracking import TrackingSettings, tracked
with tracked(TrackingSettings(system_metrics_s=0), sys.argv[1]) as tracker:
    for step in range(25):
        tracker.report("round_0/classifier", {"loss": step}, step)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    jobs = [
        subprocess.Popen([*command, str(tmp_path / name)], stderr=subprocess.PIPE, text=True) for name in ("a", "b")
    ]
    said = [job.communicate(timeout=LONG_S)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    client = connect(store_of(tmp_path))
    found = client.search_runs([client.get_experiment_by_name("cleanscale").experiment_id])
    assert sorted(run.info.run_name for run in found) == ["a", "b", "round_0", "round_0"]
    for run in found:
        assert run.info.status == "FINISHED"
        if run.info.run_name == "round_0":
            steps = history(store_of(tmp_path), run.info.run_id, "classifier/loss")
            assert steps == [(step, float(step)) for step in range(25)]
