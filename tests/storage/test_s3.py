"""S3 that goes wrong: requests are tried again, nothing half-written counts, errors name place and remedy."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_proxy import KINDS, Proxy

from cleanscale.errors import DataError
from cleanscale.storage import s3, uris
from cleanscale.storage.arrays import read_range, write_array
from cleanscale.storage.tables import read_table, write_table

BUCKET = "runs-bucket"


@pytest.fixture
def store(request, s3_bucket, s3_environment, monkeypatch):
    """store({kind: probability}) -> (proxy, URI of a folder of its own): S3 behind a proxy that injects faults."""
    opened: list[Proxy] = []

    def make(faults: dict[str, float] | None = None, **options) -> tuple[Proxy, str]:
        proxy = Proxy(s3_environment["AWS_ENDPOINT_URL"], faults, **options).__enter__()
        opened.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        # Faults follow from what is asked for: the same at every run of a test.
        return proxy, f"{s3_bucket}/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"

    yield make
    for proxy in opened:
        proxy.__exit__()


@pytest.fixture
def client(s3_environment, s3_bucket):
    """What is really there, past the proxy."""
    return boto3.client("s3", endpoint_url=s3_environment["AWS_ENDPOINT_URL"])


@pytest.fixture
def unfinished(client) -> Callable[[], list[str]]:
    return lambda: [one["Key"] for one in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]


def noise(size_bytes: int) -> bytes:
    return np.random.default_rng(size_bytes).bytes(size_bytes)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read_whatever_goes_wrong_between(kind, store, monkeypatch):
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 1.0)
    proxy, folder = store({kind: 0.3}, seed=4)
    small = [noise(100 + k) for k in range(12)]
    for k, content in enumerate(small):
        uris.write_bytes(f"{folder}/{k}", content)
    assert [uris.read_bytes(f"{folder}/{k}") for k in range(12)] == small
    assert len(uris.list_files(folder)) == 12
    assert proxy.counts()[kind] >= 2


def test_a_large_object_is_written_and_read_in_parallel_parts_although_some_fail(store):
    proxy, folder = store({"slow_down": 0.2, "reset_upload": 0.3, "reset_download": 0.3}, seed=2)
    content = noise(3 * s3.PART_BYTES + 12345)
    uris.write_bytes(f"{folder}/large", content)
    assert uris.read_bytes(f"{folder}/large") == content
    filesystem, path = uris.arrow_filesystem(f"{folder}/streamed")  # what Ray Train writes checkpoints through
    with filesystem.open_output_stream(path) as stream:
        for start in range(0, len(content), 1 << 20):
            stream.write(content[start : start + (1 << 20)])
    with filesystem.open_input_file(path) as file:
        assert file.read() == content
        file.seek(5)
        assert file.read(2 * s3.PART_BYTES) == content[5 : 5 + 2 * s3.PART_BYTES]
    assert proxy.operations()["PART"] >= 8
    assert set(proxy.counts()) == {"slow_down", "reset_upload", "reset_download"}


def test_an_upload_whose_last_answer_is_lost_has_succeeded(store, client, unfinished):
    proxy, folder = store()
    proxy.lose_answer_to = "MULTIPART"
    content = noise(2 * s3.PART_BYTES + 1)
    uris.write_bytes(f"{folder}/large", content)
    assert proxy.counts() == {"lost_answer": 2}  # to the beginning of an upload and to the end of the second
    key = folder.removeprefix(f"s3://{BUCKET}/")
    assert client.get_object(Bucket=BUCKET, Key=f"{key}/large")["Body"].read() == content
    assert uris.abort_uploads(folder) == 1  # the first, of which this process never heard
    assert unfinished() == []


def test_requests_of_one_object_run_at_the_same_time(store):
    proxy, folder = store(latency_s=0.2)
    content = noise(3 * s3.PART_BYTES)
    uris.write_bytes(f"{folder}/large", content)
    assert proxy.most_at_once == 3
    assert proxy.operations() == {"MULTIPART": 2, "PART": 3}
    proxy.clear()
    assert uris.read_bytes(f"{folder}/large") == content
    assert proxy.most_at_once == 2  # the first says how many there are
    assert proxy.operations() == {"GET": 3}


def test_a_parquet_file_is_read_through_faults_by_name_and_by_column(store, monkeypatch):
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 1.0)
    _, folder = store({"slow_down": 0.15, "reset_download": 0.15, "stall": 0.1}, seed=7)
    rng = np.random.default_rng(0)
    table = pa.table({"row": np.arange(400_000), "noise": rng.random(400_000)})
    write_table(f"{folder}/t.parquet", [table.slice(0, 200_000), table.slice(200_000)])
    assert read_table(f"{folder}/t.parquet").equals(table)
    assert read_table(f"{folder}/t.parquet", ["row"]).equals(table.select(["row"]))
    filesystem, path = uris.arrow_filesystem(f"{folder}/t.parquet")
    assert pq.read_table(path, filesystem=filesystem, pre_buffer=True).equals(table)


def test_small_things_cost_one_request(store):
    proxy, folder = store()
    write_table(f"{folder}/t.parquet", pa.table({"row": [1, 2], "label": [3, 4]}))
    write_array(f"{folder}/a.npy", np.arange(1000))
    uris.write_bytes(f"{folder}/empty", b"")
    uses = {
        "table": lambda: read_table(f"{folder}/t.parquet"),
        "column": lambda: read_table(f"{folder}/t.parquet", ["row"]),
        "range": lambda: read_range(f"{folder}/a.npy", 10, 20),
        "nothing": lambda: uris.read_if_there(f"{folder}/none"),
        "empty": lambda: uris.read_bytes(f"{folder}/empty"),
        "listing": lambda: uris.list_files(folder),
    }
    found = {}
    for name, use in uses.items():
        proxy.clear()
        use()
        found[name] = len(proxy.requests)
    assert found == dict.fromkeys(uses, 1)


def test_a_range_of_a_long_array_is_not_read_whole(store):
    proxy, folder = store()
    array = np.arange(500_000)
    write_array(f"{folder}/a.npy", array)
    proxy.clear()
    assert read_range(f"{folder}/a.npy", 400_000, 400_010).tolist() == list(range(400_000, 400_010))
    assert sum(one.size_bytes for one in proxy.requests) < 100_000


def test_a_writer_that_dies_half_way_leaves_nothing(store, unfinished):
    _, folder = store()
    filesystem, path = uris.open_filesystem(f"{folder}/half")

    def write_half() -> None:
        with filesystem.open(path, "wb") as file:
            file.write(noise(2 * s3.PART_BYTES + 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    dropped = filesystem.open(path, "wb")
    dropped.write(noise(2 * s3.PART_BYTES + 1))
    del dropped
    gc.collect()
    assert not uris.exists(f"{folder}/half")
    assert unfinished() == []


def test_an_upload_that_fails_for_good_leaves_nothing(store, unfinished, monkeypatch):
    monkeypatch.setenv(s3.PATIENCE_VARIABLE, "1")
    proxy, folder = store()
    proxy.fail_parts_after = 2
    with pytest.raises(DataError, match=r"bucket 'runs-bucket', key '.*/large'.*too busy.*attempts.*expected.*wait"):
        uris.write_bytes(f"{folder}/large", noise(4 * s3.PART_BYTES))
    assert not uris.exists(f"{folder}/large")
    assert unfinished() == []


def test_parts_that_a_killed_run_left_are_cleared_away(store, client, unfinished):
    _, folder = store()
    key = folder.removeprefix(f"s3://{BUCKET}/")
    upload = client.create_multipart_upload(Bucket=BUCKET, Key=f"{key}/features/x.parquet")
    client.upload_part(
        Bucket=BUCKET, Key=f"{key}/features/x.parquet", UploadId=upload["UploadId"], PartNumber=1, Body=b"x"
    )
    assert uris.abort_uploads(folder) == 1
    assert unfinished() == []


def test_credentials_that_expire_are_taken_up_anew_from_their_file(store, tmp_path, monkeypatch):
    def profile(key: str) -> None:
        (tmp_path / "credentials").write_text(
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = x\naws_session_token = {key}\n"
        )

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    profile("FIRST")
    proxy, folder = store()
    uris.write_bytes(f"{folder}/a", b"1")
    proxy.expired_keys.add("FIRST")
    profile("SECOND")
    assert uris.exists(f"{folder}/a")  # by a HEAD, whose answer does not say why it is refused
    assert uris.read_bytes(f"{folder}/a") == b"1"
    assert proxy.counts()["expired"] >= 1
    monkeypatch.setenv(s3.PATIENCE_VARIABLE, "1")
    proxy.expired_keys.add("SECOND")
    with pytest.raises(DataError, match=r"credentials for .*/a'.* have expired.*expected.*renew them.*same command"):
        uris.read_bytes(f"{folder}/a")


def test_expired_credentials_of_the_environment_are_an_error_at_once(store):
    proxy, folder = store()
    proxy.expired_keys.add("testing")
    began = time.monotonic()
    with pytest.raises(DataError, match=r"bucket 'runs-bucket', key '.*/a'.* have expired.*renew"):
        uris.write_bytes(f"{folder}/a", b"1")
    assert time.monotonic() - began < 5
    assert len(proxy.requests) == 1


def test_a_permanent_error_names_bucket_key_and_remedy_and_is_not_tried_again(store):
    proxy, folder = store()
    uris.write_bytes(f"{folder}/secret", b"x" * 100)
    key = folder.removeprefix(f"s3://{BUCKET}/") + "/secret"
    proxy.denied_keys.add(key)
    proxy.clear()
    with pytest.raises(DataError, match=rf"bucket '{BUCKET}', key '{key}'.*refused.*s3:GetObject.*grant it"):
        uris.read_bytes(f"{folder}/secret")
    with pytest.raises(DataError, match=rf"bucket '{BUCKET}', key '{key}'.*refused.*s3:PutObject.*grant it"):
        uris.write_bytes(f"{folder}/secret", b"y")
    assert len(proxy.requests) == 2
    with pytest.raises(DataError, match=r"no bucket for .*bucket 'no-such-bucket', key 'a/b'.*create the bucket"):
        uris.write_bytes("s3://no-such-bucket/a/b", b"y")
    with pytest.raises(DataError, match=r"no-such-bucket.*create the bucket"):
        uris.read_if_there("s3://no-such-bucket/a/b")


def test_a_store_that_stays_busy_ends_within_its_patience(store, monkeypatch):
    monkeypatch.setenv(s3.PATIENCE_VARIABLE, "2")
    proxy, folder = store()
    proxy.always = "slow_down"
    before = s3.retries["SlowDown"]
    began = time.monotonic()
    with pytest.raises(DataError, match=r"too busy to answer \(SlowDown.*attempts in.*same command"):
        uris.write_bytes(f"{folder}/a", b"1")
    assert time.monotonic() - began < 6
    assert 3 <= s3.retries["SlowDown"] - before <= 8
