"""Rows of vectors that a training loop reads in any order, on the node's disk where they are too many for its memory.

# N rows, D width, X rows asked for
"""

from __future__ import annotations

import mmap
import tempfile

import numpy as np

IN_MEMORY_BYTES = 256 << 20  # smaller collections stay in memory
RELEASED_BYTES = 512 << 20  # of a mapped file that count as this process's memory at most


class MappedRows:
    """[N, D] in a file that has no name and so vanishes with the process; `rows[positions]` copies what is asked for.

    What has been read stays in the system's page cache as long as there is room, and is given up by this process from
    time to time: its memory does not grow with the number of rows.
    """

    def __init__(self, rows: int, width: int, dtype: type, folder: str | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.shape = (rows, width)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as this lives)
        self._file.truncate(max(1, rows * width * self.dtype.itemsize))
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._rows = np.frombuffer(self._map, self.dtype, rows * width).reshape(rows, width)
        self._touched = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at_X: np.ndarray) -> np.ndarray:
        """[*X, D] of these positions, an array of integers of any shape."""
        found_XD = self._rows[at_X]
        self._release(found_XD.nbytes)
        return found_XD

    def __setitem__(self, at_X: slice | np.ndarray, value_XD: np.ndarray) -> None:
        self._rows[at_X] = value_XD
        self._release(value_XD.nbytes)

    def _release(self, more_bytes: int) -> None:
        # A row touches a page at least, so this undercounts scattered reads of short rows: by 16 at 256 bytes.
        self._touched += more_bytes
        if self._touched > RELEASED_BYTES // 8:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


Rows = np.ndarray | MappedRows  # what training takes: shape, and [positions] -> [X, D]


def fit_in_memory(rows: int, width: int, dtype: type) -> bool:
    """Whether so many rows are few enough for every process to hold them."""
    return rows * width * np.dtype(dtype).itemsize <= IN_MEMORY_BYTES


def empty_rows(rows: int, width: int, dtype: type, folder: str | None = None) -> Rows:
    """Room for so many rows: in memory when they are few, else in a file in `folder` (the system's for such files)."""
    if fit_in_memory(rows, width, dtype):
        return np.empty((rows, width), dtype)
    return MappedRows(rows, width, dtype, folder)


def in_memory(rows: Rows | JoinedRows) -> np.ndarray:
    """All of them as one array: for what takes no less."""
    return rows if isinstance(rows, np.ndarray) else rows[np.arange(len(rows))]


class JoinedRows:
    """Rows of several kinds behind each other, gathered through pointers: what is stored once is not copied.

    `pointer_M[i]` >= 0 is a position in `first`, below 0 it is position -1 - pointer in `second`.
    """

    def __init__(self, first: Rows, second: Rows, pointer_M: np.ndarray) -> None:
        assert first.shape[1] == second.shape[1]
        self.first, self.second, self.pointer_M = first, second, pointer_M
        self.shape = (len(pointer_M), first.shape[1])

    def __len__(self) -> int:
        return len(self.pointer_M)

    def __getitem__(self, at_X: np.ndarray) -> np.ndarray:
        """float32 [*X, D]"""
        pointer_X = self.pointer_M[at_X]
        found_XD = np.empty((*pointer_X.shape, self.shape[1]), np.float32)
        for source, inside_X, position_X in (
            (self.first, pointer_X >= 0, pointer_X),
            (self.second, pointer_X < 0, -1 - pointer_X),
        ):
            if inside_X.any():
                found_XD[inside_X] = source[position_X[inside_X]]
        return found_XD
