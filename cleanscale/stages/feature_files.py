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
from cleanscale.datasets.rejects import Reason, Reasons, feature_faults
from cleanscale.engine.tasks import map_shards
from cleanscale.maths.keyed_random import Purpose, sampled
from cleanscale.maths.projection import Projection
from cleanscale.stages.images import request, requests_in_order, unreadable_reasons
from cleanscale.stages.ingest import REJECTED_LABEL, Ingested
from cleanscale.storage import uris
from cleanscale.storage.shards import Shard, part_of_rows
from cleanscale.storage.tables import read_table, write_table

GATHERED_SHARDS = 4  # that a task of the second pass holds at once
GROUPS = b"cleanscale.groups"
LARGEST = 65504.0  # of float16: what exceeds it would become infinite in the table


@dataclass(frozen=True)
class RowFiles:
    """The first pass's files of one input, in a folder."""

    folder: str
    data: Ingested
    shards: list[Shard]

    def groups(self) -> list[list[Shard]]:
        """Neighbouring shards that one task gathers together: each file is opened once for all of them."""
        target = max(1, GATHERED_SHARDS * max((shard.rows for shard in self.shards), default=1))
        group_S = np.cumsum([shard.rows for shard in self.shards]) // target
        starts = np.flatnonzero(np.diff(group_S, prepend=-1))
        return [self.shards[a:b] for a, b in zip(starts, [*starts[1:], len(self.shards)], strict=True)]

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


def copy_features(span: tuple[int, int], files: RowFiles) -> int:
    """First pass for data that are features: read, check and write the accepted rows of a range."""
    data = files.data
    row_M = span[0] + np.flatnonzero(data.label_range(*span) != REJECTED_LABEL)
    if not len(row_M):
        return 0
    _, fragments = request(data.plan(), row_M)
    assert data.feature_width is not None
    tables = (t for f in fragments for t in read_fragment(f, data.settings, ("feature", "fault"), row_M))
    checked = [checked_features(table, data.feature_width) for table in tables]
    return write_rows(files, pa.concat_tables(checked), file_name(*span))["rows"]


def checked_features(table: pa.Table, width: int) -> pa.Table:
    """row, ok, reason and feature as float16 (zeros where not ok): half of what was read, and less while it is read."""
    reasons = feature_reasons(table, width)
    ok_M = reasons.good_N
    feature_MD = np.zeros((table.num_rows, width), np.float16)
    feature_MD[ok_M] = numbers(table["feature"].filter(pa.array(ok_M))).reshape(-1, width)
    columns = {"row": table["row"], "ok": ok_M, "reason": reasons.array()}
    return pa.table(columns | {"feature": fixed_size(feature_MD)})


def feature_reasons(table: pa.Table, width: int) -> Reasons:
    """Why features cannot be used."""
    column = table["feature"]
    missing_M, width_M, nan_M = feature_faults(column, width)
    found = Reasons(table["fault"])
    found.add(missing_M, Reason.MISSING_FEATURE)
    found.add(width_M, Reason.FEATURE_WIDTH)
    found.add(nan_M, Reason.NAN_FEATURE)
    fine_M = ~(missing_M | width_M | nan_M)
    large_M = np.zeros(table.num_rows, bool)
    value_XD = numbers(column if fine_M.all() else column.filter(pa.array(fine_M))).reshape(-1, width)
    large_M[fine_M] = (value_XD.max(axis=1) > LARGEST) | (value_XD.min(axis=1) < -LARGEST)
    found.add(large_M, "feature beyond float16")
    return found


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float32: the numbers of all features one after the other."""
    chunks = [np.asarray(pc.cast(chunk.flatten(), pa.float32())) for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.float32), *chunks])


def write_rows(files: RowFiles, table: pa.Table, named: str | None = None) -> dict[str, Any]:
    """One file of the first pass: a row group for the shards that are gathered together.

    named: by the first row that it holds, if not given.
    """
    row_M = table["row"].to_numpy()
    first = int(row_M.min())
    label_M = files.data.label_range(first, int(row_M.max()) + 1)[row_M - first]
    table = table.append_column("label", pa.array(label_M, pa.int32())).append_column("id", files.data.ids(row_M))
    shard_M = shards_of(files.shards, label_M, row_M)
    order_M = np.lexsort((row_M, label_M, shard_M))
    table, shard_M = table.take(pa.array(order_M)), shard_M[order_M]
    first_G = np.array([group[0].index for group in files.groups()])
    group_M = first_G[np.searchsorted(first_G, shard_M, side="right") - 1]
    present, start_G = np.unique(group_M, return_index=True)
    pieces = [table.slice(a, b - a) for a, b in zip(start_G, [*start_G[1:], len(group_M)], strict=True)]
    uri = uris.join(files.folder, named or file_name(first))
    write_table(uri, pieces, metadata={GROUPS: ",".join(map(str, present))})
    return {"rows": len(row_M)}


def shards_of(shards: list[Shard], label_M: np.ndarray, row_M: np.ndarray) -> np.ndarray:
    """int64 [M]: the index of each image's shard."""
    start_S = np.array([s.label_start for s in shards])
    part_S, parts_S = np.array([s.part for s in shards]), np.array([s.parts for s in shards])
    # The parts of a class are neighbours in the plan: the last of them is found by label, the right one by row.
    last_M = np.searchsorted(start_S, label_M, side="right") - 1
    return last_M - part_S[last_M] + part_of_rows(row_M, parts_S[last_M])


def file_name(start: int, stop: int | None = None) -> str:
    """stop: of a range of rows that is written whole, so that one of another length is another file."""
    return f"{start:012d}.parquet" if stop is None else f"{start:012d}-{stop:012d}.parquet"


def gather_shards(
    shards: list[Shard], files: list[str], folder: str, width: int, projection: Projection | None
) -> list[dict[str, Any]]:
    """Write a group of shards from the files of the first pass, projected where there is a projection.

    Files may overlap: a killed run's last writer can live on and write rows that the next run has cut otherwise.
    """
    pieces = [piece for uri in files for piece in group_of_file(uri, shards[0].index)]
    if projection is not None:
        pieces, width = [projected(piece, projection) for piece in pieces], projection.width
    form = schema.features_schema(width)
    if pieces:
        table = pa.concat_tables(pieces)
        table = table.filter(table["ok"]).select(form.names).cast(form)
        row_M, label_M = table["row"].to_numpy(), table["label"].to_numpy()
        shard_M = shards_of(shards, label_M, row_M)
        order_M = np.lexsort((row_M, label_M, shard_M))
        order_M = order_M[np.diff(row_M[order_M], prepend=-1) != 0]
        shard_M = shard_M[order_M]
    else:
        table, order_M, shard_M = form.empty_table(), np.empty(0, int), np.empty(0, int)
    written = []
    for place, shard in enumerate(shards):
        start, stop = np.searchsorted(shard_M, [place, place + 1])
        part = table.take(pa.array(order_M[start:stop]))
        size_bytes = write_table(uris.join(folder, f"{shard.name}.parquet"), [part])
        written.append(shard.to_json() | {"file": f"{shard.name}.parquet", "rows": len(part), "bytes": size_bytes})
    return written


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
    found = [piece for _, piece in map_shards(sample_file, files.files(), seed, share)]
    _, first_M = np.unique(np.concatenate([row for row, _ in found]), return_index=True)
    return np.concatenate([feature for _, feature in found])[first_M]


def sample_file(uri: str, seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    table = read_table(uri, ["row", "ok", "feature"])
    table = table.filter(table["ok"])
    row_M = table["row"].to_numpy()
    chosen_M = sampled(seed, Purpose.PROJECTION, row_M, share)
    return row_M[chosen_M], feature_matrix(table)[chosen_M]


def group_of_file(uri: str, first: int) -> list[pa.Table]:
    """What a file holds for the shards that are gathered with shard `first`."""
    with uris.open_read(uri) as handle:
        file = pq.ParquetFile(handle)
        metadata = file.schema_arrow.metadata or {}
        present = metadata[GROUPS].decode().split(",")
        return [file.read_row_group(g) for g, name in enumerate(present) if name == str(first)]


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
