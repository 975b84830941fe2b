"""noise_types: what the two networks of noise_em say of every image: the type of its noise, and its true class.

# N images of a shard, B images of a block, K most probable classes, Z noise types
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from cleanscale import schema
from cleanscale.engine.tasks import map_shards
from cleanscale.maths.noise_types import NoiseTypeModel
from cleanscale.models.heads import Head
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.head_classifier import load_head, load_noise_type_head
from cleanscale.stages.judged_shard import places
from cleanscale.stages.place import Place
from cleanscale.stages.supervision import Supervision
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import write_table

TOP, BLOCK_IMAGES = 5, 2048
TYPES = ("noise_free", "pointless", "confusing")


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    features_of_types: FeatureShards
    classifier: str
    given: Supervision
    folder: str


def run(
    place: Place,
    folder: str,
    features: FeatureShards,
    features_of_types: FeatureShards,
    classifier: tuple[str, str],
    given: Supervision,
) -> Manifest:
    """A table of schema NOISE_TYPES per class shard.

    features, features_of_types: of all images, by the backbone of the classifier and by that of the network of types
    (the same where they share one). classifier: (folder of both networks, fingerprint). given: what it learnt from.
    """
    inputs = {"features": features.fingerprint, "classifier": classifier[1]} | given.inputs()
    stage = open_stage(folder, "noise_types", {}, inputs)
    if stage.complete:
        return stage.complete
    job = Job(features, features_of_types, classifier[0], given, folder)
    shards = list(features.shards)
    with (
        place.timed("noise types", features.num_images, folder=folder),
        place.progress.step("noise types", features.num_images) as step,
    ):
        for position, _ in map_shards(type_shard, shards, job):
            step.advance(shards[position].rows)
    return stage.finish([{"file": f"{s.name}.parquet", "rows": s.rows} for s in shards])


def type_shard(shard: Shard, job: Job) -> None:
    features = job.features.read(shard)
    types_ND = features.feature_ND
    if job.features_of_types.folder != job.features.folder:
        of_types = job.features_of_types.read(shard)
        types_ND = of_types.feature_ND[places(of_types.row_N, features.row_N)]
    noise = job.given.read().noise
    assert noise is not None
    assert noise.confusion is not None
    model = NoiseTypeModel(noise.confusion)
    heads = load_head(job.classifier), load_noise_type_head(job.classifier)
    found = [
        type_block(model, heads, features.feature_ND[at], types_ND[at], features.label_N[at])
        for at in (slice(start, start + BLOCK_IMAGES) for start in range(0, len(features), BLOCK_IMAGES))
    ]
    type_NZ, posterior_NZ, label_NK, probability_NK = (np.concatenate(column) for column in zip(*found, strict=True))
    columns = {"row": features.row_N, "label": features.label_N}
    columns |= {f"p_{name}": type_NZ[:, z] for z, name in enumerate(TYPES)}
    columns |= {f"posterior_{name}": posterior_NZ[:, z] for z, name in enumerate(TYPES)}
    columns |= {"posterior_label": lists(label_NK), "posterior_probability": lists(probability_NK)}
    write_table(uris.join(job.folder, f"{shard.name}.parquet"), pa.table(columns).cast(schema.NOISE_TYPES))


def lists(value_NK: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(value_NK).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, value_NK.shape[1])


def type_block(
    model: NoiseTypeModel, heads: tuple[Head, Head], feature_BD: np.ndarray, types_BD: np.ndarray, label_B: np.ndarray
) -> tuple[np.ndarray, ...]:
    """(p(type | image) [B, Z], the same given the label, most probable true classes [B, K], their probabilities)."""
    with torch.inference_mode():
        log_true_BC, log_type_BZ = (
            head(torch.from_numpy(x_BD.astype(np.float32))).log_softmax(1)
            for head, x_BD in zip(heads, (feature_BD, types_BD), strict=True)
        )
        posterior = model.posterior(log_true_BC, log_type_BZ, torch.from_numpy(label_B.astype(np.int64)))
        best = posterior.true_BC.topk(min(TOP, log_true_BC.shape[1]), dim=1)
        type_BZ = model.type_of_image(log_true_BC, log_type_BZ)
    return type_BZ.numpy(), posterior.type_BZ.numpy(), best.indices.int().numpy(), best.values.numpy()
