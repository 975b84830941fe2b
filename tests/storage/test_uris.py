"""Places: the same functions for local paths, memory and S3, and errors that say what to do."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cleanscale.errors import DataError
from cleanscale.storage import s3, uris


@pytest.fixture(params=["local", "file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}"
    return {
        "local": str(tmp_path / "run"),
        "file": f"file://{tmp_path}/run",
        "memory": f"memory://{uuid.uuid4().hex}",
    }[request.param]


def test_bytes_come_back_and_a_tree_can_be_removed(place: str) -> None:
    uri = uris.join(place, "rounds", "00", "manifest.json")
    assert not uris.exists(uri)
    uris.write_bytes(uri, b"one")
    uris.write_bytes(uri, b"two")
    assert uris.exists(uri)
    assert uris.is_file(uri)
    assert not uris.is_file(uris.join(place, "rounds"))
    assert uris.read_bytes(uri) == b"two"
    uris.remove_tree(place)
    assert not uris.exists(uri)
    uris.remove_tree(place)


def test_listings_are_sorted_relative_and_without_hidden_files(place: str) -> None:
    for name in ("b/2.parquet", "a/1.PARQUET", "a/.hidden.parquet", ".git/x.parquet", "a/notes.txt"):
        uris.write_bytes(uris.join(place, name), name.encode())
    files = uris.list_files(place, (".parquet",))
    assert [file.path for file in files] == ["a/1.PARQUET", "b/2.parquet"]
    assert [file.size_bytes for file in files] == [11, 11]
    assert uris.read_bytes(files[1].uri) == b"b/2.parquet"
    assert [file.path for file in uris.list_files(uris.join(place, "b/2.parquet"))] == ["2.parquet"]
    assert [file.path for file in uris.list_files(uris.join(place, "a/*.txt"))] == ["notes.txt"]


def test_a_fingerprint_changes_with_any_file_and_with_nothing_else(place: str) -> None:
    uris.write_bytes(uris.join(place, "a"), b"1")
    uris.write_bytes(uris.join(place, "b"), b"2")
    before = uris.fingerprint(place)
    assert uris.fingerprint(place) == before
    uris.write_bytes(uris.join(place, "b"), b"22")
    changed = uris.fingerprint(place)
    uris.write_bytes(uris.join(place, "c"), b"3")
    assert len({before, changed, uris.fingerprint(place)}) == 3


def test_a_file_written_again_with_the_same_size_changes_the_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = uris.fingerprint(str(tmp_path))
    path.write_bytes(b"2")
    os.utime(path, (1, 1))
    assert uris.fingerprint(str(tmp_path)) != before


def test_pyarrow_reads_what_pyarrow_wrote(place: str) -> None:
    uri = uris.join(place, "table.parquet")
    uris.write_bytes(uri, b"")
    filesystem, path = uris.arrow_filesystem(uri)
    pq.write_table(pa.table({"row": [1, 2]}), path, filesystem=filesystem)
    assert pq.read_table(path, filesystem=filesystem).column("row").to_pylist() == [1, 2]


def test_a_local_write_leaves_no_temporary_file_and_replaces_whole(tmp_path: Path) -> None:
    uris.write_bytes(str(tmp_path / "x"), b"1" * 1000)
    uris.write_bytes(str(tmp_path / "x"), b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    with pytest.raises(DataError, match="x/y"):
        uris.write_bytes(str(tmp_path / "x" / "y"), b"")


@pytest.mark.parametrize(
    ("uri", "parts", "expected"),
    [
        ("s3://bucket/run/", ("a/", "/b"), "s3://bucket/run/a/b"),
        ("runs/x", ("a",), "runs/x/a"),
        ("/", ("a",), "/a"),
        ("memory://", ("a",), "memory:///a"),
        ("s3://bucket", (), "s3://bucket"),
    ],
)
def test_join(uri: str, parts: tuple[str, ...], expected: str) -> None:
    assert uris.join(uri, *parts) == expected


def test_a_missing_place_names_itself_and_a_remedy(place: str) -> None:
    uri = uris.join(place, "nothing", "here")
    for use in (uris.list_files, uris.read_bytes, uris.fingerprint):
        with pytest.raises(DataError, match=r"nothing/here.*expected.*check"):
            use(uri)


def test_a_path_with_brackets_is_a_path_before_it_is_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "photos [2020]").mkdir()
    (tmp_path / "photos [2020]" / "a.jpg").write_bytes(b"x")
    assert [file.path for file in uris.list_files(str(tmp_path / "photos [2020]"))] == ["a.jpg"]


def test_an_unknown_scheme_is_an_error_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"quux://x.*expected a local path or one of .*s3"):
        uris.list_files("quux://x")


def test_a_missing_bucket_is_an_error_with_a_remedy(s3_bucket: str) -> None:
    with pytest.raises(DataError, match=r"no-such-bucket.*bucket"):
        uris.list_files("s3://no-such-bucket/data")


def _no_s3(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


def test_a_refusing_endpoint_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _no_s3(monkeypatch, port)
    assert s3.FIRST_PATIENCE_S < 10
    monkeypatch.setattr(s3, "FIRST_PATIENCE_S", 1.5)
    began = time.monotonic()
    for use in (uris.list_files, uris.exists, lambda uri: uris.write_bytes(uri, b"x")):
        with pytest.raises(DataError, match=r"s3://bucket/x.*AWS_ENDPOINT_URL"):
            use("s3://bucket/x")
    assert time.monotonic() - began < 10


def test_a_silent_endpoint_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setenv(s3.PATIENCE_VARIABLE, "3")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        _no_s3(monkeypatch, silent.getsockname()[1])
        began = time.monotonic()
        with pytest.raises(DataError, match=r"s3://bucket/x"):
            uris.list_files("s3://bucket/x")
    assert 3 < time.monotonic() - began < 10
    assert s3.PATIENCE_S + s3.READ_TIMEOUT_S < 120


def test_missing_credentials_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"no credentials for 's3://bucket/x'.*AWS_ACCESS_KEY_ID"):
        uris.list_files("s3://bucket/x")
