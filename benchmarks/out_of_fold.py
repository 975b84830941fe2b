"""What it costs that the backbone was tuned on all noisy labels, the labels that out-of-fold heads then judge.

    python benchmarks/out_of_fold.py [--runs runs/out_of_fold] [--section.name value ...]

Heads on features are out of fold; the backbone below them is not, where it was trained on the same labels. Here the
same glyphs are judged twice: with features of the backbone trained on them (`tuned`), and with features of a backbone
trained alike on another draw of glyphs with the same noise, which has seen none of these images (`unseen`). Prints a
JSON line each, and the paired difference of transfer's error on held-out classes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from cleanscale.config import load
from cleanscale.maths.intervals import paired_errors
from cleanscale.pipeline import run
from cleanscale.storage.tables import read_table

DETECTORS = ("transfer", "self_confidence", "classification_filtering", "naive")


def decisions(folder: Path) -> pa.Table:
    files = sorted((folder / "rounds/00/relevance/decisions").glob("*.parquet"))
    return pa.concat_tables([read_table(str(f)) for f in files]).sort_by("row")


def report(name: str, folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    errors = {d: metrics["detection"][d]["error_per_class"]["held_out_classes"] for d in DETECTORS}
    calibration = metrics["calibration"]["transfer"]["expected_calibration_error"]
    print(json.dumps({"backbone": name, "held_out_error": errors, "calibration": calibration}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs/out_of_fold")
    options, arguments = parser.parse_known_args()
    runs = Path(options.runs)
    common = [*arguments, "--evaluate.figures", "false"]
    run(load([*common, "--run.uri", str(runs / "tuned")]))
    run(load([*common, "--run.uri", str(runs / "other"), "--run.seed", "1000"]))
    weights = runs / "other/rounds/00/classifier/model.safetensors"
    frozen = ["--backbone.frozen", "true", "--backbone.weights", str(weights)]
    run(load([*common, "--run.uri", str(runs / "unseen"), *frozen]))
    for name in ("tuned", "unseen"):
        report(name, runs / name)
    tuned, unseen = decisions(runs / "tuned"), decisions(runs / "unseen")
    row_N, label_N = tuned["row"].to_numpy(), tuned["label"].to_numpy()
    assert np.array_equal(row_N, unseen["row"].to_numpy())
    truth_R = np.load(runs / "tuned/ingest/train/true_label.npy")
    verified = read_table(str(runs / "tuned/ingest/train/verification.parquet"))
    use_N = ~np.isin(label_N, verified["label"].to_numpy())
    called = [t["transfer.mislabeled"].to_numpy(zero_copy_only=False)[use_N] for t in (tuned, unseen)]
    difference, _ = paired_errors(label_N[use_N], (truth_R[row_N] != label_N)[use_N], *called)
    print(json.dumps({"tuned_minus_unseen": difference.to_json()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
