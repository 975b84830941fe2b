"""Places: local paths, `file://`, `s3://`, `memory://` and whatever else fsspec opens, behind one set of functions.

Every function raises DataError (found, expected, remedy) for a place that cannot be reached or read.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from cleanscale.errors import DataError

log = logging.getLogger(__name__)

_GLOB_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class StoredFile:
    """One file of a listing. `path` is relative to the listed place ; `version` changes when the file does."""

    uri: str
    path: str
    size_bytes: int
    version: str


def open_filesystem(uri: str) -> tuple[Any, str]:
    """(fsspec filesystem, path in it) of a URI or local path. Opens no connection for object stores.

    S3 takes its endpoint from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL and its credentials from the usual places.
    """
    with translate_errors(uri):
        if uri.startswith(("s3://", "s3a://")):
            from cleanscale.storage import s3  # it takes half a second to load, which local runs need not wait for

            filesystem: Any = s3.filesystem()
            return filesystem, filesystem._strip_protocol(uri)
        try:
            return url_to_fs(uri)
        except ValueError as error:
            known = ", ".join(sorted(_COMMON & set(fsspec.available_protocols())))
            raise DataError(
                f"'{uri}' has no usable scheme ({_first_line(error)}); expected a local path or one of {known}; "
                "correct it"
            ) from error


def _is_s3(filesystem: Any) -> bool:
    return "s3" in filesystem.protocol


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`; works for URIs and local paths alike."""
    pieces = [part.strip("/") for part in parts if part.strip("/")]
    root = uri if uri.endswith("://") else uri.rstrip("/")
    return root + "".join(f"/{piece}" for piece in pieces) if root or pieces else uri


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine (with or without `file://`)."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def absolute(uri: str) -> str:
    """A relative local path from the working directory of this process; anything else as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def exists(uri: str) -> bool:
    """Whether there is a file or folder at `uri`. An unreachable store is an error, not False."""
    filesystem, path = open_filesystem(uri)
    try:
        with translate_errors(uri, missing_is_error=False):
            filesystem.info(path)
    except FileNotFoundError:
        return False
    return True


def is_file(uri: str) -> bool:
    """Whether `uri` is one existing file."""
    filesystem, path = open_filesystem(uri)
    try:
        with translate_errors(uri, missing_is_error=False):
            return filesystem.info(path)["type"] == "file"
    except FileNotFoundError:
        return False


def list_files(uri: str, suffixes: Sequence[str] = (), *, missing_is_error: bool = True) -> list[StoredFile]:
    """Files at a file, folder (recursively) or glob pattern, sorted by path; hidden ones (`.name`) are left out.

    `suffixes`, lower case such as `.parquet`, are compared without regard to case; none means every file.
    A place that does not exist is a DataError, or an empty list; a folder without matching files is an empty list.
    """
    filesystem, path = open_filesystem(uri)
    try:
        with translate_errors(uri, missing_is_error=missing_is_error):
            entries, root = _find(filesystem, path)
    except FileNotFoundError:
        return []
    root = root.rstrip("/") + "/"
    files = []
    for name, info in entries.items():
        relative = name[len(root) :] if name.startswith(root) else name.lstrip("/")
        if info["type"] != "file" or any(part.startswith(".") for part in relative.split("/")):
            continue
        if suffixes and not relative.lower().endswith(tuple(suffixes)):
            continue
        full = name if isinstance(filesystem, LocalFileSystem) else filesystem.unstrip_protocol(name)
        files.append(StoredFile(full, relative, int(info.get("size") or 0), _version(info)))
    return sorted(files, key=lambda file: file.path)


def _find(filesystem: Any, path: str) -> tuple[dict[str, Any], str]:
    """({path: info}, root that the paths of the listing are relative to)."""
    marks = [path.index(mark) for mark in _GLOB_MAGIC if mark in path]
    if _is_s3(filesystem):  # its folders are what lies below them: one listing
        found = filesystem.find(path, detail=True)
        if found:
            return found, path.rpartition("/")[0] if list(found) == [path] else path
    try:
        info = filesystem.info(path)
    except FileNotFoundError:
        if not marks:
            raise
        entries = filesystem.glob(path, detail=True)
        if not entries:
            raise
        return entries, path[: min(marks)].rpartition("/")[0]
    if info["type"] == "file":
        return {info["name"]: info}, info["name"].rpartition("/")[0]
    return filesystem.find(path, detail=True), path


def _version(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "created"):
        if info.get(key) is not None:
            return str(info[key]).strip('"')
    return ""


def fingerprint(uri: str) -> str:
    """Hash over the listing of `uri`: changes when a file comes, goes, grows or is written again."""
    return fingerprint_files(list_files(uri))


def fingerprint_files(files: Sequence[StoredFile]) -> str:
    """The fingerprint of a listing; paths count relative to its root, so a moved dataset keeps it."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size_bytes}\0{file.version}\n".encode())
    return digest.hexdigest()[:32]


def read_bytes(uri: str) -> bytes:
    """The content of one file."""
    filesystem, path = open_filesystem(uri)
    with translate_errors(uri):
        return filesystem.cat_file(path)


def read_if_there(uri: str) -> bytes | None:
    """The content of one file; None where there is none. On an object store that is one request, `exists` another."""
    filesystem, path = open_filesystem(uri)
    try:
        with translate_errors(uri, missing_is_error=False):
            return filesystem.cat_file(path)
    except FileNotFoundError:
        return None


def read_range(uri: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, as far as it has them."""
    filesystem, path = open_filesystem(uri)
    with translate_errors(uri):
        return filesystem.cat_file(path, start=start, end=stop)


def read_end(uri: str, amount: int) -> tuple[bytes, int]:
    """(the last `amount` bytes of a file, or all it has; its size in bytes)."""
    filesystem, path = open_filesystem(uri)
    with translate_errors(uri):
        if _is_s3(filesystem):  # which tells the size along with the bytes
            return filesystem.read_end(path, amount)
        size = filesystem.size(path)
        return filesystem.cat_file(path, start=max(0, size - amount), end=size), size


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file that other processes see whole or not at all (local: rename; object stores: one put)."""
    filesystem, path = open_filesystem(uri)
    with translate_errors(uri, expected="a place that can be written"):
        if not isinstance(filesystem, LocalFileSystem):
            filesystem.pipe_file(path, data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def remove_tree(uri: str) -> None:
    """Remove a file, or a folder with all below it; nothing there is no error."""
    filesystem, path = open_filesystem(uri)
    try:
        with translate_errors(uri, missing_is_error=False):
            filesystem.rm(path, recursive=True)
    except FileNotFoundError:
        return


def abort_uploads(uri: str) -> int:
    """Remove what uploads below `uri` left that were killed half way: nobody sees it, but it is paid for.

    Returns how many there were. Only for a folder that nobody writes into; where that is not allowed, or not S3, none.
    """
    filesystem, path = open_filesystem(uri)
    if not _is_s3(filesystem):
        return 0
    try:
        return filesystem.abort_uploads(path)
    except OSError as error:
        log.debug("unfinished uploads below %s were not looked for: %s", uri, error)
        return 0


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """(pyarrow filesystem, path) for pyarrow.parquet and Ray Train's `storage_filesystem`."""
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


@contextlib.contextmanager
def open_read(uri: str, block_bytes: int = 1 << 20) -> Iterator[Any]:
    """A seekable binary file for reading; `block_bytes` is what a remote read fetches ahead."""
    filesystem, path = open_filesystem(uri)
    with translate_errors(uri), filesystem.open(path, "rb", block_size=block_bytes) as handle:
        yield handle


@contextlib.contextmanager
def translate_errors(
    uri: str, *, expected: str = "a place that can be read", missing_is_error: bool = True
) -> Iterator[None]:
    """Turn what file systems raise into DataError(found, expected, remedy) that names `uri`."""
    try:
        yield
    except FileNotFoundError as error:
        if not missing_is_error and getattr(getattr(error, "asked", None), "code", None) != "NoSuchBucket":
            raise
        if hasattr(error, "asked"):
            raise _as_data_error(uri, error, expected) from error
        raise DataError(
            f"nothing found at '{uri}' ({_first_line(error)}); expected {expected}; check the spelling and, for an "
            "object store, that the bucket exists"
        ) from error
    except (OSError, ImportError) as error:
        raise _as_data_error(uri, error, expected) from error
    except Exception as error:
        modules = ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec")
        if not type(error).__module__.startswith(modules):
            raise
        raise _as_data_error(uri, error, expected) from error


def _as_data_error(uri: str, error: Exception, expected: str) -> DataError:
    kind = type(error).__name__
    if kind in _NO_CREDENTIALS:
        remedy = "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or run where a role is attached"
        return DataError(f"no credentials for '{uri}' ({_first_line(error)}); expected AWS credentials; {remedy}")
    if hasattr(error, "asked"):
        from cleanscale.storage import s3_errors

        return DataError(s3_errors.describe(uri, error, expected))
    if isinstance(error, PermissionError):
        remedy = "check the credentials or the rights of this user"
        return DataError(f"access to '{uri}' was refused ({_first_line(error)}); expected {expected}; {remedy}")
    if isinstance(error, ImportError):
        remedy = "install the fsspec file system for it, or copy the data to a disk or S3"
        return DataError(f"no file system for '{uri}' is installed ({_first_line(error)}); expected one; {remedy}")
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return DataError(f"'{uri}' is {_first_line(error)}; expected {expected}; name the file or folder itself")
    if "Timeout" in kind or "Connect" in kind or "Endpoint" in kind or isinstance(error, (TimeoutError, OSError)):
        remedy = "check the network, AWS_ENDPOINT_URL and the region, and the free space if this was a write"
        return DataError(f"'{uri}' cannot be reached ({kind}: {_first_line(error)}); expected {expected}; {remedy}")
    return DataError(f"'{uri}' cannot be used ({kind}: {_first_line(error)}); expected {expected}; check the URI")


_NO_CREDENTIALS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "TokenRetrievalError",
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
    }
)
_COMMON = frozenset({"file", "s3", "gs", "gcs", "abfs", "az", "hdfs", "http", "https", "memory", "sftp", "hf"})


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
