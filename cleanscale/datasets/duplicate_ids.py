"""Rows whose id a lower row has already: found by partition of the ids' hashes, never in one set of all ids.

Rows with equal ids have equal hashes and meet in one partition, where only hashes that occur twice are looked at again,
now with their ids: what is found is exact, and a partition takes 16 bytes for each of its rows.

# N rows of a table, P partitions
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cleanscale.maths.keyed_random import Purpose, hash_rows

HASHED = pa.schema([("row", pa.int64()), ("hash", pa.uint64()), ("id", pa.string())])
_PLACES = 4096  # of a text, after which the multipliers repeat


def text_hashes(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """uint64 [N] hash of each text, by its bytes and their places; none may be null."""
    text = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(text):
        return np.empty(0, np.uint64)
    _, offsets, content = text.cast(pa.string()).buffers()
    edge_N = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1].astype(np.int64)
    byte_B = np.frombuffer(content or b"", np.uint8)[edge_N[0] : edge_N[-1]]
    edge_N = edge_N - edge_N[0]
    place_B = np.arange(len(byte_B)) - np.repeat(edge_N[:-1], np.diff(edge_N))
    with np.errstate(over="ignore"):
        sum_B = np.cumsum((byte_B.astype(np.uint64) + np.uint64(1)) * _factors()[place_B % _PLACES])
        before_N = np.concatenate([np.zeros(1, np.uint64), sum_B])[edge_N]
        total_N = before_N[1:] - before_N[:-1]
    return hash_rows(0, Purpose.DUPLICATE_IDS, total_N)


@functools.lru_cache(maxsize=1)
def _factors() -> np.ndarray:
    """uint64, odd: what a byte at each place is multiplied by."""
    return hash_rows(0, Purpose.DUPLICATE_IDS, np.arange(_PLACES)) | np.uint64(1)


def partition_ids(table: pa.Table, partitions: int) -> list[pa.Table]:
    """A HASHED table for each partition, of rows that have an id."""
    hash_N = text_hashes(table["id"])
    part_N = (hash_N % np.uint64(partitions)).astype(np.int64)
    order_N = np.argsort(part_N, kind="stable")
    hashed = pa.table([table["row"], pa.array(hash_N), table["id"]], schema=HASHED).take(pa.array(order_N))
    edge_P = np.searchsorted(part_N[order_N], np.arange(partitions + 1))
    return [hashed.slice(a, b - a) for a, b in itertools.pairwise(edge_P)]


def suspects(hash_N: np.ndarray) -> np.ndarray:
    """bool [N]: hashes that occur more than once."""
    order_N = np.argsort(hash_N, kind="stable")
    sorted_N = hash_N[order_N]
    same_N = sorted_N[1:] == sorted_N[:-1]
    found_N = np.zeros(len(hash_N), bool)
    found_N[order_N[1:][same_N]] = True
    found_N[order_N[:-1][same_N]] = True
    return found_N


def repeated(tables: Sequence[pa.Table]) -> np.ndarray:
    """int64: rows, sorted, whose id a lower row of these tables (row, id) has: the first occurrence stays."""
    table = pa.concat_tables(tables)
    first = table.group_by("id").aggregate([("row", "min")])["row_min"].to_numpy()
    return np.setdiff1d(table["row"].to_numpy(), first)
