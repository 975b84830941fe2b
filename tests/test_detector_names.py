"""Detectors that make signals of their own, by name on the command line, on top of a finished run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.detectors import DETECTORS

OWN = [name for name, entry in DETECTORS.items() if entry.own_signals]
# Weights do not reach the classifier: of a finished run only the judgement is made again.
SAME = ("--treatment.name", "none", "--tracking.enabled", "false")


@pytest.fixture(scope="module")
def judge(features_run, call_main, in_this_process, tmp_path_factory):
    """judge(*arguments): the command line on a copy of a finished run; (its folder, what was logged)."""
    folder = shutil.copytree(features_run.folder, tmp_path_factory.mktemp("judged") / "run")

    def do(*arguments: str) -> tuple[Path, list[str]]:
        config = str(features_run.folder / "settings.toml")
        status, said = call_main(["--config", config, "--run.uri", str(folder), *SAME, *arguments])
        assert status == 0, said
        return folder, said

    with in_this_process():
        do()
    return do


@pytest.mark.parametrize("name", OWN)
def test_every_detector_on_features_runs_by_its_name(judge, stages_done, by_row, name):
    before = stages_done(judge("--detector.name", "naive")[0])
    folder, _ = judge("--detector.name", name)
    after = stages_done(folder)
    assert {stage for stage in after if after[stage] != before.get(stage)} == {
        "rounds/00/relevance",
        f"rounds/00/signals/{name}",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"verified_classes", "held_out_classes"} <= set(metrics["detection"][name]["error_per_class"])
    decided, table = by_row(folder / "rounds/00/relevance/decisions"), by_row(folder / "relevance")
    unseen_N = table["verified"].to_numpy() == -1
    np.testing.assert_array_equal(
        table["mislabeled"].to_numpy()[unseen_N], decided[f"{name}.mislabeled"].to_numpy()[unseen_N]
    )


def test_detectors_that_are_compared_are_reported_and_do_not_decide(judge, by_row):
    folder, _ = judge("--detector.name", "transfer")
    alone = by_row(folder / "relevance")
    folder, _ = judge("--detector.compare", "knn,neighbour_vote", "--detector.compare", "svm")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"transfer", "knn", "neighbour_vote", "svm"} <= set(metrics["detection"])
    assert "mlp" not in metrics["detection"]
    assert by_row(folder / "relevance").equals(alone)
    decided = pa.concat_tables(
        [pq.read_table(file) for file in (folder / "rounds/00/relevance/decisions").glob("*.parquet")]
    )
    assert "mlp.score" not in decided.column_names
