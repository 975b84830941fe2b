"""Heads of 5,000 glyph classes on the same features: dense against exact and sampled, with and without hard negatives.

    python benchmarks/glyph_heads.py [--backbone runs/glyphs/rounds/00/classifier] [--cache runs/glyph_heads]
                                     [--only modes|hard]

The pictures go once through the backbone of another run (`make demo`'s: 300 classes, 30 % wrong labels); its features
stay in the cache folder. Labels are wrong as in the demo (30 %, half of them look-alikes), test labels are right. One
thread; JSON lines: top-1 and top-5 of each mode and seed, then the mean over seeds with the 95 % interval of the
paired difference from the dense head (`--only hard`: of hard negatives from as many drawn evenly).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from head import generated
from PIL import Image

from cleanscale.datasets.glyphs import GlyphFile, GlyphsSettings, glyph_files, glyph_rows
from cleanscale.models.backbones import Backbone
from cleanscale.models.heads import FrozenHead
from cleanscale.stages import classifier as classifier_stage
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.heads import fit_head
from cleanscale.training.sharded_heads import fit_sharded_head

NEIGHBOURS = 16  # as the class index keeps
TOP = 5

Images = tuple[np.ndarray, np.ndarray]  # features float16 [N, D], labels int32 [N]


def features(cache: Path, backbone: str, settings: GlyphsSettings) -> tuple[Images, Images]:
    """(training, test): drawn and sent through the backbone, unless they are in the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    model = classifier_stage.load(backbone).backbone.eval()
    for file in glyph_files(settings):
        made = cache / f"{Path(file.name).stem}.npz"
        if not made.exists():
            partial = made.with_suffix(".partial")
            with partial.open("wb") as out:
                np.savez(out, allow_pickle=False, **extracted(file, settings, model))  # pyright: ignore[reportArgumentType]
            partial.rename(made)
    return read(cache, "train"), read(cache, "test")


@torch.inference_mode()
def extracted(file: GlyphFile, settings: GlyphsSettings, model: Backbone) -> dict[str, np.ndarray]:
    table = glyph_rows(settings, 0, file.split, file.start, file.stop)
    pictures = [np.asarray(Image.open(BytesIO(png)).convert("RGB")) for png in table["image"].to_pylist()]
    image_N3SS = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    feature_ND = torch.cat([model(image_B3SS) for image_B3SS in image_N3SS.split(256)])
    return {"feature": feature_ND.half().numpy(), "label": table["label"].to_numpy()}


def read(cache: Path, split: str) -> Images:
    """In the order of classes, as shards are."""
    pieces = [np.load(file) for file in sorted(cache.glob(f"{split}-*.npz"))]
    feature_ND, label_N = (np.concatenate([piece[name] for piece in pieces]) for name in ("feature", "label"))
    order_N = np.argsort(label_N, kind="stable")
    return feature_ND[order_N], label_N[order_N]


def nearest_classes(train: Images, num_classes: int) -> np.ndarray:
    """int64 [C, NEIGHBOURS]: the classes whose mean features are nearest, as those of the class index's neighbours."""
    feature_ND, label_N = train
    sum_CD = torch.zeros(num_classes, feature_ND.shape[1])
    sum_CD.index_add_(0, torch.from_numpy(label_N).long(), torch.from_numpy(feature_ND).float())
    mean_CD = sum_CD / torch.from_numpy(np.bincount(label_N, minlength=num_classes)).clamp_min(1)[:, None]
    unit_CD = torch.nn.functional.normalize(mean_CD - mean_CD.mean(0))
    nearest = [(unit_XD @ unit_CD.T).topk(NEIGHBOURS + 1).indices[:, 1:] for unit_XD in unit_CD.split(2048)]
    return torch.cat(nearest).numpy()


def hard_classes(neighbour_CK: np.ndarray, batch: int) -> int:
    """How many classes one neighbour of every image adds to a step's targets, on average."""
    rng = np.random.default_rng(0)
    added = []
    for _ in range(50):
        target_B = rng.integers(0, len(neighbour_CK), batch)
        hard_B = neighbour_CK[target_B, rng.integers(0, NEIGHBOURS, batch)]
        added.append(len(np.setdiff1d(hard_B, target_B)))
    return round(float(np.mean(added)))


Fit = Callable[[int], FrozenHead]  # from a seed


def modes(train: Images, num_classes: int, dense_epochs: int) -> dict[str, Fit]:
    """The dense head, to which the others are compared, first."""
    settings = HeadSettings(sharded="on")

    def sharded(**change: object) -> Fit:
        made = settings.model_copy(update=change)
        return lambda seed: fit_sharded_head(*train, None, num_classes, made, seed=seed).frozen()

    dense = HeadSettings(hidden_width=0, epochs=dense_epochs, mixup=0.0)
    return {
        "dense": lambda seed: fit_head(*train, None, num_classes, dense, seed=seed).frozen(),
        "exact": sharded(exact=True),
        "sampled 10 %": sharded(negatives=0.1),
        "sampled 1 %": sharded(negatives=0.01),
    }


def with_hard_negatives(train: Images, num_classes: int, epochs: int) -> dict[str, Fit]:
    """Equally many classes in a step: drawn evenly, or the neighbours of its images and as many fewer drawn evenly."""
    neighbour_CK = nearest_classes(train, num_classes)
    settings = HeadSettings(sharded="on", epochs=epochs)
    batch = settings.resolved(num_classes).batch
    hard = hard_classes(neighbour_CK, batch)
    found: dict[str, Fit] = {}
    for few in (16, 512):
        for name, change in (
            (f"{few + hard} evenly", {"negatives": few + hard, "hard_negatives": 0}),
            (f"{few} evenly, {hard} hard", {"negatives": few, "hard_negatives": 1}),
        ):
            made = settings.model_copy(update=change)
            found[name] = lambda seed, made=made: fit_sharded_head(
                *train, None, num_classes, made, seed=seed, neighbour_CK=neighbour_CK
            ).frozen()
    return found


def compare(
    fits: dict[str, Fit], test: Images, seeds: int, against: Callable[[str], str]
) -> Iterator[dict[str, object]]:
    """A line for every mode and seed, then one for every mode that is compared with another, over all seeds."""
    feature_ND, true_N = test
    right: dict[str, list[np.ndarray]] = {}
    for seed in range(seeds):
        for name, fit in fits.items():
            started = time.monotonic()
            head = fit(seed)
            seconds = time.monotonic() - started
            right_NK = head.top(feature_ND, TOP) == true_N[:, None]
            right.setdefault(name, []).append(right_NK[:, 0])
            top1, top5 = (round(100 * float(right_NK[:, :k].any(1).mean()), 2) for k in (1, TOP))
            yield {"mode": name, "seed": seed, "top1": top1, "top5": top5, "seconds": round(seconds, 1)}
    for name in fits:
        # Seeds fit other heads to the same images: the interval is over images, of each the mean over seeds.
        own_N = np.mean(right[name], axis=0)
        said: dict[str, object] = {"mode": name, "top1": interval(own_N)}
        if against(name) != name:
            said |= {f"top1 - {against(name)}": interval(own_N - np.mean(right[against(name)], axis=0))}
        yield said


def interval(value_N: np.ndarray) -> list[float]:
    """[mean, low, high] in percent, 95 %."""
    half = 1.96 * value_N.std() / len(value_N) ** 0.5
    return [round(100 * float(x), 2) for x in (value_N.mean(), value_N.mean() - half, value_N.mean() + half)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=5000)
    parser.add_argument("--train-per-class", type=int, default=20)
    parser.add_argument("--test-per-class", type=int, default=6)
    parser.add_argument("--backbone", default="runs/glyphs/rounds/00/classifier")
    parser.add_argument("--cache", type=Path, default=Path("runs/glyph_heads"))
    parser.add_argument("--generated", action="store_true", help="features drawn by benchmarks/head.py instead")
    parser.add_argument("--only", choices=["modes", "hard"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="of heads with hard negatives, and without")
    parser.add_argument("--dense-epochs", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    per_class = given.train_per_class, given.test_per_class
    if given.generated:
        (*train, _), (feature_ND, _, true_N) = (generated(given.classes, n, k) for k, n in enumerate(per_class))
        train, test = (train[0], train[1]), (feature_ND, true_N)
    else:
        settings = GlyphsSettings(classes=given.classes, train_per_class=per_class[0], test_per_class=per_class[1])
        train, test = features(given.cache, given.backbone, settings)
    if given.only != "hard":
        for line in compare(modes(train, given.classes, given.dense_epochs), test, given.seeds, lambda _: "dense"):
            print(json.dumps(line), flush=True)
    if given.only != "modes":
        fits = with_hard_negatives(train, given.classes, given.epochs)
        names = list(fits)
        for line in compare(fits, test, given.seeds, lambda name: names[names.index(name) // 2 * 2]):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
