"""The files that features pass through: consecutive rows first, sorted inside by class shard, then a file per shard.

Nothing here imports torch: these functions run in the decoding tasks, of which there is one per core.

# M rows of a file, D feature width, S shards
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cleanscale import schema
from cleanscale.datasets.fragments import read_fragment
from cleanscale.datasets.rejects import Reason, feature_faults
from cleanscale.maths.keyed_random import Purpose, hash_rows
from cleanscale.maths.projection import Projection
from cleanscale.stages.images import Request, requests_in_order, unreadable_reasons
from cleanscale.stages.ingest import Ingested
from cleanscale.storage import uris
from cleanscale.storage.shards import Shard, part_of_rows
from cleanscale.storage.tables import read_table, write_table

SHARDS_OF_GROUPS = b"cleanscale.shards"
LARGEST = 65504.0  # of float16: what exceeds it would become infinite in the table


@dataclass(frozen=True)
class RowFiles:
    """The first pass's files of one input, in a folder."""

    folder: str
    data: Ingested
    shards: list[Shard]

    def finished(self) -> np.ndarray:
        """int64: rows that an interrupted first pass has written."""
        return np.concatenate(
            [np.empty(0, np.int64), *(read_table(f, ["row"])["row"].to_numpy() for f in self.files())]
        )

    def files(self) -> list[str]:
        return [f.uri for f in uris.list_files(self.folder, (".parquet",), missing_is_error=False)]


def fixed_size(feature_MD: np.ndarray) -> pa.FixedSizeListArray:
    """float16 [M, D] as an Arrow column."""
    flat = pa.array(np.ascontiguousarray(feature_MD, np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, feature_MD.shape[1])


def copy_features(request: Request, files: RowFiles) -> int:
    """First pass for data that are features: read, check, write."""
    row_M, fragments = request
    data = files.data
    assert data.feature_width is not None
    tables = [t for f in fragments for t in read_fragment(f, data.settings, ("feature", "fault"), row_M)]
    table = pa.concat_tables(tables, promote_options="permissive")
    reason_M = feature_reasons(table, data.feature_width)
    ok_M = np.array([reason is None for reason in reason_M], bool)
    feature_MD = np.zeros((table.num_rows, data.feature_width), np.float32)
    good = table.filter(pa.array(ok_M))["feature"].combine_chunks()
    feature_MD[ok_M] = np.asarray(pc.cast(good.flatten(), pa.float32())).reshape(-1, data.feature_width)
    columns = {"row": table["row"], "ok": ok_M, "reason": pa.array(reason_M, pa.string())}
    return write_rows(files, pa.table(columns | {"feature": fixed_size(feature_MD)}))["rows"]


def feature_reasons(table: pa.Table, width: int) -> list[str | None]:
    """Why each feature cannot be used; None where it can."""
    column = table["feature"]
    missing_M, width_M, nan_M = feature_faults(column, width)
    large_M = np.zeros(table.num_rows, bool)
    fine_M = ~(missing_M | width_M | nan_M)
    fine = column.filter(pa.array(fine_M)).combine_chunks()
    value_XD = np.asarray(pc.cast(fine.flatten(), pa.float32())).reshape(-1, width)
    large_M[fine_M] = (np.abs(value_XD) > LARGEST).any(axis=1)
    reason_M: list[str | None] = table["fault"].to_pylist()
    for bad_M, reason in (
        (missing_M, str(Reason.MISSING_FEATURE)),
        (width_M, str(Reason.FEATURE_WIDTH)),
        (nan_M, str(Reason.NAN_FEATURE)),
        (large_M, "feature beyond float16"),
    ):
        for place in np.flatnonzero(bad_M):
            reason_M[place] = reason_M[place] or reason
    return reason_M


def write_rows(files: RowFiles, table: pa.Table) -> dict[str, Any]:
    """One file of the first pass: a row group per class shard, named by its first row."""
    row_M = table["row"].to_numpy()
    first = int(row_M.min())
    label_M = files.data.label_range(first, int(row_M.max()) + 1)[row_M - first]
    table = table.append_column("label", pa.array(label_M, pa.int32())).append_column("id", files.data.ids(row_M))
    shard_M = shards_of(files.shards, label_M, row_M)
    order_M = np.lexsort((row_M, label_M, shard_M))
    table, shard_M = table.take(pa.array(order_M)), shard_M[order_M]
    present, start_S = np.unique(shard_M, return_index=True)
    pieces = [table.slice(a, b - a) for a, b in zip(start_S, [*start_S[1:], len(shard_M)], strict=True)]
    uri = uris.join(files.folder, f"{first:012d}.parquet")
    write_table(uri, pieces, metadata={SHARDS_OF_GROUPS: ",".join(map(str, present))})
    return {"rows": len(row_M)}


def shards_of(shards: list[Shard], label_M: np.ndarray, row_M: np.ndarray) -> np.ndarray:
    """int64 [M]: the index of each image's shard."""
    start_S = np.array([s.label_start for s in shards])
    part_S, parts_S = np.array([s.part for s in shards]), np.array([s.parts for s in shards])
    # The parts of a class are neighbours in the plan: the last of them is found by label, the right one by row.
    last_M = np.searchsorted(start_S, label_M, side="right") - 1
    return last_M - part_S[last_M] + part_of_rows(row_M, parts_S[last_M])


def gather_shard(
    shard: Shard, files: list[str], folder: str, width: int, projection: Projection | None
) -> dict[str, Any]:
    """Write one shard from the files of the first pass, projected where there is a projection.

    Files may overlap: a killed run's last writer can live on and write rows that the next run has cut otherwise.
    """
    pieces = [piece for uri in files for piece in groups_of_shard(uri, shard.index)]
    if projection is not None:
        pieces, width = [projected(piece, projection) for piece in pieces], projection.width
    form = schema.features_schema(width)
    if pieces:
        table = pa.concat_tables(pieces)
        table = (
            table.filter(table["ok"])
            .select(form.names)
            .cast(form)
            .sort_by([("label", "ascending"), ("row", "ascending")])
        )
        row_M = table["row"].to_numpy()
        table = table.filter(pa.array(np.diff(row_M, prepend=-1) != 0))
    else:
        table = form.empty_table()
    uri = uris.join(folder, f"{shard.name}.parquet")
    size_bytes = write_table(uri, [table])
    return shard.to_json() | {"file": f"{shard.name}.parquet", "rows": table.num_rows, "bytes": size_bytes}


def projected(table: pa.Table, projection: Projection) -> pa.Table:
    column = fixed_size(projection(feature_matrix(table)))
    return table.set_column(table.schema.get_field_index("feature"), "feature", column)


def feature_matrix(table: pa.Table) -> np.ndarray:
    """float32 [M, D] of a table's feature column."""
    column = table["feature"]
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], pa.float16())
    return flat.to_numpy().reshape(-1, column.type.list_size).astype(np.float32)


def sample_features(files: RowFiles, rows: int, seed: int) -> np.ndarray:
    """float32: about `rows` usable features, those with the smallest hashes of their rows: the same however cut."""
    share = rows / max(1, files.data.num_accepted)
    limit = np.uint64(min(1.0, share) * float(np.iinfo(np.uint64).max))
    found = [sample_file(uri, seed, limit) for uri in files.files()]
    _, first_M = np.unique(np.concatenate([row for row, _ in found]), return_index=True)
    return np.concatenate([feature for _, feature in found])[first_M]


def sample_file(uri: str, seed: int, limit: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    table = read_table(uri, ["row", "ok", "feature"])
    table = table.filter(table["ok"])
    row_M = table["row"].to_numpy()
    chosen_M = hash_rows(seed, Purpose.PROJECTION, row_M) <= limit
    return row_M[chosen_M], feature_matrix(table)[chosen_M]


def groups_of_shard(uri: str, index: int) -> list[pa.Table]:
    with uris.open_read(uri) as handle:
        file = pq.ParquetFile(handle)
        metadata = file.schema_arrow.metadata or {}
        present = metadata[SHARDS_OF_GROUPS].decode().split(",")
        return [file.read_row_group(g) for g, name in enumerate(present) if name == str(index)]


def rejected(files: RowFiles, block: int) -> pa.Table:
    """The images that could not be decoded, or features that cannot be used, with the reason."""
    columns = ["row", "ok"] + (["reason"] if files.data.kind == "features" else [])
    tables = [read_table(uri, columns) for uri in files.files()]
    bad = pa.concat_tables([t.filter(pc.invert(t["ok"])) for t in tables])
    row_M, first_M = np.unique(bad["row"].to_numpy(), return_index=True)
    if files.data.kind == "features":
        reasons = bad["reason"].take(pa.array(first_M)).to_pylist()
    else:
        requests = requests_in_order(files.data.plan(), row_M, block)
        found = [r for q in requests for r in unreadable_reasons(q, files.data.settings)]
        why = {r["row"]: f"{Reason.UNREADABLE_IMAGE}: {r['reason']}" for r in found}
        reasons = [why[row] for row in row_M.tolist()]
    table = files.data.table(row_M)
    return pa.table([table["id"], table["source"], pa.array(reasons, pa.string())], schema=schema.REJECTED)
