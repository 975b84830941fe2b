"""overview: the relevance table in short, as two small tables in the run folder: class by class, and the surest finds.

Counted shard by shard; only counts of classes and some rows of each shard come to the driver.
"""

# pyarrow.compute makes its functions when it is imported, which pyright cannot see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanscale import schema
from cleanscale.engine.tasks import map_shards
from cleanscale.maths.detection_metrics import count_by_class
from cleanscale.stages.evaluate import Judgements
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table, write_table

PER_CLASS, SUREST = "per_class.parquet", "most_surely_wrong.parquet"
SUREST_ROWS = 1000
SUMS = ("images", "verified", "verified_wrong", "called_wrong", "probability_sum")
SUREST_COLUMNS = ["row", "id", "label", "probability_correct", "relevance", "suggested_label"]


def run(
    place: Place, data: Ingested, features: FeatureShards, relevance: str, judged: Judgements | None, main: str
) -> None:
    """Write both tables. judged: decisions where the truth is known; main: the detector whose errors are counted."""
    found = dict(map_shards(summarise_shard, list(features.shards), relevance))
    counts = pa.concat_tables([found[k][0] for k in sorted(found)])
    write_table(place.path(PER_CLASS), per_class(counts, data, judged, main))
    surest = surest_rows(pa.concat_tables([found[k][1] for k in sorted(found)]))
    write_table(place.path(SUREST), surest.append_column("name", names_of(data, surest["label"])))


def summarise_shard(shard: Shard, relevance: str) -> tuple[pa.Table, pa.Table]:
    """(sums of each class of the shard, its rows that are most surely wrong)."""
    columns = [*SUREST_COLUMNS, "mislabeled", "verified"]
    table = read_table(uris.join(relevance, f"{shard.name}.parquet"), columns)
    verified_N = table["verified"].to_numpy()
    counted = pa.table(
        {
            "label": table["label"],
            "images": np.ones(table.num_rows, np.int64),
            "verified": (verified_N != schema.UNSEEN).astype(np.int64),
            "verified_wrong": (verified_N == schema.WRONG).astype(np.int64),
            "called_wrong": table["mislabeled"].cast(pa.int64()),
            "probability_sum": table["probability_correct"].cast(pa.float64()),
        }
    )
    called = table.filter(pc.and_(table["mislabeled"], pc.equal(table["verified"], schema.UNSEEN)))
    return sums_by_class(counted), surest_rows(called.select(SUREST_COLUMNS))


def sums_by_class(table: pa.Table) -> pa.Table:
    """A class may lie in several shards: sums of sums, sorted by label."""
    summed = table.group_by("label").aggregate([(name, "sum") for name in SUMS])
    return summed.select(["label", *(f"{name}_sum" for name in SUMS)]).rename_columns(["label", *SUMS]).sort_by("label")


def surest_rows(table: pa.Table) -> pa.Table:
    """Labels that nobody verified and that are least probably right."""
    return table.sort_by([("probability_correct", "ascending"), ("row", "ascending")]).slice(0, SUREST_ROWS)


def per_class(counts: pa.Table, data: Ingested, judged: Judgements | None, main: str) -> pa.Table:
    """A row per class. Shares in [0, 1], errors in percent; null where there is nothing to measure them on."""
    table = sums_by_class(counts)
    images = table["images"].cast(pa.float64())
    table = table.append_column("share_called_wrong", pc.divide(table["called_wrong"].cast(pa.float64()), images))
    table = table.append_column("mean_probability_correct", pc.divide(table["probability_sum"], images))
    table = table.drop_columns(["probability_sum"]).add_column(1, "name", names_of(data, table["label"]))
    label_C = table["label"].to_numpy()
    with_truth_C, wrong_C, errors_C = (np.zeros(len(label_C), np.int64) for _ in range(3))
    if judged is not None and len(judged.label_N):
        truth = count_by_class(judged.label_N, judged.wrong_N, np.zeros(len(judged.label_N), bool))
        place_C = np.searchsorted(label_C, truth.label_C)
        with_truth_C[place_C], wrong_C[place_C] = truth.images_C, truth.errors_C
        errors_C[place_C] = count_by_class(judged.label_N, judged.wrong_N, judged.mislabeled[main]).errors_C
    table = table.append_column("evaluated", pa.array(with_truth_C))
    table = table.append_column("evaluated_wrong", pa.array(wrong_C))
    error_C = 100.0 * errors_C / np.maximum(with_truth_C, 1)
    return table.append_column("error", pa.array(error_C, mask=with_truth_C == 0))


def names_of(data: Ingested, label: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    names = data.label_map().names
    return label.cast(pa.string()) if names is None else names.array.take(label)
