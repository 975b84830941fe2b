"""CleanNet's TSV of features: `key [url] class [vlabel] feature,feature,...`, no header, one image a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.datasets.inputs import (
    READ_ROWS,
    Fragment,
    Plan,
    Rows,
    number,
    output_table,
    positions_of,
    runs_of,
    verification_column,
)
from cleanscale.datasets.settings import DataSettings
from cleanscale.errors import DataError
from cleanscale.storage import uris

RANGE_BYTES = 32 << 20
_HEAD_BYTES = 1 << 20
_TAIL_BYTES = 1 << 18
_THREADS = 16
_BOM = b"\xef\xbb\xbf"
_LAYOUTS = {
    3: ("id", "label", "feature"),
    "verified": ("id", "label", "verified", "feature"),
    "url": ("id", "url", "label", "feature"),
    5: ("id", "url", "label", "verified", "feature"),
}


def plan_tsv(files: Sequence[uris.StoredFile], settings: DataSettings, fingerprint: str) -> Plan:
    """Uncounted fragments of about RANGE_BYTES; a line belongs to the range in which it starts."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(_layout, files))
    known = [(file, one) for file, one in zip(files, found, strict=True) if one is not None]
    if not known:
        raise DataError(f"no line in {len(files)} TSV files; expected at least one; check the place")
    first, (layout, width) = known[0]
    for file, other in known:
        if other != known[0][1]:
            raise DataError(
                f"{file.path} has {' '.join(other[0])} with {other[1]} numbers and {first.path} has "
                f"{' '.join(layout)} with {width}; expected the same in every file; point to one kind at a time"
            )
    if settings.true_label:
        raise DataError(
            f"--data.true_label names a column and a TSV such as {files[0].path} has no names; expected no such "
            "option; leave it out, or convert the data to Parquet"
        )
    fragments = []
    for file in files:
        for start in range(0, file.size_bytes, RANGE_BYTES):
            stop = min(start + RANGE_BYTES, file.size_bytes)
            detail = {
                "path": file.path,
                "start": start,
                "stop": stop,
                "file_bytes": file.size_bytes,
                "layout": list(layout),
            }
            fragments.append(Fragment(-1, "tsv", file.uri, -1, -1, detail))
    verified = ("verified",) if "verified" in layout else ()
    columns = ("id", "label", "feature", *verified, "source", "fault")
    return Plan("tsv", number(fragments), columns, None, fingerprint, width)


def count_tsv(fragment: Fragment) -> list[Fragment]:
    """The fragment with the number of lines that start in its range."""
    return [replace(fragment, num_rows=len(_lines(fragment)))]


def read_tsv(fragment: Fragment, columns: Sequence[str], rows: Rows | None) -> Iterator[pa.Table]:
    """Tables of at most READ_ROWS rows. A line with too few or too many columns has a fault; nothing is skipped."""
    position_N = positions_of(fragment, rows)
    if not len(position_N):
        return
    lines = _lines(fragment)
    for run_N in runs_of(position_N, READ_ROWS):
        yield _table(fragment, [lines[position] for position in run_N.tolist()], run_N, columns)


def _table(fragment: Fragment, lines: list[bytes], position_N: np.ndarray, columns: Sequence[str]) -> pa.Table:
    layout = fragment.detail["layout"]
    cells: dict[str, list[str | None]] = {name: [] for name in layout}
    faults: list[str | None] = []
    for line in lines:
        parts = line.rstrip(b"\r").decode("utf-8", "replace").split("\t")
        intact = len(parts) == len(layout)
        faults.append(None if intact else "malformed line")
        for place, name in enumerate(layout):
            cells[name].append(parts[place].strip() if intact or (name == "id" and parts[0].strip()) else None)
    path, file_row = fragment.detail["path"], fragment.detail["file_row"]
    values: dict[str, Any] = {
        "id": pa.array([text or None for text in cells["id"]], pa.string()),
        "label": pa.array([text or None for text in cells["label"]], pa.string()),
        "source": pa.array([f"{path}#{file_row + position}" for position in position_N.tolist()], pa.string()),
    }
    if "feature" in columns:
        values["feature"], bad = _features(cells["feature"])
        faults = [fault or ("malformed feature" if wrong else None) for fault, wrong in zip(faults, bad, strict=True)]
    if "verified" in layout:
        values["verified"], bad_N = verification_column(pa.array(cells["verified"], pa.string()))
        why = "verification is not 0 or 1"
        faults = [fault or (why if wrong else None) for fault, wrong in zip(faults, bad_N.tolist(), strict=True)]
    values["fault"] = pa.array(faults, pa.string())
    return output_table(fragment, position_N, columns, values)


def _features(texts: list[str | None]) -> tuple[pa.Array, list[bool]]:
    """(list<float32>, null where a text is no list of numbers; which those are)."""
    vectors: list[np.ndarray | None] = []
    for text in texts:
        try:
            vectors.append(np.array(text.split(","), np.float32) if text else None)
        except ValueError:
            vectors.append(None)
    bad = [vector is None and text is not None for vector, text in zip(vectors, texts, strict=True)]
    return pa.array(vectors, pa.list_(pa.float32())), bad


def _lines(fragment: Fragment) -> list[bytes]:
    """Lines that start in [start, stop), without line feeds."""
    start, stop, file_bytes = (fragment.detail[name] for name in ("start", "stop", "file_bytes"))
    filesystem, path = uris.open_filesystem(fragment.uri)
    with uris.translate_errors(fragment.uri):
        content = filesystem.cat_file(path, start=max(start - 1, 0), end=stop)
        while not content.endswith(b"\n") and stop < file_bytes:
            more = filesystem.cat_file(path, start=stop, end=min(stop + _TAIL_BYTES, file_bytes))
            end = more.find(b"\n") + 1
            content += more[:end] if end else more
            stop += len(more)
    if start == 0:
        content = content.removeprefix(_BOM)
    else:
        first = content.find(b"\n") + 1
        content = content[first:] if first else b""
    lines = content.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def _layout(file: uris.StoredFile) -> tuple[tuple[str, ...], int] | None:
    """(names of the columns, numbers in a feature) by most of the first lines; None for an empty file."""
    if not file.size_bytes:
        return None
    filesystem, path = uris.open_filesystem(file.uri)
    with uris.translate_errors(file.uri):
        head = filesystem.cat_file(path, start=0, end=min(_HEAD_BYTES, file.size_bytes)).removeprefix(_BOM)
    lines = head.split(b"\n")
    whole = lines[:-1] if len(head) == _HEAD_BYTES and len(lines) > 1 else lines
    rows = [line.rstrip(b"\r").decode("utf-8", "replace").split("\t") for line in whole if line.strip()]
    if not rows:
        return None
    num_columns = Counter(len(row) for row in rows).most_common(1)[0][0]
    if num_columns not in (3, 4, 5):
        raise DataError(
            f"{file.path} has {num_columns} columns between tabs; expected 3 to 5: key [url] class [vlabel] "
            "feature,feature,...; write it so, or convert it to Parquet"
        )
    rows = [row for row in rows if len(row) == num_columns]
    width = Counter(row[-1].count(",") + 1 for row in rows).most_common(1)[0][0]
    if num_columns != 4:
        return _LAYOUTS[num_columns], width
    # by most lines: one wrong value must not turn verification labels into class names
    has_url = 2 * sum("://" in row[1] for row in rows) > len(rows)
    is_verification = not has_url and 2 * sum(row[2].strip() in ("-1", "0", "1") for row in rows) > len(rows)
    return _LAYOUTS["verified" if is_verification else "url"], width
