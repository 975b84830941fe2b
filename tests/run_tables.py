"""What runs left: their numbers, and comparing two."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

STAGES = ("classifier", "features", "references", "cleannet", "class_index", "evidence", "relevance")


def numbers_of(folder: Path) -> dict:
    """metrics.json, refusing what is no JSON (NaN)."""

    def refuse(name):
        raise AssertionError(f"metrics.json holds {name}")

    return json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)


def same_tables(
    one: Path,
    other: Path,
    by_row: Callable[[Path], pa.Table],
    stages: Sequence[str] = ("features", "evidence", "relevance"),
    **tolerance: Any,
) -> None:
    """The tables of two runs' round 0 hold the same, however they are cut into files.

    tolerance: rtol and atol of floats, whose products are rounded by the sizes of their blocks; none: to the bit.
    """
    for stage in stages:
        a, b = (by_row(folder / "rounds" / "00" / stage) for folder in (one, other))
        assert a.column_names == b.column_names
        assert a.num_rows == b.num_rows
        for name in a.column_names:
            left, right = a[name], b[name]
            if pa.types.is_fixed_size_list(left.type):
                left, right = left.combine_chunks().flatten(), right.combine_chunks().flatten()
            if not tolerance or not pa.types.is_floating(left.type):
                assert left.equals(right), f"{stage}.{name}"
                continue
            np.testing.assert_allclose(left.to_numpy(), right.to_numpy(), err_msg=f"{stage}.{name}", **tolerance)
