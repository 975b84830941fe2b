"""class_index: the class embedding of every class, and attention over its references, by range of classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cleanscale.engine.tasks import map_shards
from cleanscale.maths.class_embeddings import ClassEmbeddings
from cleanscale.stages import cleannet as cleannet_stage
from cleanscale.stages import references as references_stage
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table
from cleanscale.training.cleannet import encode_references


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    references: str
    cleannet: str
    folder: str


def run(
    place: Place, folder: str, features: FeatureShards, references: tuple[str, str], cleannet: tuple[str, str]
) -> Manifest:
    """Embed all classes. references, cleannet: (folder, fingerprint)."""
    stage = open_stage(folder, "class_index", {}, {"references": references[1], "cleannet": cleannet[1]})
    if stage.complete:
        return stage.complete
    ranges = features.class_ranges()
    with place.timed("class_index", folder=folder):
        job = Job(features, references[0], cleannet[0], folder)
        for _ in map_shards(embed_range, ranges, job):
            pass
    return stage.finish([{"file": references_stage.file_name(shards)} for shards in ranges])


def embed_range(shards: list[Shard], job: Job) -> None:
    references = references_stage.read(job.references, shards, job.features)
    embedding_CE, attention_M = encode_references(cleannet_stage.load(job.cleannet), references)
    offsets = pa.array(references.offset_C1.astype(np.int32))
    table = pa.table(
        {
            "label": pa.array(references.label_C, pa.int32()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embedding_CE.reshape(-1)), embedding_CE.shape[1]),
            "attention": pa.ListArray.from_arrays(offsets, pa.array(attention_M, pa.float32())),
            "nearest_rows": pa.ListArray.from_arrays(offsets, pa.array(references.nearest_row_M, pa.int64())),
        }
    )
    write_table(uris.join(job.folder, references_stage.file_name(shards)), table)


def read(folder: str) -> ClassEmbeddings:
    files = uris.list_files(folder, (".parquet",))
    tables = [read_table(f.uri, ["label", "embedding"]) for f in files]
    table = pa.concat_tables(tables)
    column = table["embedding"].combine_chunks()
    embedding_CE = column.flatten().to_numpy().reshape(table.num_rows, -1)
    label_C = table["label"].to_numpy()
    order_C = np.argsort(label_C)
    return ClassEmbeddings(label_C[order_C], embedding_CE[order_C])
