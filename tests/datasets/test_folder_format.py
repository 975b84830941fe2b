"""Class folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cleanscale.datasets import folder_format
from cleanscale.datasets.fragments import plan_fragments
from cleanscale.datasets.settings import DataSettings
from cleanscale.errors import DataError

MakeImage = Callable[..., bytes]


def test_class_folders_give_names_and_paths(
    tmp_path: Path, make_image: MakeImage, monkeypatch: Any, folder_tree: Any, planned: Any, rows_of: Any
) -> None:
    monkeypatch.setattr(folder_format, "FOLDER_ROWS", 4)
    content = folder_tree(tmp_path / "data", make_image)
    settings = DataSettings()
    plan = planned(tmp_path / "data", settings, tmp_path / "work")
    rows = rows_of(plan, settings)
    assert plan.class_names == ("10", "cat", "dog")
    assert [row["id"] for row in rows] == sorted(content)
    assert [row["label"] for row in rows] == [path.split("/")[0] for path in sorted(content)]
    assert [row["image"] for row in rows] == [content[path] for path in sorted(content)]
    assert len(plan.fragments) == 4
    assert len(json.dumps(plan.fragments[0].to_json())) < 400
    assert [row["row"] for row in rows_of(plan, settings, ("image",), [2, 9])] == [2, 9]


def test_an_image_outside_the_class_folders_is_a_row_without_label(
    tmp_path: Path, make_image: MakeImage, folder_tree: Any, planned: Any, rows_of: Any
) -> None:
    content = folder_tree(tmp_path / "data", make_image)
    (tmp_path / "data" / "stray.png").write_bytes(make_image(0))
    settings = DataSettings()
    rows = rows_of(planned(tmp_path / "data", settings, tmp_path / "work"), settings)
    assert len(rows) == len(content) + 1
    assert [row["id"] for row in rows if row["label"] is None] == ["stray.png"]


def test_an_image_that_has_gone_is_a_row_with_a_fault(
    tmp_path: Path, make_image: MakeImage, folder_tree: Any, planned: Any, rows_of: Any
) -> None:
    folder_tree(tmp_path / "data", make_image)
    settings = DataSettings()
    plan = planned(tmp_path / "data", settings, tmp_path / "work")
    (tmp_path / "data" / "dog" / "01.png").unlink()
    rows = rows_of(plan, settings)
    assert [(row["id"], row["fault"]) for row in rows if row["image"] is None] == [("dog/01.png", "missing image")]


def test_images_without_class_folders_stop_at_once(tmp_path: Path, make_image: MakeImage) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(make_image(0))
    with pytest.raises(DataError, match=r"1 images stand directly in .*expected a folder for each class"):
        plan_fragments(str(tmp_path / "data"), DataSettings(), str(tmp_path / "work"))


def test_what_cannot_be_told_stops_at_once(tmp_path: Path, make_image: MakeImage, write_parquet: Any) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(DataError, match=r"0 files at .*expected Parquet, .tar"):
        plan_fragments(str(data), DataSettings(), str(tmp_path))
    (data / "labels.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"such as 'labels.csv'"):
        plan_fragments(str(data), DataSettings(), str(tmp_path))
    write_parquet(data / "a.parquet", {"image": [make_image(0)], "label": [0]})
    (data / "cat").mkdir()
    (data / "cat" / "a.png").write_bytes(make_image(0))
    with pytest.raises(DataError, match=r"several kinds of files.*1 Parquet, 1 image.*--data.format"):
        plan_fragments(str(data), DataSettings(), str(tmp_path))
    assert plan_fragments(str(data), DataSettings(format="folder"), str(tmp_path)).num_rows == 1
    with pytest.raises(DataError, match=r"no .tar file among 3 files"):
        plan_fragments(str(data), DataSettings(format="webdataset"), str(tmp_path))
    with pytest.raises(DataError, match=r"nothing found at .*elsewhere"):
        plan_fragments(str(tmp_path / "elsewhere"), DataSettings(), str(tmp_path))
