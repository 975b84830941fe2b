"""What sharing features saves a sweep over verification budgets, on CIFAR-100N: minutes, and the curve.

    python benchmarks/tune_budget.py [--runs runs/tune_cifar100n] [--unshared 1] [--section.name value ...]

Sweeps 12 budgets, each five times, over examples/cifar100n.toml in one run folder: ingest, features, references and
evidence are made once. Then it runs the first --unshared of the same trials one by one, each as an ordinary run in a
folder of its own with a verification table of just its labels, and extrapolates: their mean times the number of trials.
Prints one JSON line per part. CleanNet as published, which the example also fits, is left out of both.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from cleanscale.config import load as load_run
from cleanscale.maths.budgets import draw
from cleanscale.pipeline import run as run_job
from cleanscale.reporting.progress import Progress
from cleanscale.stages.ingest import Ingested
from cleanscale.storage.manifests import read_manifest
from cleanscale.storage.tables import read_table
from cleanscale.tuning import curve, trial
from cleanscale.tuning.settings import SweepSettings, load
from cleanscale.tuning.sweep import print_outcome, run

DATA = Path("../shared/data/cifar100n")
RUN = ["--config", "examples/cifar100n.toml", "--detector.published_steps", "0"]
SWEEP = """[budget]
classes = [0.25, 0.5, 1.0]
labels_per_class = [2, 10, 50, 250]
repeats = 5
"""


def sweep(runs: Path, arguments: list[str]) -> tuple[SweepSettings, dict]:
    """The sweep in `runs`, from nothing when nothing is there."""
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "budgets.toml").write_text(SWEEP)
    settings = load([str(runs / "budgets.toml"), *RUN, "--run.uri", str(runs / "shared"), *arguments])
    started = time.monotonic()
    found = run(settings, Progress())
    minutes = (time.monotonic() - started) / 60
    print_outcome(settings, found)
    manifest = read_manifest(f"{settings.run_uri}/tune/{settings.tune.name}")
    assert manifest is not None
    trials = [
        trial.finished(f"{settings.run_uri}/tune/{settings.tune.name}", {"case": asdict(c)})
        for c in curve.cases(settings)
    ]
    seconds = sorted(t["seconds"] for t in trials if t)
    return settings, {
        "part": "shared",
        "trials": len(seconds),
        "minutes_now": minutes,  # near zero when the sweep was there already
        "minutes": manifest.notes["seconds"] / 60,
        "minutes_of_shared_stages": manifest.notes["shared_seconds"] / 60,
        "median_seconds_of_a_trial": seconds[len(seconds) // 2],
        "stops_paying": found["stops_paying"],
    }


def one_by_one(settings: SweepSettings, runs: Path, number: int) -> list[float]:
    """Seconds of ordinary runs with the verification labels of the sweep's last trials, which have the most of them."""
    folder = Path(settings.run_uri) / "ingest" / "train"
    checked = read_table(str(folder / "verification.parquet"))
    notes = json.loads((folder / "ingested.json").read_text())
    parts = tuple((a, b) for a, b in notes.pop("parts"))
    data = Ingested(str(folder), "", settings.data, parts=parts, plan_uri="", **notes)
    taken = []
    for case in curve.cases(settings)[::-1][:number]:
        row_V, label_V = checked["row"].to_numpy(), checked["label"].to_numpy()
        how = {"seed": settings.tune.seed, "repeat": case.repeat, "folds": settings.budget.evaluation_folds}
        drawn_V = draw(row_V, label_V, case.budget, **how)
        table = runs / f"{case.name}.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "verified"])
            verified_V = checked["verified"].to_numpy()[drawn_V]
            writer.writerows(zip(data.ids(row_V[drawn_V]).to_pylist(), verified_V.tolist(), strict=True))
        alone = ["--data.verification", str(table), "--run.uri", str(runs / f"alone-{case.name}")]
        started = time.monotonic()
        run_job(load_run([*RUN, *alone]))
        taken.append(time.monotonic() - started)
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs/tune_cifar100n")
    parser.add_argument("--unshared", type=int, default=1)
    options, arguments = parser.parse_known_args()
    if not DATA.exists():
        print(f"skipped: {DATA} is not there")
        return 0
    settings, shared = sweep(Path(options.runs), arguments)
    print(json.dumps(shared), flush=True)
    seconds = one_by_one(settings, Path(options.runs), options.unshared)
    if seconds:
        minutes = shared["trials"] * sum(seconds) / len(seconds) / 60
        alone = {
            "part": "one by one",
            "measured_runs": len(seconds),
            "seconds": seconds,
            "extrapolated_minutes": minutes,
        }
        print(json.dumps(alone | {"times_as_long": minutes / shared["minutes"]}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
