"""class_index: the class embedding of every class, and attention over its references, by range of classes.

Over the embeddings an index: the classes nearest to an image, the nearest other classes of each class, and pairs of
classes that may be one thing under two names.

# N images, C classes, E embedding width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cleanscale.engine.class_index import opened
from cleanscale.engine.tasks import map_shards
from cleanscale.maths.class_embeddings import ClassEmbeddings
from cleanscale.maths.references import ReferenceSets
from cleanscale.stages import cleannet as cleannet_stage
from cleanscale.stages import duplicate_classes, vector_index
from cleanscale.stages import references as references_stage
from cleanscale.stages.candidates import SampledImages
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.settings import ClassIndexSettings
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, fingerprint, open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table
from cleanscale.training.cleannet import encode_references, query_embeddings

INDEX = "index"  # folder in the stage's


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    references: str
    cleannet: str
    folder: str


def run(
    place: Place,
    folder: str,
    features: FeatureShards,
    references: tuple[str, str],
    cleannet: tuple[str, str],
    settings: ClassIndexSettings,
) -> Manifest:
    """Embed all classes and index them. references, cleannet: (folder, fingerprint)."""
    stage = open_stage(
        folder,
        "class_index",
        {
            "index": settings.content(),
            "run": {"seed": place.seed},
        },
        {"references": references[1], "cleannet": cleannet[1]},
    )
    if stage.complete:
        return stage.complete
    ranges = features.class_ranges()
    job = Job(features, references[0], cleannet[0], folder)
    made = fingerprint(stage.key)
    use_gpu = place.engine.use_gpu
    with place.timed("class_index", folder=folder):
        widths = {width for _, width in map_shards(embed_range, ranges, job)}
        if not vector_index.complete(index_folder(folder), made):
            build = vector_index.Build(
                index_folder(folder), made, max(widths), settings, place.seed, EmbeddingsOf(folder)
            )
            vector_index.build(build, ranges, SampledQueries(job, place.seed), use_gpu=use_gpu)
        with opened(index_folder(folder), ReferencesOf(job), use_gpu=use_gpu) as index:
            duplicate_classes.find(index, folder)
    return stage.finish([{"file": references_stage.file_name(shards)} for shards in ranges])


def index_folder(folder: str) -> str:
    """The index in the stage's folder."""
    return uris.join(folder, INDEX)


def embed_range(shards: list[Shard], job: Job) -> int:
    """Write the range's embeddings; returns their width."""
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
    return embedding_CE.shape[1]


def read(folder: str) -> ClassEmbeddings:
    """The embeddings of all classes: for who holds them all."""
    files = [f for f in uris.list_files(folder, (".parquet",)) if "/" not in f.path]
    return _embeddings(pa.concat_tables([read_table(f.uri, ["label", "embedding"]) for f in files]))


def read_range(folder: str, shards: Sequence[Shard]) -> ClassEmbeddings:
    """The embeddings of one range of classes."""
    return _embeddings(read_table(uris.join(folder, references_stage.file_name(list(shards))), ["label", "embedding"]))


def _embeddings(table: pa.Table) -> ClassEmbeddings:
    column = table["embedding"].combine_chunks()
    embedding_CE = column.flatten().to_numpy().reshape(table.num_rows, -1)
    label_C = table["label"].to_numpy()
    order_C = np.argsort(label_C)
    return ClassEmbeddings(label_C[order_C], embedding_CE[order_C])


@dataclass(frozen=True)
class EmbeddingsOf:
    """Labels and embeddings of a range, for the index."""

    folder: str

    def __call__(self, shards: Sequence[Shard]) -> tuple[np.ndarray, np.ndarray]:
        found = read_range(self.folder, shards)
        return found.label_C, found.embedding_CE


@dataclass(frozen=True)
class SampledQueries:
    """Embeddings of some images, such as suggestions are searched for."""

    job: Job
    seed: int

    def __call__(self) -> np.ndarray:
        feature_ND = SampledImages(self.job.features, self.seed)()
        return query_embeddings(cleannet_stage.load(self.job.cleannet), feature_ND)


@dataclass(frozen=True)
class ReferencesOf:
    """Reference sets of some classes, read where and when somebody asks for them."""

    job: Job

    def __call__(self, label_N: np.ndarray) -> ReferenceSets | None:
        label_N = np.unique(label_N)
        parts = []
        for shards in self.job.features.class_ranges():
            low, high = np.searchsorted(label_N, [shards[0].label_start, shards[0].label_stop])
            if low < high:
                sets = references_stage.read(self.job.references, shards, self.job.features)
                parts.append(sets.select(label_N[low:high]))
        return ReferenceSets.concatenate(parts) if parts else None
