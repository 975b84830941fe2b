"""Whole sweeps on small features. Slow: each starts processes for its trials, one of them is killed."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tomli_w
from waiting import kill_all, wait_until

from cleanscale.config import load as load_run
from cleanscale.config import merge
from cleanscale.maths.detection_metrics import count_by_class, error_per_class
from cleanscale.reporting.progress import Progress
from cleanscale.tuning.settings import load
from cleanscale.tuning.sweep import run

pytestmark = pytest.mark.slow
BUDGET = {"classes": [0.5, 1.0], "labels_per_class": [3, 15], "repeats": 2, "evaluation_folds": 2}
SEARCH = {
    "tune": {"trials": 2, "seed": 1},
    "detector": {"name": "cleannet"},
    "space": {
        "cleannet.beta": {"log_uniform": [0.01, 1.0]},
        "cleannet.references_per_class": {"choice": [4, 8]},
        "detector.delta": {"uniform": [0.0, 0.6]},
    },
}


def sweep_file(folder: Path, name: str, values: dict) -> str:
    (folder / f"{name}.toml").write_text(tomli_w.dumps(values))
    return str(folder / f"{name}.toml")


@pytest.fixture(scope="module")
def base(features_run, tmp_path_factory) -> tuple[Path, dict]:
    """A copy of a finished run, and the settings that it was made with."""
    root = tmp_path_factory.mktemp("sweeps")
    folder = Path(shutil.copytree(features_run.folder, root / "runs" / "base"))
    values = tomllib.loads((folder / "settings.toml").read_text())
    values.pop("versions")
    values.pop("classes", None)
    return folder, merge(values, {"run": {"uri": str(folder)}, "tracking": {"enabled": True}})


@pytest.fixture(scope="module")
def budgets(base, ray_session, stages_done) -> tuple[Path, dict, dict]:
    """A finished sweep over budgets: (its folder, budget.json, stages of the run before it)."""
    folder, values = base
    before = stages_done(folder / "rounds")
    file = sweep_file(folder.parents[1], "budgets", merge(values, {"budget": BUDGET}))
    return folder / "tune" / "budgets", run(load([file]), Progress(silent=True)), before


def mlflow_runs(base: Path) -> dict[str, list]:
    """Runs of the store by the name of their parent: [(name, status)]."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{base.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cleanscale")
    runs = client.search_runs([experiment.experiment_id])
    names = {one.info.run_id: one.info.run_name for one in runs}
    found: dict[str, list] = {}
    for one in runs:
        parent = one.data.tags.get("mlflow.parentRunId")
        found.setdefault(names.get(parent, ""), []).append((one.info.run_name, one.info.status))
    return found


def test_a_sweep_takes_a_finished_runs_features_as_they_are(base, budgets, stages_done):
    assert stages_done(base[0] / "rounds") == budgets[2]


def test_the_curve_has_every_budget_with_intervals(budgets):
    folder, found, _ = budgets
    assert [(p["classes"], p["labels_per_class"]) for p in found["budgets"]] == [
        (0.5, 3),
        (1.0, 3),
        (0.5, 15),
        (1.0, 15),
    ]
    assert [p["labels"] for p in found["budgets"]] == [3, 6, 15, 30]  # two of the four classes judge each repeat
    for point in found["budgets"]:
        for measured in (point["error"]["transfer"]["evaluation"], point["true_error"]["transfer"], point["accuracy"]):
            assert 0 <= measured["low"] <= measured["value"] <= measured["high"] <= 100
            assert measured["n"] > 0
    assert found["budgets"][-1]["error_minus_largest"]["value"] == 0
    table = pq.read_table(folder / "budget.parquet")
    assert table["error"].to_pylist() == [p["error"]["transfer"]["evaluation"]["value"] for p in found["budgets"]]
    assert (folder / "figures" / "verification_budget.png").read_bytes().startswith(b"\x89PNG")


def test_a_budget_is_judged_on_labels_that_it_did_not_have(base, budgets):
    folder, found, _ = budgets
    verification = pq.read_table(base[0] / "ingest/train/verification.parquet")
    seen = dict(zip(verification["row"].to_pylist(), verification["verified"].to_pylist(), strict=True))
    trials = {name: pq.read_table(folder / "trials" / name / "judged.parquet") for name in ("100pctx15-0", "50pctx3-0")}
    judges = {
        name: set(t.filter(pc.equal(t["group"], "evaluation"))["label"].to_pylist()) for name, t in trials.items()
    }
    assert judges["100pctx15-0"] == judges["50pctx3-0"]
    for name, table in trials.items():
        labels = json.loads((folder / "trials" / name / "trial.json").read_text())["labels"]
        assert table.num_rows == len(seen) - labels
        assert [seen[row] == 0 for row in table["row"].to_pylist()] == table["wrong"].to_pylist()
    point = found["budgets"][0]
    slow = []
    for repeat in (0, 1):
        table = pq.read_table(folder / "trials" / f"50pctx3-{repeat}" / "judged.parquet")
        table = table.filter(pc.equal(table["group"], "evaluation"))
        columns = [table[c].to_numpy(zero_copy_only=False) for c in ("label", "wrong", "transfer.mislabeled")]
        slow.append(error_per_class(count_by_class(*columns)))
    assert point["error"]["transfer"]["evaluation"]["value"] == pytest.approx(np.mean(slow))


def test_every_trial_is_an_mlflow_run_below_the_sweeps_and_all_have_ended(base, budgets):
    runs = mlflow_runs(base[0])
    assert sorted(runs["budgets"]) == sorted((name.name, "FINISHED") for name in (budgets[0] / "trials").iterdir())
    assert ("budgets", "FINISHED") in runs[""]


def test_a_finished_sweep_is_not_done_again(base, budgets):
    folder, found, _ = budgets
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    sweep = load([str(base[0].parents[1] / "budgets.toml"), "--tune.max_concurrent", "1"])
    assert run(sweep, Progress(silent=True)) == found
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()} == times


@pytest.fixture(scope="module")
def search(base, ray_session) -> tuple[Path, dict]:
    folder, values = base
    file = sweep_file(folder.parents[1], "search", merge(values, SEARCH))
    return folder / "tune" / "search", run(load([file]), Progress(silent=True))


def test_the_best_settings_are_a_file_that_train_takes(search):
    folder, found = search
    settings = load_run(["--config", str(folder / "best.toml")])
    best = found["best"]["values"]
    assert found["best"]["objective"] == min(t["objective"] for t in found["trials"])
    assert settings.cleannet.beta == best["cleannet.beta"]
    assert settings.cleannet.references_per_class == best["cleannet.references_per_class"]
    assert settings.detector.delta == best["detector.delta"]
    assert settings.detector.name == "cleannet"


def test_a_searchs_best_is_compared_with_the_runs_own_settings_where_nothing_was_chosen_by(search):
    _, found = search
    for name in ("run", "best"):
        assert 0 <= found[name]["objective"] <= 100
        assert found[name]["true_error"]["n"] > 0
        assert found[name]["accuracy"]["n"] == 80
    assert found["best"]["objective"] == min(t["objective"] for t in found["trials"])


def test_reference_sets_are_made_once_for_each_number_of_them(base, search):
    made = {file.parent.name.split("-")[0] for file in (base[0] / "tune" / "references").rglob("manifest.json")}
    assert made == {"004"}  # eight are the run's own
    assert len(list((search[0] / "trials").rglob("trial.json"))) == 2


def test_true_labels_change_nothing_but_what_is_reported(base, budgets, search, tmp_path, train_here):
    """Another run on the same data with shuffled true labels: same objectives, choices and curve."""
    folder, values = base
    table = pq.read_table(values["data"]["train"])
    order = np.random.default_rng(0).permutation(table.num_rows)
    place = table.column_names.index("true_label")
    shuffled = tmp_path / "data" / "train.parquet"
    shuffled.parent.mkdir()
    pq.write_table(table.set_column(place, "true_label", table["true_label"].take(pa.array(order))), shuffled)
    copy = Path(shutil.copytree(folder, tmp_path / "runs" / "base", ignore=shutil.ignore_patterns("tune", "ingest")))
    there = merge(values, {"run": {"uri": str(copy)}, "data": {"train": str(shuffled)}, "tracking": {"enabled": False}})
    found = run(load([sweep_file(tmp_path, "budgets", merge(there, {"budget": BUDGET}))]), Progress(silent=True))
    again = run(load([sweep_file(tmp_path, "search", merge(there, SEARCH))]), Progress(silent=True))
    for one, other in zip(budgets[1]["budgets"], found["budgets"], strict=True):
        assert [one[name] for name in ("error", "labels", "accuracy")] == [
            other[name] for name in ("error", "labels", "accuracy")
        ]
        assert one["true_error"] != other["true_error"]
    assert budgets[1]["stops_paying"] == found["stops_paying"]
    assert again["best"]["values"] == search[1]["best"]["values"]
    assert [t["objective"] for t in again["trials"]] == [t["objective"] for t in search[1]["trials"]]


def without_seconds(found: dict) -> dict:
    points = [{name: value for name, value in point.items() if name != "seconds"} for point in found["budgets"]]
    return found | {"budgets": points}


def test_a_sweep_whose_driver_is_killed_goes_on_and_ends_like_an_undisturbed_one(base, budgets, tmp_path):
    folder, values = base
    copy = Path(shutil.copytree(folder, tmp_path / "runs" / "base", ignore=shutil.ignore_patterns("tune")))
    file = sweep_file(tmp_path, "budgets", merge(values, {"run": {"uri": str(copy)}, "budget": BUDGET}))
    trials = copy / "tune" / "budgets" / "trials"
    command = [sys.executable, "-m", "cleanscale.tune", file, "--tune.max_concurrent", "1"]

    def finished() -> dict[str, int]:
        return {one.parent.name: one.stat().st_mtime_ns for one in trials.glob("*/trial.json")}

    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            wait_until(lambda: len(finished()) >= 3, tmp_path / "log", longest_s=120, by=first)
            assert first.poll() is None, (tmp_path / "log").read_text()
        finally:
            kill_all(first)
        before = finished()
        assert 3 <= len(before) < 8
        assert "RUNNING" in str(mlflow_runs(copy))
        second = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=200, start_new_session=True)
    said = (tmp_path / "log").read_text()
    assert second.returncode == 0, said
    assert "the search goes on where it was interrupted" in said
    after = finished()
    assert len(after) == 8
    assert {name: after[name] for name in before} == before  # what had ended is not done again
    found = json.loads((copy / "tune" / "budgets" / "budget.json").read_text())
    assert without_seconds(found) == without_seconds(budgets[1])
    runs = mlflow_runs(copy)
    assert len(runs["budgets"]) == 8
    assert {status for each in runs.values() for _, status in each} == {"FINISHED"}
