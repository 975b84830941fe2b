"""Parquet in all the layouts that people have: the same rows however it is cut."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.datasets import parquet_format
from cleanscale.datasets.fragments import plan_fragments
from cleanscale.datasets.settings import DataSettings
from cleanscale.errors import DataError
from cleanscale.storage import uris

MakeImage = Callable[..., bytes]


@pytest.mark.parametrize("group", [1, 7, 30, 100])
@pytest.mark.parametrize("target", [3, 10, 1000])
def test_parquet_rows_do_not_depend_on_row_groups_or_fragments(
    tmp_path: Path,
    make_image: MakeImage,
    monkeypatch: pytest.MonkeyPatch,
    group: int,
    target: int,
    image_table: Any,
    planned: Any,
    rows_of: Any,
    write_parquet: Any,
) -> None:
    monkeypatch.setattr(parquet_format, "FRAGMENT_ROWS", target)
    settings = DataSettings(true_label="true_label")
    table = image_table(make_image, 40)
    data = write_parquet(tmp_path / "data" / "a.parquet", table, row_group_size=group)
    plan = planned(data, settings, tmp_path / "work")
    rows = rows_of(plan, settings)
    assert [row["row"] for row in rows] == list(range(40))
    assert [row["id"] for row in rows] == table["id"]
    assert [row["image"] for row in rows] == table["image"]
    assert [row["label"] for row in rows] == table["label"].to_pylist()
    assert [row["true_label"] for row in rows] == table["true_label"]
    assert [row["source"] for row in rows] == [f"a.parquet#{one}" for one in range(40)]
    assert [fragment.row_start for fragment in plan.fragments[1:]] == [one.row_stop for one in plan.fragments[:-1]]
    wanted = [39, 3, 17, 18, 19]
    assert [row["id"] for row in rows_of(plan, settings, ("id",), wanted)] == [f"image {i}" for i in sorted(wanted)]
    assert [row["row"] for row in rows_of(plan, settings, ("image",), range(5, 25))] == list(range(5, 25))
    assert [row["row"] for row in rows_of(plan, settings, (), range(5, 25))] == list(range(5, 25))


def test_a_folder_or_a_pattern_of_parquet_files_is_one_data_set(
    tmp_path: Path, make_image: MakeImage, image_table: Any, planned: Any, rows_of: Any, write_parquet: Any
) -> None:
    for number in range(3):
        write_parquet(tmp_path / "data" / f"part-{number}.parquet", image_table(make_image, 5, 5 * number))
    write_parquet(tmp_path / "data" / "_delta_log" / "checkpoint.parquet", {"unrelated": [1]})
    settings = DataSettings()
    whole = planned(tmp_path / "data", settings, tmp_path)
    assert [row["id"] for row in rows_of(whole, settings)] == [f"image {one}" for one in range(15)]
    some = planned(tmp_path / "data" / "part-[12].parquet", settings, tmp_path)
    assert [row["id"] for row in rows_of(some, settings)] == [f"image {one}" for one in range(5, 15)]
    assert whole.fingerprint != some.fingerprint


def test_reading_labels_reads_no_image_bytes(tmp_path: Path, rows_of: Any, write_parquet: Any) -> None:
    rng = np.random.default_rng(0)
    data = write_parquet(
        tmp_path / "a.parquet",
        {"image": [rng.bytes(100_000) for _ in range(50)], "label": list(range(50))},
        compression="none",
    )
    settings = DataSettings()
    uri = f"memory://{uuid.uuid4().hex}/a.parquet"
    uris.write_bytes(uri, data.read_bytes())
    plan = plan_fragments(uri, settings, str(tmp_path))
    read = 0
    filesystem, _ = uris.open_filesystem(uri)
    original = filesystem.open

    def counting(*args: Any, **kwargs: Any) -> Any:
        handle = original(*args, **kwargs)
        original_read = handle.read

        def read_and_count(*sizes: int) -> bytes:
            nonlocal read
            content = original_read(*sizes)
            read += len(content)
            return content

        handle.read = read_and_count
        return handle

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(filesystem), "open", lambda self, *args, **kwargs: counting(*args, **kwargs))
        rows = rows_of(plan, settings, plan.light_columns)
    assert len(rows) == 50
    assert 0 < read < 200_000


def test_the_hugging_face_layout_gives_bytes_and_class_names(
    tmp_path: Path, make_image: MakeImage, planned: Any, rows_of: Any
) -> None:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["ant", "bee"], "_type": "ClassLabel"},
    }
    table = pa.table(
        {
            "image": pa.array([{"bytes": make_image(one), "path": f"{one}.png"} for one in range(4)]),
            "label": pa.array([0, 1, 1, None], pa.int64()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    settings = DataSettings()
    plan = planned(tmp_path, settings, tmp_path)
    rows = rows_of(plan, settings)
    assert plan.class_names == ("ant", "bee")
    assert [row["image"] for row in rows] == [make_image(one) for one in range(4)]
    assert [row["label"] for row in rows] == [0, 1, 1, None]
    assert rows[2]["id"] == "train-00000-of-00001.parquet#2"


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["cat", "dog", None]),
        pa.array(["cat", "dog", None]).dictionary_encode(),
        pa.array(["cat", "dog", None], pa.large_string()),
    ],
)
def test_named_labels_come_as_strings(
    tmp_path: Path, make_image: MakeImage, labels: pa.Array, planned: Any, rows_of: Any, write_parquet: Any
) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [make_image(0)] * 3, "label": labels})
    settings = DataSettings()
    rows = rows_of(planned(tmp_path, settings, tmp_path), settings, ("label",))
    assert [row["label"] for row in rows] == ["cat", "dog", None]


@pytest.mark.parametrize(
    ("values", "verified", "faulty"),
    [
        (pa.array([1, 0, -1, None, 2]), [1, 0, -1, -1, -1], [4]),
        (pa.array([1.0, 0.0, float("nan"), None, 0.5]), [1, 0, -1, -1, -1], [4]),
        (pa.array([True, False, None, None, True]), [1, 0, -1, -1, 1], []),
        (pa.array(["1", " 0", "", None, "yes"]), [1, 0, -1, -1, -1], [4]),
        (pa.nulls(5), [-1] * 5, []),
    ],
)
def test_verification_as_a_column(
    tmp_path: Path,
    make_image: MakeImage,
    values: pa.Array,
    verified: list[int],
    faulty: list[int],
    planned: Any,
    rows_of: Any,
    write_parquet: Any,
) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [make_image(0)] * 5, "label": [0] * 5, "seen": values})
    settings = DataSettings(verified="seen")
    rows = rows_of(planned(tmp_path, settings, tmp_path), settings, ("verified", "fault"))
    assert [row["verified"] for row in rows] == verified
    assert [row["row"] for row in rows if row["fault"]] == faulty


@pytest.mark.parametrize("width", [pa.list_(pa.float32()), pa.list_(pa.float16(), 3), pa.large_list(pa.float64())])
def test_features_come_as_lists_of_float32(
    tmp_path: Path, width: pa.DataType, planned: Any, rows_of: Any, write_parquet: Any
) -> None:
    vectors = np.array([[0.5, 1.0, -2.0], [0.25, 3.0, 4.0]], np.float16)
    values = pa.array(vectors.reshape(-1).tolist(), pa.float32()).cast(width.value_type)
    flat = pa.FixedSizeListArray.from_arrays(values, 3)
    write_parquet(tmp_path / "a.parquet", {"feature": flat.cast(width), "label": [4, 5]})
    settings = DataSettings()
    plan = planned(tmp_path, settings, tmp_path)
    assert (plan.format, plan.feature_width) == ("features", 3)
    assert [row["feature"] for row in rows_of(plan, settings)] == vectors.astype(float).tolist()


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"image": [b"x"], "label": [0.5]},
            {},
            r"'label' is float64 in a.parquet; expected integer or string.*--data.label",
        ),
        (
            {"image": [b"x"], "klass": [0]},
            {},
            r"no column 'label' in a.parquet \(columns: image, klass\).*--data.label",
        ),
        ({"picture": [b"x"], "label": [0]}, {}, r"no column 'image'.*--data.image"),
        ({"image": ["a.jpg"], "label": [0]}, {}, r"'image' is string.*expected binary.*--data.image"),
        ({"image": [b"x"], "label": [0]}, {"id": "key"}, r"no column 'key'.*--data.id"),
        ({"image": [b"x"], "label": [0]}, {"true_label": "truth"}, r"no column 'truth'.*--data.true_label"),
        ({"image": [b"x"], "label": [0], "id": [1.5]}, {}, r"'id' is float64.*--data.id"),
        ({"feature": ["1,2"], "label": [0]}, {}, r"'feature' is string.*list of floats"),
        ({"image": [b"x"], "label": [0], "v": [[1]]}, {"verified": "v"}, r"'v' is list.*--data.verified"),
        ({"image": [], "label": pa.array([], pa.int32())}, {}, r"(no rows|'image' is null)"),
        (
            {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int32())},
            {},
            r"no rows.*expected at least one",
        ),
    ],
)
def test_a_wrong_column_stops_at_once(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, str], message: str, write_parquet: Any
) -> None:
    write_parquet(tmp_path / "data" / "a.parquet", columns)
    with pytest.raises(DataError, match=message):
        plan_fragments(str(tmp_path / "data"), DataSettings(**settings), str(tmp_path))


def test_files_that_disagree_about_labels_stop_at_once(tmp_path: Path, write_parquet: Any) -> None:
    write_parquet(tmp_path / "data" / "a.parquet", {"image": [b"x"], "label": [1]})
    write_parquet(tmp_path / "data" / "b.parquet", {"image": [b"x"], "label": ["cat"]})
    with pytest.raises(DataError, match=r"int64 in a.parquet and string in b.parquet"):
        plan_fragments(str(tmp_path / "data"), DataSettings(), str(tmp_path))


@pytest.mark.parametrize("kept_bytes", [0, 3, 200])
def test_a_cut_off_parquet_file_is_named(
    tmp_path: Path, make_image: MakeImage, kept_bytes: int, image_table: Any, write_parquet: Any
) -> None:
    path = write_parquet(tmp_path / "data" / "a.parquet", image_table(make_image, 3))
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(DataError, match=r"a.parquet' cannot be read as Parquet.*copy it again"):
        plan_fragments(str(tmp_path / "data"), DataSettings(), str(tmp_path))


def test_a_parquet_file_damaged_inside_is_named(
    tmp_path: Path, make_image: MakeImage, image_table: Any, planned: Any, rows_of: Any, write_parquet: Any
) -> None:
    path = write_parquet(tmp_path / "data" / "a.parquet", image_table(make_image, 200), compression="snappy")
    settings = DataSettings()
    plan = planned(path, settings, tmp_path)
    content = bytearray(path.read_bytes())
    content[4:3000] = b"\xff" * 2996
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"a.parquet"):
        rows_of(plan, settings)
