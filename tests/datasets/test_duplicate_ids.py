"""Duplicate ids: exact, however the data is cut and partitioned."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanscale.datasets import duplicate_ids
from cleanscale.datasets.duplicate_ids import partition_ids, repeated, suspects, text_hashes


def table_of(ids: list[str]) -> pa.Table:
    return pa.table({"row": pa.array(range(10, 10 + len(ids)), pa.int64()), "id": pa.array(ids, pa.string())})


def found(pieces: list[pa.Table], partitions: int) -> list[int]:
    """What all partitions find, each as the stage does it: hashes first, ids of suspects afterwards."""
    rows: list[int] = []
    for part in zip(*[partition_ids(piece, partitions) for piece in pieces], strict=True):
        suspect_N = suspects(np.concatenate([one["hash"].to_numpy() for one in part]))
        rows += repeated([pa.concat_tables(part).filter(pa.array(suspect_N))]).tolist()
    return sorted(rows)


def taken(ids: list[str]) -> list[int]:
    """The slow twin."""
    seen: set[str] = set()
    return [row for row, name in enumerate(ids, 10) if name in seen or seen.add(name)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=3), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 7))
def test_duplicates_do_not_depend_on_partitions_or_pieces(ids: list[str], partitions: int, cut: int) -> None:
    table = table_of(ids)
    pieces = [table.slice(start, cut) for start in range(0, len(ids), cut)]
    assert found(pieces[::-1], partitions) == taken(ids)


def test_ids_whose_hashes_are_equal_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_ids, "text_hashes", lambda column: np.full(len(column), 7, np.uint64))
    ids = ["a", "b", "a", "c", "b", "a"]
    assert found([table_of(ids)], 3) == taken(ids) == [12, 14, 15]


def test_hashes_of_many_similar_ids_differ_and_fill_the_partitions_evenly() -> None:
    hash_N = text_hashes(pa.array([f"train-{row:09d}" for row in range(100_000)]))
    assert len(np.unique(hash_N)) == 100_000
    assert np.bincount((hash_N % np.uint64(10)).astype(int)).min() > 9500


def test_a_hash_does_not_depend_on_the_array_that_the_text_lies_in() -> None:
    texts = ["", "a", "ab", "ba", "a" * 5000, "\u00e4\u20ac"]
    whole_N = text_hashes(pa.array(texts))
    assert len(set(whole_N.tolist())) == len(texts)
    assert np.array_equal(text_hashes(pa.array(["x", *texts]).slice(1)), whole_N)
    assert np.array_equal(text_hashes(pa.chunked_array([[t] for t in texts])), whole_N)
    assert len(text_hashes(pa.array([], pa.string()))) == 0
