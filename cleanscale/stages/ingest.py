"""ingest: what the input holds. Ids and labels of every row, verification labels joined, everything unusable rejected.

Images stay where they lie; `--data.cache_size` (stages/cache.py) keeps resized copies.

# N rows of the input, C classes
"""

# pyarrow.compute makes its functions when it is imported, which pyright cannot see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanscale import schema
from cleanscale.datasets.duplicate_ids import partition_ids, repeated, suspects
from cleanscale.datasets.fragments import Fragment, Plan, count_rows, plan_fragments, read_fragment
from cleanscale.datasets.label_lists import JoinedEdges, Lists, has_lists, join_edges, of_rows, split_lists
from cleanscale.datasets.labels import LabelMap, distinct_labels, merged_labels
from cleanscale.datasets.rejects import check_table, duplicate_reasons
from cleanscale.datasets.settings import DataSettings
from cleanscale.datasets.verification import join_verification, never_used, read_verification
from cleanscale.engine.tasks import map_shards
from cleanscale.errors import DataError
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array, read_range, write_array
from cleanscale.storage.manifests import fingerprint, open_stage, read_manifest
from cleanscale.storage.tables import read_group, read_table, write_table

PART_ROWS = 65_536
IDS_PER_PARTITION = 8_000_000  # 16 bytes each while a partition is looked at
EDGES, TRUE_EDGES = "edges", "true_edges"  # folders of edge tables, a file for each part
REJECTED_LABEL, TRUTH_NOT_GIVEN = -1, -2
VERIFICATION = pa.schema(
    [("row", pa.int64()), ("label", pa.int32()), ("verified", pa.int8()), ("verified_label", pa.int32())]
)


@dataclass(frozen=True)
class Ingested:
    """One ingested input. Small: what is long lies in `folder` and is read when asked for."""

    folder: str
    fingerprint: str  # of images and labels; verification labels have their own
    settings: DataSettings
    kind: str  # images | features
    num_rows: int
    num_accepted: int
    num_classes: int  # one more than the largest label
    parts: tuple[tuple[int, int], ...]  # row ranges of the part files
    feature_width: int | None
    plan_uri: str
    has_true_labels: bool = True
    multi_label: bool = False  # then `label` is the first of an image's labels, and `stages/label_edges.py` reads all

    def plan(self) -> Plan:
        return Plan.from_json(json.loads(uris.read_bytes(self.plan_uri)))

    def label_map(self) -> LabelMap:
        return LabelMap.from_json(json.loads(uris.read_bytes(uris.join(self.folder, "labels.json"))))

    def labels(self) -> np.ndarray:
        """int32 [N] original label by row; -1 where the row was rejected."""
        return read_array(uris.join(self.folder, "label.npy"))

    def true_labels(self) -> np.ndarray:
        """int32 [N] true label by row, for the evaluation alone; TRUTH_NOT_GIVEN, or -1 for none of the classes."""
        return read_array(uris.join(self.folder, "true_label.npy"))

    def accepted_rows(self) -> np.ndarray:
        """int64, ascending."""
        return np.flatnonzero(self.labels() != REJECTED_LABEL)

    def class_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """(labels that occur, sorted; accepted images of each)."""
        count_C = np.bincount(self.labels() + 1, minlength=self.num_classes + 1)[1:]  # the rejected ones count at 0
        return np.flatnonzero(count_C), count_C[count_C > 0]

    def verification(self) -> pa.Table:
        """row, label, verified (1 or 0), verified_label (-1 when not said); sorted by row."""
        return read_table(uris.join(self.folder, "verification.parquet"))

    def table(self, row_M: np.ndarray) -> pa.Table:
        """INGESTED rows of these accepted rows, in their order, read from the part files that hold them."""
        start_P = np.array([start for start, _ in self.parts])
        sorted_M, place_M = np.unique(row_M, return_inverse=True)
        part_M = np.searchsorted(start_P, sorted_M, side="right") - 1
        pieces = [schema.INGESTED.empty_table()]
        for part in np.unique(part_M):  # of a part no more is kept than was asked for
            piece = read_table(uris.join(self.folder, part_name(int(part))))
            wanted_X = np.searchsorted(piece["row"].to_numpy(), sorted_M[part_M == part])
            pieces.append(piece.take(pa.array(wanted_X)))
        return pa.concat_tables(pieces).take(pa.array(place_M))

    def ids(self, row_M: np.ndarray) -> pa.Array:
        return self.table(row_M)["id"].combine_chunks()

    def label_range(self, start: int, stop: int) -> np.ndarray:
        return read_range(uris.join(self.folder, "label.npy"), start, stop)


def part_name(part: int) -> str:
    return f"part-{part:06d}.parquet"


def run(place: Place, folder: str, uri: str, data: DataSettings, like: Ingested | None = None) -> Ingested:
    """Ingest the input at `uri` into `folder`.

    like: the training data, whose classes a test or clean set must have; its verification labels are not read again.
    """
    plan = plan_fragments(uri, data, uris.join(folder, "listing"))
    verification = data.verification if like is None else None
    stage = open_stage(
        folder,
        "ingest",
        {"data": data.model_dump(mode="json", include=set(READING))},
        {"data": plan.fingerprint}
        | ({"verification": uris.fingerprint(verification)} if verification else {})
        | ({"classes": like.fingerprint} if like else {}),
    )
    if not stage.complete:
        plan = plan_fragments(uri, data, uris.join(folder, "listing"))  # a changed input cleared the listing away
        with place.timed("ingest", folder=folder), place.progress.step(f"ingest {uri}", None, "rows") as step:
            make(stage.path, plan, data, like, verification, step)
        stage.finish(notes=json.loads(uris.read_bytes(stage.path("ingested.json"))))
    return read(folder, data)


def read(folder: str, data: DataSettings) -> Ingested:
    """What `run` left in `folder`. Raises: DataError where it has not come to its end."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(
            f"'{folder}' holds no complete ingest; expected what a run leaves; run the training command again"
        )
    notes: dict[str, Any] = manifest.notes | {"parts": tuple((a, b) for a, b in manifest.notes["parts"])}
    return Ingested(
        folder,
        fingerprint(images_alone(manifest.key)),
        data,
        **notes,
        plan_uri=uris.join(folder, "plan.json"),
    )


def images_alone(key: dict[str, Any]) -> dict[str, Any]:
    """What stages that use neither verification labels nor true labels depend on: new ones redo none of them."""
    settings = {name: value for name, value in key["settings"]["data"].items() if name != "true_label"}
    inputs = {name: value for name, value in key["inputs"].items() if name != "verification"}
    return key | {"settings": {"data": settings}, "inputs": inputs}


# Settings that change what is read; where the files lie does not, their fingerprint does.
READING = ("format", "id", "label", "image", "feature", "verified", "true_label")


def make(path: Any, plan: Plan, data: DataSettings, like: Ingested | None, verification: str | None, step: Any) -> None:
    if not plan.counted:
        counted: list[Any] = [None] * len(plan.fragments)
        for position, pieces in map_shards(count_rows, plan.fragments):
            counted[position] = pieces
        plan = plan.with_counts(counted)
    uris.write_bytes(path("plan.json"), json.dumps(plan.to_json()).encode())
    step.set_total(plan.num_rows)
    columns = list(plan.light_columns)
    groups = groups_of(plan.fragments)
    names = [part_name(k) for k in range(len(groups))]
    partitions = -(-plan.num_rows // IDS_PER_PARTITION)
    items = [(group, path("scan", name), path("ids", name)) for group, name in zip(groups, names, strict=True)]
    distinct = merged_labels(labels for _, labels in map_shards(scan, items, data, columns, partitions))
    label_map = like.label_map() if like else LabelMap.from_distinct(distinct, plan.class_names)
    duplicates = find_duplicates([path("ids", name) for name in names], partitions)
    checked = read_verification(verification) if verification else None
    parts: list[Any] = [None] * len(groups)
    edges = np.searchsorted(duplicates, [group[0].row_start for group in groups] + [plan.num_rows])
    taken = [duplicates[a:b] for a, b in itertools.pairwise(edges)]
    places = [(path("scan", name), path(name), path("labels", name)) for name in names]
    items = [(*place, rows) for place, rows in zip(places, taken, strict=True)]
    for position, part in map_shards(accept, items, label_map, checked.table if checked else None):
        parts[position] = part
        step.advance(part["rows"])
    gather(path, plan, parts, label_map, checked)
    for leftover in ("scan", "ids", "labels"):
        uris.remove_tree(path(leftover))


def groups_of(fragments: Sequence[Fragment]) -> list[list[Fragment]]:
    """Neighbouring fragments in groups of about PART_ROWS rows: a task, and a part file, each."""
    groups: list[list[Fragment]] = []
    rows = PART_ROWS
    for fragment in fragments:
        if rows + fragment.num_rows > PART_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(fragment)
        rows += fragment.num_rows
    return groups


def scan(item: tuple[list[Fragment], str, str], data: DataSettings, columns: list[str], partitions: int) -> pa.Array:
    """Read ids and labels as the files have them, and write ids by partition too; returns the distinct labels."""
    fragments, uri, ids_uri = item
    table = pa.concat_tables(
        [t for f in fragments for t in read_fragment(f, data, columns)], promote_options="permissive"
    )
    write_table(uri, table)
    # A row that is rejected for another reason does not take the id away from a later one that can be used.
    write_table(ids_uri, partition_ids(table.filter(usable(table)), partitions))
    return distinct_labels(table["label"])


def find_duplicates(ids: list[str], partitions: int) -> np.ndarray:
    """int64, sorted: rows whose id a lower row has already."""
    found = [rows for _, rows in map_shards(duplicates_of_partition, range(partitions), ids)]
    return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)


def duplicates_of_partition(part: int, ids: list[str]) -> np.ndarray:
    """Rows of one partition whose id is taken; of the ids themselves only those are read whose hash occurs twice."""
    hashes = [read_group(uri, part, ["hash"])["hash"].to_numpy() for uri in ids]
    suspect_N = suspects(np.concatenate(hashes))
    if not suspect_N.any():
        return np.empty(0, np.int64)
    pieces = np.split(suspect_N, np.cumsum([len(hash_M) for hash_M in hashes])[:-1])
    chosen = [(uri, piece_M) for uri, piece_M in zip(ids, pieces, strict=True) if piece_M.any()]
    return repeated([read_group(uri, part, ["row", "id"]).filter(pa.array(piece_M)) for uri, piece_M in chosen])


def usable(table: pa.Table) -> pa.ChunkedArray:
    named = pc.and_(pc.is_valid(table["id"]), pc.not_equal(table["id"], ""))
    return pc.and_(named, pc.and_(pc.is_valid(table["label"]), pc.is_null(table["fault"])))


def accept(
    item: tuple[str, str, str, np.ndarray], label_map: LabelMap, verification: pa.Table | None
) -> dict[str, Any]:
    """Write the accepted rows of one part; what is small goes back: rejected rows, verifications, its row range."""
    scanned, uri, labels_uri, duplicates = item
    table = read_table(scanned)
    row_N = table["row"].to_numpy()
    table, lists = split_lists(table, label_map) if has_lists(table) else (table, None)
    accepted, rejected = check_table(table, label_map)
    taken_M = pa.array(np.isin(accepted["row"].to_numpy(), duplicates))
    taken, accepted = accepted.filter(taken_M), accepted.filter(pc.invert(taken_M))
    write_table(uri, accepted.select(schema.INGESTED.names).cast(schema.INGESTED))
    names = ["row", "label", *(["true_label"] if "true_label" in accepted.column_names else [])]
    write_table(labels_uri, accepted.select(names))
    if lists is not None:
        lists = write_lists(uri, lists, accepted["row"].to_numpy())
        joined = join_edges(accepted, lists.edges, verification, label_map) if verification is not None else None
        verified = verified_edges(joined)
    else:
        joined = join_verification(accepted, verification, label_map) if verification is not None else None
        verified = verified_rows(accepted, joined)
    return {
        "range": (int(row_N.min()), int(row_N.max()) + 1),
        "rows": table.num_rows,
        "accepted": accepted.num_rows,
        "labels": labels_uri,
        "rejected": [rejected, duplicate_reasons(taken.select(["row", "id", "source"]))]
        + ([joined.rejected] if joined else [])
        + ([lists.rejected] if lists else []),
        "multi_label": lists is not None,
        "verified": verified,
        "used": joined.used_M if joined else np.empty(0, np.int64),
    }


def write_lists(part_uri: str, lists: Lists, row_N: np.ndarray) -> Lists:
    """Write the edges of the accepted images of a part beside it; true ones apart, for the evaluation alone."""
    folder, name = part_uri.rsplit("/", 1)
    kept = replace(lists, edges=of_rows(lists.edges, row_N))
    write_table(uris.join(folder, EDGES, name), kept.edges)
    if lists.true_edges is not None:
        write_table(uris.join(folder, TRUE_EDGES, name), of_rows(lists.true_edges, row_N))
    return kept


def verified_edges(joined: JoinedEdges | None) -> pa.Table:
    """Verdicts on the labels of a part whose images have several."""
    if joined is None:
        return VERIFICATION.empty_table()
    none = pa.array(np.full(joined.table.num_rows, -1, np.int32))
    return joined.table.append_column("verified_label", none).cast(VERIFICATION)


def verified_rows(accepted: pa.Table, joined: Any) -> pa.Table:
    """Verification labels of a part, from the table the user named or from a column of the data; the table wins."""
    verified_N = np.full(accepted.num_rows, schema.UNSEEN, np.int8)
    named_N = np.full(accepted.num_rows, -1, np.int32)
    if "verified" in accepted.column_names:
        verified_N = accepted["verified"].to_numpy().astype(np.int8)
    if joined is not None:
        seen_N = joined.verified_N != schema.UNSEEN
        verified_N = np.where(seen_N, joined.verified_N, verified_N)
        named_N = joined.verified_label_N
    table = pa.table(
        {"row": accepted["row"], "label": accepted["label"], "verified": verified_N, "verified_label": named_N}
    )
    return table.filter(pa.array(verified_N != schema.UNSEEN)).cast(VERIFICATION)


def gather(path: Any, plan: Plan, parts: list[dict[str, Any]], label_map: LabelMap, checked: Any) -> None:
    """Everything that concerns the whole input: labels by row, verification labels, rejected rows."""
    accepted = sum(part["accepted"] for part in parts)
    rejected = [table for part in parts for table in part["rejected"]]
    if checked is not None:
        rejected += [checked.rejected, never_used(checked.table, [part["used"] for part in parts])]
    rejected_table = pa.concat_tables([t.cast(schema.REJECTED) for t in rejected])
    if accepted == 0:
        counts = pc.value_counts(rejected_table["reason"]).to_pylist()
        reasons = "; ".join(f"{c['counts']} x {c['values']}" for c in counts[:3])
        raise DataError(
            f"none of {plan.num_rows} rows can be used ({reasons}); expected ids and labels in columns --data.id and "
            "--data.label; name the right ones"
        )
    columns = [("label", REJECTED_LABEL, path("label.npy")), ("true_label", TRUTH_NOT_GIVEN, path("true_label.npy"))]
    given: dict[int, bool] = dict(map_shards(by_row, columns, [part["labels"] for part in parts], plan.num_rows))
    write_table(path("verification.parquet"), pa.concat_tables([part["verified"] for part in parts]))
    write_table(path("rejected.parquet"), rejected_table)
    uris.write_bytes(path("labels.json"), json.dumps(label_map.to_json()).encode())
    features = "feature" in plan.columns and "image" not in plan.columns
    notes = {
        "kind": "features" if features else "images",
        "num_rows": plan.num_rows,
        "num_accepted": accepted,
        "num_classes": int(label_map.id_bound),
        "has_true_labels": given[1],
        "parts": [part["range"] for part in parts],
        "feature_width": plan.feature_width if features else None,
        "multi_label": any(part["multi_label"] for part in parts),
    }
    uris.write_bytes(path("ingested.json"), json.dumps(notes).encode())


def by_row(column: tuple[str, int, str], tables: list[str], num_rows: int) -> bool:
    """Write a column of all parts as one array by row, in a task: the driver never holds it. Says if any row has it."""
    name, fill, uri = column
    value_N = np.full(num_rows, fill, np.int32)
    for table_uri in tables:
        table = read_table(table_uri)
        if name in table.column_names:
            value_N[table["row"].to_numpy()] = table[name].fill_null(fill).to_numpy()
    write_array(uri, value_N)
    return bool((value_N != fill).any())
