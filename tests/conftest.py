"""What tests of whole runs share: one Ray session, one S3 server, two small finished runs, training without a group."""

from __future__ import annotations

import one_thread_each  # noqa: F401

# isort: split
import contextlib
import fcntl
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.config import Settings, merge, validate
from cleanscale.engine.session import session
from cleanscale.engine.settings import EngineSettings
from cleanscale.engine.train import Worker, watch
from cleanscale.in_memory import one_thread
from cleanscale.stages import classifier, cleannet, evidence_heads, head_classifier, label_cleaning
from cleanscale.training import drae
from cleanscale.training.collectives import Alone

CPUS = 2
SMALL: dict[str, Any] = {
    "backbone": {"name": "test_resnet", "weights": "", "image_size": 16},
    "augmentation": {"horizontal_flip": False, "evaluation_crop": 1.0},
    "classifier": {"epochs": 3, "finetune_epochs": 1, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.004},
    "cleannet": {"steps": 8, "start_steps": 12, "class_folds": 2, "references_per_class": 8, "classes_per_half": 4},
    "heads": {"epochs": 2, "hidden_width": 16, "batch": 64},
    "evidence": {"row_folds": 2, "class_folds": 2},
    "evaluate": {"resamples": 20, "figures": False},
    "engine": {"num_cpus": CPUS},
}
GLYPHS = {
    "data": {"train": "glyphs"},
    "glyphs": {
        "classes": 8,
        "train_per_class": 40,
        "test_per_class": 6,
        "size": 16,
        "verified_classes": 4,
        "verified_per_class": 15,
    },
}
# What takes longest begins first, so that two test processes beside each other end at about the same time.
LONGEST = tuple(f"test_{name}.py" for name in ("jobs", "nodes", "resume", "s3_run", "pipeline", "sweep", "treatments"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@dataclass(frozen=True)
class Finished:
    """A run that has ended: its folder, what it was made with and what it said."""

    folder: Path
    settings: Settings
    said: list[str]


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory) -> Path:
    """A folder that test processes beside each other have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def made_once(shared_root) -> Callable[[str, Callable[[Path], Any]], Any]:
    """made_once(name, make): what `make(folder)` gave to the first test process that asked; the others wait for it."""

    def get(name: str, make: Callable[[Path], Any]) -> Any:
        made = shared_root / f"{name}.pickle"
        with (shared_root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                (shared_root / name).mkdir(exist_ok=True)
                made.write_bytes(pickle.dumps(make(shared_root / name)))
        return pickle.loads(made.read_bytes())

    return get


@pytest.fixture(scope="session")
def small_values() -> Callable[..., dict[str, Any]]:
    """small_values(folder, {...}, ...): nested settings of a run of seconds; later ones win."""

    def make(folder: Path | str, *more: dict[str, Any]) -> dict[str, Any]:
        values = merge(SMALL, {"run": {"uri": str(folder)}})
        for one in more:
            values = merge(values, one)
        return values

    return make


@pytest.fixture(scope="session")
def small_settings(small_values) -> Callable[..., Settings]:
    """As `small_values`, as the settings that a run is given."""
    return lambda folder, *more: validate(small_values(folder, *more))


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """The environment that finds an S3 server over HTTP with the bucket `runs-bucket`."""
    import boto3
    from s3_proxy import moto_server

    keys = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with moto_server() as endpoint:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in keys.items():
                patch.setenv(name, value)
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="runs-bucket")
        yield {"AWS_ENDPOINT_URL": endpoint, **keys}


@pytest.fixture
def s3_bucket(s3_environment, monkeypatch) -> str:
    """`s3://bucket` on that server, found by this process while a test runs. Tests share it: use names of your own."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return "s3://runs-bucket"


@pytest.fixture(scope="session")
def ray_session(s3_environment, shared_root) -> Iterator[None]:
    """One Ray for all tests; its workers know the S3 server, as on a cluster whose nodes have the variables.

    Test processes beside each other start theirs one after the other: two at once may take longer than the 30 s that
    Ray gives a node.
    """
    opened = contextlib.ExitStack()
    with pytest.MonkeyPatch.context() as patch, (shared_root / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, value in s3_environment.items():
            patch.setenv(name, value)
        opened.enter_context(session(EngineSettings(num_cpus=CPUS)))
    with opened:
        yield


@pytest.fixture
def alone() -> Iterator[None]:
    """Many small matrices on one thread, as in a task: threads that wait for each other take minutes."""
    with one_thread():
        yield


@pytest.fixture
def few_steps(monkeypatch) -> None:
    """DRAE's autoencoders learn for a moment only: for tests of everything but how well they do."""
    monkeypatch.setattr(drae, "STEPS", 6)
    monkeypatch.setattr(drae, "PLAIN_STEPS", 3)


class LoneWorker(Worker):
    """A training worker in the test's own process, without a worker group behind it."""

    def checkpoint(self) -> dict[str, Any] | None:
        return None

    def save(self, state: Callable[[], dict[str, Any]], metrics: dict[str, Any]) -> None:
        pass


def train_in_this_process(
    loop: Any, config: Any, *, uri: str, settings: Any, on_progress: Callable[[dict[str, Any]], None] = lambda _: None
) -> None:
    """In place of a worker group of one, which gives the same bits."""
    with watch(uri, on_progress):
        loop(LoneWorker(uri, "cpu", Alone()), config)


@contextlib.contextmanager
def training_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (classifier, cleannet, evidence_heads, head_classifier, label_cleaning):
            patch.setattr(module, "train_on_workers", train_in_this_process)
        yield


@pytest.fixture(scope="session")
def in_this_process() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with in_this_process():` training loops run in the test's process."""
    return training_here


@pytest.fixture
def train_here(ray_session) -> Iterator[None]:
    """Training loops run in the test's process: worker groups, which take seconds to start, are tested elsewhere."""
    with training_here():
        yield


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """What the package logs during a `with`."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("cleanscale")
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@pytest.fixture(scope="session")
def finish(ray_session) -> Callable[[Settings], Finished]:
    """finish(settings): run the job."""
    from cleanscale.pipeline import run

    def do(settings: Settings) -> Finished:
        with listening() as said:
            run(settings)
        return Finished(Path(settings.run_uri), settings, said)

    return do


@pytest.fixture(scope="session")
def call_main(ray_session) -> Callable[[list[str]], tuple[int, list[str]]]:
    """call_main(arguments): the command line in this process; (exit status, what was logged)."""
    import signal

    from cleanscale.train import main

    def call(arguments: list[str]) -> tuple[int, list[str]]:
        before = signal.getsignal(signal.SIGTERM)
        try:
            with listening() as said:
                return main(arguments), said
        finally:
            signal.signal(signal.SIGTERM, before)

    return call


@pytest.fixture(scope="session")
def glyphs_toml(made_once, small_values) -> Path:
    """The settings of `glyphs_run` as a file."""
    import tomli_w

    def write(folder: Path) -> Path:
        values = small_values(folder / "runs" / "small", GLYPHS, {"evaluate": {"figures": True}})
        file = folder / "small.toml"
        file.write_text(tomli_w.dumps(values))
        return file

    return made_once("glyphs", write)


@pytest.fixture(scope="session")
def glyphs_run(call_main, glyphs_toml, made_once) -> Finished:
    """A run on images by the command line, with figures and tracking; tests look at it and copy it, none changes it.

    Its classifiers are trained in this process; runs that are killed and runs on S3 compare their own with them.
    """
    from cleanscale.config import load

    def make(_: Path) -> Finished:
        with training_here():
            status, said = call_main(["--config", str(glyphs_toml)])
        assert status == 0, said
        settings = load(["--config", str(glyphs_toml)])
        return Finished(Path(settings.run_uri), settings, said)

    return made_once("glyphs_run", make)


def feature_table(
    classes: int = 8, per_class: int = 40, width: int = 16, wrong: float = 0.3, seed: int = 0
) -> pa.Table:
    """Features around centres of small and large classes, 30 % wrong labels, 15 checked in each of the first half."""
    rng = np.random.default_rng([11, seed])
    centre_CD = 1.5 * np.random.default_rng(5).standard_normal((classes, width))
    images_C = per_class * np.repeat([1, 2, 3, 5], [classes // 2, classes // 4, classes // 8, classes // 8]) // 2
    true_N = rng.permutation(np.repeat(np.arange(classes), images_C))
    feature_ND = (centre_CD[true_N] + rng.standard_normal((len(true_N), width))).astype(np.float32)
    label_N = np.where(rng.random(len(true_N)) < wrong, rng.integers(classes, size=len(true_N)), true_N)
    verified_N = np.full(len(true_N), -1, np.int8)
    for label in range(classes // 2):
        rows = np.flatnonzero(label_N == label)[:15]
        verified_N[rows] = true_N[rows] == label
    flat = pa.FixedSizeListArray.from_arrays(pa.array(feature_ND.reshape(-1)), width)
    return pa.table(
        {
            "id": [f"image {k}" for k in range(len(true_N))],
            "label": pa.array(label_N.astype(np.int32)),
            "true_label": pa.array(true_N.astype(np.int32)),
            "verified": pa.array(verified_N),
            "feature": flat,
        }
    )


@pytest.fixture(scope="session")
def make_features() -> Callable[..., pa.Table]:
    return feature_table


@pytest.fixture(scope="session")
def feature_data(made_once) -> Path:
    """A folder with train.parquet, test.parquet and clean.parquet of features."""

    def write(folder: Path) -> Path:
        pq.write_table(feature_table(), folder / "train.parquet")
        for name, seed in (("test", 1), ("clean", 2)):
            right = feature_table(per_class=10, wrong=0.0, seed=seed).drop_columns(["verified", "true_label"])
            pq.write_table(right, folder / f"{name}.parquet")
        return folder

    return made_once("features", write)


@pytest.fixture(scope="session")
def feature_values(feature_data) -> dict[str, Any]:
    """The data settings of a run on `feature_data`."""
    train, test = str(feature_data / "train.parquet"), str(feature_data / "test.parquet")
    return {"data": {"train": train, "test": test, "verified": "verified", "true_label": "true_label"}}


@pytest.fixture(scope="session")
def features_run(finish, small_settings, feature_values, made_once) -> Finished:
    """A run on features; tests look at it and copy it, none changes it."""

    def make(folder: Path) -> Finished:
        with training_here():
            return finish(small_settings(folder / "features", feature_values))

    return made_once("features_run", make)


@pytest.fixture
def copy_run(tmp_path) -> Callable[[Finished], Path]:
    """copy_run(run): a copy of a finished run's folder, to go on from with other settings."""

    def copy(run: Finished) -> Path:
        return Path(shutil.copytree(run.folder, tmp_path / "copy"))

    return copy


def manifest_times(folder: Path) -> dict[str, int]:
    """When each stage of a run was done: folder of the stage -> time of its manifest."""
    return {
        file.parent.relative_to(folder).as_posix(): file.stat().st_mtime_ns for file in folder.rglob("manifest.json")
    }


@pytest.fixture(scope="session")
def stages_done() -> Callable[[Path], dict[str, int]]:
    return manifest_times


def read_tables(folder: Path) -> pa.Table:
    """The tables of a stage's class shards as one, by row."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("shard-*.parquet"))]).sort_by("row")


@pytest.fixture(scope="session")
def by_row() -> Callable[[Path], pa.Table]:
    return read_tables
