"""An `mlflow server` over HTTP that is killed, or hangs, in the middle of a run. Slow: it starts twice."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from cleanscale.tracking import Tracker, TrackingSettings, delivery, tracked
from cleanscale.tracking.store import connect

pytestmark = pytest.mark.slow
LONG_S = 120


class Server:
    """One server in a process group of its own, on the same port whenever it is started."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log").open("a") as log:
            environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
        wait_until(self.answers, self.folder / "log", longest_s=LONG_S, by=self.process)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.url}/health", timeout=1).status == 200
        return False

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(LONG_S)
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server"))
    try:
        one.start()
        yield one
    finally:
        one.kill()


@pytest.fixture
def settings(server, monkeypatch) -> TrackingSettings:
    """As a user has it, but that what does not answer is tried again in less than seconds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr(delivery, "LONGEST_WAIT_S", 0.5)
    return TrackingSettings(uri=server.url, system_metrics_s=0, patience_s=LONG_S)


def wait_until_away(tracker: Tracker) -> None:
    wait_until(lambda: tracker.delivery.away, "a server that is away", longest_s=LONG_S)


def test_a_run_logs_to_a_server_over_http_and_prints_nothing(server, settings, runs_in, tmp_path, capfd):
    (tmp_path / "table.csv").write_text("class,images\n")
    with tracked(settings, str(tmp_path / "plain")) as tracker:
        tracker.parameters({"cleannet": {"steps": 3}})
        tracker.dataset("training", "photos", "photos", "0123456789abcdef", 7)
        tracker.report("plain", {"loss": 1.0}, 1)
        tracker.artifact("figures/roc.png", b"picture")
        tracker.artifact_at("table.csv", str(tmp_path / "table.csv"))
        with tracker.child("trial of plain") as trial:
            trial.report("objective", {"error": 0.5}, 1)
    assert capfd.readouterr() == ("", "")
    runs = runs_in(server.url)
    run = runs["plain"]
    assert run.info.status == runs["trial of plain"].info.status == "FINISHED"
    assert run.data.params == {"cleannet.steps": "3"}
    assert run.inputs.dataset_inputs[0].dataset.digest == "0123456789abcdef"
    client = connect(server.url)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"figures", "table.csv"}
    kept = client.download_artifacts(run.info.run_id, "figures/roc.png", str(tmp_path))
    assert Path(kept).read_bytes() == b"picture"


def test_a_server_that_is_killed_for_a_while_has_everything_in_the_end(server, settings, runs_in, tmp_path):
    with tracked(settings, str(tmp_path / "outage")) as tracker:
        tracker.report("round_0/classifier", {"loss": 3.0}, 0)
        assert tracker.delivery.flush(LONG_S)
        server.kill()
        tracker.report("round_0/classifier", {"loss": 2.0}, 1)
        wait_until_away(tracker)
        tracker.report("round_1/classifier", {"loss": 1.5}, 0)  # a nested run that begins while nobody is there
        tracker.artifact("figures/roc.png", b"picture")
        tracker.parameters({"cleannet": {"steps": 3}})
        with tracker.child("trial during it") as trial:
            trial.report("objective", {"error": 0.5}, 1)
        server.start()
        tracker.report("round_1/classifier", {"loss": 1.0}, 1)
        tracker.report("round", {"detection": {"auroc": 0.8}}, 1)
    runs, client = runs_in(server.url), connect(server.url)
    names = ("outage", "round_0", "round_1", "trial during it")
    assert {name: runs[name].info.status for name in names} == dict.fromkeys(names, "FINISHED")

    def history(run: str, name: str) -> list[tuple[int, float]]:
        return [(one.step, one.value) for one in client.get_metric_history(runs[run].info.run_id, name)]

    assert history("round_0", "classifier/loss") == [(0, 3.0), (1, 2.0)]
    assert history("round_1", "classifier/loss") == [(0, 1.5), (1, 1.0)]
    assert history("outage", "round/detection/auroc") == [(1, 0.8)]
    assert history("trial during it", "objective/error") == [(1, 0.5)]
    assert runs["outage"].data.params == {"cleannet.steps": "3"}
    assert [file.path for file in client.list_artifacts(runs["outage"].info.run_id, "figures")] == ["figures/roc.png"]


def test_a_server_that_hangs_holds_up_neither_the_run_nor_its_end(server, settings, runs_in, tmp_path, caplog):
    impatient = settings.model_copy(update={"patience_s": 0.1})
    try:
        with tracked(impatient, str(tmp_path / "hanging")) as tracker:
            assert tracker.delivery.flush(LONG_S)
            # Stopped until after the run: nothing that follows could return if it waited for an answer.
            server.signal(signal.SIGSTOP)
            for step in range(100):
                tracker.report("hanging", {"loss": 1.0}, step)
            tracker.artifact("figures/roc.png", b"picture")
    finally:
        server.signal(signal.SIGCONT)
    assert "did not reach MLflow" in caplog.text
    assert "the same command sends the final metrics and files again" in caplog.text
    with tracked(settings, str(tmp_path / "hanging")) as again:  # the same command
        again.report("hanging", {"loss": 1.0}, 100)
    assert again.run_id == tracker.run_id
    assert runs_in(server.url)["hanging"].info.status == "FINISHED"


def test_what_was_told_while_a_server_hung_arrives_when_it_goes_on(server, settings, tmp_path):
    with tracked(settings, str(tmp_path / "hung")) as tracker:
        assert tracker.delivery.flush(LONG_S)
        server.signal(signal.SIGSTOP)
        try:
            for step in range(20):
                tracker.report("hung", {"loss": float(step)}, step)
            wait_until_away(tracker)
        finally:
            server.signal(signal.SIGCONT)
    found = connect(server.url).get_metric_history(tracker.run_id, "hung/loss")
    assert [(one.step, one.value) for one in found] == [(step, float(step)) for step in range(20)]
