"""What tests of the registry share: two small finished runs beside one database, registered and promoted once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale import cli
from cleanscale.registry.store import Store


@pytest.fixture(scope="session")
def runs(glyphs_run, features_run, tmp_path_factory) -> Path:
    """A folder of run folders: `small` on images, `features` on features."""
    folder = tmp_path_factory.mktemp("registry") / "runs"
    for run, name in ((glyphs_run, "small"), (features_run, "features")):
        shutil.copytree(run.folder, folder / name, ignore=shutil.ignore_patterns("tracking.json"))
    return folder


@pytest.fixture(scope="session")
def store(runs) -> Store:
    return Store.of_run(str(runs / "small"), None)


@pytest.fixture(scope="session")
def registered(runs, store) -> Path:
    """`runs`, with both runs promoted: version 1 of each of the four models is the champion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name in ("small", "features"):
            assert cli.main(["promote", str(runs / name)]) == 0
    return runs


@pytest.fixture
def command(registered, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """command("list", ...): (exit status, what it printed, what it complained of)."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(list(arguments))
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def table_of(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))])


@pytest.fixture(scope="session")
def unseen_images(runs) -> pa.Table:
    """id, image, label of the glyphs that the run was tested on."""
    return table_of(runs / "small" / "glyphs" / "test")


@pytest.fixture(scope="session")
def train_images(runs) -> pa.Table:
    """id, image, label (noisy), true_label of the glyphs that the run was trained on."""
    return table_of(runs / "small" / "glyphs" / "train")


@pytest.fixture(scope="session")
def own_predictions(runs, by_row) -> Callable[[str], np.ndarray]:
    """own_predictions("small"): int [N, K], what the training job wrote about its test set."""

    def read(name: str) -> np.ndarray:
        table = by_row(runs / name / "rounds" / "01" / "classifier_test_predictions")
        return np.array(table["predicted"].to_pylist())

    return read
