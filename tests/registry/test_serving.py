"""The user's own way: `mlflow models serve`, asked over HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from waiting import wait_until


def post(port: int, document: dict) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(document).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read(), parse_constant=pytest.fail)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def served(registered, store, tmp_path_factory) -> Iterator[dict[str, int]]:
    """Ports of the champions of `small`, each served by `mlflow models serve` without this checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": store.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    # As in an activated environment: MLflow starts uvicorn by its name.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    ports = {kind: free_port() for kind in ("classifier", "detector")}
    folder = tmp_path_factory.mktemp("serving")
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/small-{kind}@champion"),
                *("--env-manager", "local", "--port", str(port), "--workers", "1"),
            ],
            cwd=folder,
            env=environment,
            stdout=(folder / f"{kind}.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for kind, port in ports.items()
    ]
    try:
        for (kind, port), process in zip(ports.items(), processes, strict=True):
            wait_for(port, process, folder / f"{kind}.log")
        yield ports
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def wait_for(port: int, process: subprocess.Popen, log) -> None:
    def answers() -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200
        return False

    wait_until(answers, log, longest_s=180, by=process, every_s=0.3)


@pytest.mark.slow
def test_the_served_classifier_says_what_the_training_job_said(served, unseen_images, own_predictions):
    """Slow: starts two MLflow servers."""
    encoded = [base64.b64encode(image).decode() for image in unseen_images["image"].to_pylist()]
    status, answer = post(
        served["classifier"], {"dataframe_split": {"columns": ["image"], "data": [[e] for e in encoded]}}
    )
    assert status == 200
    own_NK = own_predictions("small")
    assert [row["label"] for row in answer["predictions"]] == own_NK[:, 0].tolist()
    np.testing.assert_array_equal([row["top_labels"] for row in answer["predictions"]], own_NK)
    assert all(0 < row["probability"] <= 1 and row["error"] is None for row in answer["predictions"])
    records = {"dataframe_records": [{"image": encoded[0]}], "params": {"top_k": 2}}
    status, answer = post(served["classifier"], records)
    assert status == 200
    assert answer["predictions"][0]["top_labels"] == own_NK[0, :2].tolist()


@pytest.mark.slow
def test_a_bad_image_over_http_is_a_row_and_bad_json_is_the_callers_error(served, unseen_images):
    """Slow: needs the servers of the test above."""
    good = base64.b64encode(unseen_images["image"][0].as_py()).decode()
    bad = base64.b64encode(b"no image at all").decode()
    status, answer = post(served["classifier"], {"dataframe_records": [{"image": bad}, {"image": good}]})
    assert status == 200
    assert [row["error"] for row in answer["predictions"]] == ["unreadable image: not a known image format", None]
    assert answer["predictions"][0]["label"] is None
    assert post(served["classifier"], {"dataframe_records": [{"picture": good}]})[0] == 400


@pytest.mark.slow
def test_the_served_detector_says_what_the_relevance_table_says(served, registered, train_images, by_row):
    """Slow: needs the servers of the test above."""
    table = by_row(registered / "small" / "relevance")
    rows = range(0, 320, 10)
    records = [
        {
            "image": base64.b64encode(train_images["image"][row].as_py()).decode(),
            # Names and numbers are both labels.
            "label": train_images["label"][row].as_py() if row % 20 else table["label"][row].as_py(),
        }
        for row in rows
    ]
    status, answer = post(served["detector"], {"dataframe_records": records})
    assert status == 200
    relevance = [row["relevance"] for row in answer["predictions"]]
    np.testing.assert_allclose(relevance, table["relevance"].to_numpy()[list(rows)], atol=1e-6)
    for row in answer["predictions"]:
        assert 0 <= row["probability_correct"] <= 1
        assert (row["suggested_class"] is not None) == row["mislabeled"]
