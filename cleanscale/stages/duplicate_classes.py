"""Pairs of classes that may be the same thing under two names: `duplicate_classes.parquet` of a run.

Mutual nearest neighbours among the class embeddings are found range by range; the most similar of them are looked at
more closely: do their reference sets lie in the same place, and does an out-of-fold classifier confuse their images?

# C classes of a range, P pairs, K neighbours, N images of a shard
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cleanscale.engine.class_index import ClassIndex
from cleanscale.engine.tasks import map_shards
from cleanscale.maths.duplicates import ClassSpread
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.stages.vector_index import read_neighbours
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array
from cleanscale.storage.index_files import ClassRange
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table

TABLE = "duplicate_classes.parquet"  # in the run folder
PAIRS = "pairs/pairs.parquet"  # in that of the class index
MUTUAL = 3  # nearest other classes among which each must find the other
LOOKED_AT = 2048  # pairs of which references and images are compared
BLOCK = 1 << 16  # classes whose embeddings are asked for at once
NEARLY_EVEN = float(np.log(2))  # the label is at most twice as probable as the other class


def find(index: ClassIndex, folder: str) -> None:
    """Write the most similar pairs of all classes, how far their reference sets overlap, and how sure that is."""
    found = dict(map_shards(pairs_of_range, index.files.ranges, index, waits=True))
    pairs = most_similar(pa.concat_tables([found[k] for k in sorted(found)]))
    label_P, other_P = pairs["label_a"].to_numpy(), pairs["label_b"].to_numpy()
    overlap_P = sure_P = np.empty(0, np.float32)
    if len(pairs):
        wanted_L = np.unique(np.concatenate([label_P, other_P]))
        spreads = dict(map_shards(spread_of_range, index.files.ranges, index, wanted_L, waits=True))
        spread = ClassSpread.concatenate([spreads[k] for k in sorted(spreads) if spreads[k] is not None])
        overlap_P, sure_P = spread.pairs(label_P, other_P)
    for name, value_P in (("reference_overlap", overlap_P), ("sure", sure_P)):
        pairs = pairs.append_column(name, pa.array(value_P, pa.float32()))
    write_table(uris.join(folder, PAIRS), pairs)


def spread_of_range(one: ClassRange, index: ClassIndex, wanted_L: np.ndarray) -> ClassSpread | None:
    """Of those of the wanted classes that are in the range, from their reference sets."""
    low, high = np.searchsorted(wanted_L, [one.first, one.stop])
    sets = index.references(wanted_L[low:high]) if low < high else None
    return None if sets is None else ClassSpread.of(sets)


def pairs_of_range(one: ClassRange, index: ClassIndex) -> pa.Table:
    """label_a < label_b and the cosine of their embeddings, of the range's most similar mutual neighbours."""
    folder = index.files.folder
    label_C = read_array(uris.join(folder, one.file("labels")))
    stop = index.files.ranges[-1].stop
    first = index.files.ranges[0].first
    of_all = read_neighbours(folder, first, stop, MUTUAL)
    near_CK = of_all[label_C - first]
    parts = []
    for begin in range(0, len(label_C), BLOCK):
        label_P = np.repeat(label_C[begin : begin + BLOCK], near_CK.shape[1])
        other_P = near_CK[begin : begin + BLOCK].reshape(-1)
        kept_P = other_P > label_P
        label_P, other_P = label_P[kept_P], other_P[kept_P]
        mutual_P = (of_all[other_P - first] == label_P[:, None]).any(axis=1)
        label_P, other_P = label_P[mutual_P], other_P[mutual_P]
        cosine_P = np.einsum("pe,pe->p", index.embeddings(label_P), index.embeddings(other_P)).clip(-1, 1)
        columns = (label_P.astype(np.int32), other_P.astype(np.int32), cosine_P.astype(np.float32))
        parts.append(most_similar(pa.table(dict(zip(("label_a", "label_b", "similarity"), columns, strict=True)))))
    nothing = np.empty(0, np.int32)
    empty = pa.table({"label_a": nothing, "label_b": nothing, "similarity": nothing.astype(np.float32)})
    return most_similar(pa.concat_tables([empty, *parts]))


def most_similar(pairs: pa.Table) -> pa.Table:
    order = [("similarity", "descending"), ("label_a", "ascending"), ("label_b", "ascending")]
    return pairs.sort_by(order).slice(0, LOOKED_AT)


def run(place: Place, data: Ingested, features: FeatureShards, class_index: str, evidence: str) -> None:
    """Write the run's table, the surest pairs first. class_index, evidence: folders of the newest round."""
    uri = uris.join(class_index, PAIRS)
    pairs = read_table(uri)
    wanted_L = np.unique(np.concatenate([pairs["label_a"].to_numpy(), pairs["label_b"].to_numpy()]))
    touched = [
        shard
        for shard in features.shards
        if np.searchsorted(wanted_L, shard.label_start) < np.searchsorted(wanted_L, shard.label_stop)
    ]
    found = dict(map_shards(confusions_of_shard, touched, uri, evidence))
    confusion_P = confusion([found[k] for k in sorted(found)], pairs.num_rows)
    pairs = pairs.append_column("confusion", pa.array(confusion_P, pa.float32()))
    names = data.label_map().names
    for column in ("label_a", "label_b"):
        label = pairs[column]
        name = label.cast(pa.string()) if names is None else pa.array(names, pa.string()).take(label)
        pairs = pairs.append_column(column.replace("label", "name"), name)
    order = [("sure", "descending"), ("similarity", "descending"), ("label_a", "ascending")]
    write_table(place.path(TABLE), pairs.sort_by(order))


def confusions_of_shard(shard: Shard, pairs_uri: str, evidence: str) -> np.ndarray:
    """int64 [4, P]: images of each class of a pair, and how many of them could as well be of the other class."""
    pairs = read_table(pairs_uri, ["label_a", "label_b"])
    table = read_table(uris.join(evidence, f"{shard.name}.parquet"), ["label", "margin", "best_other"])
    label_N, other_N = table["label"].to_numpy().astype(np.int64), table["best_other"].to_numpy()
    even_N = table["margin"].to_numpy() < NEARLY_EVEN
    a_P, b_P = (pairs[name].to_numpy().astype(np.int64) for name in ("label_a", "label_b"))
    class_X, images_X = np.unique(label_N, return_counts=True)
    key_X, confused_X = np.unique(label_N[even_N] << 32 | other_N[even_N], return_counts=True)
    return np.stack(
        [
            counted(class_X, images_X, a_P),
            counted(class_X, images_X, b_P),
            counted(key_X, confused_X, a_P << 32 | b_P),
            counted(key_X, confused_X, b_P << 32 | a_P),
        ]
    )


def counted(key_X: np.ndarray, count_X: np.ndarray, wanted_P: np.ndarray) -> np.ndarray:
    """int64 [P]: the counts of what is wanted; 0 where key_X (sorted) has it not."""
    if not len(key_X):
        return np.zeros(len(wanted_P), np.int64)
    at_P = np.minimum(np.searchsorted(key_X, wanted_P), len(key_X) - 1)
    return np.where(key_X[at_P] == wanted_P, count_X[at_P], 0)


def confusion(parts: list[np.ndarray], pairs: int) -> np.ndarray:
    """float32 [P] in [0, 1]: the mean over both classes of the share of images that could be of the other."""
    images_aP, images_bP, even_aP, even_bP = sum(parts, np.zeros((4, pairs), np.int64))
    return ((even_aP / np.maximum(images_aP, 1) + even_bP / np.maximum(images_bP, 1)) / 2).astype(np.float32)
