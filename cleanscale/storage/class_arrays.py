"""Arrays with a row for every class, in files of a range of classes each: `prototypes-000012500.npy`.

Tasks write the ranges that they own; whoever needs all classes puts them together, once on each node.

# C classes
"""

from __future__ import annotations

import numpy as np

from cleanscale.errors import StageError
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array, write_array


def file_name(name: str, first: int) -> str:
    return f"{name}-{first:09d}.npy"


def write_range(folder: str, name: str, first: int, value_CX: np.ndarray) -> None:
    """The rows of the classes `first` .. `first` + C - 1."""
    write_array(uris.join(folder, file_name(name, first)), value_CX)


def read_classes(folder: str, name: str, num_classes: int, *, every: bool = False) -> np.ndarray:
    """[C, ...] of all classes; zeros for those that no range holds.

    Raises: StageError where every class is to have its row and some have none.
    """
    whole: np.ndarray | None = None
    rows = 0
    for file in uris.list_files(folder, (".npy",)):
        first = first_of(name, file.path)
        if first < 0:
            continue
        part_CX = read_array(file.uri)
        if whole is None:
            whole = np.zeros((num_classes, *part_CX.shape[1:]), part_CX.dtype)
        whole[first : first + len(part_CX)] = part_CX
        rows += len(part_CX)
    if every and rows != num_classes:
        raise StageError(
            f"'{folder}' holds '{name}' of {rows} classes; expected all {num_classes}: a file was lost; remove the "
            "folder of the stage and run the job again, which makes it"
        )
    assert whole is not None, f"no range of '{name}' in {folder}"
    return whole


def read_some(folder: str, name: str, first: int, stop: int) -> np.ndarray:
    """The rows of the classes `first` .. `stop` - 1, from the ranges that they lie in, however those were cut."""
    starts = sorted(start for file in uris.list_files(folder, (".npy",)) if (start := first_of(name, file.path)) >= 0)
    assert starts, f"no range of '{name}' in {folder}"
    low = max(0, int(np.searchsorted(starts, first, side="right")) - 1)
    high = max(low + 1, int(np.searchsorted(starts, stop)))
    parts = []
    for start in starts[low:high]:
        part_CX = read_array(uris.join(folder, file_name(name, start)))
        parts.append(part_CX[max(0, first - start) : max(0, stop - start)])
    found_CX = np.concatenate(parts)
    assert len(found_CX) == stop - first, f"classes {first} .. {stop - 1} are not all in {folder}"
    return found_CX


def first_of(name: str, path: str) -> int:
    """The first class of a file of `name`; -1 for another file."""
    stem, _, first = path.removesuffix(".npy").rpartition("-")
    return int(first) if stem == name and first.isdigit() else -1
