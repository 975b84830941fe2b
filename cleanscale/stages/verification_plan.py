"""verification_plan: which images a person is asked about next, from the relevance table of a finished run.

Classes are counted and images chosen range of classes by range, in tasks; the driver holds three numbers of each class
and the rows that are asked. What is chosen does not depend on how classes were cut into shards.

# C classes, M images that are asked
"""

# pyarrow.compute makes its functions when it is imported, which pyright cannot see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanscale.engine.tasks import map_shards
from cleanscale.maths.verification_plan import images_by_class, labels_by_class
from cleanscale.schema import UNSEEN
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested, part_name
from cleanscale.stages.judged_shard import read_parts
from cleanscale.stages.overview import names_of
from cleanscale.storage import uris
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import read_table

COUNTS = ("label", "verified", "unverified")
CHOSEN = ("row", "label", "probability_correct", "suggested_label")
UNCERTAIN = (0.2, 0.8)  # probabilities that are called uncertain, in words
IN_ORDER = [("label", "ascending"), ("row", "ascending")]


@dataclass(frozen=True)
class Asked:
    """A plan. table: a row for each label to verify, by class and row: the columns of a verification table, those to
    fill in empty, and what helps to fill them in. counts: COUNTS of all classes before it.
    """

    table: pa.Table
    counts: pa.Table


def run(
    features: FeatureShards, relevance: str, data: Ingested, budget: int, *, classes: int | None, seed: int
) -> Asked:
    """Choose `budget` labels, or as many as nobody has verified yet, in at most `classes` classes."""
    ranges = features.class_ranges()
    counts = count_classes(ranges, relevance)
    label_C, verified_C, unverified_C = (counts[name].to_numpy() for name in COUNTS)
    asked_C = labels_by_class(label_C, verified_C, unverified_C, budget, classes=classes, seed=seed)
    chosen = choose_images(ranges, relevance, label_C[asked_C > 0], asked_C[asked_C > 0], seed)
    return Asked(to_fill_in(data, chosen, counts), counts)


def count_classes(ranges: Sequence[list[Shard]], relevance: str) -> pa.Table:
    """COUNTS of each class that has images, by label."""
    found = dict(map_shards(count_range, ranges, relevance))
    return pa.concat_tables([found[k] for k in sorted(found)]).sort_by("label")


def count_range(shards: list[Shard], relevance: str) -> pa.Table:
    table = read_parts(relevance, shards, ["label", "verified"])
    label_C, class_N = np.unique(table["label"].to_numpy(), return_inverse=True)
    seen_N = table["verified"].to_numpy() != UNSEEN
    counts = (label_C, *(np.bincount(class_N[of], minlength=len(label_C)) for of in (seen_N, ~seen_N)))
    return pa.table(dict(zip(COUNTS, counts, strict=True)))


def choose_images(
    ranges: Sequence[list[Shard]], relevance: str, label_C: np.ndarray, asked_C: np.ndarray, seed: int
) -> pa.Table:
    """CHOSEN of the images that are asked, by label and row; ranges of classes that are not asked are not read."""
    edges = np.searchsorted(label_C, [(shards[0].label_start, shards[0].label_stop) for shards in ranges])
    items = [(s, label_C[a:b], asked_C[a:b]) for s, (a, b) in zip(ranges, edges, strict=True) if a < b]
    found = dict(map_shards(choose_in_range, items, relevance, seed))
    return pa.concat_tables([nothing_chosen(), *(found[k] for k in sorted(found))]).sort_by(IN_ORDER)


def choose_in_range(item: tuple[list[Shard], np.ndarray, np.ndarray], relevance: str, seed: int) -> pa.Table:
    shards, label_C, asked_C = item
    table = read_parts(relevance, shards, [*CHOSEN, "verified"])
    table = table.filter(pc.equal(table["verified"], UNSEEN)).select(CHOSEN)
    table = table.sort_by(IN_ORDER)  # however a huge class was cut into parts
    probability_N = table["probability_correct"].to_numpy()
    return table.take(pa.array(images_by_class(table["label"].to_numpy(), probability_N, label_C, asked_C, seed=seed)))


def nothing_chosen() -> pa.Table:
    kinds = (pa.int64(), pa.int32(), pa.float32(), pa.int32())
    return pa.schema(list(zip(CHOSEN, kinds, strict=True))).empty_table()


def to_fill_in(data: Ingested, chosen: pa.Table, counts: pa.Table) -> pa.Table:
    """The images that were chosen, as the person who verifies them sees them."""
    label_M, probability_M = chosen["label"].to_numpy(), chosen["probability_correct"].to_numpy()
    known_M = counts["verified"].to_numpy()[np.searchsorted(counts["label"].to_numpy(), label_M)]
    named = ids_and_sources(data, chosen["row"].to_numpy())
    empty = pa.array([""] * chosen.num_rows, pa.string())
    return pa.table(
        {
            "id": named["id"],
            "verified": empty,
            "verified_label": empty,
            "label": names_of(data, chosen["label"]),
            "suggested_label": names_of(data, chosen["suggested_label"]),
            "probability_correct": probability_M.astype(np.float64).round(3),
            "why": pa.array(
                [reason(int(k), float(p)) for k, p in zip(known_M, probability_M, strict=True)], pa.string()
            ),
            "source": named["source"],
        }
    )


def reason(verified: int, probability: float) -> str:
    """Why this image, in words. verified: how many labels of its class are."""
    of_class = f"verified labels of its class: {verified or 'none'}"
    least, most = UNCERTAIN
    if least <= probability <= most:
        return f"{of_class}; its label is uncertain"
    return f"{of_class}; its label seems {'right' if probability > most else 'wrong'}, as a check"


def ids_and_sources(data: Ingested, row_M: np.ndarray) -> pa.Table:
    """id and source of these rows, in their order; each part of the input that holds some is read in a task."""
    start_P = np.array([start for start, _ in data.parts])
    part_M = np.searchsorted(start_P, row_M, side="right") - 1
    items = [(part_name(int(part)), row_M[part_M == part]) for part in np.unique(part_M)]
    found = dict(map_shards(rows_of_part, items, data.folder))
    none = pa.schema([("row", pa.int64()), ("id", pa.string()), ("source", pa.string())]).empty_table()
    table = pa.concat_tables([none, *(found[k] for k in sorted(found))]).sort_by("row")
    return table.take(pa.array(np.searchsorted(table["row"].to_numpy(), row_M)))


def rows_of_part(item: tuple[str, np.ndarray], folder: str) -> pa.Table:
    name, row_X = item
    table = read_table(uris.join(folder, name), ["row", "id", "source"])
    return table.filter(pc.is_in(table["row"], value_set=pa.array(row_X)))
