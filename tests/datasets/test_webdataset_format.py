"""WebDataset tars, good and damaged."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cleanscale.datasets import webdataset_format
from cleanscale.datasets.fragments import plan_fragments
from cleanscale.datasets.settings import DataSettings
from cleanscale.errors import DataError

MakeImage = Callable[..., bytes]


def test_webdatasets_own_tars_come_back(
    tmp_path: Path, make_image: MakeImage, monkeypatch: Any, planned: Any, rows_of: Any
) -> None:
    webdataset = pytest.importorskip("webdataset")
    monkeypatch.setattr(webdataset_format, "TAR_ROWS", 3)
    (tmp_path / "data").mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / "data" / f"{shard:06}.tar")) as writer:
            for one in range(10 * shard, 10 * shard + 10):
                meta = {"truth": one % 2, "seen": one % 3 - 1}
                writer.write({"__key__": f"sample{one:04}", "jpg": make_image(one), "cls": one % 4, "json": meta})
    settings = DataSettings(true_label="truth", verified="seen")
    plan = planned(tmp_path / "data", settings, tmp_path / "work")
    rows = rows_of(plan, settings)
    assert len(plan.fragments) == 8
    assert [row["row"] for row in rows] == list(range(20))
    assert [row["id"] for row in rows] == [f"sample{one:04}" for one in range(20)]
    assert [row["label"] for row in rows] == [one % 4 for one in range(20)]
    assert [row["true_label"] for row in rows] == [one % 2 for one in range(20)]
    assert [row["verified"] for row in rows] == [one % 3 - 1 for one in range(20)]
    assert [row["image"] for row in rows] == [make_image(one) for one in range(20)]
    assert rows[13]["source"] == "000001.tar/sample0013"
    assert [row["id"] for row in rows_of(plan, settings, ("id",), [4, 17])] == ["sample0004", "sample0017"]


@pytest.mark.parametrize("pax", [False, True])
def test_long_names_and_cuts_between_them(
    tmp_path: Path, make_image: MakeImage, monkeypatch: Any, pax: bool, planned: Any, rows_of: Any, write_tar: Any
) -> None:
    monkeypatch.setattr(webdataset_format, "TAR_ROWS", 2)
    keys = [f"{'folder/' * 30}{one}-ä" for one in range(5)]
    members = [(f"{key}.{kind}", data) for key in keys for kind, data in (("txt", b"a cat"), ("png", make_image(1)))]
    path = write_tar(tmp_path / "data" / "a.tar", members, pax)
    settings = DataSettings()
    plan = planned(path, settings, tmp_path)
    assert len(plan.fragments) == 3
    assert [row["id"] for row in rows_of(plan, settings)] == keys
    assert {row["label"] for row in rows_of(plan, settings)} == {"a cat"}


def test_samples_without_label_or_image_are_rows(
    tmp_path: Path, make_image: MakeImage, planned: Any, rows_of: Any, write_tar: Any
) -> None:
    members = [
        ("a.jpg", make_image(0)),
        ("a.json", b'{"label": "cat", "id": "A"}'),
        ("b.jpg", make_image(1)),
        ("c.json", b'{"label": "dog"}'),
        ("d.jpg", make_image(2)),
        ("d.json", b"{broken"),
        ("e.JPEG", make_image(3)),
        ("e.json", b'{"label": {"not": "a label"}}'),
        ("._f.jpg", b"what macOS leaves"),
        ("README", b"no sample"),
    ]
    settings = DataSettings()
    path = write_tar(tmp_path / "data" / "a.tar", members)
    rows = rows_of(planned(path, settings, tmp_path), settings)
    assert [(row["id"], row["label"], row["fault"]) for row in rows] == [
        ("a", "cat", None),
        ("b", None, None),
        ("c", "dog", "missing image"),
        ("d", None, None),
        ("e", None, "unknown label"),
    ]


def test_a_key_that_comes_again_is_a_row_of_its_own(
    tmp_path: Path, make_image: MakeImage, planned: Any, rows_of: Any, write_tar: Any
) -> None:
    members = [("a.jpg", make_image(0)), ("a.cls", b"1"), ("a.jpg", make_image(1)), ("a.cls", b"2")]
    settings = DataSettings()
    rows = rows_of(planned(write_tar(tmp_path / "data" / "a.tar", members), settings, tmp_path), settings)
    assert [(row["id"], row["label"]) for row in rows] == [("a", 1), ("a", 2)]


def test_a_cut_off_tar_is_named(tmp_path: Path, make_image: MakeImage, planned: Any, tar_of: Any) -> None:
    path = tmp_path / "data" / "a.tar"
    whole = tar_of(make_image, path)
    for kept_bytes in (0, 100, 700, 5000):
        path.write_bytes(whole[:kept_bytes])
        with pytest.raises(DataError, match=r"a.tar.*expected an"):
            planned(path, DataSettings(), tmp_path)


def test_a_damaged_header_inside_a_tar_does_not_end_it_quietly(
    tmp_path: Path, make_image: MakeImage, planned: Any, tar_of: Any
) -> None:
    path = tmp_path / "data" / "a.tar"
    content = bytearray(tar_of(make_image, path))
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[7].offset
    content[offset : offset + 300] = b"\xaa" * 300
    path.write_bytes(bytes(content))
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 7
    with pytest.raises(DataError, match=rf"a.tar' has a damaged header near byte {offset}"):
        planned(path, DataSettings(), tmp_path)


def test_a_tar_without_its_end_marker_is_read(tmp_path: Path, make_image: MakeImage, planned: Any, tar_of: Any) -> None:
    path = tmp_path / "data" / "a.tar"
    content = tar_of(make_image, path)
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + 512
    path.write_bytes(content[:end])
    assert planned(path, DataSettings(), tmp_path).num_rows == 6


def test_a_tar_without_labels_stops_at_once(
    tmp_path: Path, make_image: MakeImage, planned: Any, rows_of: Any, write_tar: Any
) -> None:
    path = write_tar(tmp_path / "data" / "a.tar", [("a.jpg", make_image(0)), ("a.json", b'{"klass": 1}')])
    with pytest.raises(DataError, match=r"members: jpg, json.*with 'label'.*--data.label"):
        plan_fragments(str(path), DataSettings(), str(tmp_path))
    assert rows_of(planned(path, DataSettings(label="klass"), tmp_path), DataSettings(label="klass"))[0]["label"] == 1
