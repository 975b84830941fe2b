"""The actor that runs a backbone over blocks of images.

# M images of a block, S side of the network's input
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from cleanscale.stages import classifier as classifier_stage
from cleanscale.stages.feature_files import fixed_size


class Extractor:
    """One backbone on one device; blocks of images in, features float16 out."""

    def __init__(self, classifier: str, batch_size: int, use_gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = "cuda" if use_gpu else "cpu"
        self.backbone = classifier_stage.load(classifier).backbone.eval().to(self.device)
        self.batch_size = batch_size

    @torch.inference_mode()
    def __call__(self, block: dict[str, np.ndarray]) -> pa.Table:
        image_M3SS = torch.from_numpy(block["image"].copy())
        feature = [self.backbone(b.to(self.device)).half().cpu().numpy() for b in image_M3SS.split(self.batch_size)]
        return pa.table({"row": block["row"], "ok": block["ok"], "feature": fixed_size(np.concatenate(feature))})
