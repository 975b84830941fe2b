"""Feature stage against a plain torch DataLoader loop over the same model and images: images/s after the first batch.

    python benchmarks/features.py [--data FILE.parquet --weights FILE] [--images 12800] [--repeats 3]

Both sides decode the same Parquet images, resize them alike and run the same backbone. They take turns in one process
group each; one JSON line per repeat and one with the median ratio. Mark: at least 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch

from cleanscale.datasets.fragments import plan_fragments
from cleanscale.datasets.images import decode
from cleanscale.datasets.settings import DataSettings
from cleanscale.engine.data import decode_cpus, stream, through_actors
from cleanscale.engine.session import session
from cleanscale.engine.settings import EngineSettings
from cleanscale.models.backbones import BackboneSettings
from cleanscale.models.classifier import build_classifier, classifier_to_bytes
from cleanscale.stages import classifier as classifier_stage
from cleanscale.stages.extractor import Extractor
from cleanscale.stages.features import BLOCK_IMAGES
from cleanscale.stages.images import Images, requests_in_order
from cleanscale.training.transforms import AugmentationSettings, evaluation_images

SHARED = Path("../shared")


class ParquetImages(torch.utils.data.Dataset):
    """What a careful user would write: bytes in memory, decoded and resized in the loader's workers."""

    def __init__(self, file: str, images: int, size: int, augmentation: AugmentationSettings) -> None:
        self.content = pq.read_table(file, columns=["image"])["image"].slice(0, images).to_pylist()
        self.size, self.augmentation = size, augmentation

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, position: int) -> torch.Tensor:
        image = decode(self.content[position], at_least=self.size)
        return torch.from_numpy(evaluation_images([image], self.size, settings=self.augmentation)[0])


def with_loader(file: str, images: int, folder: str, augmentation: AugmentationSettings, batch: int) -> float:
    """Images/s after the first batch of a DataLoader with a worker per core but one."""
    backbone = classifier_stage.load(folder).backbone.eval()
    data = ParquetImages(file, images, backbone.image_size, augmentation)
    loader = torch.utils.data.DataLoader(data, batch_size=batch, num_workers=max(1, (os.cpu_count() or 2) - 1))
    started, done = 0.0, 0
    with torch.inference_mode():
        for image_B3SS in loader:
            backbone(image_B3SS).half()
            if started:
                done += len(image_B3SS)
            else:
                started = time.monotonic()
    return done / (time.monotonic() - started)


def with_stage(
    file: str, images: int, folder: str, augmentation: AugmentationSettings, batch: int, engine: EngineSettings
) -> float:
    """Images/s after the first block of the feature stage's own pipeline: Ray Data tasks and the actor pool."""
    data = DataSettings(train=file)
    plan = plan_fragments(file, data, tempfile.mkdtemp())
    reader = Images(data, augmentation, classifier_stage.load(folder).backbone.image_size, seed=0)
    import numpy as np

    blocks = stream(requests_in_order(plan, np.arange(images), BLOCK_IMAGES), reader.evaluation, num_cpus=decode_cpus())
    arguments = {"classifier": folder, "batch_size": batch, "use_gpu": engine.use_gpu}
    counts = through_actors(
        blocks, Extractor, arguments, rows_per_write=BLOCK_IMAGES, write=lambda t: {"rows": t.num_rows}, settings=engine
    )
    started, done = 0.0, 0
    for count in counts:
        if started:
            done += int(count["rows"])
        else:
            started = time.monotonic()
    return done / (time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(SHARED / "data/cifar100n/train.parquet"))
    parser.add_argument("--weights", default=str(SHARED / "weights/tf_efficientnet_lite0_fp16.safetensors"))
    parser.add_argument("--images", type=int, default=12800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not Path(options.data).exists() or not Path(options.weights).exists():
        print(f"skipped: {options.data} or {options.weights} is not there")
        return 0
    augmentation, engine = AugmentationSettings(evaluation_crop=1.0), EngineSettings()
    backbone = BackboneSettings(name="tf_efficientnet_lite0", weights=options.weights, image_size=96, frozen=True)
    ratios = []
    with tempfile.TemporaryDirectory() as folder, session(engine):
        content = classifier_to_bytes(build_classifier(backbone, 1), backbone)
        (Path(folder) / classifier_stage.MODEL).write_bytes(content)
        for repeat in range(options.repeats):
            torch.set_num_threads(os.cpu_count() or 1)
            peer = with_loader(options.data, options.images, folder, augmentation, options.batch)
            ours = with_stage(options.data, options.images, folder, augmentation, options.batch, engine)
            ratios.append(ours / peer)
            print(
                json.dumps({"repeat": repeat, "stage": round(ours, 1), "loader": round(peer, 1), "ratio": ours / peer})
            )
            sys.stdout.flush()
    summary = {"median_ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    print(json.dumps(summary | {"images": options.images, "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
