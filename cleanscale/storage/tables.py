"""Parquet tables on any file system, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.parquet import open_parquet_file

from cleanscale.schema import VERDICT
from cleanscale.storage import uris

WHOLE_BYTES = 1 << 20  # a smaller object is not worth more than one request


def write_table(uri: str, table: pa.Table | Sequence[pa.Table], metadata: Mapping[bytes, str] | None = None) -> int:
    """Write a table, or several of one schema as a row group each. Returns the bytes written."""
    groups: list[pa.Table] = [table] if isinstance(table, pa.Table) else list(table)  # pyright: ignore[reportAssignmentType]
    form = groups[0].schema
    if metadata:
        form = form.with_metadata({**(form.metadata or {}), **{k: v.encode() for k, v in metadata.items()}})
    sink = io.BytesIO()
    # Features hardly get smaller; packing them took most of the time of writing and reading them.
    packed = "none" if any(holds_features(column.type) for column in form) else "zstd"
    numbers = {c.name for c in form if pa.types.is_floating(c.type) or holds_features(c.type)}
    repeated: Any = [name for name in form.names if name not in numbers]
    with pq.ParquetWriter(sink, form, compression=packed, use_dictionary=repeated) as writer:
        for group in groups:
            writer.write_table(group.cast(form), row_group_size=max(1, group.num_rows))
    uris.write_bytes(uri, sink.getvalue())
    return sink.tell()


def fingerprint_columns(table: pa.Table, names: Sequence[str] = VERDICT) -> str:
    """16 hex digits that stand for columns of integers, whatever their width."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(table[name].to_numpy().astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


def holds_features(kind: pa.DataType) -> bool:
    """Whether a column is of float16, or of lists of it."""
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return pa.types.is_float16(kind)


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns named, or all. A small remote table comes in one request; of a large one, only what is asked."""
    names = None if columns is None else list(columns)
    if uris.is_local(uri):
        with uris.open_read(uri) as handle:
            return pq.ParquetFile(handle).read(columns=names)
    if names is None:
        return pq.read_table(io.BytesIO(uris.read_bytes(uri)))
    end, size = uris.read_end(uri, WHOLE_BYTES)
    if len(end) == size:
        return pq.read_table(io.BytesIO(end), columns=names)
    filesystem, path = uris.open_filesystem(uri)
    with uris.translate_errors(uri), open_parquet_file(path, fs=filesystem, columns=names, engine="pyarrow") as handle:
        return pq.ParquetFile(handle).read(columns=names)


def read_group(uri: str, group: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of one row group: no more of the file than that and its footer."""
    with uris.open_read(uri) as handle:
        return pq.ParquetFile(handle).read_row_group(group, columns=list(columns))
