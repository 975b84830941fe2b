"""A registered classifier behind `mlflow models serve`: requests/s and their times at several numbers of callers.

    python benchmarks/serving.py RUN [--callers 1 8 32] [--requests 400] [--images 1] [--workers 1] [--detector]

RUN is a finished run on images with a test set; it is registered into a store of its own. Every caller keeps one
connection on loopback and sends its next request when it has its answer. Callers, server and network share the machine.
One JSON line for each number of callers; `equal` is the share of answers that are the training job's own predictions.
With --detector one more line says how well the registered detector tells right labels from wrong ones on the test
images, which the run has never seen, every other one with the label of another image.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from cleanscale.maths.detection_metrics import auroc
from cleanscale.registry.finished_run import FinishedRun, predicted_array
from cleanscale.registry.model_artifacts import read_inputs
from cleanscale.registry.register import register
from cleanscale.registry.store import Store


@contextlib.contextmanager
def served(store: Store, model: str, workers: int, log: Path) -> Iterator[int]:
    """The port of the model's server."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    place = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": store.uri, "PATH": place}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    command += ["--port", str(port), "--workers", str(workers)]
    with log.open("w") as sink:
        process = subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            if process.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(0.3)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def ask(port: int, bodies: list[bytes], callers: int, requests: int) -> tuple[np.ndarray, dict[int, list[int]], float]:
    """(seconds of each request, the labels that each body got, seconds in all)."""
    took, labels, lock = [], {}, threading.Lock()
    numbers = iter(range(requests))

    def call() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            started = time.perf_counter()
            connection.request(
                "POST", "/invocations", bodies[number % len(bodies)], {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            content = answer.read()
            seconds = time.perf_counter() - started
            assert answer.status == 200, content
            with lock:
                took.append(seconds)
                labels[number % len(bodies)] = [row["label"] for row in json.loads(content)["predictions"]]

    threads = [threading.Thread(target=call) for _ in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array(took), labels, time.perf_counter() - started


def test_images(run: FinishedRun) -> tuple[list[bytes], list[str], np.ndarray]:
    """(encoded images, names of their labels, what the job predicted)."""
    table = run.test_predictions()
    contents = read_inputs(run.ingested("test"), table["row"].to_numpy())
    labels = run.ingested("train").label_map()
    names = [labels.name_of(label) for label in table["label"].to_pylist()]
    return [contents[row] for row in table["row"].to_pylist()], names, predicted_array(table)[:, 0]


def measure_detector(model: str, images: list[bytes], names: list[str]) -> dict[str, object]:
    right_N = np.array(names, object)
    given_N = np.where(np.arange(len(names)) % 2, np.roll(right_N, 1 + len(names) // 2), right_N)
    found = mlflow.pyfunc.load_model(model).predict(pd.DataFrame({"image": images, "label": given_N}))
    wrong_N = given_N != right_N
    return {
        "detector": model,
        "images": len(names),
        "wrong": int(wrong_N.sum()),
        "auroc": auroc(wrong_N, found["probability_correct"].to_numpy(float)),
        "auroc_of_relevance": auroc(wrong_N, found["relevance"].to_numpy(float)),
        "error_percent": 100 * float((found["mislabeled"].to_numpy(bool) != wrong_N).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=400, help="for each number of callers")
    parser.add_argument("--images", type=int, default=1, help="in each request")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--detector", action="store_true")
    asked = parser.parse_args()
    run = FinishedRun.open(asked.run)
    images, names, predicted_N = test_images(run)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(f"sqlite:///{scratch}/mlflow.db")
        place = (Path(scratch) / "models").as_uri()  # else the models would lie beside the run folders
        store.client.create_experiment(run.settings.tracking.experiment, artifact_location=place)
        made = register(run, store, "benchmark")
        models = {kind: f"models:/{one.model}/{one.version}" for kind, one in made.items()}
        starts = range(0, len(images) - asked.images + 1, asked.images)
        encoded = [base64.b64encode(image).decode() for image in images]
        rows = [[{"image": image} for image in encoded[start : start + asked.images]] for start in starts]
        bodies = [json.dumps({"dataframe_records": records}).encode() for records in rows]
        with served(store, models["classifier"], asked.workers, Path(scratch) / "server.log") as port:
            ask(port, bodies, 4, 20)  # the first ones load what is loaded late
            for callers in asked.callers:
                took, labels, seconds = ask(port, bodies, callers, asked.requests)
                right = [predicted_N[starts[n] : starts[n] + asked.images] == found for n, found in labels.items()]
                p50, p99 = np.quantile(took, [0.5, 0.99]) * 1000
                line = {"callers": callers, "requests": len(took), "images_each": asked.images}
                line |= {"workers": asked.workers, "requests_per_s": round(len(took) / seconds, 2)}
                line |= {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "equal": float(np.concatenate(right).mean())}
                print(json.dumps(line), flush=True)
        if asked.detector:
            print(json.dumps(measure_detector(models["detector"], images, names)), flush=True)


if __name__ == "__main__":
    main()
