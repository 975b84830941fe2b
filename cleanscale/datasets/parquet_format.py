"""Parquet with encoded images (plain bytes or the Hugging Face layout) or with features."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cleanscale.datasets.inputs import (
    FRAGMENT_BYTES,
    FRAGMENT_ROWS,
    READ_ROWS,
    Fragment,
    Plan,
    Rows,
    is_label_list_type,
    is_label_type,
    is_list_type,
    label_column,
    number,
    output_table,
    positions_of,
    verification_column,
)
from cleanscale.datasets.settings import DataSettings
from cleanscale.errors import DataError
from cleanscale.storage import uris

PARQUET_SUFFIXES = (".parquet", ".pq")
_FOOTER_THREADS = 16
# A remote row group up to this size is fetched in a few large requests; a larger one is streamed.
_PREFETCH_BYTES = 512 << 20


def plan_parquet(files: Sequence[uris.StoredFile], settings: DataSettings, fingerprint: str) -> Plan:
    """Cut Parquet files into fragments after checking the columns of every one of them."""
    files = [file for file in files if not any(part.startswith("_") for part in file.path.split("/"))]
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda file: _footer(file.uri), files))
    first = footers[0][1]
    kind = "features" if _is_features(first, settings) else "parquet"
    for file, (_, schema) in zip(files, footers, strict=True):
        _check_columns(schema, file.path, kind, settings)
        _check_same_label_kind(first, schema, files[0].path, file.path, settings)
    names = _class_names(first, settings.label)
    widths = {_feature_width(file, *footer, settings) for file, footer in zip(files, footers, strict=True)}
    widths.discard(None)
    if kind == "features" and len(widths) > 1:
        raise DataError(
            f"features of {sorted(filter(None, widths))} numbers in one data set; expected one; extract them alike"
        )
    pieces = (piece for file, footer in zip(files, footers, strict=True) for piece in _cut(file, footer[0], kind))
    return Plan(kind, number(pieces), _available(kind, settings), names, fingerprint, next(iter(widths), None))


def read_parquet(
    fragment: Fragment, settings: DataSettings, columns: Sequence[str], rows: Rows | None
) -> Iterator[pa.Table]:
    """Tables of at most READ_ROWS images, FRAGMENT_ROWS features or 65536 rows without; only asked columns are read."""
    position_N = positions_of(fragment, rows)
    if not len(position_N):
        return
    path, detail = str(fragment.detail["path"]), fragment.detail
    at_once = READ_ROWS if "image" in columns else FRAGMENT_ROWS if "feature" in columns else 65536
    with _opened(fragment.uri, detail["bytes"]) as file:
        schema = file.schema_arrow
        leaves = _leaves(schema, columns, settings)
        batches: Iterator[Any] = (
            file.iter_batches(
                at_once,
                row_groups=list(range(detail["group_start"], detail["group_stop"])),
                columns=leaves,
            )
            if leaves
            else _without_columns(len(position_N) + int(position_N[0]) + detail["skip"])
        )
        with uris.translate_errors(fragment.uri), _readable(fragment.uri):
            for batch_position_N, batch in _wanted(batches, position_N, detail["skip"]):
                values = _values(batch, path, detail["file_row"] + batch_position_N, columns, settings)
                yield output_table(fragment, batch_position_N, columns, values)


def _wanted(batches: Iterator[Any], position_N: np.ndarray, skip: int) -> Iterator[tuple[np.ndarray, Any]]:
    """(positions, their rows) for each batch that holds asked positions; `skip` rows precede the fragment."""
    start = -skip
    for batch in batches:
        stop = start + batch.num_rows
        mine_N = position_N[(position_N >= start) & (position_N < stop)]
        if len(mine_N) == batch.num_rows:
            yield mine_N, batch
        elif len(mine_N) == mine_N[-1:].sum() - mine_N[:1].sum() + 1:
            yield mine_N, batch.slice(int(mine_N[0]) - start, len(mine_N))
        elif len(mine_N):
            yield mine_N, batch.take(pa.array(mine_N - start))
        start = stop
        if start > position_N[-1]:
            return


def _without_columns(num_rows: int) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_arrays([pa.nulls(num_rows)], ["nothing"])


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError, TimeoutError, ConnectionError):
        raise  # not the file's fault: uris.translate_errors speaks of the place
    except (pa.ArrowException, OSError) as error:
        if hasattr(error, "asked"):
            raise
        raise DataError(
            f"'{uri}' cannot be read as Parquet ({_short(error)}); expected an intact Parquet file; copy it again"
        ) from error


@contextlib.contextmanager
def _opened(uri: str, group_bytes: int) -> Iterator[pq.ParquetFile]:
    remote = not uris.is_local(uri)
    prefetch = remote and group_bytes <= _PREFETCH_BYTES
    buffer_bytes = 0 if prefetch or not remote else 8 << 20
    with contextlib.ExitStack() as opened:
        with uris.translate_errors(uri), _readable(uri):
            # The file itself where it is elsewhere: pyarrow would ask what it is before it opens it.
            filesystem, path = uris.arrow_filesystem(uri)
            source = opened.enter_context(uris.open_read(uri)) if remote else filesystem.open_input_file(path)
            file = opened.enter_context(pq.ParquetFile(source, pre_buffer=prefetch, buffer_size=buffer_bytes))
        yield file


def _footer(uri: str) -> tuple[pq.FileMetaData, pa.Schema]:
    with _opened(uri, 0) as file:
        return file.metadata, file.schema_arrow


def _cut(file: uris.StoredFile, metadata: pq.FileMetaData, kind: str) -> Iterator[Fragment]:
    """Small row groups together, large ones by ranges of rows.

    A range inside a row group is found by reading over what precedes it (Parquet's pages carry no usable index in
    pyarrow), so groups are split only when they hold more than two fragments' worth.
    """
    together: list[tuple[int, int, int]] = []  # group, rows, bytes

    def fragment(groups: list[tuple[int, int, int]], skip: int, num_rows: int) -> Fragment:
        detail = {
            "path": file.path,
            "group_start": groups[0][0],
            "group_stop": groups[-1][0] + 1,
            "skip": skip,
            "bytes": sum(group[2] for group in groups),
        }
        return Fragment(-1, kind, file.uri, -1, num_rows, detail)

    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        here = (index, group.num_rows, group.total_byte_size)
        rows_together = sum(one[1] for one in together)
        bytes_together = sum(one[2] for one in together)
        if together and (rows_together + here[1] > FRAGMENT_ROWS or bytes_together + here[2] > FRAGMENT_BYTES):
            yield fragment(together, 0, rows_together)
            together = []
        if here[1] > 2 * FRAGMENT_ROWS:
            parts = -(-here[1] // FRAGMENT_ROWS)
            edges = np.linspace(0, here[1], parts + 1).astype(int)
            for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                yield fragment([here], start, stop - start)
        elif here[1]:
            together.append(here)
    if together:
        yield fragment(together, 0, sum(one[1] for one in together))


def _is_features(schema: pa.Schema, settings: DataSettings) -> bool:
    if settings.format in ("parquet", "features"):
        return settings.format == "features"
    return settings.image not in schema.names and settings.feature in schema.names


def _check_columns(schema: pa.Schema, path: str, kind: str, settings: DataSettings) -> None:
    content = "feature" if kind == "features" else "image"
    needed = {content: getattr(settings, content), "label": settings.label}
    needed |= {name: getattr(settings, name) for name in ("true_label", "verified") if getattr(settings, name)}
    if settings.id != DataSettings.model_fields["id"].default:
        needed["id"] = settings.id
    for option, name in needed.items():
        if name not in schema.names:
            raise DataError(
                f"no column '{name}' in {path} (columns: {', '.join(schema.names)}); expected it to hold the {option}; "
                f"name the right column with --data.{option}"
            )
    tests = {
        "label": (is_label_list_type, "integer or string, or lists of them", "cast it"),
        "true_label": (is_label_list_type, "integer or string, or lists of them", "cast it"),
        "image": (_is_image_type, "binary or struct<bytes, path>", "store the encoded image (JPEG, PNG) bytes"),
        "feature": (_is_feature_type, "a list of floats", "store one vector for each row"),
        "verified": (_is_verification_type, "integer, boolean or string", "cast it"),
        "id": (lambda kind: _is_id_type(kind), "string or integer", "cast it"),
    }
    for option, (accepts, expected, remedy) in tests.items():
        name = needed.get(option) or (settings.id if option == "id" and settings.id in schema.names else None)
        if name is not None and not accepts(schema.field(name).type):
            raise DataError(
                f"'{name}' is {_type_name(schema.field(name).type)} in {path}; expected {expected}; {remedy} or name "
                f"another column with --data.{option}"
            )
    _check_lists(schema, path, settings)


def _check_lists(schema: pa.Schema, path: str, settings: DataSettings) -> None:
    """What goes with lists of labels: true labels too are lists, and a verdict needs a label beside it."""
    several = is_list_type(schema.field(settings.label).type)
    if settings.true_label and is_list_type(schema.field(settings.true_label).type) != several:
        one, other = ("lists", "one label") if several else ("one label", "lists")
        raise DataError(
            f"'{settings.label}' has {one} for each image and '{settings.true_label}' {other} in {path}; expected both "
            "alike; cast one of them"
        )
    if settings.verified and several:
        raise DataError(
            f"'{settings.label}' has lists of labels in {path} and '{settings.verified}' one verdict for each image; "
            "expected a verdict for each label; give a table id, label, verified with --data.verification instead"
        )


def _check_same_label_kind(
    first: pa.Schema, other: pa.Schema, first_path: str, path: str, settings: DataSettings
) -> None:
    kinds = [label_column(pa.array([], schema.field(settings.label).type)).type for schema in (first, other)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"'{settings.label}' is {kinds[0]} in {first_path} and {kinds[1]} in {path}; expected one kind of label; "
            "cast one of them"
        )


def _is_id_type(kind: pa.DataType) -> bool:
    return is_label_type(kind)


def _is_image_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return "bytes" in names and _is_image_type(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_feature_type(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _is_verification_type(kind: pa.DataType) -> bool:
    return is_label_type(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)


def _type_name(kind: pa.DataType) -> str:
    return {"double": "float64", "float": "float32", "halffloat": "float16"}.get(str(kind), str(kind))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Names of a Hugging Face ClassLabel, which stand in the schema's metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    if not text:
        return None
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        feature = json.loads(text)["info"]["features"].get(label, {})
        feature = feature.get("feature", feature)  # of a list of labels
        if feature.get("_type") == "ClassLabel" and feature.get("names"):
            return tuple(str(name) for name in feature["names"])
    return None


def _feature_width(
    file: uris.StoredFile, metadata: pq.FileMetaData, schema: pa.Schema, settings: DataSettings
) -> int | None:
    if not _is_features(schema, settings) or settings.feature not in schema.names or metadata.num_rows == 0:
        return None
    kind = schema.field(settings.feature).type
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size
    with _opened(file.uri, 0) as opened, _readable(file.uri):
        for batch in opened.iter_batches(64, columns=[settings.feature]):
            lengths = pc.list_value_length(batch.column(0)).drop_null()
            if len(lengths):
                return int(pc.mode(lengths)[0]["mode"].as_py())
    return None


def _available(kind: str, settings: DataSettings) -> tuple[str, ...]:
    optional = tuple(name for name in ("true_label", "verified") if getattr(settings, name))
    return ("id", "label", "feature" if kind == "features" else "image", *optional, "source", "fault")


def _leaves(schema: pa.Schema, columns: Sequence[str], settings: DataSettings) -> list[str]:
    """Names to read: of a Hugging Face image only the bytes."""
    leaves = []
    for option in ("id", "label", "image", "feature", "true_label", "verified"):
        needed = option in columns or (option == "verified" and "fault" in columns)
        name = getattr(settings, option)
        if needed and name in schema.names:
            is_struct = option == "image" and pa.types.is_struct(schema.field(name).type)
            leaves.append(f"{name}.bytes" if is_struct else name)
    return leaves


def _values(
    batch: Any, path: str, file_row_N: np.ndarray, columns: Sequence[str], settings: DataSettings
) -> dict[str, Any]:
    names = batch.schema.names
    values: dict[str, Any] = {}
    if "source" in columns or ("id" in columns and settings.id not in names):
        values["source"] = pa.array([f"{path}#{row}" for row in file_row_N.tolist()], pa.string())
    for option in columns:
        name = getattr(settings, option, None)
        if option == "id":
            values["id"] = pc.cast(batch.column(name), pa.string()) if name in names else values["source"]
        elif option in ("label", "true_label"):
            values[option] = label_column(batch.column(name))
        elif option == "image":
            column = batch.column(name)
            column = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
            values["image"] = pc.cast(column, pa.binary())
        elif option == "feature":
            values["feature"] = _feature_values(batch.column(name))
    if settings.verified in names:
        values["verified"], bad_N = verification_column(batch.column(settings.verified))
        reasons = ["verification is not 0 or 1" if bad else None for bad in bad_N.tolist()]
        values["fault"] = pa.array(reasons, pa.string())
    return values


def _feature_values(column: pa.Array) -> pa.Array:
    """list<float32>, whatever list and number type the file has."""
    return pc.cast(column, pa.list_(pa.float32()), safe=False)


def _short(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
