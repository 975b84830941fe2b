"""The classifier head with very many classes: speed and memory of every mode, and what sampling costs in accuracy.

    python benchmarks/head.py [--classes 1000000] [--width 128] [--batch 256] [--seconds 8] [--only speed|accuracy]
                              [--features RUN/rounds/00/features]

One thread; each mode in a process of its own. JSON lines: samples/s of whole training steps (forward, backward and the
update of the rows), extra memory (peak resident memory of the steps, above what rows, state and batch take), then the
top-1 accuracy and the cross-entropy of labels of dense cross-entropy with AdamW from random rows, of the exact mode and
of the sampled one, on images that training did not see, with the difference of the last two and its 95 % interval. The
collection is generated (classes in groups that look alike, 40 % wrong labels, half of them of the same group), or the
features of a run, whose labels then count as the truth.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cleanscale.models.heads import FrozenHead, Layers
from cleanscale.storage.tables import read_table
from cleanscale.training.collectives import Alone
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.heads import fit_head
from cleanscale.training.sharded_heads import CHUNK_CLASSES, HeadPart, fit_sharded_head, row_wise_adagrad
from cleanscale.training.sharded_softmax import Gathered, Rows, all_classes, loss_and_gradients, sampled_classes

MODES = {"dense": None, "exact": None, "sampled 10 %": 0.1, "sampled 1 %": 0.01, "sampled 512 classes": 512.0}
RATE = 0.01


def resident_bytes() -> int:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def stepper(mode: str, part: HeadPart, batch: int) -> Callable[[int], None]:
    """One training step: step(number). Every mode updates rows in the same way."""
    classes, width = part.rows.weight_RH.shape
    update = row_wise_adagrad(part, RATE)
    share = MODES[mode]

    def given(number: int) -> Gathered:
        torch.manual_seed(number)
        coefficient_B1 = torch.full((batch, 1), 1 / batch)
        return Gathered(torch.randn(batch, width), torch.randint(0, classes, (batch, 1)), coefficient_B1)

    def dense(number: int) -> None:
        images = given(number)
        parameters = [x.requires_grad_() for x in (images.embedded_BH, part.rows.weight_RH, part.rows.bias_R)]
        logit_BC = torch.nn.functional.linear(*parameters)
        torch.nn.functional.cross_entropy(logit_BC, images.target_BT[:, 0]).backward()
        del logit_BC
        gradients = [x.grad for x in parameters[1:]]
        for x in parameters:
            x.requires_grad_(False).grad = None
        update(slice(None), *gradients)

    def sharded(number: int) -> None:
        images = given(number)
        if share is None:
            blocks = all_classes(images, part.rows, CHUNK_CLASSES)
        else:
            negatives = int(share * classes) if share < 1 else int(share)
            blocks = sampled_classes(images, part.rows, negatives, np.random.default_rng(number))
        loss_and_gradients(images, part.rows, blocks, update, Alone())

    return dense if mode == "dense" else torch.no_grad()(sharded)


def measure(mode: str, classes: int, width: int, batch: int, seconds: float) -> dict[str, object]:
    torch.set_num_threads(1)
    rows = Rows(0, torch.randn(classes, width).div_(width), torch.zeros(classes))
    part = HeadPart(Layers(width), rows, classes, torch.full((classes,), 1e-6), torch.eye(width), 0.01)
    step = stepper(mode, part, batch)
    before = resident_bytes()
    step(0)
    started, steps, times = time.monotonic(), 0, []
    while steps < 2 or time.monotonic() - started < seconds:
        began = time.perf_counter()
        steps += 1
        step(steps)
        times.append(time.perf_counter() - began)
    return {
        "mode": mode,
        "classes": classes,
        "width": width,
        "batch": batch,
        "samples_per_second": round(batch / float(np.median(times)), 1),
        "steps": steps,
        "extra_bytes": resident_bytes() - before,
    }


def generated(classes: int, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features float16, labels, true classes): 40 % of labels are wrong, half of those of the same group."""
    groups, width = max(2, classes // 25), 128
    rng, fixed = np.random.default_rng([1, seed]), np.random.default_rng(0)
    loud_D = np.arange(1, width + 1) ** -0.7
    group_GD = fixed.standard_normal((groups, width)) * loud_D
    centre_CD = group_GD[np.arange(classes) % groups] + 0.8 * fixed.standard_normal((classes, width)) * loud_D
    true_N = np.repeat(np.arange(classes), per_class)
    feature_ND = centre_CD[true_N] + 1.15 * rng.standard_normal((len(true_N), width)) * np.maximum(loud_D, 0.15)
    alike_N = (true_N + groups * rng.integers(1, classes // groups, len(true_N))) % classes
    other_N = np.where(rng.random(len(true_N)) < 0.5, alike_N, rng.integers(0, classes, len(true_N)))
    label_N = np.where(rng.random(len(true_N)) < 0.4, other_N, true_N)
    order_N = np.argsort(label_N, kind="stable")
    return feature_ND[order_N].astype(np.float16), label_N[order_N], true_N[order_N]


def of_run(folder: str) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """(training, held out: every fifth image) of a run's features folder."""
    tables = [read_table(str(file), ["label", "feature"]) for file in sorted(Path(folder).glob("shard-*.parquet"))]
    label_N = np.concatenate([table["label"].to_numpy() for table in tables])
    feature_ND = np.concatenate([np.stack(table["feature"].to_numpy()) for table in tables])
    _, label_N = np.unique(label_N, return_inverse=True)
    held_N = np.arange(len(label_N)) % 5 == 0
    return tuple((feature_ND[at], label_N[at], label_N[at]) for at in (~held_N, held_N))  # type: ignore[return-value]


def scored(head: FrozenHead, held: tuple[np.ndarray, ...]) -> tuple[np.ndarray, float]:
    """(whether the best class is the true one, cross-entropy of the labels)."""
    feature_ND, label_N, true_N = held
    right, loss = [], []
    for at in np.array_split(np.arange(len(label_N)), max(1, len(label_N) // 2000)):
        log_probability_BC = head.log_probability(feature_ND[at])
        right.append(log_probability_BC.argmax(1) == true_N[at])
        loss.append(-log_probability_BC[np.arange(len(at)), label_N[at]])
    return np.concatenate(right), float(np.concatenate(loss).mean())


def accuracy(classes: int, features: str | None, epochs: int, dense_epochs: int) -> None:
    train, held = of_run(features) if features else (generated(classes, 20, 0), generated(classes, 4, 1))
    num_classes = int(max(train[1].max(), held[1].max())) + 1
    settings = HeadSettings(sharded="on", epochs=epochs)

    def sharded(exact: bool) -> FrozenHead:
        fitted = settings.model_copy(update={"exact": exact})
        return fit_sharded_head(train[0], train[1], None, num_classes, fitted, seed=0).frozen()

    def dense() -> FrozenHead:
        fitted = HeadSettings(hidden_width=0, epochs=dense_epochs, mixup=0.0)
        return fit_head(train[0], train[1], None, num_classes, fitted, seed=0).frozen()

    rights = {}
    modes = {"sampled": lambda: sharded(False), "exact": lambda: sharded(True)}
    for mode, fit in (modes | ({"dense": dense} if dense_epochs else {})).items():
        started = time.monotonic()
        head = fit()
        seconds = time.monotonic() - started
        rights[mode], loss = scored(head, held)
        top1 = round(100 * float(rights[mode].mean()), 2)
        said = {"mode": mode, "classes": num_classes, "top1": top1, "cross_entropy": round(loss, 4)}
        print(json.dumps(said | {"seconds": round(seconds, 1)}), flush=True)
    for mode in rights.keys() - {"sampled"}:
        difference_N = 100 * (rights["sampled"].astype(float) - rights[mode])
        half = 1.96 * difference_N.std() / len(difference_N) ** 0.5
        mean = difference_N.mean()
        print(
            json.dumps(
                {f"top1 sampled - {mode}": round(mean, 2), "low": round(mean - half, 2), "high": round(mean + half, 2)}
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each mode")
    parser.add_argument("--only", choices=["speed", "accuracy"])
    parser.add_argument("--features", help="a run's features folder instead of generated ones")
    parser.add_argument("--accuracy-classes", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=1, help="of the sampled and the exact head")
    parser.add_argument("--dense-epochs", type=int, default=8, help="0: without the dense head")
    parser.add_argument("--mode", choices=list(MODES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.mode:
        print(json.dumps(measure(given.mode, given.classes, given.width, given.batch, given.seconds)), flush=True)
        return
    if given.only != "accuracy":
        for mode in MODES:
            subprocess.run([sys.executable, *sys.argv, "--mode", mode], check=True)
    if given.only != "speed":
        accuracy(given.accuracy_classes, given.features, given.epochs, given.dense_epochs)


if __name__ == "__main__":
    main()
