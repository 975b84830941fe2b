"""The main job on S3 as a user starts it, while S3 goes wrong: it ends with the tables of an undisturbed local run.

Slow: each run is a process with a Ray of its own.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from s3_proxy import Proxy

from cleanscale.stages import glyphs

pytestmark = pytest.mark.slow
BUCKET = "runs-bucket"
FAULTS = {"slow_down": 0.1, "internal_error": 0.03, "reset_upload": 0.06, "reset_download": 0.06, "stall": 0.01}
LONGEST_S = 400


@pytest.fixture(scope="module")
def client(s3_environment):
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=s3_environment["AWS_ENDPOINT_URL"], **keys)


@pytest.fixture(scope="module")
def images_on_s3(glyphs_run, client) -> dict[str, str]:
    """The images that `glyphs_run` drew, on the server; the data settings that find them."""
    drawn = glyphs_run.folder / "glyphs"
    for file in sorted(drawn.rglob("*.parquet")):
        client.upload_file(str(file), BUCKET, f"glyphs/{file.relative_to(drawn).as_posix()}")
    found = glyphs.places(f"s3://{BUCKET}/glyphs", glyphs_run.settings.glyphs)
    return {name: place for name, place in found.items() if place is not None}


@pytest.fixture
def proxy(s3_environment) -> Iterator[Proxy]:
    with Proxy(s3_environment["AWS_ENDPOINT_URL"], seed=5) as proxy:
        yield proxy


@pytest.fixture
def train(small_values, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """train(URI of the run folder, data settings, environment): the main job in a process of its own."""

    def run(uri: str, data: dict[str, str], environment: dict[str, str]) -> subprocess.CompletedProcess:
        config = tmp_path / "run.toml"
        config.write_text(tomli_w.dumps(small_values(uri, {"data": data})))
        command = [sys.executable, "-m", "cleanscale.train", "--config", str(config)]
        others = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        place = others | tracking | environment
        return subprocess.run(command, env=place, capture_output=True, text=True, timeout=LONGEST_S)

    return run


def table_of(client, prefix: str) -> pa.Table:
    """The Parquet files below a prefix as one table, by row."""
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]]
    files = [client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys if key.endswith(".parquet")]
    return pa.concat_tables([pq.read_table(io.BytesIO(file)) for file in files]).sort_by("row")


def test_a_run_on_s3_that_goes_wrong_all_the_time_ends_like_an_undisturbed_one(
    glyphs_run, by_row, train, proxy, client, tmp_path, images_on_s3
):
    """Data, run folder and checkpoints on S3; keys in a profile that something else renews, expired when CleanNet
    begins."""
    keys = tmp_path / "credentials"

    def renew(key: str) -> None:
        text = f"[lab]\naws_access_key_id = {key}\naws_secret_access_key = x\naws_session_token = {key}\n"
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        fresh.replace(keys)

    def expire(request) -> None:
        if "/cleannet/" in request.key and not proxy.expired_keys:
            renew("SECOND")
            proxy.expired_keys.add("FIRST")

    renew("FIRST")
    proxy.faults, proxy.on_request = FAULTS, expire
    profile = {"AWS_PROFILE": "lab", "AWS_SHARED_CREDENTIALS_FILE": str(keys), "AWS_DEFAULT_REGION": "us-east-1"}
    environment = profile | {"AWS_ENDPOINT_URL": proxy.url, "CLEANSCALE_S3_PATIENCE_S": "40"}
    done = train(f"s3://{BUCKET}/runs/faults", images_on_s3, environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert table_of(client, "runs/faults/relevance/").equals(by_row(glyphs_run.folder / "relevance"))
    assert set(proxy.counts()) >= {"slow_down", "internal_error", "reset_upload", "reset_download", "expired"}
    assert sum(proxy.counts().values()) > 30
    assert any("/ray_train/" in one.key and one.operation == "PUT" for one in proxy.requests)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET)


def test_a_bucket_that_is_not_there_ends_the_run_with_one_message(train, s3_environment):
    done = train("s3://no-such-bucket/run", {"train": "s3://no-such-bucket/data"}, s3_environment)
    assert done.returncode == 2
    assert "bucket 'no-such-bucket', key 'run/" in done.stderr
    assert "create the bucket" in done.stderr
    assert "Traceback" not in done.stderr
