"""Any accepted input gives the same canonical rows, however it is cut and wherever it lies."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.datasets import folder_format, inputs, parquet_format, tsv_format, webdataset_format
from cleanscale.datasets.fragments import Fragment, Plan, count_rows, plan_fragments, read_fragment
from cleanscale.datasets.settings import DataSettings
from cleanscale.errors import DataError
from cleanscale.storage import uris

MakeImage = Callable[..., bytes]


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


# ---------------------------------------------------------------- Parquet


@pytest.mark.parametrize("group", [1, 7, 30, 100])
@pytest.mark.parametrize("target", [3, 10, 1000])
def test_parquet_rows_do_not_depend_on_row_groups_or_fragments(
    tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch, group: int, target: int
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


def test_a_folder_or_a_pattern_of_parquet_files_is_one_data_set(tmp_path: Path, make_image: MakeImage) -> None:
    for number in range(3):
        write_parquet(tmp_path / "data" / f"part-{number}.parquet", image_table(make_image, 5, 5 * number))
    write_parquet(tmp_path / "data" / "_delta_log" / "checkpoint.parquet", {"unrelated": [1]})
    settings = DataSettings()
    whole = planned(tmp_path / "data", settings, tmp_path)
    assert [row["id"] for row in rows_of(whole, settings)] == [f"image {one}" for one in range(15)]
    some = planned(tmp_path / "data" / "part-[12].parquet", settings, tmp_path)
    assert [row["id"] for row in rows_of(some, settings)] == [f"image {one}" for one in range(5, 15)]
    assert whole.fingerprint != some.fingerprint


def test_reading_labels_reads_no_image_bytes(tmp_path: Path) -> None:
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


def test_the_hugging_face_layout_gives_bytes_and_class_names(tmp_path: Path, make_image: MakeImage) -> None:
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
def test_named_labels_come_as_strings(tmp_path: Path, make_image: MakeImage, labels: pa.Array) -> None:
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
    tmp_path: Path, make_image: MakeImage, values: pa.Array, verified: list[int], faulty: list[int]
) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [make_image(0)] * 5, "label": [0] * 5, "seen": values})
    settings = DataSettings(verified="seen")
    rows = rows_of(planned(tmp_path, settings, tmp_path), settings, ("verified", "fault"))
    assert [row["verified"] for row in rows] == verified
    assert [row["row"] for row in rows if row["fault"]] == faulty


@pytest.mark.parametrize("width", [pa.list_(pa.float32()), pa.list_(pa.float16(), 3), pa.large_list(pa.float64())])
def test_features_come_as_lists_of_float32(tmp_path: Path, width: pa.DataType) -> None:
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
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, str], message: str
) -> None:
    write_parquet(tmp_path / "data" / "a.parquet", columns)
    with pytest.raises(DataError, match=message):
        plan_fragments(str(tmp_path / "data"), DataSettings(**settings), str(tmp_path))


def test_files_that_disagree_about_labels_stop_at_once(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "a.parquet", {"image": [b"x"], "label": [1]})
    write_parquet(tmp_path / "data" / "b.parquet", {"image": [b"x"], "label": ["cat"]})
    with pytest.raises(DataError, match=r"int64 in a.parquet and string in b.parquet"):
        plan_fragments(str(tmp_path / "data"), DataSettings(), str(tmp_path))


@pytest.mark.parametrize("kept_bytes", [0, 3, 200])
def test_a_cut_off_parquet_file_is_named(tmp_path: Path, make_image: MakeImage, kept_bytes: int) -> None:
    path = write_parquet(tmp_path / "data" / "a.parquet", image_table(make_image, 3))
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(DataError, match=r"a.parquet' cannot be read as Parquet.*copy it again"):
        plan_fragments(str(tmp_path / "data"), DataSettings(), str(tmp_path))


def test_a_parquet_file_damaged_inside_is_named(tmp_path: Path, make_image: MakeImage) -> None:
    path = write_parquet(tmp_path / "data" / "a.parquet", image_table(make_image, 200), compression="snappy")
    settings = DataSettings()
    plan = planned(path, settings, tmp_path)
    content = bytearray(path.read_bytes())
    content[4:3000] = b"\xff" * 2996
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"a.parquet"):
        rows_of(plan, settings)


# ---------------------------------------------------------------- folders


def folder_tree(root: Path, make_image: MakeImage) -> dict[str, bytes]:
    content = {f"{name}/{one:02}.png": make_image(one) for name in ("dog", "cat", "10") for one in range(5)}
    content["cat/deep/er.jpg"] = make_image(99, kind="JPEG")
    for path, image in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(image)
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / "._00.png").write_bytes(b"what macOS leaves")
    return content


def test_class_folders_give_names_and_paths(tmp_path: Path, make_image: MakeImage, monkeypatch: Any) -> None:
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


def test_an_image_outside_the_class_folders_is_a_row_without_label(tmp_path: Path, make_image: MakeImage) -> None:
    content = folder_tree(tmp_path / "data", make_image)
    (tmp_path / "data" / "stray.png").write_bytes(make_image(0))
    settings = DataSettings()
    rows = rows_of(planned(tmp_path / "data", settings, tmp_path / "work"), settings)
    assert len(rows) == len(content) + 1
    assert [row["id"] for row in rows if row["label"] is None] == ["stray.png"]


def test_an_image_that_has_gone_is_a_row_with_a_fault(tmp_path: Path, make_image: MakeImage) -> None:
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


def test_what_cannot_be_told_stops_at_once(tmp_path: Path, make_image: MakeImage) -> None:
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


# ---------------------------------------------------------------- WebDataset


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], pax: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_webdatasets_own_tars_come_back(tmp_path: Path, make_image: MakeImage, monkeypatch: Any) -> None:
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
def test_long_names_and_cuts_between_them(tmp_path: Path, make_image: MakeImage, monkeypatch: Any, pax: bool) -> None:
    monkeypatch.setattr(webdataset_format, "TAR_ROWS", 2)
    keys = [f"{'folder/' * 30}{one}-ä" for one in range(5)]
    members = [(f"{key}.{kind}", data) for key in keys for kind, data in (("txt", b"a cat"), ("png", make_image(1)))]
    path = write_tar(tmp_path / "data" / "a.tar", members, pax)
    settings = DataSettings()
    plan = planned(path, settings, tmp_path)
    assert len(plan.fragments) == 3
    assert [row["id"] for row in rows_of(plan, settings)] == keys
    assert {row["label"] for row in rows_of(plan, settings)} == {"a cat"}


def test_samples_without_label_or_image_are_rows(tmp_path: Path, make_image: MakeImage) -> None:
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


def test_a_key_that_comes_again_is_a_row_of_its_own(tmp_path: Path, make_image: MakeImage) -> None:
    members = [("a.jpg", make_image(0)), ("a.cls", b"1"), ("a.jpg", make_image(1)), ("a.cls", b"2")]
    settings = DataSettings()
    rows = rows_of(planned(write_tar(tmp_path / "data" / "a.tar", members), settings, tmp_path), settings)
    assert [(row["id"], row["label"]) for row in rows] == [("a", 1), ("a", 2)]


def tar_of(make_image: MakeImage, path: Path) -> bytes:
    members = [(f"{one}.{kind}", data) for one in range(6) for kind, data in (("png", make_image(one)), ("cls", b"1"))]
    return write_tar(path, members).read_bytes()


def test_a_cut_off_tar_is_named(tmp_path: Path, make_image: MakeImage) -> None:
    path = tmp_path / "data" / "a.tar"
    whole = tar_of(make_image, path)
    for kept_bytes in (0, 100, 700, 5000):
        path.write_bytes(whole[:kept_bytes])
        with pytest.raises(DataError, match=r"a.tar.*expected an"):
            planned(path, DataSettings(), tmp_path)


def test_a_damaged_header_inside_a_tar_does_not_end_it_quietly(tmp_path: Path, make_image: MakeImage) -> None:
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


def test_a_tar_without_its_end_marker_is_read(tmp_path: Path, make_image: MakeImage) -> None:
    path = tmp_path / "data" / "a.tar"
    content = tar_of(make_image, path)
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + 512
    path.write_bytes(content[:end])
    assert planned(path, DataSettings(), tmp_path).num_rows == 6


def test_a_tar_without_labels_stops_at_once(tmp_path: Path, make_image: MakeImage) -> None:
    path = write_tar(tmp_path / "data" / "a.tar", [("a.jpg", make_image(0)), ("a.json", b'{"klass": 1}')])
    with pytest.raises(DataError, match=r"members: jpg, json.*with 'label'.*--data.label"):
        plan_fragments(str(path), DataSettings(), str(tmp_path))
    assert rows_of(planned(path, DataSettings(label="klass"), tmp_path), DataSettings(label="klass"))[0]["label"] == 1


# ---------------------------------------------------------------- TSV


@pytest.mark.parametrize("range_bytes", [40, 97, 10_000])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_tsv_rows_do_not_depend_on_ranges_or_line_endings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_bytes: int, ending: str, last: bool
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
def test_the_four_layouts_of_cleannets_files(tmp_path: Path, line: str, columns: tuple[str, ...]) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(line + "\n")
    settings = DataSettings()
    plan = planned(path, settings, tmp_path)
    assert plan.columns == columns
    row = rows_of(plan, settings)[0]
    assert (row["id"], row["label"], row["feature"]) == ("k", "cat", [1.0, 2.0])


def test_bad_lines_of_a_tsv_are_rows_with_a_fault(tmp_path: Path) -> None:
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


# ---------------------------------------------------------------- all of them, elsewhere


@pytest.mark.parametrize("kind", ["parquet", "folder", "webdataset", "tsv"])
@pytest.mark.parametrize("place", ["memory", "s3"])
def test_other_places_give_the_same_rows_as_a_disk(
    kind: str, place: str, tmp_path: Path, make_image: MakeImage, request: pytest.FixtureRequest
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


def test_plans_and_fragments_travel_as_json(tmp_path: Path, make_image: MakeImage) -> None:
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


def test_a_changed_file_changes_the_plans_fingerprint(tmp_path: Path, make_image: MakeImage) -> None:
    path = write_parquet(tmp_path / "data" / "a.parquet", image_table(make_image, 3))
    before = plan_fragments(str(path), DataSettings(), str(tmp_path)).fingerprint
    assert plan_fragments(str(path), DataSettings(), str(tmp_path)).fingerprint == before
    write_parquet(path, image_table(make_image, 4))
    assert plan_fragments(str(path), DataSettings(), str(tmp_path)).fingerprint != before
