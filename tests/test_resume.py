"""Runs that are killed at any moment: the same command finishes them with the tables of an undisturbed run.

Slow: each attempt is a process with a Ray of its own.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import kill_all, wait_until

from cleanscale.engine.memory import descendants
from cleanscale.pipeline import read_inputs, train_classifier
from cleanscale.reporting.progress import Progress
from cleanscale.stages.place import Place

pytestmark = pytest.mark.slow
LONGEST_S = 240


@pytest.fixture
def begun(glyphs_run, tmp_path) -> Path:
    """A run folder with the data that `glyphs_run` drew and ingested, and nothing more."""
    folder = tmp_path / "run"
    folder.mkdir()
    for part in ("glyphs", "ingest"):
        shutil.copytree(glyphs_run.folder / part, folder / part)
    return folder


def checkpoints(folder: Path) -> list[Path]:
    return list((folder / "rounds/00/classifier/ray_train").glob("**/checkpoint_*/state.pt"))


def assert_same_result(one: Path, other: Path, by_row) -> None:
    assert by_row(one / "relevance").equals(by_row(other / "relevance"))
    for stage in ("features", "evidence"):
        assert by_row(one / "rounds/00" / stage).equals(by_row(other / "rounds/00" / stage))
    numbers = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    for part in ("detection", "calibration", "classification"):
        assert numbers[0][part] == numbers[1][part]
    for classifier in ("rounds/00/classifier", "rounds/01/classifier"):
        model = f"{classifier}/model.safetensors"
        assert (one / model).read_bytes() == (other / model).read_bytes()


def test_a_run_that_is_killed_again_and_again_ends_like_an_undisturbed_one(
    glyphs_run, glyphs_toml, begun, stages_done, by_row, call_main, in_this_process, monkeypatch
):
    """Killed after a checkpoint of the classifier and while features are made, asked to stop after CleanNet.

    The run folder is a relative path, as on the command line of the README: the workers have other directories. The
    last time the command is given in this process, whose Ray runs already.
    """
    arguments = ["--config", str(glyphs_toml), "--run.uri", begun.name, "--evaluate.figures", "false"]
    arguments += ["--tracking.enabled", "false", "--features.rows_per_file", "64"]
    command = [sys.executable, "-m", "cleanscale.train", *arguments]
    finished: dict[str, int] = {}

    def attempt(moment: Callable[[], bool], stop: Callable[[subprocess.Popen], None]) -> tuple[int, str]:
        """Run the command until the moment comes; what was complete before is not done again."""
        nonlocal finished
        with (begun.parent / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=begun.parent, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                wait_until(moment, "the moment to stop it", longest_s=LONGEST_S, by=process)
                assert process.poll() is None, "it ended before it could be killed"
                stop(process)
                status = process.wait(LONGEST_S)
            finally:
                kill_all(process)
        before, finished = finished, stages_done(begun)
        assert {stage: finished[stage] for stage in before} == before
        return status, (begun.parent / "log").read_text()

    attempt(lambda: bool(checkpoints(begun)), kill_all)
    attempt((begun / "rounds/00/features/started.json").exists, kill_all)
    status, said = attempt((begun / "rounds/00/cleannet/manifest.json").exists, subprocess.Popen.terminate)
    assert status == 1
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    monkeypatch.chdir(begun.parent)
    with in_this_process():
        status, lines = call_main(arguments)
    assert status == 0, lines
    now = stages_done(begun)
    assert {stage: now[stage] for stage in finished} == finished
    assert_same_result(glyphs_run.folder, begun, by_row)


def test_a_training_worker_that_is_killed_changes_no_result(glyphs_run, begun):
    """In the shared Ray session: the worker dies, the group starts again from its checkpoint."""
    killed: list[int] = []
    settings = glyphs_run.settings
    place = Place(str(begun), settings.run.seed, settings.engine, Progress())
    inputs = read_inputs(settings, place)

    def kill_a_worker() -> None:
        trained = begun / "rounds/00/classifier/manifest.json"
        wait_until(lambda: checkpoints(begun) or trained.exists(), "a checkpoint", longest_s=LONGEST_S)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                if "RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    watching = threading.Thread(target=kill_a_worker, daemon=True)
    watching.start()
    train_classifier(settings, place, inputs, 0, None)
    watching.join(5)
    assert killed
    model = "rounds/00/classifier/model.safetensors"
    assert (begun / model).read_bytes() == (glyphs_run.folder / model).read_bytes()
