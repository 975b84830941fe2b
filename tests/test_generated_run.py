"""A whole run on generated features, as benchmarks/label_space.py does it."""

import json
import subprocess
import sys
from pathlib import Path

import label_space
import pytest

ROOT = Path(__file__).parents[1]
QUICK = [
    *("--heads.epochs", "2", "--evidence.row_folds", "2", "--evaluate.resamples", "20"),
    *("--cleannet.steps", "5", "--cleannet.start_steps", "5", "--generated.width", "16"),
    *("--generated.test_images", "60", "--generated.verified_classes", "10"),
]


@pytest.fixture
def run_here(call_main, in_this_process, monkeypatch) -> None:
    """The benchmark's command is done in this process, in its Ray: runs as processes are tested elsewhere."""

    def run(command: list[str]) -> None:
        assert command[:3] == [sys.executable, "-m", "cleanscale.train"]
        with in_this_process():
            status, said = call_main(command[3:])
        assert status == 0, said

    monkeypatch.setattr(label_space, "run_to_its_end", run)


@pytest.mark.slow
def test_label_space_measures_a_whole_run_and_prints_it_again_without_one(tmp_path, run_here, monkeypatch, capsys):
    """Slow: a whole run, then the benchmark as a process of its own."""
    arguments = ["benchmarks/label_space.py", "--classes", "40", "--folder", str(tmp_path), *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        assert label_space.main() == 0
    line = capsys.readouterr().out.splitlines()[-1]  # behind the summary of the run
    found = json.loads(line)
    assert (found["classes"], found["images"]) == (40, 800)
    assert {"generated", "ingest", "features", "evidence", "cleannet", "relevance"} <= found["seconds_per_image"].keys()
    assert found["head_epochs"] == {"classifier": 2, "out_of_fold": 2, "weighted_classifier": 2}
    for name in ("peak_driver_bytes", "peak_total_pss_bytes", "disk_bytes", "held_out_error", "filtering_error"):
        assert found[name] > 0, name
    assert [file.name for file in tmp_path.iterdir()] == ["40-800-transfer-0.json"]
    monkeypatch.undo()
    again = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.stdout.splitlines() == [line], again.stderr
