"""Which labels to verify next: what `cleanscale verify-next` asks, against other choices of as many labels.

    python benchmarks/verify_next.py [--runs runs/cifar100n] [--seeds 10] [--heads 0] [--choices NAME ...]

The run in --runs is that of benchmarks/cifar100n.py, or any other of one label per image whose true labels are known:
they stand for the person who verifies. Its evidence knows no verification label, so each choice costs a fit of
`transfer` alone. In each seed half of the images of every class may be asked about; errors are those on the other half,
which is the same for all choices. A JSON line per budget (share of all images) and choice: mean error per class with
its 95 % interval over seeds and classes; the same in the classes that the choice verified nothing of; the plan's error
minus this one's, paired. --heads K: test top-1 of K heads trained with the probabilities as weights, too.
--classes even|odd: only classes of even or odd id: one half to look for a better plan in, the other to report.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from cifar100n import features_of
from sklearn.cluster import KMeans

from cleanscale.detectors import Evidence, transfer
from cleanscale.in_memory import one_thread
from cleanscale.maths.budgets import mean_accuracy
from cleanscale.maths.detection_metrics import expected_calibration_error
from cleanscale.maths.evidence import SIGNALS
from cleanscale.maths.intervals import RESAMPLES, Measured
from cleanscale.maths.verification_plan import images_by_class, labels_by_class
from cleanscale.stages import class_index
from cleanscale.stages.features import load_projection
from cleanscale.stages.judged_shard import places
from cleanscale.storage.tables import read_table
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.heads import fit_head

BUDGETS = (0.003, 0.01, 0.032)
CLASS_FOLDS = 3
FIRST_STEP = 1 / 3  # of the budget of a plan in two steps
PLAN = "plan"


@dataclass(frozen=True)
class Collection:
    """All images of a run by class and row, and which labels are right in truth. Superclass of each class id."""

    evidence: Evidence
    right_N: np.ndarray
    superclass: dict[int, int]

    def classes(self, at: np.ndarray) -> np.ndarray:
        return np.unique(self.evidence.label_N[at])

    def fitted(self, asked: np.ndarray) -> transfer.Transfer:
        known = self.evidence.select(asked)
        return transfer.fit(known, self.right_N[asked].astype(np.int8), class_folds=CLASS_FOLDS, seed=0)


Choice = Callable[[Collection, np.ndarray, int, int], np.ndarray]  # (all, pool, budget, seed) -> positions


def collected(runs: str, which: str) -> Collection:
    folder = f"{runs}/rounds/00"
    tables = [read_table(str(file)) for file in sorted(Path(folder, "evidence").glob("shard-*.parquet"))]
    table = pa.concat_tables(tables).sort_by([("label", "ascending"), ("row", "ascending")])
    row_N, label_N = table["row"].to_numpy(), table["label"].to_numpy()
    right_N = np.load(f"{runs}/ingest/train/true_label.npy")[row_N] == label_N
    keep_N = np.ones(len(row_N), bool) if which == "all" else label_N % 2 == (which == "odd")
    features = features_of(f"{folder}/features")
    feature_ND = features.feature_ND[places(features.row_N, row_N)]
    evidence = Evidence(row_N, label_N, {name: table[name].to_numpy() for name in SIGNALS}, feature_ND)
    return Collection(evidence.select(keep_N), right_N[keep_N], superclasses(folder, runs))


def superclasses(folder: str, runs: str) -> dict[int, int]:
    """Those of the data set's dataset.json (CIFAR-100); elsewhere groups of alike embeddings, five classes each."""
    described = Path(tomllib.loads(Path(runs, "settings.toml").read_text())["data"]["train"]).with_name("dataset.json")
    if described.exists():
        return dict(enumerate(json.loads(described.read_text())["fine_to_coarse"]))
    found = class_index.read(f"{folder}/class_index")
    groups = max(2, len(found.label_C) // 5)
    group_C = KMeans(groups, n_init=1, random_state=0).fit_predict(found.embedding_CE)
    return dict(zip(found.label_C.tolist(), group_C.tolist(), strict=True))


# ---- choices ---------------------------------------------------------------------------------------------------------


def random_images(all_: Collection, pool: np.ndarray, budget: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, budget, 1]).choice(pool, budget, replace=False)


def in_classes(all_: Collection, pool: np.ndarray, budget: int, seed: int, classes: np.ndarray) -> np.ndarray:
    """Random images, equally many of each of these classes."""
    pool = np.random.default_rng([seed, budget, 2]).permutation(pool[np.isin(all_.evidence.label_N[pool], classes)])
    label_C, class_N, images_C = np.unique(all_.evidence.label_N[pool], return_inverse=True, return_counts=True)
    asked_C = labels_by_class(label_C, np.zeros_like(images_C), images_C, budget, seed=seed)
    return np.concatenate([pool[class_N == c][: asked_C[c]] for c in range(len(label_C))])


def all_classes(all_: Collection, pool: np.ndarray, budget: int, seed: int) -> np.ndarray:
    return in_classes(all_, pool, budget, seed, all_.classes(pool))


def random_classes(labels_each: int) -> Choice:
    def choose(all_: Collection, pool: np.ndarray, budget: int, seed: int) -> np.ndarray:
        classes = np.random.default_rng([seed, budget, 3]).permutation(all_.classes(pool))
        return in_classes(all_, pool, budget, seed, classes[: max(2, budget // labels_each)])

    return choose


def semantic_classes(labels_each: int) -> Choice:
    """Classes of as many superclasses as can be ("semantic-308" of CleanNet's Table 5)."""

    def choose(all_: Collection, pool: np.ndarray, budget: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, budget, 4])
        by_group: dict[int, list[int]] = {}
        for label in rng.permutation(all_.classes(pool)).tolist():
            by_group.setdefault(all_.superclass[label], []).append(label)
        groups = [by_group[g] for g in rng.permutation(list(by_group)).tolist()]
        turns = [group[turn] for turn in range(max(map(len, groups))) for group in groups if turn < len(group)]
        return in_classes(all_, pool, budget, seed, np.array(turns[: max(2, budget // labels_each)]))

    return choose


def planned(all_: Collection, pool: np.ndarray, budget: int, seed: int, known: np.ndarray | None = None) -> np.ndarray:
    """What the command asks. known: positions that were verified before, from which the detector was fitted."""
    known = np.empty(0, np.int64) if known is None else known
    probability_N = all_.fitted(known).decide(all_.evidence).probability_correct_N
    label_N = all_.evidence.label_N
    rest = np.setdiff1d(pool, known)
    label_C = all_.classes(pool)
    verified_C = np.bincount(np.searchsorted(label_C, label_N[known]), minlength=len(label_C))
    unverified_C = np.bincount(np.searchsorted(label_C, label_N[rest]), minlength=len(label_C))
    asked_C = labels_by_class(label_C, verified_C, unverified_C, budget, seed=seed)
    return rest[images_by_class(label_N[rest], probability_N[rest], label_C, asked_C, seed=seed)]


def planned_twice(all_: Collection, pool: np.ndarray, budget: int, seed: int) -> np.ndarray:
    """A part of the budget, a judgement with what was found, and the rest."""
    first = planned(all_, pool, round(FIRST_STEP * budget), seed)
    return np.concatenate([first, planned(all_, pool, budget - len(first), seed, first)])


def nothing(all_: Collection, pool: np.ndarray, budget: int, seed: int) -> np.ndarray:
    return np.empty(0, np.int64)


def everything(all_: Collection, pool: np.ndarray, budget: int, seed: int) -> np.ndarray:
    return pool


CHOICES: dict[str, Choice] = {
    PLAN: planned,
    "plan in two steps": planned_twice,
    "random images": random_images,
    "all classes": all_classes,
    "random classes x 10": random_classes(10),
    "semantic classes x 10": semantic_classes(10),
    "random classes x 50": random_classes(50),
    "semantic classes x 50": semantic_classes(50),
    "nothing": nothing,
    "all that may be asked": everything,
}


# ---- measures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Of one choice: error of each class in percent (NaN elsewhere), by seed; and its fits, for heads."""

    error_RC: list[np.ndarray]
    unseen_RC: list[np.ndarray]  # bool: no label of the class was verified
    calibration: list[float]
    asked: list[np.ndarray]


def measure(all_: Collection, share: float, seeds: int, choices: list[str]) -> dict[str, Outcome]:
    outcomes = {name: Outcome([], [], [], []) for name in choices}
    label_C = all_.classes(np.arange(len(all_.evidence)))
    budget = round(share * len(all_.evidence))
    for seed in range(seeds):
        pool_N = np.random.default_rng([seed, 0]).random(len(all_.evidence)) < 0.5
        judged = all_.evidence.select(~pool_N)
        right_N, class_N = all_.right_N[~pool_N], np.searchsorted(label_C, judged.label_N)
        images_C = np.bincount(class_N, minlength=len(label_C))
        for name in choices:
            asked = CHOICES[name](all_, np.flatnonzero(pool_N), budget, seed)
            decision = all_.fitted(asked).decide(judged)
            wrong_C = np.bincount(class_N[decision.mislabeled_N == right_N], minlength=len(label_C))
            outcome = outcomes[name]
            outcome.error_RC.append(100 * wrong_C / np.where(images_C, images_C, np.nan))
            outcome.unseen_RC.append(~np.isin(label_C, all_.evidence.label_N[asked]))
            calibration = expected_calibration_error(right_N, decision.probability_correct_N)
            outcome.calibration.append(float(calibration or 0.0))
            outcome.asked.append(asked)
    return outcomes


def over_seeds_and_classes(value_RC: np.ndarray) -> Measured:
    """Mean, and its 95 % interval when seeds and classes are drawn anew, both."""
    rng = np.random.default_rng(0)
    seeds, classes = value_RC.shape
    if np.isnan(value_RC).all():
        return Measured(None, None, None, 0)
    draws = np.empty(RESAMPLES)
    for b in range(RESAMPLES):
        drawn = value_RC[np.ix_(rng.integers(seeds, size=seeds), rng.integers(classes, size=classes))]
        draws[b] = np.nanmean(drawn) if not np.isnan(drawn).all() else np.nan
    return Measured.of_draws(float(np.nanmean(value_RC)), draws, int((~np.isnan(value_RC)).sum()))


def in_lines(outcomes: dict[str, Outcome], share: float) -> list[dict]:
    plan_RC = np.array(outcomes[PLAN].error_RC)
    lines = []
    for name, outcome in outcomes.items():
        error_RC, unseen_RC = np.array(outcome.error_RC), np.array(outcome.unseen_RC)
        line = {
            "budget": share,
            "choice": name,
            "labels": float(np.mean([len(asked) for asked in outcome.asked])),
            "verified_classes": float((~unseen_RC).sum(axis=1).mean()),
            "error_per_class": over_seeds_and_classes(error_RC).to_json(),
            "in_classes_without_label": over_seeds_and_classes(np.where(unseen_RC, error_RC, np.nan)).to_json(),
            "calibration_error": float(np.mean(outcome.calibration)),
        }
        if name != PLAN:
            line["plan_minus_this"] = over_seeds_and_classes(plan_RC - error_RC).to_json()
        lines.append(line)
    return lines


def accuracies(all_: Collection, outcomes: dict[str, Outcome], share: float, runs: str, heads: int) -> list[dict]:
    """Test top-1 of a head on the run's features, weighted with what each choice's detector says."""
    test = features_of(f"{runs}/rounds/00/backbone_test_features")
    feature_ND, label_N = all_.evidence.feature_ND, all_.evidence.label_N.astype(np.int64)
    assert feature_ND is not None
    project = load_projection(f"{runs}/rounds/00/features")
    test_ND = test.feature_ND if project is None else project(test.feature_ND)
    classes = int(max(label_N.max(), test.label_N.max())) + 1
    hit_ST: dict[str, np.ndarray] = {}  # the same test images for each head
    for name, outcome in outcomes.items():
        of_name = []
        for seed in range(heads):
            asked = outcome.asked[seed]
            weight_N = all_.fitted(asked).decide(all_.evidence).probability_correct_N.copy()
            weight_N[asked] = all_.right_N[asked]
            head = fit_head(feature_ND, label_N, weight_N, classes, HeadSettings(), seed=seed)
            of_name.append(head.frozen().log_probability(test_ND).argmax(1) == test.label_N)
        hit_ST[name] = np.stack(of_name)
    return [
        {
            "budget": share,
            "choice": name,
            "top1": mean_accuracy(of_choice_ST).to_json(),
            "plan_minus_this": mean_accuracy(hit_ST[PLAN], of_choice_ST).to_json(),
            "heads": heads,
        }
        for name, of_choice_ST in hit_ST.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs/cifar100n")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--heads", type=int, default=0)
    parser.add_argument("--classes", choices=("all", "even", "odd"), default="all")
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES), help="besides the plan")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    options = parser.parse_args()
    if not Path(options.runs, "rounds/00/evidence/manifest.json").exists():
        print(f"skipped: no finished run in {options.runs}; python benchmarks/cifar100n.py makes one")
        return 0
    logging.disable(logging.WARNING)  # a fit without labels says so, every time
    all_ = collected(options.runs, options.classes)
    for share in options.budgets:
        outcomes = measure(all_, share, options.seeds, list(dict.fromkeys([PLAN, *options.choices])))
        for line in in_lines(outcomes, share):
            print(json.dumps(line), flush=True)
        if options.heads:
            with one_thread():
                for line in accuracies(all_, outcomes, share, options.runs, min(options.heads, options.seeds)):
                    print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
