"""CleanNet fitted by one worker and by several: do they find the same wrong labels?

    python benchmarks/cleannet_workers.py [--classes 1000] [--workers 1 4] [--seeds 0 1 2] [--dealt]
    python benchmarks/cleannet_workers.py --run runs/cifar100n --verification verified_seed0.csv verified_seed1.csv ...

Workers are processes with one thread each, with the collectives and the batches of a run; gradients are averaged, so W
workers learn from W times the images of a step. They draw from all images, as in a run on a collection that fits in
memory; with --dealt unverified images are of classes of their own, as in a larger one. The features are generated, of
another draw for each seed, or those of a finished run, with a verification table for each seed. Prints a JSON line for
each seed and number of workers, and for each number the difference to the first over all seeds: error per class on
classes that nobody verified, in percent, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from threadpoolctl import threadpool_limits

from cleanscale.datasets.generated import GeneratedSettings, generated_rows, generated_verification
from cleanscale.detectors import DETECTORS, Evidence
from cleanscale.maths.detection_metrics import count_by_class
from cleanscale.maths.intervals import measured_errors, paired_errors
from cleanscale.maths.references import make_references
from cleanscale.schema import UNSEEN
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.storage.manifests import read_manifest
from cleanscale.training.cleannet import cross_fitted_relevance, relevance
from cleanscale.training.cleannet_settings import CleanNetSettings
from cleanscale.training.collectives import collectives

COSINES = "cosines.npy"


@dataclass(frozen=True)
class Images:
    """N images in the order of their labels. verified_N: 1 right, 0 wrong, -1 unseen."""

    feature_ND: np.ndarray
    label_N: np.ndarray
    true_N: np.ndarray
    verified_N: np.ndarray

    def owned(self, rank: int, world: int) -> np.ndarray:
        """bool [N]: images of the worker's classes."""
        label_C, before_C = np.unique(self.label_N, return_index=True)
        return (before_C * world // len(self.label_N))[np.searchsorted(label_C, self.label_N)] == rank

    def held_out(self) -> np.ndarray:
        """bool [N]: images of classes in which nobody verified anything."""
        return ~np.isin(self.label_N, self.label_N[self.verified_N != UNSEEN])


def joined(
    ids: list[str], feature_ND: np.ndarray, label_N: np.ndarray, true_N: np.ndarray, verification: pa.Table
) -> Images:
    """verification: id, verified."""
    verdict = dict(zip(verification["id"].to_pylist(), verification["verified"].to_pylist(), strict=True))
    verified_N = np.array([verdict.get(one, UNSEEN) for one in ids], np.int8)
    order = np.argsort(label_N, kind="stable")
    return Images(feature_ND[order].astype(np.float32), label_N[order], true_N[order], verified_N[order])


def generated(classes: int, seed: int) -> Images:
    settings = GeneratedSettings(classes=classes)
    table = generated_rows(settings, seed, "train", 0, settings.num_images)
    feature_ND = table["feature"].combine_chunks().flatten().to_numpy().reshape(-1, settings.width)
    label_N, true_N = table["label"].to_numpy(), table["true_label"].to_numpy()
    return joined(table["id"].to_pylist(), feature_ND, label_N, true_N, generated_verification(settings, seed))


def of_run(run: str, verification: str) -> Images:
    """The features that round 0 of a run judged."""
    folder = f"{run}/rounds/00/features"
    manifest = read_manifest(folder)
    assert manifest is not None, f"no features in {folder}"
    shards = FeatureShards.of(folder, manifest)
    found = [shards.read(shard, ids=True) for shard in shards.shards]
    together = Features.concatenate(found, shards.width)
    ids = [one for piece in found if piece.id_N is not None for one in piece.id_N.to_pylist()]
    true_N = np.load(f"{run}/ingest/train/true_label.npy")[together.row_N]
    return joined(ids, together.feature_ND, together.label_N, true_N, pa.csv.read_csv(verification))


def fit(rank: int, world: int, folder: str, images: Images, settings: CleanNetSettings, seed: int, dealt: bool) -> None:
    """One worker. The first one leaves the cosine of each image to its label, of verified ones the cross-fitted."""
    torch.set_num_threads(1)
    if world > 1:
        meeting = f"file://{folder}/meeting"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    with threadpool_limits(1):
        row_N, per_class = np.arange(len(images.label_N)), settings.references_per_class
        references = make_references(images.feature_ND, images.label_N, row_N, per_class=per_class, seed=seed)
        owned_N = images.owned(rank, world) if dealt else np.ones(len(images.label_N), bool)
        has = np.flatnonzero(owned_N | (images.verified_N != UNSEEN))
        mine = references.select(images.label_N[has])
        given = (images.feature_ND[has], images.label_N[has], images.verified_N[has], mine)
        fitted = cross_fitted_relevance(*given, settings, seed=seed, collectives=collectives(), own_N=owned_N[has])
        if rank == 0:
            cosine_N = relevance(fitted.model, references, images.feature_ND, images.label_N)
            cosine_N[has] = np.where(np.isnan(fitted.cosine_N), cosine_N[has], fitted.cosine_N)
            np.save(f"{folder}/{COSINES}", cosine_N)
    if world > 1:
        torch.distributed.destroy_process_group()


def called_wrong(images: Images, settings: CleanNetSettings, world: int, seed: int, *, dealt: bool) -> np.ndarray:
    """bool: what the detector `cleannet` says of the images of held-out classes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(fit, (world, folder, images, settings, seed, dealt), nprocs=world)
        cosine_N = np.load(f"{folder}/{COSINES}")

    def evidence(these_N: np.ndarray) -> Evidence:
        at_X = np.flatnonzero(these_N)
        return Evidence(at_X, images.label_N[at_X], {"cleannet_cosine": cosine_N[at_X]})

    seen_N = images.verified_N != UNSEEN
    delta = DETECTORS["cleannet"].fit(evidence(seen_N), images.verified_N[seen_N], class_folds=3, seed=seed)
    return delta.decide(evidence(images.held_out())).mislabeled_N


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000, help="of generated features")
    parser.add_argument("--run", help="a finished run with images and a true label, instead of generated features")
    parser.add_argument("--verification", nargs="+", default=[], help="a table for each seed, with --run")
    parser.add_argument("--dealt", action="store_true", help="each worker has classes of its own")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.run and len(options.verification) != len(options.seeds):
        parser.error("--run takes one --verification table for each of --seeds")
    settings = CleanNetSettings().resolved()
    labels, wrong = [], []
    called: dict[int, list[np.ndarray]] = {world: [] for world in options.workers}
    for k, seed in enumerate(options.seeds):
        images = of_run(options.run, options.verification[k]) if options.run else generated(options.classes, seed)
        held_N = images.held_out()
        labels.append(images.label_N[held_N])
        wrong.append((images.true_N != images.label_N)[held_N])
        for world in options.workers:
            started = time.monotonic()
            called[world].append(called_wrong(images, settings, world, seed, dealt=options.dealt))
            error, _ = measured_errors(count_by_class(labels[-1], wrong[-1], called[world][-1]))
            line = {"seed": seed, "workers": world, "held_out_error": error.to_json()}
            print(json.dumps(line | {"seconds": round(time.monotonic() - started, 1)}), flush=True)
    first, *others = options.workers
    for world in others:
        both = (np.concatenate(called[one]) for one in (world, first))
        difference, _ = paired_errors(np.concatenate(labels), np.concatenate(wrong), *both)
        print(json.dumps({"workers": world, "minus": first, "held_out_error": difference.to_json()}), flush=True)


if __name__ == "__main__":
    main()
