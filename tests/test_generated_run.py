"""A whole run on generated features, as benchmarks/label_space.py does it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICK = [
    *("--heads.epochs", "2", "--evidence.row_folds", "2", "--evaluate.resamples", "20"),
    *("--cleannet.steps", "5", "--cleannet.start_steps", "5", "--generated.width", "16"),
    *("--generated.test_images", "60", "--generated.verified_classes", "10"),
]


@pytest.mark.slow  # starts Ray and a worker group twice in processes of their own: half a minute on a quiet machine
def test_label_space_measures_a_whole_run_and_prints_it_again_without_one(tmp_path):
    command = [sys.executable, "benchmarks/label_space.py", "--classes", "40", "--folder", str(tmp_path), *QUICK]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    (line,) = first.stdout.splitlines()
    found = json.loads(line)
    assert (found["classes"], found["images"]) == (40, 800)
    assert {"generated", "ingest", "features", "evidence", "cleannet", "relevance"} <= found["seconds_per_image"].keys()
    assert found["head_epochs"] == {"classifier": 2, "out_of_fold": 2, "weighted_classifier": 2}
    for name in ("peak_driver_bytes", "peak_total_pss_bytes", "disk_bytes", "held_out_error", "filtering_error"):
        assert found[name] > 0, name
    assert [file.name for file in tmp_path.iterdir()] == ["40-800-transfer-0.json"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert again.stdout == first.stdout
