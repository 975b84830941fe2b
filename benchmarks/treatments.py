"""Treatments compared: test accuracy of the last classifier under each, on the same features, judgements and seeds.

    python benchmarks/treatments.py --config examples/tiny.toml [--treatments none probability ...] [--seeds 0 1 2]
    python benchmarks/treatments.py --config examples/cifar100n.toml --named [--runs runs/treatments]

Everything before the treatment is done once per seed, in one run folder. Prints a JSON line per treatment: top-1 over
all seeds and its paired difference to `none`, with 95 % intervals over test images. On glyphs, whose noise types are
known, a line for noise_em says how well they are recovered in images that nobody verified.

--named: the verification table is given the true class of each image, as if the person had named it (for data with a
true label; on glyphs it has that anyway). Without, forward, backward, bottom_up and noise_em get verdicts alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cleanscale.config import Settings, load
from cleanscale.datasets.generated import GENERATED
from cleanscale.datasets.glyphs import EMBEDDED, glyph_labels
from cleanscale.maths.budgets import mean_accuracy
from cleanscale.pipeline import run
from cleanscale.stages.settings import TreatmentName
from cleanscale.storage.tables import read_table, write_table

TYPES = ("noise_free", "pointless", "confusing")


def table_of(folder: Path) -> pa.Table:
    return pa.concat_tables([read_table(str(f)) for f in sorted(folder.glob("*.parquet"))]).sort_by("row")


def name_classes(settings: Settings, file: Path) -> None:
    """The verification table with the true class of each image."""
    data = settings.data
    truth = pq.read_table(data.train, columns=[data.id, data.true_label])
    checked = pa.csv.read_csv(data.verification)
    place = {id: at for at, id in enumerate(truth[data.id].to_pylist())}
    named = truth[data.true_label].take(pa.array([place[id] for id in checked["id"].to_pylist()]))
    write_table(str(file), pa.table({"id": checked["id"], "verified": checked["verified"], "verified_label": named}))


def hits(folder: Path) -> np.ndarray:
    """bool: whether the classifier's most probable class is right, for each test image."""
    table = table_of(folder)
    best_N = np.array(table["predicted"].to_pylist())[:, 0]
    return best_N == table["label"].to_numpy()


def over_images(settings: Settings, hits: list[np.ndarray]) -> np.ndarray:
    """bool [S, T] of the hits of S seeds; [1, S * T] where each seed makes test images of its own."""
    hit_ST = np.stack(hits)
    return hit_ST.reshape(1, -1) if settings.data.train in (EMBEDDED, GENERATED) else hit_ST


def recovery(settings: Settings, folder: Path) -> dict:
    """How well noise types and true classes are recovered, in images that nobody verified (rates in percent)."""
    labels = glyph_labels(settings.glyphs, settings.run.seed, "train")
    table = table_of(folder / "rounds/01/noise_types")
    unseen_N = labels.verified_N[table["row"]] == -1
    kind_N = labels.noise_type_N[table["row"]][unseen_N]
    truth_N = labels.true_label_N[table["row"]][unseen_N]
    noisy_N = labels.label_N[table["row"]][unseen_N]
    names = table.column_names
    found: dict = {"images": int(unseen_N.sum()), "noisy_label_right": 100 * float((noisy_N == truth_N).mean())}
    best_N = np.array(table["posterior_label"].to_pylist())[unseen_N, 0]
    # labels.npy numbers classes by their sorted names as ingest does: compare by what the ingested labels are
    own_N = table["label"].to_numpy()[unseen_N]
    number = dict(zip(noisy_N.tolist(), own_N.tolist(), strict=True))
    found["posterior_label_right"] = 100 * float((best_N == [number.get(t, -1) for t in truth_N.tolist()]).mean())
    for source in ("p", "posterior"):
        assert f"{source}_confusing" in names
        score_NZ = np.column_stack([table[f"{source}_{name}"].to_numpy()[unseen_N] for name in TYPES])
        found[source] = by_type(kind_N, score_NZ)
    return found


def by_type(kind_N: np.ndarray, score_NZ: np.ndarray) -> dict[str, dict]:
    """Of each noise type: its share, how often and how rightly it is called, AUROC (rates in percent)."""
    called_N = score_NZ.argmax(1)
    return {
        name: {
            "share": 100 * float((kind_N == z).mean()),
            "mean": 100 * float(score_NZ[:, z].mean()),
            "called": 100 * float((called_N == z).mean()),
            "recall": 100 * float((called_N[kind_N == z] == z).mean()),
            "precision": 100 * float((kind_N[called_N == z] == z).mean()) if (called_N == z).any() else None,
            "auroc": auroc(score_NZ[:, z], kind_N == z),
        }
        for z, name in enumerate(TYPES)
    }


def auroc(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive_N, score_N))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--runs", default="runs/treatments")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--treatments", nargs="+", default=list(get_args(TreatmentName)))
    parser.add_argument("--named", action="store_true")
    options, arguments = parser.parse_known_args()
    correct: dict[str, list[np.ndarray]] = {name: [] for name in options.treatments}
    for seed in options.seeds:
        folder = Path(options.runs) / f"seed-{seed}"
        given = ["--config", options.config, *arguments, "--run.uri", str(folder), "--run.seed", str(seed)]
        given += ["--evaluate.figures", "false"]
        if options.named:
            name_classes(load(given), folder.parent / "named.parquet")
            given += ["--data.verification", str(folder.parent / "named.parquet")]
        for name in options.treatments:
            settings = load([*given, "--treatment.name", name])
            run(settings)
            correct[name].append(hits(folder / "rounds/01/classifier_test_predictions"))
            if name == "noise_em" and settings.data.train == EMBEDDED:
                print(json.dumps({"seed": seed, "noise_types": recovery(settings, folder)}), flush=True)
    settings = load(["--config", options.config, *arguments])
    hit_ST = {name: over_images(settings, by_seed) for name, by_seed in correct.items()}
    for name, by_seed in correct.items():
        line = {"treatment": name, "top1": mean_accuracy(hit_ST[name]).to_json()}
        line |= {"by_seed": [100 * float(hit.mean()) for hit in by_seed], "seeds": options.seeds}
        if "none" in correct and name != "none":
            line["minus_none"] = mean_accuracy(hit_ST[name], hit_ST["none"]).to_json()
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
