"""Arrays by row on any file system: one value per image, read in ranges, and as a whole only where needed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.lib import format as npy

from cleanscale.storage import uris

BEGINNING_BYTES = 64 << 10  # of an array, which has its kind and length there, and all of a small one


def write_array(uri: str, values: np.ndarray) -> None:
    """One array as .npy; seen whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    uris.write_bytes(uri, buffer.getvalue())


def read_array(uri: str) -> np.ndarray:
    return np.load(io.BytesIO(uris.read_bytes(uri)), allow_pickle=False)


def to_npz(arrays: Mapping[str, np.ndarray | int]) -> bytes:
    """Some arrays and numbers as one file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def of_npz(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content)) as found:
        return {name: found[name] for name in found.files}


def read_range(uri: str, start: int, stop: int) -> np.ndarray:
    """values[start:stop] of a one-dimensional array, reading those bytes and the header only."""
    beginning = uris.read_range(uri, 0, BEGINNING_BYTES)
    file = io.BytesIO(beginning)
    read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    (length,), _, dtype = read_header(file)
    start, stop = max(0, start), min(stop, length)
    first, last = (file.tell() + place * dtype.itemsize for place in (start, stop))
    content = beginning[first:last] if last <= len(beginning) else uris.read_range(uri, first, last)
    return np.frombuffer(content, dtype).copy()


def scatter(length: int, parts: Iterable[tuple[np.ndarray, np.ndarray]], fill: float, dtype: type) -> np.ndarray:
    """An array with `values` at `rows` for each (rows, values), and `fill` where no part has a value."""
    array = np.full(length, fill, dtype)
    for rows, values in parts:
        array[rows] = values
    return array
