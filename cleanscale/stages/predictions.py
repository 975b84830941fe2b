"""predictions: what a round's classifier says about the test images, from their features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cleanscale.engine.tasks import map_shards, shared_value
from cleanscale.models.heads import FrozenHead
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.features import load_projection
from cleanscale.stages.head_classifier import load_frozen
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table

TOP, BLOCK_IMAGES = 5, 4096


@dataclass(frozen=True)
class Job:
    features: FeatureShards
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
            head = shared_value(load_frozen, classifier[0])
            for _ in map_shards(predict_shard, features.shards, Job(features, projection, folder), head):
                pass
        stage.finish([{"file": f"{s.name}.parquet", "rows": s.rows} for s in features.shards])
    table = pa.concat_tables([read_table(stage.path(f"{s.name}.parquet")) for s in features.shards]).sort_by("row")
    predicted = table["predicted"].combine_chunks().flatten().to_numpy()
    return Predictions(table["row"].to_numpy(), table["label"].to_numpy(), predicted.reshape(table.num_rows, -1))


def predict_shard(shard: Shard, job: Job, head: FrozenHead) -> None:
    """The most probable classes, with logits of a few images and a few classes at a time."""
    features = job.features.read(shard)
    project = load_projection(job.projection)
    best = [np.empty((0, min(TOP, len(head.bias_C))), np.int32)]
    for start in range(0, len(features), BLOCK_IMAGES):
        feature_BD = features.feature_ND[start : start + BLOCK_IMAGES].astype(np.float32)
        best.append(head.top(feature_BD if project is None else project(feature_BD), TOP))
    best_NK = np.concatenate(best)
    predicted = pa.FixedSizeListArray.from_arrays(pa.array(best_NK.reshape(-1)), best_NK.shape[1])
    table = {"row": features.row_N, "label": features.label_N, "predicted": predicted}
    write_table(uris.join(job.folder, f"{shard.name}.parquet"), pa.table(table))
