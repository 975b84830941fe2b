"""Verification tables as people write them, joined to images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.datasets.labels import LabelMap
from cleanscale.datasets.verification import join_verification, never_used, read_verification
from cleanscale.errors import DataError

LABELS = LabelMap.from_distinct([["cat", "cow", "dog"]])
CAT, COW, DOG = 0, 1, 2


def images(**label_of_id: int) -> pa.Table:
    return pa.table(
        {"id": list(label_of_id), "label": pa.array(list(label_of_id.values()), pa.int32())},
        schema=pa.schema([("id", pa.string()), ("label", pa.int32())]),
    )


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "id,verified\n007,1\nb c,0\n",
        "\ufeffid,verified\r\n007,1\r\nb c,0\r\n",
        " id , verified \n 007 , 1\nb c ,0",
        "verified;note;id\n1;x;007\n0;;b c\n",
        'id\tverified\n"007"\t1.0\n"b c"\tfalse\n',
        '"id","verified"\n"007","1"\n"b c","0"\n\n',
    ],
)
def test_csv_as_spreadsheets_and_people_write_it(tmp_path: Path, text: str) -> None:
    read = read_verification(write(tmp_path / "v.csv", text))
    assert read.table.column("id").to_pylist() == ["007", "b c"]
    assert read.table.column("verified").to_pylist() == [1, 0]
    assert read.rejected.num_rows == 0


@pytest.mark.parametrize("kind", [pa.int64(), pa.bool_(), pa.float64(), pa.int8()])
def test_parquet_with_integer_ids_and_any_number_type(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"id": [7, 8], "verified": pa.array([1, 0]).cast(kind)}), tmp_path / "v.parquet")
    read = read_verification(str(tmp_path / "v.parquet"))
    assert read.table.column("id").to_pylist() == ["7", "8"]
    assert read.table.column("verified").to_pylist() == [1, 0]


def test_values_that_are_no_verdict_are_rejected_with_their_place(tmp_path: Path) -> None:
    text = "id,verified\na,1\nb,2\nc,yes\nd,\ne,-1\n,1\nf,0,surplus\ng\n"
    read = read_verification(write(tmp_path / "v.csv", text))
    assert read.table.column("id").to_pylist() == ["a"]
    rejected = read.rejected.to_pylist()
    assert [(row["id"], row["reason"]) for row in rejected] == [
        ("b", "verification is not 0 or 1"),
        ("c", "verification is not 0 or 1"),
        ("d", "verification is not 0 or 1"),
        ("e", "verification is not 0 or 1"),
        ("", "missing id"),
        (None, "malformed line"),
        (None, "malformed line"),
    ]
    assert rejected[0]["source"] == "v.csv#1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected a header"),
        ("a,1\nb,0\n", r"v.csv begins with 'a,1'; expected a header with id and verified"),
        ("id,correct\na,1\n", r"no column 'verified' in v.csv \(columns: id, correct\)"),
        ("id,id\na,1\n", r"expected a header"),
    ],
)
def test_a_wrong_csv_stops_at_once(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_verification(write(tmp_path / "v.csv", text))


def test_other_wrong_tables_stop_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"v.parquet' cannot be read as Parquet"):
        read_verification(write(tmp_path / "v.parquet", "not Parquet"))
    with pytest.raises(DataError, match=r"no Parquet or CSV file"):
        read_verification(write(tmp_path / "v.xlsx", "x"))
    with pytest.raises(DataError, match=r"nothing found"):
        read_verification(str(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes(b"id,verified\nM\xfcller,1\n")
    with pytest.raises(DataError, match=r"latin.csv cannot be read as CSV.*UTF-8"):
        read_verification(str(tmp_path / "latin.csv"))
    pq.write_table(pa.table({"id": ["a"], "verified": [1], "label": [[1]]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"'label' is list.*in list.parquet; expected integer or string"):
        read_verification(str(tmp_path / "list.parquet"))


def test_a_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    assert read_verification(write(tmp_path / "v.csv", "id,verified\n")).table.num_rows == 0


def test_a_folder_of_tables_is_one(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "id,verified,label\na,1,cat\n")
    pq.write_table(pa.table({"id": ["b"], "verified": [0]}), tmp_path / "b.parquet")
    table = read_verification(str(tmp_path)).table
    assert table.column("id").to_pylist() == ["a", "b"]
    assert table.column("label").to_pylist() == ["cat", None]


def test_joining_says_what_is_known_and_rejects_the_rest(tmp_path: Path) -> None:
    text = "\n".join(
        [
            "id,verified,label,verified_label",
            "right,1,,",
            "wrong,0,cat,dog",
            "again,0,,",
            "again,0,,cow",
            "split,0,,",
            "split,1,,",
            "two names,0,,cow",
            "two names,0,,dog",
            "other,1,dog,",
            "odd,1,,dog",
            "outside,0,,unicorn",
            "stranger,1,,",
        ]
    )
    verification = read_verification(write(tmp_path / "v.csv", text)).table
    here = {"right": CAT, "wrong": CAT, "again": CAT, "split": CAT, "two names": CAT, "other": CAT, "odd": CAT}
    table = images(unseen=CAT, outside=CAT, **here)
    joined = join_verification(table, verification, LABELS)
    known = dict(zip(table["id"].to_pylist(), joined.verified_N.tolist(), strict=True))
    assert known == {
        "unseen": -1,
        "right": 1,
        "wrong": 0,
        "again": 0,
        "split": -1,
        "two names": -1,
        "other": -1,
        "odd": -1,
        "outside": 0,
    }
    named = dict(zip(table["id"].to_pylist(), joined.verified_label_N.tolist(), strict=True))
    assert {key: value for key, value in named.items() if value != -1} == {"wrong": DOG, "again": COW}
    reasons = [(row["id"], row["reason"]) for row in joined.rejected.to_pylist()]
    assert reasons == [
        ("split", "verifications disagree"),
        ("split", "verifications disagree"),
        ("two names", "verifications disagree"),
        ("two names", "verifications disagree"),
        ("other", "verification of another label"),
        ("odd", "verification contradicts its verified_label"),
    ]
    unknown = never_used(verification, [joined.used_M])
    assert unknown.to_pylist() == [{"id": "stranger", "source": "v.csv#11", "reason": "verification of an unknown id"}]


def test_a_join_does_not_depend_on_how_the_images_are_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [f"{rng.integers(0, 80)},{rng.integers(0, 2)},{rng.choice(['', '', 'cat', 'dog'])}" for _ in range(120)]
    verification = read_verification(write(tmp_path / "v.csv", "id,verified,label\n" + "\n".join(lines))).table
    table = images(**{str(one): one % 3 for one in range(60)})
    whole = join_verification(table, verification, LABELS)
    parts = [join_verification(table.slice(start, 7), verification, LABELS) for start in range(0, 60, 7)]
    assert np.array_equal(np.concatenate([part.verified_N for part in parts]), whole.verified_N)
    rejected = pa.concat_tables([part.rejected for part in parts])
    assert rejected.sort_by("source") == whole.rejected.sort_by("source")
    unknown = never_used(verification, [part.used_M for part in parts])
    assert unknown == never_used(verification, [whole.used_M])
    assert unknown.num_rows == sum(int(line.split(",")[0]) >= 60 for line in lines)


def test_labels_of_a_multi_label_table_speak_of_the_label_they_name(tmp_path: Path) -> None:
    """Contract: `label` names which of an image's labels was looked at; here one image has the label dog."""
    verification = read_verification(write(tmp_path / "v.csv", "id,verified,label\na,0,cat\na,1,dog\n")).table
    joined = join_verification(images(a=DOG), verification, LABELS)
    assert joined.verified_N.tolist() == [1]
    assert joined.rejected.column("reason").to_pylist() == ["verification of another label"]


def test_integer_labels_of_a_csv_are_numbers(tmp_path: Path) -> None:
    verification = read_verification(write(tmp_path / "v.csv", "id,verified,label,verified_label\na,0,5,9\n")).table
    joined = join_verification(images(a=5), verification, LabelMap.from_distinct([[5, 9]]))
    assert (joined.verified_N.tolist(), joined.verified_label_N.tolist()) == ([0], [9])
