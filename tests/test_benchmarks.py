"""What the scripts of the figures promise: images counted once, cases made from the same, runs that are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import label_space
import numpy as np
import pytest
import table_cases
import treatments
import xiao
from waiting import wait_until

from cleanscale.config import load
from cleanscale.maths.budgets import mean_accuracy
from cleanscale.storage.arrays import read_array
from cleanscale.storage.manifests import read_json

ROOT = Path(__file__).parents[1]


def test_a_test_image_counts_once_however_many_seeds_there_are():
    hit_T = np.arange(50) % 3 > 0
    one, four = (mean_accuracy(treatments.over_images(load(["--data.train", "x"]), [hit_T] * n)) for n in (1, 4))
    assert one == four
    assert one.n == 50


def test_test_images_that_each_seed_draws_are_others():
    hit_T = np.arange(50) % 3 > 0
    assert mean_accuracy(treatments.over_images(load([]), [hit_T] * 4)).n == 200


@pytest.fixture
def base():
    """Of four images: verified ones are right, have a named true class, or are of none of the classes."""
    train = SimpleNamespace(
        labels=lambda: np.array([0, 0, 1, 1]), true_labels=lambda: np.array([0, 1, -1, 1]), fingerprint="train"
    )
    made = table_cases.Trained(("folder", "classifier"), None, None)
    return table_cases.Base(
        load([]),
        SimpleNamespace(train=train),
        SimpleNamespace(num_images=4),
        SimpleNamespace(fingerprint="test"),
        made,
        references={0: ("folder", "references")},
        evidence={0: ("folder", "evidence")},
    )


def with_settings(base, *arguments):
    return table_cases.replace(base, settings=load(list(arguments)))


def test_a_case_is_taken_over_as_long_as_it_is_made_from_the_same(base, tmp_path):
    case, folder = table_cases.Case("one", 0), tmp_path / "one"
    found = table_cases.run_case(base, case, folder)
    (folder / "correct-none.npy").touch()
    elsewhere = with_settings(base, "--run.uri", "elsewhere", "--engine.num_cpus", "1", "--treatment.name", "none")
    assert table_cases.run_case(elsewhere, case, folder) == json.loads(json.dumps(found))
    assert (folder / "correct-none.npy").exists()


@pytest.mark.parametrize("changed", ["settings", "evidence", "an earlier version"])
def test_a_case_made_from_something_else_begins_anew(base, tmp_path, changed):
    case, folder = table_cases.Case("one", 0), tmp_path / "one"
    table_cases.run_case(base, case, folder)
    (folder / "correct-none.npy").touch()
    if changed == "settings":
        base = with_settings(base, "--cleannet.steps", "7")
    elif changed == "evidence":
        base = table_cases.replace(base, evidence={0: ("folder", "other")})
    else:
        kept = read_json(str(folder / "case.json"))
        table_cases.write_json(str(folder / "case.json"), {n: v for n, v in kept.items() if n != "made_from"})
    table_cases.run_case(base, case, folder)
    assert not (folder / "correct-none.npy").exists()


def test_an_interrupted_case_keeps_its_arrays_and_does_not_count_as_done(base, tmp_path):
    case, folder = table_cases.Case("one", 0), tmp_path / "one"
    table_cases.write_json(str(folder / "case.json"), {"made_from": table_cases.made_from(base, case)})
    (folder / "correct-none.npy").touch()
    assert table_cases.run_case(base, case, folder)["name"] == "one"
    assert (folder / "correct-none.npy").exists()


def test_other_verification_labels_are_another_case(base):
    half, whole = (table_cases.Case("one", 0, (0, 1), per_class) for per_class in (1, 2))
    assert table_cases.made_from(base, half) != table_cases.made_from(base, whole)


def test_a_verified_image_of_none_of_the_classes_teaches_nothing(base, tmp_path):
    case = table_cases.Case("one", 0, (0, 1), 2)
    place = SimpleNamespace(path=lambda name: str(tmp_path / name))
    given = table_cases.reference(base, case, place, table_cases.RIGHT_ONLY)
    assert read_array(given.weights).tolist() == [1, 1, 0, 1]


def test_a_line_of_xiao_made_from_something_else_is_dropped(tmp_path):
    lines = xiao.Lines(tmp_path)
    for row in ("1", "2"):
        lines.add(0, row, "old", np.ones(3, bool), {})
    lines.add(0, "3", "new", np.ones(3, bool), {})
    assert xiao.Lines(tmp_path).left(0, ["1", "3", "4"], "new") == ["1", "4"]
    assert list(xiao.Lines(tmp_path).done) == [(0, "2"), (0, "3")]


def test_images_of_known_class_fill_an_epoch_of_all_images(monkeypatch):
    monkeypatch.setattr(xiao.Ingested, "accepted_rows", lambda _: np.array([0, 1, 2, 4, 5]))
    monkeypatch.setattr(xiao, "known_classes", lambda _: np.array([-1, 3, -2, 3, 0, -1]))
    row_N = xiao.Certain.accepted_rows(xiao.Certain(*[None] * 10))
    assert sorted(row_N) == [1, 1, 1, 4, 4]


def test_only_attempts_of_the_same_command_count(tmp_path):
    file = tmp_path / "size.attempts"
    label_space.write_json(str(file), {"begun": 3, "peak_disk_bytes": 7})  # as it was written before
    first = label_space.Watch(tmp_path / "run", file, ["one"])
    first.peak_disk = 1 << 40
    first.keep()
    again = label_space.Watch(tmp_path / "run", file, ["one"])
    assert (first.begun, again.begun, again.peak_disk) == (1, 2, 1 << 40)
    other = label_space.Watch(tmp_path / "run", file, ["another"])
    assert (other.begun, other.peak_disk) == (1, 0)


def test_sigterm_is_passed_on_and_waited_for(tmp_path):
    """The run says that it has begun, and ends only a while after it was told to."""
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    run = f"trap 'sleep 0.5; touch {ended}; exit 1' TERM; touch {begun}; for n in $(seq 600); do sleep 0.1; done"
    code = (
        "import label_space, signal; signal.signal(signal.SIGTERM, label_space.stop);"
        f"label_space.run_to_its_end(['bash', '-c', {run!r}])"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths})
    wait_until(begun.exists, "the run has begun", longest_s=300, by=process)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert ended.exists()
