"""CleanNet's TSV files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cleanscale.datasets import tsv_format
from cleanscale.datasets.fragments import plan_fragments
from cleanscale.datasets.settings import DataSettings
from cleanscale.errors import DataError

MakeImage = Callable[..., bytes]


@pytest.mark.parametrize("range_bytes", [40, 97, 10_000])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_tsv_rows_do_not_depend_on_ranges_or_line_endings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    range_bytes: int,
    ending: str,
    last: bool,
    planned: Any,
    rows_of: Any,
) -> None:
    monkeypatch.setattr(tsv_format, "RANGE_BYTES", range_bytes)
    monkeypatch.setattr(tsv_format, "_TAIL_BYTES", 7)
    lines = [f"key{one}\thttp://x/{one}\tclass {one % 3}\t{one % 2}\t{one},{one / 2},-1e-3" for one in range(25)]
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.tsv"
    path.write_bytes(("\ufeff" + ending.join(lines) + (ending if last else "")).encode())
    settings = DataSettings()
    plan = planned(path, settings, tmp_path)
    rows = rows_of(plan, settings)
    assert plan.feature_width == 3
    assert [row["row"] for row in rows] == list(range(25))
    assert [row["id"] for row in rows] == [f"key{one}" for one in range(25)]
    assert [row["label"] for row in rows] == [f"class {one % 3}" for one in range(25)]
    assert [row["verified"] for row in rows] == [one % 2 for one in range(25)]
    np.testing.assert_allclose([row["feature"] for row in rows], [[i, i / 2, -1e-3] for i in range(25)], rtol=1e-6)
    assert rows[20]["source"] == "a.tsv#20"
    assert [row["id"] for row in rows_of(plan, settings, ("id",), [3, 24])] == ["key3", "key24"]


@pytest.mark.parametrize(
    ("line", "columns"),
    [
        ("k\tcat\t1,2", ("id", "label", "feature", "source", "fault")),
        ("k\tcat\t-1\t1,2", ("id", "label", "feature", "verified", "source", "fault")),
        ("k\thttp://x\tcat\t1,2", ("id", "label", "feature", "source", "fault")),
        ("k\thttp://x\tcat\t0\t1,2", ("id", "label", "feature", "verified", "source", "fault")),
    ],
)
def test_the_four_layouts_of_cleannets_files(
    tmp_path: Path, line: str, columns: tuple[str, ...], planned: Any, rows_of: Any
) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(line + "\n")
    settings = DataSettings()
    plan = planned(path, settings, tmp_path)
    assert plan.columns == columns
    row = rows_of(plan, settings)[0]
    assert (row["id"], row["label"], row["feature"]) == ("k", "cat", [1.0, 2.0])


def test_bad_lines_of_a_tsv_are_rows_with_a_fault(tmp_path: Path, planned: Any, rows_of: Any) -> None:
    lines = [
        "a\tcat\t1\t1,2",
        "b\tcat\t0",
        "",
        "c\tcat\t7\t1,2",
        "d\tcat\t1\t1,x",
        "e\tcat\t1\t 1, 2 ",
        "f\t\t1\t1,2,3",
    ]
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(lines))
    settings = DataSettings(format="tsv")
    rows = rows_of(planned(path, settings, tmp_path), settings)
    assert [(row["id"], row["fault"]) for row in rows] == [
        ("a", None),
        ("b", "malformed line"),
        (None, "malformed line"),
        ("c", "verification is not 0 or 1"),
        ("d", "malformed feature"),
        ("e", None),
        ("f", None),
    ]


def test_tsv_files_of_other_shapes_stop_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\tcat\n")
    with pytest.raises(DataError, match=r"a.tsv has 2 columns.*key \[url\] class \[vlabel\]"):
        plan_fragments(str(tmp_path), DataSettings(), str(tmp_path))
    (tmp_path / "a.tsv").write_text("a\tcat\t1,2\n")
    (tmp_path / "b.tsv").write_text("b\tcat\t1,2,3\n")
    with pytest.raises(DataError, match=r"b.tsv has id label feature with 3.*a.tsv has id label feature with 2"):
        plan_fragments(str(tmp_path), DataSettings(), str(tmp_path))
    for name in "ab":
        (tmp_path / f"{name}.tsv").write_text("")
    with pytest.raises(DataError, match=r"no line in 2 TSV files"):
        plan_fragments(str(tmp_path), DataSettings(), str(tmp_path))
