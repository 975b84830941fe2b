"""CIFAR-100N (real human label noise): finding wrong labels in classes that nobody verified, and classification.

    python benchmarks/cifar100n.py [--splits 0 1 2] [--runs runs/cifar100n] [--seeds 3] [--section.setting value ...]

Runs examples/cifar100n.toml on each verification table in turn, in one run folder: from the second on, features and
references are those of the first. Prints one JSON line per split, and one per treatment and split. Other arguments are
settings of the run: `--detector.compare mlp,svm,neighbour_vote` measures these detectors too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from cleanscale.config import load
from cleanscale.maths.intervals import measured_accuracy, paired_accuracy
from cleanscale.pipeline import run
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.stages.features import load_projection
from cleanscale.storage.manifests import read_manifest
from cleanscale.storage.tables import read_table
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.heads import fit_head

DATA = Path("../shared/data/cifar100n")


def features_of(folder: str) -> Features:
    manifest = read_manifest(folder)
    assert manifest is not None, f"no features in {folder}"
    shards = FeatureShards.of(folder, manifest)
    return shards.read_all(list(shards.shards))


def detection(split: int, runs: str, arguments: list[str]) -> dict:
    verification = DATA / "splits" / f"verified_50x250_seed{split}.csv"
    options = ["--config", "examples/cifar100n.toml", "--data.verification", str(verification), "--run.uri", runs]
    started = time.monotonic()
    settings = load([*options, *arguments])
    run(settings)
    metrics = json.loads((Path(runs) / "metrics.json").read_text())
    (Path(runs) / f"metrics_split{split}.json").write_text(json.dumps(metrics))
    errors = {
        name: {g: [round(v[k], 2) for k in ("value", "low", "high")] for g, v in by["error_per_class"].items()}
        for name, by in metrics["detection"].items()
    }
    chosen = settings.detector.name
    gain = metrics["difference"]["detection"][chosen]["classification_filtering"]["error_per_class"]
    return {
        "split": split,
        "error_per_class": errors,
        f"{chosen}_minus_filtering": gain["held_out_classes"],
        "auroc": metrics["detection"][chosen]["auroc"]["held_out_classes"],
        "calibration": metrics["calibration"].get(chosen, {}).get("expected_calibration_error"),
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": metrics["peak_memory_bytes"],
    }


def weights_of(runs: str, features: Features, truth_N: np.ndarray) -> dict[str, np.ndarray]:
    """Weights of each treatment for the images of `features`, from the run's relevance table."""
    files = sorted((Path(runs) / "relevance").glob("*.parquet"))
    table = pa.concat_tables([read_table(str(f)) for f in files]).sort_by("row")
    take = np.searchsorted(table["row"].to_numpy(), features.row_N)
    column = {name: table[name].to_numpy(zero_copy_only=False)[take] for name in ("relevance", "mislabeled", "weight")}
    return {
        "none": np.ones(len(features), np.float32),
        "soft": np.maximum(column["relevance"], 0).astype(np.float32),
        "hard": (~column["mislabeled"]).astype(np.float32),
        "probability": column["weight"].astype(np.float32),
        "every_image_verified": (truth_N == features.label_N).astype(np.float32),
    }


def classification(split: int, runs: str, seeds: int) -> list[dict]:
    """Top-1 of a head on the frozen features by treatment, the mean over seeds, and the share of the verified gain."""
    train = features_of(f"{runs}/rounds/00/features")
    test = features_of(f"{runs}/rounds/00/backbone_test_features")
    truth_N = np.load(f"{runs}/ingest/train/true_label.npy")[train.row_N]
    project = load_projection(f"{runs}/rounds/00/features")
    test_ND = test.feature_ND if project is None else project(test.feature_ND)
    correct: dict[str, np.ndarray] = {}
    for name, weight_N in weights_of(runs, train, truth_N).items():
        hits = []
        for seed in range(seeds):
            head = fit_head(train.feature_ND, train.label_N.astype(np.int64), weight_N, 100, HeadSettings(), seed=seed)
            hits.append(head.frozen().log_probability(test_ND).argmax(1) == test.label_N)
        correct[name] = np.concatenate(hits)
    top1 = {name: 100 * hit.mean() for name, hit in correct.items()}
    whole = top1["every_image_verified"] - top1["none"]
    return [
        {
            "split": split,
            "treatment": name,
            "top1": measured_accuracy(hit).to_json(),
            "gain": paired_accuracy(hit, correct["none"]).to_json(),
            "share_of_verified_gain": (top1[name] - top1["none"]) / whole,
            "seeds": seeds,
        }
        for name, hit in correct.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", default="runs/cifar100n")
    parser.add_argument("--seeds", type=int, default=1)
    options, arguments = parser.parse_known_args()
    if not DATA.exists():
        print(f"skipped: {DATA} is not there")
        return 0
    for split in options.splits:
        print(json.dumps(detection(split, options.runs, arguments)), flush=True)
        for line in classification(split, options.runs, options.seeds) if options.seeds else []:
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
