"""The tables of the papers, and those that tell which method to use with how much verification.

    python benchmarks/tables.py detection held_out classification conditions budgets [--data cifar100n glyphs omniglot]
                                [--seeds 0 1 2] [--runs runs/tables] [--jobs 1] [--section.setting value ...]

detection       half of every class verified: every detector (CleanNet, Table 2); where the backbone learns, also on the
                features of the classifier that is retrained with weights (CleanNet* there)
held_out        10, 30, 50 and 70 % of the classes without any verification label: error there and top-1 (Figures 5, 6)
classification  half of the classes verified: top-1 by treatment (Tables 3, 4), with references that know more; and all
                classes: some treatments, then fine-tuned on the verified images
conditions      which classes are verified: all, one of each superclass, random ones, one superclass (Table 6)
budgets         0.3 to 25 % of the images verified, in at most half of the classes or in all: error and top-1

Features, evidence, splits and seeds are the same for all methods. Prints each table as Markdown, and as JSON lines
into <runs>/<data>/<table>.jsonl. A case that is done is not done again while what it was made from is the same.
Intervals are 95 %: errors resample (seed, class) and images, accuracies test images, which all seeds share; differences
are paired. Data that is not there is skipped, and that is said.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from table_cases import CLEAN, EVERY, RIGHT_ONLY, TRUE, Base, Case, prepare, run_case
from table_data import DataSet, data_sets, one_family, one_of_each_family, shuffled, write_omniglot

from cleanscale.maths.budgets import mean_accuracy
from cleanscale.maths.detection_metrics import count_by_class
from cleanscale.maths.intervals import Measured, measured_errors, paired_errors

OF_CLASS = ("mlp", "knn", "svm", "label_propagation", "label_spreading")  # learn in every class from its own labels
OTHERS = (*OF_CLASS, "neighbour_vote", "drae")
WEIGHTS = ("soft", "hard", "probability", "relabel")
NOISE = ("instance_forward", "forward", "backward", "bottom_up", "noise_em", "label_cleaning")
BEST = ("probability", "instance_forward")
FINE_TUNED = tuple(name + CLEAN for name in ("none", *BEST))
HELD_OUT = (0.1, 0.3, 0.5, 0.7)
BUDGETS = (0.003, 0.01, 0.032, 0.1, 0.25)
MARK = 0.032  # of the images: what the paper verified
LEAST = 5  # labels of a verified class
MAIN = "transfer"
RESAMPLES = 1000


@dataclass(frozen=True)
class Row:
    """A line of a table: cases that differ in their seed alone."""

    name: str
    cases: tuple[Case, ...]


def rows_of(table: str, data: DataSet, base: Base, seeds: list[int]) -> Iterator[Row]:
    """The cases of a table, and `reference`, what the same heads reach without any detector."""
    class_C = base.class_C
    count = len(class_C)
    images_per_class = base.features.num_images / count
    half = max(2, int(images_per_class / 2))

    def row(name: str, chosen: Callable[[int], np.ndarray], per_class: int, **asked: Any) -> Row:
        def case(seed: int) -> Case:
            return Case(f"{table}-{name}-{seed}", seed, tuple(chosen(seed).tolist()), per_class, **asked)

        return Row(name, tuple(case(seed) for seed in seeds))

    def first(classes: int) -> Callable[[int], np.ndarray]:
        return lambda seed: shuffled(class_C, seed)[:classes]

    if table == "detection":
        yield row("all classes", first(count), half, detectors=OTHERS)
        if base.inputs.train.kind == "images" and not base.settings.backbone.frozen:
            yield row("all classes, retrained", first(count), half, retrained=True)
    elif table == "held_out":
        for share in HELD_OUT:
            name = f"{share:.0%} held out"
            yield row(name, first(count - round(share * count)), data.per_class, treatments=("soft", *BEST))
    elif table == "classification":
        yield row("half", first(count // 2), data.per_class, treatments=(*WEIGHTS, *NOISE, RIGHT_ONLY))
        # What is fine-tuned on some classes alone forgets the others.
        yield row("all classes", first(count), data.per_class, treatments=(*BEST, RIGHT_ONLY, *FINE_TUNED))
    elif table == "conditions":
        yield from conditions(row, first, data, class_C)
    elif table == "budgets":
        for share in BUDGETS:
            classes, labels = spread(share * base.features.num_images, count, data.per_class)
            yield row(f"{share:.1%}: {classes} x {labels}", first(classes), labels, treatments=BEST)
            each = round(share * images_per_class)
            if each >= LEAST:  # what `cleanscale verify-next` comes close to
                yield row(f"{share:.1%}: {count} x {each}", first(count), each, treatments=BEST)
                if share == MARK:
                    name = f"{share:.1%}: {count} x {each}, two rounds"
                    yield row(name, first(count), each, treatments=BEST, rounds=2)
    yield Row("reference", tuple(Case(f"reference-{s}", s, treatments=("none", EVERY, TRUE)) for s in seeds))


def conditions(row: Any, first: Any, data: DataSet, class_C: np.ndarray) -> Iterator[Row]:
    """Verified classes: all, or 30 % and 12 % of them, drawn in different ways (the paper's 1000, 308 and 118)."""
    family_C = data.families(class_C)
    yield row("all classes", lambda seed: class_C, data.per_class, treatments=BEST)
    for share in (0.3, 0.12):
        classes = max(2, round(share * len(class_C)))
        yield row(f"random {classes}", first(classes), data.per_class, treatments=BEST)
        if family_C is not None:
            semantic = partial(one_of_each_family, class_C, family_C, classes=classes)
            yield row(f"semantic {classes}", semantic, data.per_class, treatments=BEST)
    if family_C is not None:
        family = partial(one_family, class_C, family_C, classes=classes)
        yield row(f"superclasses alone {classes}", family, data.per_class, treatments=BEST)


def spread(labels: float, classes: int, per_class: int) -> tuple[int, int]:
    """(classes, labels of each) of a budget: half of the classes at most, as many as allow `LEAST` labels of each."""
    chosen = int(np.clip(labels / LEAST, 2, classes // 2))
    return chosen, max(1, min(per_class, round(labels / chosen)))


# ---- what the cases of a row say together ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """The decisions of all cases of a row, one behind the other; a class of another seed is another class."""

    label_N: np.ndarray
    wrong_N: np.ndarray
    held_out_N: np.ndarray
    called: dict[str, np.ndarray]

    @classmethod
    def of(cls, folder: Path, row: Row) -> Judged:
        found = [np.load(folder / case.name / "decisions.npz") for case in row.cases]
        names = [name.removeprefix("called.") for name in found[0].files if name.startswith("called.")]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([one[name] for one in found])

        label_N = np.concatenate([one["label"].astype(np.int64) + (k << 32) for k, one in enumerate(found)])
        return cls(label_N, joined("wrong"), joined("held_out"), {n: joined(f"called.{n}") for n in names})

    def errors(self, group_N: np.ndarray) -> dict[str, dict[str, Measured]]:
        """By detector: error per class in percent, and what it has more or less than the main detector."""
        label_N, wrong_N = self.label_N[group_N], self.wrong_N[group_N]
        found = {}
        for name, called_N in self.called.items():
            counts = count_by_class(label_N, wrong_N, called_N[group_N])
            found[name] = {"error": measured_errors(counts, resamples=RESAMPLES)[0]}
            if name != MAIN:
                pair = (self.called[MAIN][group_N], called_N[group_N])
                found[name]["main_minus"] = paired_errors(label_N, wrong_N, *pair, resamples=RESAMPLES)[0]
        return found


def correct_of(folder: Path, row: Row, treatment: str) -> np.ndarray:
    """bool [S, T]"""
    return np.stack([np.load(folder / case.name / f"correct-{treatment}.npy") for case in row.cases])


def share_of_gain(hit_ST: np.ndarray, none_ST: np.ndarray, every_ST: np.ndarray) -> Measured:
    """Percent of what is gained when every image is verified and the wrong ones are dropped; over test images."""
    images = hit_ST.shape[1]
    weight_BT = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    gain_T, whole_T = (one.mean(0) - none_ST.mean(0) for one in (hit_ST.astype(float), every_ST.astype(float)))
    draw_B = 100 * (weight_BT @ gain_T) / (weight_BT @ whole_T)
    return Measured.of_draws(float(100 * gain_T.sum() / whole_T.sum()), draw_B, images)


def measure(table: str, folder: Path, rows: list[Row]) -> Iterator[dict[str, Any]]:
    """The lines of a table: a row, what was measured of which method, the value."""
    reference = rows[-1]
    none_ST, every_ST = (correct_of(folder, reference, name) for name in ("none", EVERY))
    for row in rows:
        if row.cases[0].classes:
            judged = Judged.of(folder, row)
            labels = [json.loads((folder / case.name / "case.json").read_text())["labels"] for case in row.cases]
            groups = {"held-out classes": judged.held_out_N, "verified classes": ~judged.held_out_N}
            groups["all classes"] = np.ones(len(judged.label_N), bool)
            for group, group_N in groups.items():
                for name, found in judged.errors(group_N).items() if group_N.any() else ():
                    line = {"table": table, "row": row.name, "labels": int(np.mean(labels)), "group": group}
                    yield line | {"method": name} | {k: m.to_json() for k, m in found.items()}
        for name in row.cases[0].treatments:
            hit_ST = correct_of(folder, row, name)
            found = {"top1": mean_accuracy(hit_ST)}
            if name != "none":
                found["minus_none"] = mean_accuracy(hit_ST, none_ST)
                found["share_of_every_image_verified"] = share_of_gain(hit_ST, none_ST, every_ST)
            by_seed = [round(100 * float(hit_T.mean()), 2) for hit_T in hit_ST]
            line = {"table": table, "row": row.name, "method": name, "top1_by_seed": by_seed}
            yield line | {k: m.to_json() for k, m in found.items()}


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table as people read it."""
    out = ["| row | group | method | error or top-1, % | transfer minus it, or gain over none | share of the gain, % |"]
    out.append("|---|---|---|---|---|---|")
    for line in lines:
        value = line.get("error") or line["top1"]
        other = line.get("main_minus") or line.get("minus_none")
        share = line.get("share_of_every_image_verified")
        labels = f" ({line['labels']} labels)" if "labels" in line else ""
        cells = [line["row"] + labels, line.get("group", "top-1"), line["method"], shown(value), shown(other, "+")]
        out.append("| " + " | ".join([*cells, shown(share, digits=0)]) + " |")
    return "\n".join(out)


def shown(found: dict[str, Any] | None, sign: str = "", digits: int = 1) -> str:
    if found is None or found["value"] is None:
        return ""
    value, low, high = (f"{found[name]:{sign}.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


# ---- running ---------------------------------------------------------------------------------------------------------


def run_cases(base: Base, cases: list[Case], folder: Path, jobs: int) -> None:
    """Cases one after the other, or beside each other in processes of their own."""
    work = [(base, case, folder / case.name) for case in cases]
    if jobs == 1:
        for one in work:
            told(run_case(*one))
        return
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=8) as pool:
        for done in pool.imap_unordered(_run_case, work):
            told(done)


def _run_case(work: tuple[Base, Case, Path]) -> dict[str, Any]:
    return run_case(*work)


def told(done: dict[str, Any]) -> None:
    sys.stderr.write(f"{done['name']}: {done['labels']} labels, {done['seconds']} s\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = ("detection", "held_out", "classification", "conditions", "budgets")
    parser.add_argument("tables", nargs="+", choices=names)
    parser.add_argument("--data", nargs="+", default=["cifar100n", "glyphs", "omniglot"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", default="runs/tables")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    options, arguments = parser.parse_known_args()
    known = data_sets(Path(options.runs))
    for name in options.data:
        data, folder = known[name], Path(options.runs).resolve() / name
        missing = [str(file) for file in data.files if not file.exists()]
        if missing:
            print(f"skipped {name}: {', '.join(missing)} is not there")
            continue
        if name == "omniglot":
            write_omniglot(Path(options.runs) / "omniglot_noisy.parquet")
        base = prepare(data, folder, options.seeds, arguments)
        for table in options.tables:
            rows = list(rows_of(table, data, base, options.seeds))
            run_cases(base, [case for row in rows for case in row.cases], folder / "cases", options.jobs)
            lines = list(measure(table, folder / "cases", rows))
            (folder / f"{table}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            print(f"\n### {name}: {table}\n\n{markdown(lines)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
