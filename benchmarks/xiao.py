"""The rows of Xiao et al. 2015 (Tables 1 and 2) on the same images, features, verification labels and seeds.

    python benchmarks/xiao.py --config examples/cifar100n.toml --named [--seeds 0 1 2] [--runs runs/xiao] \\
        --data.verification ../shared/data/cifar100n/splits/verified_50x250_seed{seed}.csv
    python benchmarks/xiao.py --config examples/tiny.toml

1, 2: verified images alone; 3, 4: all images, verified ones under their true class, the others' noisy labels taken for
the truth; 5: bottom-up noise layer; 6: noise_em. 1 and 3 begin at random, the others with what learnt from the noisy
labels of all images: their ImageNet is, for images, the classifier of round 0, and on frozen features (whose backbone
comes from ImageNet in every row) the head of round 0. bottom_up and noise_em begin as they do in the main job. Beside
the six: noisy labels alone, probability weights and forward correction.

Prints a JSON line for each row and seed as it is done, and keeps it in RUNS/CONFIG/lines.jsonl: lines that are there
and were made from the same are not computed again. With noise_em's stands what it believes of labels that nobody
verified and, on glyphs, whose noise types are known, how well these are recovered and how well they could be
(`ceiling`). Then a line for each row over all seeds: test top-1 and its paired differences to rows 3 and 4, with 95 %
intervals over test images (of glyphs each seed has its own).

`{seed}` in a setting is replaced: other seeds may have other verification labels.

--named: the verification table is given the true class of each image (see benchmarks/treatments.py). On glyphs it has.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from table_cases import settings_of_cases, verdicts
from treatments import by_type, name_classes, over_images, recovery, table_of

from cleanscale import classifiers, judging, pipeline
from cleanscale.classifiers import Inputs, Round, Trained
from cleanscale.config import Settings, load
from cleanscale.datasets.glyphs import EMBEDDED, glyph_labels
from cleanscale.engine.here import Here, in_this_process
from cleanscale.engine.session import session
from cleanscale.maths.budgets import mean_accuracy
from cleanscale.maths.evidence import OutOfFold
from cleanscale.maths.intervals import measured_accuracy
from cleanscale.maths.noise_types import CONFUSING, NUM_TYPES, NoiseTypeModel, confusion_of_pairs
from cleanscale.reporting.progress import Progress
from cleanscale.schema import UNSEEN
from cleanscale.stages import head_classifier
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.stages.supervision import AS_LABELLED, Supervision, verified_pairs
from cleanscale.storage import uris
from cleanscale.storage.arrays import write_array
from cleanscale.storage.manifests import fingerprint
from cleanscale.training.heads import fit_out_of_fold_heads

# Row: (what is seen, whether it begins with what learnt from the noisy labels).
PLAIN = {"1": ("certain", False), "2": ("certain", True), "3": ("all", False), "4": ("all", True)}
TREATED = {"5": "bottom_up", "6": "noise_em", "noisy": "none", "probability": "probability", "forward": "forward"}
ROWS = {
    "1": "verified images alone, random start",
    "2": "verified images alone, pre-trained start",
    "3": "noisy labels as truth, random start",
    "4": "noisy labels as truth, pre-trained start",
    "5": "bottom-up noise layer",
    "6": "noise_em",
    "noisy": "noisy labels, verification not used",
    "probability": "weights by probability_correct",
    "forward": "forward correction",
}


def known_classes(train: Ingested) -> np.ndarray:
    """int64 by row: the true class where somebody named it or found the label right, else below 0."""
    known_R = np.full(train.num_rows, UNSEEN, np.int64)
    checked = train.verification()
    known_R[checked["row"].to_numpy()] = verified_pairs(checked)[1]
    return known_R


@dataclass(frozen=True)
class Certain(Ingested):
    """The images of an input whose true class is known, so often that an epoch is as long as one of all images."""

    def accepted_rows(self) -> np.ndarray:
        row_N = super().accepted_rows()
        certain_N = row_N[known_classes(self)[row_N] >= 0]
        return np.resize(certain_N, len(row_N))


def plain_supervision(place: Place, inputs: Inputs, seen: str) -> Supervision:
    """Cross-entropy with the true class where it is known; of the others the noisy label, or nothing."""
    known_R, label_R = known_classes(inputs.train), inputs.train.labels()
    certain_R = known_R >= 0
    targets, weights = place.path("plain", f"{seen}_targets.npy"), place.path("plain", f"{seen}_weights.npy")
    write_array(targets, np.where(certain_R, known_R, np.maximum(label_R, 0)).astype(np.int32))
    write_array(weights, (certain_R if seen == "certain" else label_R >= 0).astype(np.float32))
    about = fingerprint([seen, known_R.tolist(), inputs.train.fingerprint])
    return Supervision((("plain", about),), weights=weights, targets=targets)


def train_plain(settings: Settings, place: Place, inputs: Inputs, last: Round, row: str) -> Trained:
    """Rows 1 to 4. Rows on verified images alone take as many steps as the others: these images come more often."""
    seen, pretrained = PLAIN[row]
    given = plain_supervision(place, inputs, seen)
    name = f"row_{row}"
    if not classifiers.on_features(settings, inputs, 1):
        start = last.classifier.made if pretrained else None
        number = 1 if pretrained else 0
        data = Certain(**vars(inputs.train)) if seen == "certain" else inputs.train
        return classifiers.train_on_images(settings, place, data, number, given, start=start, name=name)
    if seen == "certain":
        certain = max(1, int((known_classes(inputs.train) >= 0).sum()))
        each = head_classifier.head_settings(settings.heads, settings.classifier).dense().epochs
        epochs = {"epochs": each * round(last.features.num_images / certain)}
        settings = settings.model_copy(update={"classifier": settings.classifier.model_copy(update=epochs)})
    return classifiers.train_head(
        settings,
        place,
        inputs,
        1,
        last.features,
        last.classifier.backbone,
        given,
        start=last.classifier.made if pretrained else None,
        name=name,
    )


def train_row(settings: Settings, place: Place, inputs: Inputs, last: Round, row: str) -> Trained:
    if row in PLAIN:
        return train_plain(settings, place, inputs, last, row)
    treatment = settings.treatment.model_copy(update={"name": TREATED[row]})
    return classifiers.train_classifier(settings.model_copy(update={"treatment": treatment}), place, inputs, 1, last)


def beliefs(inputs: Inputs, place: Place) -> dict[str, Any]:
    """What noise_em says of labels that nobody verified, in classes with and without verification labels."""
    train = inputs.train
    table = table_of(Path(place.round_path(1, "noise_types")))
    row_N = table["row"].to_numpy()
    label_N, true_N = train.labels()[row_N], train.true_labels()[row_N]
    checked = train.verification()
    unseen_N = ~np.isin(row_N, checked["row"].to_numpy()) & (true_N >= 0)
    in_verified_N = np.isin(label_N, np.unique(checked["label"].to_numpy()))
    first_N = np.array(table["posterior_label"].to_pylist())[:, 0]
    found = {}
    for name, own_N in (("verified_classes", in_verified_N), ("other_classes", ~in_verified_N)):
        at = unseen_N & own_N
        if not at.any():
            continue
        right_N, free_N = (label_N == true_N)[at], table["posterior_noise_free"].to_numpy()[at]
        found[name] = {
            "images": int(at.sum()),
            "label_right": 100 * float(right_N.mean()),
            "p_noise_free": 100 * float(table["p_noise_free"].to_numpy()[at].mean()),
            "posterior_noise_free": 100 * float(free_N.mean()),
            "auroc_of_wrong_labels": float(roc_auc_score(right_N, free_N)),
            "posterior_label_right": 100 * float((first_N == true_N)[at].mean()),
        }
    return found


def ceiling(settings: Settings, inputs: Inputs, last: Round) -> dict[str, Any]:
    """How well the posterior could tell noise types on the features of round 0: with heads of the true labels that have
    not seen the image, the true confusion matrix, and the true shares of the types in place of p(type | image)."""
    features = last.features.read_all(list(last.features.shards))
    train, seed, row_N = inputs.train, settings.run.seed, features.row_N
    true_N, label_N = train.true_labels()[row_N].astype(np.int64), features.label_N.astype(np.int64)
    drawn = glyph_labels(settings.glyphs, seed, "train")
    kind_N, unseen_N = drawn.noise_type_N[row_N], drawn.verified_N[row_N] == UNSEEN
    folds = settings.evidence.row_folds
    heads = fit_out_of_fold_heads(
        features.feature_ND, true_N, None, row_N, train.num_classes, settings.heads, seed=seed, folds=folds
    )
    log_true_NC = OutOfFold([head.frozen() for head in heads], seed).log_probability(features.feature_ND, row_N)
    confused_N = kind_N == CONFUSING
    confusion = confusion_of_pairs(true_N[confused_N], label_N[confused_N], train.num_classes)
    log_type_Z = torch.from_numpy(np.bincount(kind_N, minlength=NUM_TYPES) / len(kind_N)).clamp_min(1e-6).log().float()
    posterior = NoiseTypeModel(confusion).posterior(
        torch.from_numpy(log_true_NC), log_type_Z.expand(len(row_N), NUM_TYPES), torch.from_numpy(label_N)
    )
    best_N = posterior.true_BC.argmax(1).numpy()
    return {
        "classifier_right": 100 * float((log_true_NC.argmax(1) == true_N)[unseen_N].mean()),
        "posterior_label_right": 100 * float((best_N == true_N)[unseen_N].mean()),
        "posterior": by_type(kind_N[unseen_N], posterior.type_BZ.numpy()[unseen_N]),
    }


class Lines:
    """The file of finished rows, and beside it which test images each got right."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "lines.jsonl"
        written = self.file.read_text().splitlines() if self.file.exists() else []
        self.done = {(one["seed"], one["row"]): one for one in map(json.loads, written)}

    def left(self, seed: int, rows: list[str], made_from: str) -> list[str]:
        """The rows that are not there; lines that were made from something else are dropped."""
        left = [row for row in rows if self.done.get((seed, row), {}).get("made_from") != made_from]
        self.done = {(s, row): line for (s, row), line in self.done.items() if s != seed or row not in left}
        uris.write_bytes(str(self.file), "".join(json.dumps(line) + "\n" for line in self.done.values()).encode())
        return left

    def correct(self, seed: int, row: str) -> np.ndarray:
        return np.load(self.folder / f"correct-{seed}-{row}.npy")

    def add(self, seed: int, row: str, made_from: str, correct_N: np.ndarray, more: dict[str, Any]) -> None:
        np.save(self.folder / f"correct-{seed}-{row}.npy", correct_N)
        line = {"seed": seed, "row": row, "what": ROWS[row], "top1": measured_accuracy(correct_N).to_json()}
        line |= {"made_from": made_from} | more
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")
        self.done[seed, row] = line
        print(json.dumps(line), flush=True)


def first_round(settings: Settings, place: Place, shared: Place, inputs: Inputs) -> Round:
    """The main job up to its judgement. Features of a backbone that stays as it is are the same for all seeds, and the
    judgement does without CleanNet there: `transfer` judges by evidence."""
    if not classifiers.on_features(settings, inputs, 0):
        return pipeline.one_round(settings, place.of_round(0), inputs, 0, None)
    folder = partial(place.round_path, 0)
    backbone, shards = classifiers.frozen_features(settings, shared, inputs)
    assert inputs.test is not None
    classifiers.make_test_features(settings, shared, inputs.test, backbone)
    with in_this_process(Here()):
        trained = classifiers.train_head(settings, place, inputs, 0, shards, backbone, AS_LABELLED)
        sets = judging.make_references(settings, place, shards, folder("references"))
        seen = judging.make_evidence(settings, place, inputs.train, shards, sets, folder("evidence"))
        checked = inputs.train.verification()
        judged = judging.judge(settings, place, inputs.train, shards, sets, seen, checked, folder, with_cleannet=False)
    return Round(trained, shards, judged, seen)


def made_from(settings: Settings, inputs: Inputs, last: Round) -> str:
    """Fingerprint of what the rows of a seed follow from, but for the code."""
    assert inputs.test is not None, "the rows are compared on test images"
    known = verdicts(inputs.train.verification())
    made = [last.relevance[1], last.classifier.made[1], inputs.test.fingerprint]
    return fingerprint([settings_of_cases(settings), known, *made])


def run_seed(settings: Settings, shared: Place, rows: list[str], lines: Lines) -> None:
    """What all rows share, once; then every row that is not there yet."""
    seed = settings.run.seed
    place = Place(settings.run_uri, seed, settings.engine, Progress())
    pipeline.write_settings(settings, place)
    with contextlib.ExitStack() as opened:
        opened.enter_context(session(settings.engine))
        inputs = pipeline.read_inputs(settings, place)
        last = first_round(settings, place, shared, inputs)
        about = made_from(settings, inputs, last)
        if classifiers.on_features(settings, inputs, 1):  # heads take seconds: as long as worker groups to start
            opened.enter_context(in_this_process(Here()))
        for row in lines.left(seed, rows, about):
            trained = train_row(settings, place, inputs, last, row)
            found = classifiers.predict_test(settings, place, inputs, {row: trained})[row]
            more: dict[str, Any] = {}
            if row == "6":
                more["beliefs"] = beliefs(inputs, place)
                if settings.data.train == EMBEDDED:
                    more["noise_types"] = recovery(settings, Path(settings.run_uri))
                    more["ceiling"] = ceiling(settings, inputs, last)
            lines.add(seed, row, about, found.correct(1), more)


def over_seeds(settings: Settings, lines: Lines, rows: list[str], seeds: list[int]) -> None:
    """A line for each row; differences are paired, on the same test images and seeds."""
    correct = {row: over_images(settings, [lines.correct(seed, row) for seed in seeds]) for row in rows}
    for row, hit_ST in correct.items():
        by_seed = [lines.done[seed, row]["top1"]["value"] for seed in seeds]
        line: dict[str, Any] = {"row": row, "what": ROWS[row], "top1": mean_accuracy(hit_ST).to_json()}
        line |= {"by_seed": by_seed, "seeds": seeds}
        for other in ("3", "4"):
            if other in correct and row != other:
                line[f"minus_{other}"] = mean_accuracy(hit_ST, correct[other]).to_json()
        if row == "6" and "forward" in correct:
            line["minus_forward"] = mean_accuracy(hit_ST, correct["forward"]).to_json()
        print(json.dumps(line), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--runs", default="runs/xiao")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--named", action="store_true")
    options, arguments = parser.parse_known_args()
    folder = Path(options.runs) / Path(options.config).stem
    folder.mkdir(parents=True, exist_ok=True)
    lines = Lines(folder)
    by_seed = [settings_of_seed(options, arguments, folder, seed) for seed in options.seeds]
    for settings in by_seed:
        shared = Place(str(folder / "shared"), 0, settings.engine, Progress())
        run_seed(settings, shared, options.rows, lines)
    over_seeds(by_seed[0], lines, options.rows, options.seeds)
    return 0


def settings_of_seed(options: argparse.Namespace, arguments: list[str], folder: Path, seed: int) -> Settings:
    given = ["--config", options.config, *(piece.format(seed=seed) for piece in arguments)]
    given += ["--run.uri", str(folder / f"seed-{seed}"), "--run.seed", str(seed)]
    if options.named:
        name_classes(load(given), folder / f"named-{seed}.parquet")
        given += ["--data.verification", str(folder / f"named-{seed}.parquet")]
    return load(given)


if __name__ == "__main__":
    sys.exit(main())
