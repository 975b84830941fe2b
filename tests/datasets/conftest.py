"""Real encoded images and an S3 server over HTTP for the readers' tests."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image


def encoded_image(index: int, side: int = 12, kind: str = "PNG") -> bytes:
    """A small picture that differs with `index`."""
    rng = np.random.default_rng([7, index])
    sink = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (side, side + 2, 3), dtype=np.uint8)).save(sink, kind)
    return sink.getvalue()


@pytest.fixture
def make_image() -> Callable[..., bytes]:
    return encoded_image


@pytest.fixture(scope="module")
def s3_bucket() -> Iterator[str]:
    """`s3://bucket` on an HTTP server, with the environment that finds it; one server for a module."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    server.stop()
