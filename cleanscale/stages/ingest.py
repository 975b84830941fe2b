"""ingest: what the input holds. Ids and labels of every row, verification labels joined, everything unusable rejected.

Images stay where they lie; `--data.cache_size` (stages/cache.py) keeps resized copies.

# N rows of the input, C classes
"""

# pyarrow.compute makes its functions when it is imported, which pyright cannot see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanscale import schema
from cleanscale.datasets.fragments import Fragment, Plan, count_rows, plan_fragments, read_fragment
from cleanscale.datasets.label_lists import JoinedEdges, Lists, has_lists, join_edges, of_rows, split_lists
from cleanscale.datasets.labels import LabelMap, distinct_labels
from cleanscale.datasets.rejects import check_table, duplicate_reasons, duplicates_in_partition, partition_ids
from cleanscale.datasets.settings import DataSettings
from cleanscale.datasets.verification import join_verification, never_used, read_verification
from cleanscale.engine.tasks import map_shards
from cleanscale.errors import DataError
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array, read_range, write_array
from cleanscale.storage.manifests import fingerprint, open_stage, read_manifest
from cleanscale.storage.tables import read_table, write_table

PART_ROWS = 65_536
IDS_PER_PARTITION = 4_000_000
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
        label_N = self.labels()
        return np.unique(label_N[label_N != REJECTED_LABEL], return_counts=True)

    def verification(self) -> pa.Table:
        """row, label, verified (1 or 0), verified_label (-1 when not said); sorted by row."""
        return read_table(uris.join(self.folder, "verification.parquet"))

    def table(self, row_M: np.ndarray) -> pa.Table:
        """INGESTED rows of these accepted rows, in their order, read from the part files that hold them."""
        start_P = np.array([start for start, _ in self.parts])
        wanted = np.unique(np.searchsorted(start_P, row_M, side="right") - 1)
        pieces = [read_table(uris.join(self.folder, part_name(int(p)))) for p in wanted]
        table = pa.concat_tables(pieces) if pieces else schema.INGESTED.empty_table()
        place_M = np.searchsorted(table["row"].to_numpy(), row_M)
        return table.take(pa.array(place_M))

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
    scans = [path("scan", part_name(k)) for k in range(len(groups))]
    distinct: list[Any] = [[]] * len(groups)
    for position, labels in map_shards(scan, list(zip(groups, scans, strict=True)), data, columns):
        distinct[position] = labels
    label_map = like.label_map() if like else LabelMap.from_distinct(distinct, plan.class_names)
    duplicates = find_duplicates(scans, plan.num_rows)
    checked = read_verification(verification) if verification else None
    parts: list[Any] = [None] * len(groups)
    items = [(scans[k], path(part_name(k)), path("labels", f"{k:06d}.parquet"), duplicates) for k in range(len(groups))]
    for position, part in map_shards(accept, items, label_map, checked.table if checked else None):
        parts[position] = part
        step.advance(part["rows"])
    gather(path, plan, parts, label_map, checked)
    for leftover in ("scan", "labels"):
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


def scan(item: tuple[list[Fragment], str], data: DataSettings, columns: list[str]) -> list[Any]:
    """Read ids and labels as the files have them; returns the distinct labels."""
    fragments, uri = item
    table = pa.concat_tables(
        [t for f in fragments for t in read_fragment(f, data, columns)], promote_options="permissive"
    )
    write_table(uri, table)
    return distinct_labels(table["label"])


def find_duplicates(scans: list[str], num_rows: int) -> np.ndarray:
    """Rows whose id a lower row has already: found by partition of the ids, never in one set of all."""
    partitions = -(-num_rows // IDS_PER_PARTITION)
    found = [rows for _, rows in map_shards(duplicates_of_partition, range(partitions), scans, partitions)]
    return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)


def duplicates_of_partition(part: int, scans: list[str], partitions: int) -> np.ndarray:
    tables = (read_table(uri, ["row", "id", "source", "label", "fault"]) for uri in scans)
    # A row that is rejected for another reason does not take the id away from a later one that can be used.
    named = (t.filter(usable(t)) for t in tables)
    return duplicates_in_partition(partition_ids(t, partitions)[part] for t in named)["row"].to_numpy()


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
    repeated = accepted.filter(pc.is_in(accepted["row"], value_set=pa.array(duplicates)))
    accepted = accepted.filter(pc.invert(pc.is_in(accepted["row"], value_set=pa.array(duplicates))))
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
        "rejected": [rejected, duplicate_reasons(repeated.select(["row", "id", "source"]))]
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
    label_N = np.full(plan.num_rows, REJECTED_LABEL, np.int32)
    true_label_N = np.full(plan.num_rows, TRUTH_NOT_GIVEN, np.int32)
    for part in parts:
        table = read_table(part["labels"])
        row_M = table["row"].to_numpy()
        label_N[row_M] = table["label"].to_numpy()
        if "true_label" in table.column_names:
            true_label_N[row_M] = table["true_label"].fill_null(TRUTH_NOT_GIVEN).to_numpy()
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
    write_array(path("label.npy"), label_N)
    write_array(path("true_label.npy"), true_label_N)
    write_table(path("verification.parquet"), pa.concat_tables([part["verified"] for part in parts]))
    write_table(path("rejected.parquet"), rejected_table)
    uris.write_bytes(path("labels.json"), json.dumps(label_map.to_json()).encode())
    features = "feature" in plan.columns and "image" not in plan.columns
    notes = {
        "kind": "features" if features else "images",
        "num_rows": plan.num_rows,
        "num_accepted": accepted,
        "num_classes": int(label_map.id_bound),
        "parts": [part["range"] for part in parts],
        "feature_width": plan.feature_width if features else None,
        "multi_label": any(part["multi_label"] for part in parts),
    }
    uris.write_bytes(path("ingested.json"), json.dumps(notes).encode())
