"""CleanNet batches: one encoding of a class's references for all of its queries, against one for each query.

    python benchmarks/cleannet_batches.py [--features f.npy --labels l.npy --verified v.npy]

Prints JSON lines: queries per second of one core's time (median of interleaved repeats, with their range) of whole
training steps, forward and backward, and the AUROC of relevance on images whose verification was held out after equally
many queries of both kinds of batch. verified.npy is 1, 0 or -1 per image; half of the verified classes are held out.
The losses are the published ones: without the class-contrastive term, which a batch with one class twice cannot have.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from unittest import mock

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from cleanscale.maths.keyed_random import Purpose, generator
from cleanscale.maths.references import ReferenceSets, make_references
from cleanscale.training import cleannet
from cleanscale.training.cleannet_batches import Batch, GroupedBatches, reference_positions
from cleanscale.training.cleannet_settings import CleanNetSettings


class IndependentBatches(GroupedBatches):
    """Every query brings its own class's reference set, as when a data loader yields (query, reference set) pairs."""

    def batch(self, step: int) -> Batch:
        seed, stream, rank = self._key
        rng = generator(seed, Purpose.CLEANNET, stream, step, rank)
        many = self._classes * self._queries * (2 // len(self._pools))
        images, positions = [], []
        for pool in self._pools:
            drawn = rng.integers(0, len(pool.position_C), many)
            images.append(pool.image_P[pool.start_C[drawn] + (rng.random(many) * pool.size_C[drawn]).astype(np.int64)])
            positions.append(pool.position_C[drawn])
        position_Q = np.concatenate(positions)
        reference_SK, real_SK = reference_positions(self._offset_C1, position_Q)
        if 0 < self._references < reference_SK.shape[1]:
            key_SK = np.where(real_SK, rng.random(reference_SK.shape), 2.0)
            kept = np.argpartition(key_SK, self._references, axis=1)[:, : self._references]
            reference_SK, real_SK = np.take_along_axis(reference_SK, kept, 1), np.take_along_axis(real_SK, kept, 1)
        return Batch(np.concatenate(images), np.arange(len(position_Q)), reference_SK, real_SK)


def generated() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features, labels, verification): 60 classes of 250 images that overlap, 35 % of labels wrong."""
    rng = np.random.default_rng(0)
    true_N = np.repeat(np.arange(60), 250)
    scale_D = np.arange(1, 129) ** -0.5
    feature_ND = rng.normal(size=(60, 128))[true_N] * scale_D + 2.5 * rng.normal(size=(len(true_N), 128)) * scale_D
    label_N = np.where(rng.random(len(true_N)) < 0.35, rng.integers(0, 60, len(true_N)), true_N).astype(np.int32)
    seen_N = (label_N < 40) & (rng.random(len(true_N)) < 0.5)
    return feature_ND.astype(np.float32), label_N, np.where(seen_N, label_N == true_N, -1).astype(np.int8)


def auroc_of_held_out(
    feature_ND: np.ndarray,
    label_N: np.ndarray,
    verified_N: np.ndarray,
    references: ReferenceSets,
    settings: CleanNetSettings,
    kind: type[GroupedBatches],
    seed: int,
) -> float:
    """AUROC on verified images of half of the verified classes, whose verification the fit did not see."""
    held_C = np.unique(label_N[verified_N >= 0])[seed % 2 :: 2]
    held_N = np.isin(label_N, held_C) & (verified_N >= 0)
    seen_N = np.where(held_N, -1, verified_N)
    with mock.patch.object(cleannet, "GroupedBatches", kind):
        model = cleannet.fit_cleannet(feature_ND, label_N, seen_N, references, settings, seed=seed)
    cosine_N = cleannet.relevance(model, references, feature_ND[held_N], label_N[held_N])
    return float(roc_auc_score(verified_N[held_N], cosine_N))


def steps_timed(kind: type[GroupedBatches], data: tuple, settings: CleanNetSettings, steps: int) -> float:
    """Queries per second of one core's time."""
    with mock.patch.object(cleannet, "GroupedBatches", kind):
        start = cleannet.fit_cleannet(*data, settings, seed=0, steps=1)
        started = time.process_time()
        cleannet.fit_cleannet(*data, settings, seed=0, steps=steps, start=start)
        seconds = time.process_time() - started
    return steps * 2 * settings.classes_per_half * settings.queries_per_class / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("features", "labels", "verified"):
        parser.add_argument(f"--{name}", help="npy file; default: generated")
    parser.add_argument("--preset", default="default", help="CleanNet preset that both kinds of batch use")
    parser.add_argument("--classes", type=int, default=16, help="classes of each half of a batch")
    parser.add_argument("--queries", type=int, default=8, help="queries of each class")
    parser.add_argument("--fit-steps", type=int, default=100, help="steps behind the AUROC")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.features:
        feature_ND, label_N = np.load(args.features).astype(np.float32), np.load(args.labels)
        verified_N = np.load(args.verified)
    else:
        feature_ND, label_N, verified_N = generated()
    settings = CleanNetSettings(
        preset=args.preset,
        contrastive=0,
        steps=args.fit_steps,
        classes_per_half=args.classes,
        queries_per_class=args.queries,
        references_per_step=0,
    ).resolved()
    kinds = {"grouped": GroupedBatches, "independent": IndependentBatches}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    quality: dict[str, list[float]] = {name: [] for name in kinds}
    with threadpool_limits(1):
        references = make_references(
            feature_ND, label_N, np.arange(len(label_N)), per_class=settings.references_per_class, seed=0
        )
        data = (feature_ND, label_N, verified_N, references)
        for seed in range(args.repeats):
            for name, kind in kinds.items():
                rates[name].append(steps_timed(kind, data, settings, 12))
                quality[name].append(auroc_of_held_out(*data, settings, kind, seed))
    for name, values in rates.items():
        ratios = [grouped / other for grouped, other in zip(rates["grouped"], values, strict=True)]
        row = {
            "batches": name,
            "queries_per_second": round(statistics.median(values)),
            "range": [round(min(values)), round(max(values))],
            "grouped_is_times_as_fast": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "held_out_auroc": round(statistics.mean(quality[name]), 4),
            "auroc_of_seeds": [round(value, 4) for value in quality[name]],
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
