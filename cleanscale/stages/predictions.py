"""predictions: what a round's classifier says about the test images, from their features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from cleanscale.engine.tasks import map_shards
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.features import load_projection
from cleanscale.stages.head_classifier import load_head
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table

TOP = 5


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    classifier: str
    projection: str | None
    folder: str


@dataclass(frozen=True)
class Predictions:
    """row_N, label_N and the most probable classes label_NK, best first; sorted by row."""

    row_N: np.ndarray
    label_N: np.ndarray
    predicted_NK: np.ndarray

    def correct(self, k: int) -> np.ndarray:
        """bool [N]: the label is among the k most probable classes."""
        return (self.predicted_NK[:, :k] == self.label_N[:, None]).any(1)


def run(
    place: Place, folder: str, features: FeatureShards, classifier: tuple[str, str], projection: str | None
) -> Predictions:
    """Predictions for the images of `features` by the classifier in (folder, fingerprint).

    projection: the folder of the projected features that the classifier was trained on, if it was.
    """
    stage = open_stage(folder, "predictions", {}, {"features": features.fingerprint, "classifier": classifier[1]})
    if not stage.complete:
        with place.timed("predictions", features.num_images, folder=folder):
            for _ in map_shards(predict_shard, features.shards, Job(features, classifier[0], projection, folder)):
                pass
        stage.finish([{"file": f"{s.name}.parquet", "rows": s.rows} for s in features.shards])
    table = pa.concat_tables([read_table(stage.path(f"{s.name}.parquet")) for s in features.shards]).sort_by("row")
    predicted = table["predicted"].combine_chunks().flatten().to_numpy()
    return Predictions(table["row"].to_numpy(), table["label"].to_numpy(), predicted.reshape(table.num_rows, -1))


def predict_shard(shard: Shard, job: Job) -> None:
    features = job.features.read(shard)
    head = load_head(job.classifier).eval()
    project = load_projection(job.projection)
    top = min(TOP, head.config["num_classes"])
    best = [np.empty((0, top), np.int32)]
    with torch.inference_mode():
        for start in range(0, len(features), 4096):
            feature_BD = features.feature_ND[start : start + 4096].astype(np.float32)
            feature_BD = feature_BD if project is None else project(feature_BD)
            logit_BC = head(torch.from_numpy(feature_BD))
            best.append(logit_BC.topk(top, dim=1).indices.int().numpy())
    predicted = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(best).reshape(-1)), top)
    table = {"row": features.row_N, "label": features.label_N, "predicted": predicted}
    write_table(uris.join(job.folder, f"{shard.name}.parquet"), pa.table(table))
