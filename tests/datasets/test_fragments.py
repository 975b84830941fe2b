"""Any accepted input gives the same canonical rows, wherever it lies."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cleanscale.datasets import inputs
from cleanscale.datasets.fragments import Fragment, Plan, count_rows, plan_fragments
from cleanscale.datasets.settings import DataSettings
from cleanscale.storage import uris

MakeImage = Callable[..., bytes]


@pytest.mark.parametrize("kind", ["parquet", "folder", "webdataset", "tsv"])
@pytest.mark.parametrize("place", ["memory", "s3"])
def test_other_places_give_the_same_rows_as_a_disk(
    kind: str,
    place: str,
    tmp_path: Path,
    make_image: MakeImage,
    request: pytest.FixtureRequest,
    folder_tree: Any,
    image_table: Any,
    planned: Any,
    rows_of: Any,
    tar_of: Any,
    write_parquet: Any,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if kind == "parquet":
        write_parquet(data / "a.parquet", image_table(make_image, 6), row_group_size=2)
    elif kind == "folder":
        folder_tree(data, make_image)
    elif kind == "webdataset":
        tar_of(make_image, data / "a.tar")
    else:
        (data / "a.tsv").write_text("a\tcat\t1,2\nb\tdog\t3,4")
    root = request.getfixturevalue("s3_bucket") if place == "s3" else "memory:/"
    uri = f"{root}/{uuid.uuid4().hex}"
    for path in sorted(data.rglob("*")):
        if path.is_file():
            uris.write_bytes(uris.join(uri, "data", path.relative_to(data).as_posix()), path.read_bytes())
    settings = DataSettings()
    local = planned(data, settings, tmp_path / "work")
    remote = plan_fragments(uris.join(uri, "data"), settings, uris.join(uri, "work"))
    if not remote.counted:
        remote = remote.with_counts([count_rows(fragment) for fragment in remote.fragments])
    assert rows_of(remote, settings) == rows_of(local, settings)
    some = [1, local.num_rows - 1]
    assert rows_of(remote, settings, ("id", "label"), some) == rows_of(local, settings, ("id", "label"), some)


def test_plans_and_fragments_travel_as_json(
    tmp_path: Path, make_image: MakeImage, folder_tree: Any, planned: Any
) -> None:
    folder_tree(tmp_path / "data", make_image)
    plan = planned(tmp_path / "data", DataSettings(), tmp_path / "work")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    fragment = plan.fragments[0]
    assert Fragment.from_json(json.loads(json.dumps(fragment.to_json()))) == fragment


def test_the_fragments_of_some_rows_are_those_that_hold_them(tmp_path: Path) -> None:
    fragments = inputs.number(Fragment(-1, "parquet", "x", -1, count) for count in (3, 0, 4, 1))
    plan = Plan("parquet", fragments, (), None, "")
    found = {fragment.index: rows.tolist() for fragment, rows in plan.fragments_of([7, 0, 3, 2])}
    assert found == {0: [0, 2], 1: [3], 2: [7]}
    assert plan.num_rows == 8


def test_a_changed_file_changes_the_plans_fingerprint(
    tmp_path: Path, make_image: MakeImage, image_table: Any, write_parquet: Any
) -> None:
    path = write_parquet(tmp_path / "data" / "a.parquet", image_table(make_image, 3))
    before = plan_fragments(str(path), DataSettings(), str(tmp_path)).fingerprint
    assert plan_fragments(str(path), DataSettings(), str(tmp_path)).fingerprint == before
    write_parquet(path, image_table(make_image, 4))
    assert plan_fragments(str(path), DataSettings(), str(tmp_path)).fingerprint != before
