"""Real encoded images for the readers' tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cleanscale.datasets.fragments import Plan, count_rows, plan_fragments, read_fragment
from cleanscale.datasets.settings import DataSettings

MakeImage = Callable[..., bytes]


def encoded_image(index: int, side: int = 12, kind: str = "PNG") -> bytes:
    """A small picture that differs with `index`."""
    rng = np.random.default_rng([7, index])
    sink = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (side, side + 2, 3), dtype=np.uint8)).save(sink, kind)
    return sink.getvalue()


@pytest.fixture
def make_image() -> Callable[..., bytes]:
    return encoded_image


def planned(data: str | Path, settings: DataSettings, workspace: Path) -> Plan:
    plan = plan_fragments(str(data), settings, str(workspace))
    return plan if plan.counted else plan.with_counts([count_rows(fragment) for fragment in plan.fragments])


def rows_of(plan: Plan, settings: DataSettings, columns: Sequence[str] | None = None, rows: Any = None) -> list[dict]:
    found: list[dict] = []
    for fragment in plan.fragments:
        for table in read_fragment(fragment, settings, plan.columns if columns is None else columns, rows):
            found += table.to_pylist()
    return found


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def image_table(make_image: MakeImage, count: int, first: int = 0) -> dict[str, Any]:
    numbers = range(first, first + count)
    return {
        "id": [f"image {one}" for one in numbers],
        "image": [make_image(one) for one in numbers],
        "label": pa.array([one % 3 for one in numbers], pa.int32()),
        "true_label": [one % 2 for one in numbers],
    }


def folder_tree(root: Path, make_image: MakeImage) -> dict[str, bytes]:
    content = {f"{name}/{one:02}.png": make_image(one) for name in ("dog", "cat", "10") for one in range(5)}
    content["cat/deep/er.jpg"] = make_image(99, kind="JPEG")
    for path, image in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(image)
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / "._00.png").write_bytes(b"what macOS leaves")
    return content


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], pax: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tar_of(make_image: MakeImage, path: Path) -> bytes:
    members = [(f"{one}.{kind}", data) for one in range(6) for kind, data in (("png", make_image(one)), ("cls", b"1"))]
    return write_tar(path, members).read_bytes()


@pytest.fixture(name="planned")
def planned_fixture() -> Callable[..., Any]:
    return planned


@pytest.fixture(name="rows_of")
def rows_of_fixture() -> Callable[..., Any]:
    return rows_of


@pytest.fixture(name="write_parquet")
def write_parquet_fixture() -> Callable[..., Any]:
    return write_parquet


@pytest.fixture(name="image_table")
def image_table_fixture() -> Callable[..., Any]:
    return image_table


@pytest.fixture(name="folder_tree")
def folder_tree_fixture() -> Callable[..., Any]:
    return folder_tree


@pytest.fixture(name="write_tar")
def write_tar_fixture() -> Callable[..., Any]:
    return write_tar


@pytest.fixture(name="tar_of")
def tar_of_fixture() -> Callable[..., Any]:
    return tar_of
