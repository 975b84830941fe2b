"""Arrays with a row for every class, in files of a range of classes each: `prototypes-000012500.npy`.

Tasks write the ranges that they own; whoever needs all classes puts them together, once on each node.

# C classes
"""

from __future__ import annotations

import numpy as np

from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array, write_array


def file_name(name: str, first: int) -> str:
    return f"{name}-{first:09d}.npy"


def write_range(folder: str, name: str, first: int, value_CX: np.ndarray) -> None:
    """The rows of the classes `first` .. `first` + C - 1."""
    write_array(uris.join(folder, file_name(name, first)), value_CX)


def read_classes(folder: str, name: str, num_classes: int) -> np.ndarray:
    """[C, ...] of all classes; zeros for those that no range holds."""
    whole: np.ndarray | None = None
    for file in uris.list_files(folder, (".npy",)):
        stem, _, first = file.path.removesuffix(".npy").rpartition("-")
        if stem != name or not first.isdigit():
            continue
        part_CX = read_array(file.uri)
        if whole is None:
            whole = np.zeros((num_classes, *part_CX.shape[1:]), part_CX.dtype)
        whole[int(first) : int(first) + len(part_CX)] = part_CX
    assert whole is not None, f"no range of '{name}' in {folder}"
    return whole
