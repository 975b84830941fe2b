"""S3 as s3fs gives it, with patience: one place where requests are tried again, and large objects in parallel parts.

Every request of s3fs, and so of pyarrow and Ray Train on top of it, goes through `_call_s3`. There it is tried again
together with the reading of its answer: the retries of botocore see neither a body that stalls, nor credentials that
expired, nor the time that has passed, so they are switched off.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import logging
import os
import random
import time
from collections import Counter
from typing import Any

from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError
from fsspec.asyn import sync, sync_wrapper
from s3fs.core import S3File, S3FileSystem
from s3fs.errors import translate_boto_error

from cleanscale.storage.s3_errors import EXPIRED, code_of, passing, remember

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 4
READ_TIMEOUT_S = 10  # of silence, also in the middle of an answer
REQUEST_TIMEOUT_S = 120  # of one request with its answer, whatever it does
PATIENCE_S = 90  # from the first failure of a request to the last attempt; PATIENCE_VARIABLE overrides it
PATIENCE_VARIABLE = "CLEANSCALE_S3_PATIENCE_S"
# Nothing has ever answered this process: more likely a wrong endpoint than a bad moment.
FIRST_PATIENCE_S = 6
WORKER_VARIABLE = "RAY_RAYLET_PID"  # Ray gives it to its workers
ABORT_TIMEOUT_S = 10
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 8.0
# An object of more than one part is written and read in parts of this size, so many at a time.
PART_BYTES = 8 << 20
CONCURRENT_PARTS = 8
MAX_PARTS = 10_000  # S3's limit for one upload
OBJECTS_PER_REMOVAL = 1000  # S3's limit

# Requests of this process that were tried again, by what had gone wrong.
retries: Counter[str] = Counter()
_answered: set[str] = set()  # endpoints that have answered this process


def patience_s() -> float:
    return float(os.environ.get(PATIENCE_VARIABLE, PATIENCE_S))


def filesystem() -> S3Store:
    """The store that AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL names, AWS itself without them. Opens no connection."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return S3Store(
        client_kwargs={"endpoint_url": endpoint} if endpoint else {},
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": min(READ_TIMEOUT_S, patience_s() / 5),
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 4 * CONCURRENT_PARTS,
        },
        default_block_size=PART_BYTES,
        max_concurrency=CONCURRENT_PARTS,
        fixed_upload_size=True,
        # Listings are compared between runs and between writers: a cached one would be wrong, not only old.
        use_listings_cache=False,
    )


class S3Store(S3FileSystem):
    """s3fs whose requests outlast a busy store, broken connections and expired credentials for `patience_s()`."""

    retries = 1  # s3fs would multiply ours

    @property
    def endpoint(self) -> str:
        return str(self.client_kwargs.get("endpoint_url"))

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        first_failure_s, attempt = None, 0
        while True:
            client = self._s3
            try:
                return await asyncio.wait_for(self._attempt(method, akwarglist, kwargs), REQUEST_TIMEOUT_S)
            except Exception as error:
                kind = await self._kind(method, error, kwargs)
                if attempt and method == "complete_multipart_upload" and code_of(error)[0] == "NoSuchUpload":
                    return await self._completed(error, kwargs)  # the answer that was lost may have been a yes
                now_s = time.monotonic()
                first_failure_s = now_s if first_failure_s is None else first_failure_s
                patience = min(patience_s(), FIRST_PATIENCE_S) if self._never_reached(error) else patience_s()
                wait_s = random.uniform(0.5, 1.0) * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)
                if kind is None or now_s - first_failure_s + wait_s > patience:
                    remember(error, method, kwargs, attempt, now_s - first_failure_s)
                    raise
                if kind in EXPIRED and not await self._renewed(client):
                    remember(error, method, kwargs, attempt)
                    raise
                note(kind, method, kwargs)
                await asyncio.sleep(wait_s)
                attempt += 1

    call_s3 = sync_wrapper(_call_s3)

    async def _attempt(self, method: str, akwarglist: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One request, with the whole of its answer: an answer that breaks off is a request that failed."""
        answer = await super()._call_s3(method, *akwarglist, **kwargs)
        _answered.add(self.endpoint)
        if method == "get_object":
            body = answer["Body"]
            try:
                answer["Body"] = Content(await body.read())
            finally:
                body.close()
        return answer

    async def _kind(self, method: str, error: BaseException, kwargs: dict[str, Any]) -> str | None:
        """What went wrong, where another attempt may help; None where none does."""
        code, status = code_of(error)
        if code is not None:
            _answered.add(self.endpoint)
        if method == "head_object" and status == 400:  # the answer to HEAD has no text: ask in a way that has one
            try:
                await super()._call_s3("list_objects_v2", Bucket=kwargs["Bucket"], MaxKeys=1, Prefix=kwargs["Key"])
            except Exception as reason:
                code, status = code_of(reason)
        return passing(error, code, status)

    def _never_reached(self, error: BaseException) -> bool:
        """Whether the endpoint may not be there at all. The driver has reached it before Ray starts a worker."""
        unreachable = isinstance(error, (EndpointConnectionError, ConnectTimeoutError))
        return unreachable and self.endpoint not in _answered and WORKER_VARIABLE not in os.environ

    async def _renewed(self, client: Any) -> bool:
        """Take up credentials from where they come from once more; False where they cannot have changed."""
        held = await self.session.get_credentials()  # pyright: ignore[reportOptionalMemberAccess]
        if self.key or (held is not None and held.method in ("env", "explicit")):
            return False
        if self._s3 is client:  # else another request has just done it
            await self.set_session(refresh=True)
        return True

    async def _completed(self, error: BaseException, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The object that an upload of unknown outcome left, if it is the one that was to be."""
        found = await self._call_s3("head_object", Bucket=kwargs["Bucket"], Key=kwargs["Key"])
        age = datetime.datetime.now(datetime.UTC) - found["LastModified"]
        parts = kwargs["MultipartUpload"]["Parts"]
        if found["ETag"] == etag_of_parts([part["ETag"] for part in parts]) or (
            found["ETag"].strip('"').endswith(f"-{len(parts)}") and age.total_seconds() < 10 * patience_s()
        ):
            return found
        raise error

    async def _cat_file(
        self, path: str, version_id: Any = None, start: Any = None, end: Any = None, **more: Any
    ) -> bytes:
        """Small objects in one request, without asking for their size first; large ones in parallel ranges."""
        bucket, key, _ = self.split_path(path)
        if start is not None or end is not None:
            if start is None or end is None or start < 0 or end < 0 or end - start <= PART_BYTES:
                return await super()._cat_file(path, version_id=version_id, start=start, end=end)
            return await self.read_parts(bucket, key, start, end)
        try:
            first = await self._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes=0-{PART_BYTES - 1}")
        except OSError as error:
            if code_of(error)[0] in ("InvalidRange", "416"):  # an empty object has no first byte
                return b""
            raise
        content = await first["Body"].read()
        size = int(first.get("ContentRange", f"/{len(content)}").rpartition("/")[2])
        if size <= len(content):
            return content
        return content + await self.read_parts(bucket, key, len(content), size, IfMatch=first["ETag"])

    async def _read_end(self, path: str, amount: int) -> tuple[bytes, int]:
        """(the last `amount` bytes or all, size of the object) in one request."""
        bucket, key, _ = self.split_path(path)
        answer = await self._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes=-{amount}")
        content = await answer["Body"].read()
        return content, int(answer.get("ContentRange", f"/{len(content)}").rpartition("/")[2])

    read_end = sync_wrapper(_read_end)

    async def _rm(self, path: str, recursive: bool = False, **more: Any) -> None:
        """An object, or all below a folder: a listing, and a request for every thousand objects."""
        bucket, key, _ = self.split_path(path)
        below = [one["name"] for one in await self._lsdir(path, delimiter="")] if recursive else []
        names = [*([f"{bucket}/{key}"] if key else []), *below]
        for start in range(0, len(names), OBJECTS_PER_REMOVAL):
            chosen = [{"Key": self.split_path(name)[1]} for name in names[start : start + OBJECTS_PER_REMOVAL]]
            answer = await self._call_s3("delete_objects", Bucket=bucket, Delete={"Objects": chosen, "Quiet": True})
            for one in answer.get("Errors", []):
                answered = {"Error": {"Code": one.get("Code"), "Message": one.get("Message")}}
                error = translate_boto_error(ClientError(answered, "DeleteObjects"))
                remember(error, "delete_objects", {"Bucket": bucket, "Key": one.get("Key")})
                raise error

    async def read_parts(self, bucket: str, key: str, start: int, stop: int, **conditions: Any) -> bytes:
        """Bytes [start, stop) of an object, about PART_BYTES a request, CONCURRENT_PARTS requests at a time."""
        turns = asyncio.Semaphore(CONCURRENT_PARTS)
        part_bytes = max(1, -(-(stop - start) // max(1, round((stop - start) / PART_BYTES))))

        async def read(first: int) -> bytes:
            last = min(first + part_bytes, stop) - 1
            async with turns:
                answer = await self._call_s3(
                    "get_object", Bucket=bucket, Key=key, Range=f"bytes={first}-{last}", **conditions
                )
            return await answer["Body"].read()

        return b"".join(await asyncio.gather(*map(read, range(start, stop, part_bytes))))

    async def _pipe_file(self, path: str, data: bytes, chunksize: int | None = None, **more: Any) -> Any:
        """One put, or parallel parts that become an object when the last of them is there."""
        part_bytes = max(PART_BYTES, -(-len(data) // MAX_PARTS))
        return await super()._pipe_file(path, data, chunksize=part_bytes, **more)

    async def _abort_mpu(self, bucket: str, key: str, mpu: str) -> None:
        """Best effort: what went wrong before is what the user must hear of, and soon."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(super()._abort_mpu(bucket, key, mpu), ABORT_TIMEOUT_S)

    abort_mpu = sync_wrapper(_abort_mpu)

    async def _abort_uploads(self, path: str) -> int:
        """Remove the parts of uploads below `path` that nobody will finish. Returns how many uploads there were."""
        bucket, key, _ = self.split_path(path)
        listed = await self._call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key.rstrip("/") + "/")
        uploads = listed.get("Uploads", [])
        await asyncio.gather(*[self._abort_mpu(bucket, each["Key"], each["UploadId"]) for each in uploads])
        return len(uploads)

    abort_uploads = sync_wrapper(_abort_uploads)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_type: str | None = None,
        cache_options: dict[str, Any] | None = None,
        size: int | None = None,
        **more: Any,
    ) -> S3Object:
        return S3Object(
            self,
            path,
            mode,
            block_size=block_size or self.default_block_size,
            autocommit=autocommit,
            cache_type=cache_type or self.default_cache_type,
            cache_options=cache_options,
            size=size,
            s3_additional_kwargs=more,
        )


class S3Object(S3File):
    """An open object: large reads in parallel ranges, parts uploaded while more is written; whole or not at all."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.under_way: list[Any] = []
        super().__init__(*args, **kwargs)

    def _fetch_range(self, start: int, end: int) -> bytes:
        condition = {name: value for name, value in self.read_kw.items() if name == "IfMatch"}
        return sync(  # pyright: ignore[reportReturnType]
            self.fs.loop, self.fs.read_parts, self.bucket, self.key, start, end, **condition
        )

    def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        if method != "upload_part":
            return super()._call_s3(method, *akwarglist, **kwargs)
        if len(self.under_way) >= CONCURRENT_PARTS:
            self.under_way.pop(0).result()
        upload = asyncio.run_coroutine_threadsafe(self.fs._call_s3(method, *akwarglist, **kwargs), self.fs.loop)
        self.under_way.append(upload)
        return {"ETag": upload}  # `commit` waits for it

    def commit(self) -> None:
        for part in self.parts or ():
            part["ETag"] = part["ETag"].result()["ETag"]
        super().commit()

    def close(self) -> None:
        """Raises what an upload raised, and then leaves nothing behind."""
        try:
            super().close()
        except BaseException:
            self._give_up()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.writable():
            self._give_up()
        self.close()

    def __del__(self) -> None:
        """A writer that nobody closed died half way: s3fs would make an object of what it has."""
        if not getattr(self, "closed", True) and self.mode != "rb":
            with contextlib.suppress(Exception):
                self._give_up()

    def _give_up(self) -> None:
        for upload in self.under_way:
            upload.cancel()
        self.discard()
        self.closed = True


class Content:
    """The body of an answer, here already."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def read(self, amount: int | None = None) -> bytes:
        taken = self.content if amount is None or amount < 0 else self.content[:amount]
        self.content = self.content[len(taken) :]
        return taken

    def close(self) -> None:
        pass


def etag_of_parts(etags: list[str]) -> str:
    """The ETag that S3 gives to an object of these parts, where nothing but S3's own encryption is in use."""
    try:
        digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in etags)
    except ValueError:
        return ""
    return f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"'


def note(kind: str, method: str, kwargs: dict[str, Any]) -> None:
    retries[kind] += 1
    level = logging.INFO if retries[kind] == 1 else logging.DEBUG
    log.log(
        level,
        "S3: %s of s3://%s/%s is tried again (%s); more of this kind are not reported",
        method,
        kwargs.get("Bucket", ""),
        kwargs.get("Key") or kwargs.get("Prefix") or "",
        kind,
    )
