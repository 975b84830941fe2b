"""A tree of class folders: the class is the first folder's name, the id the path below the root."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from cleanscale.datasets.inputs import READ_ROWS, Fragment, Plan, Rows, number, output_table, positions_of, runs_of
from cleanscale.datasets.settings import DataSettings
from cleanscale.errors import DataError
from cleanscale.storage import uris

# Files are opened one by one, so a fragment is smaller than a Parquet one.
FOLDER_ROWS = 1024
LISTING = "listing.parquet"


def plan_folder(
    root_uri: str, files: Sequence[uris.StoredFile], settings: DataSettings, workspace_uri: str, fingerprint: str
) -> Plan:
    """Write the listing once, as Parquet with a row group per fragment; fragments name a row group of it."""
    paths = [file.path for file in files]
    labels = [path.split("/", 1)[0] if "/" in path else None for path in paths]
    names = tuple(sorted({label for label in labels if label is not None}))
    if not names:
        raise DataError(
            f"{len(paths)} images stand directly in '{root_uri}'; expected a folder for each class; move them into "
            "class folders, or name the folder above with --data.train"
        )
    for option in ("verified", "true_label"):
        if getattr(settings, option):
            raise DataError(
                f"--data.{option} names a column, and class folders in '{root_uri}' have none; expected no such "
                "option; leave it out, or give verification labels as a table with --data.verification"
            )
    sink = io.BytesIO()
    pq.write_table(pa.table({"path": paths, "label": labels}), sink, row_group_size=FOLDER_ROWS, compression="zstd")
    listing_uri = uris.join(workspace_uri, LISTING)
    uris.write_bytes(listing_uri, sink.getvalue())
    fragments = number(
        Fragment(
            -1, "folder", root_uri, -1, min(FOLDER_ROWS, len(paths) - start), {"listing": listing_uri, "group": group}
        )
        for group, start in enumerate(range(0, len(paths), FOLDER_ROWS))
    )
    return Plan("folder", fragments, ("id", "label", "image", "source", "fault"), names, fingerprint)


def read_folder(fragment: Fragment, columns: Sequence[str], rows: Rows | None) -> Iterator[pa.Table]:
    """Tables of at most READ_ROWS rows; a file that is gone since the listing has a null image and a fault."""
    position_N = positions_of(fragment, rows)
    if not len(position_N):
        return
    with uris.open_read(fragment.detail["listing"]) as handle:
        listing = pq.ParquetFile(handle).read_row_group(fragment.detail["group"])
    for run_N in runs_of(position_N, READ_ROWS if "image" in columns else FOLDER_ROWS):
        part = listing.take(pa.array(run_N))
        paths = part.column("path").to_pylist()
        values: dict[str, Any] = {
            "id": part.column("path"),
            "source": part.column("path"),
            "label": part.column("label"),
        }
        if "image" in columns:
            images = _contents(fragment.uri, paths)
            values["image"] = pa.array(images, pa.binary())
            gone = ["missing image" if image is None else None for image in images]
            values["fault"] = pa.array(gone, pa.string())
        yield output_table(fragment, np.asarray(run_N), columns, values)


def _contents(root_uri: str, paths: list[str]) -> list[bytes | None]:
    filesystem, root = uris.open_filesystem(root_uri)
    if isinstance(filesystem, LocalFileSystem):
        return [_local_content(Path(root, path)) for path in paths]
    full = [f"{root.rstrip('/')}/{path}" for path in paths]
    with uris.translate_errors(root_uri):
        found = filesystem.cat(full, on_error="return")
    images: list[bytes | None] = []
    for name in full:
        value = found.get(name, found.get(filesystem._strip_protocol(name)))
        if isinstance(value, BaseException) and not isinstance(value, FileNotFoundError):
            with uris.translate_errors(root_uri):
                raise value
        images.append(value if isinstance(value, bytes) else None)
    return images


def _local_content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read ({error}); expected an image file; check the disk and rights"
        ) from error
