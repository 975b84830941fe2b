"""WebDataset tars: consecutive members with one key are a sample, `<key>.jpg`, `<key>.cls`, `<key>.json`, `<key>.txt`.

The id is the key. The label is the text of `.cls`, else `label` in `.json`, else the text of `.txt`.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.datasets.inputs import (
    FRAGMENT_BYTES,
    IMAGE_SUFFIXES,
    READ_ROWS,
    Fragment,
    Plan,
    Rows,
    number,
    output_table,
    positions_of,
    verification_column,
)
from cleanscale.datasets.settings import DataSettings
from cleanscale.errors import DataError
from cleanscale.storage import uris

TAR_ROWS = 2048
_BLOCK = 512  # a tar's unit
_LOOKED_AT = 100  # samples that planning looks at to learn what the tars hold
_KEY_AND_EXTENSION = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]*)$")
# Of a tar that is elsewhere: read in several parts at a time. Its first samples say little more than its first bytes.
_READ_AHEAD_BYTES, _FIRST_BYTES = 32 << 20, 1 << 20


@dataclass
class _Sample:
    """One key's members: extension -> (offset of the content, bytes). `offset` is its first header's place."""

    uri: str
    handle: Any
    key: str
    offset: int
    members: dict[str, tuple[int, int]] = field(default_factory=dict)

    def image(self) -> str | None:
        """The first extension that is an image's."""
        return next((one for one in self.members if f".{one.rpartition('.')[2]}" in IMAGE_SUFFIXES), None)

    def content(self, extension: str) -> bytes:
        """The bytes of one member."""
        offset, num_bytes = self.members[extension]
        self.handle.seek(offset)
        content = self.handle.read(num_bytes)
        if len(content) != num_bytes:
            raise DataError(f"'{self.uri}' ends inside {self.key}.{extension}; expected an intact tar; copy it again")
        return content

    def fields(self) -> dict[str, Any] | None:
        """The object in `.json`; {} without one, None when it is damaged."""
        if "json" not in self.members:
            return {}
        try:
            fields = json.loads(self.content("json"))
        except ValueError:
            return None
        return fields if isinstance(fields, dict) else None

    def label(self, name: str) -> Any:
        """Text or number, None when the sample has no label."""
        if "cls" in self.members:
            return _text(self.content("cls"))
        value = (self.fields() or {}).get(name)
        if value is None and "txt" in self.members:
            return _text(self.content("txt"))
        return value


def plan_webdataset(files: Sequence[uris.StoredFile], settings: DataSettings, fingerprint: str) -> Plan:
    """One uncounted fragment for each tar; the first samples say whether labels are integers or names."""
    sources = _label_source(files[0], settings)
    detail = {"path": "", "start": 0, "stop": None, "label_kind": sources}
    fragments = number([Fragment(-1, "webdataset", file.uri, -1, -1, detail | {"path": file.path}) for file in files])
    optional = tuple(name for name in ("true_label", "verified") if getattr(settings, name))
    return Plan("webdataset", fragments, ("id", "label", "image", *optional, "source", "fault"), None, fingerprint)


def count_webdataset(fragment: Fragment) -> list[Fragment]:
    """Read the tar's headers and cut it into fragments of TAR_ROWS samples or FRAGMENT_BYTES, by places in the file."""
    pieces: list[Fragment] = []
    start, num_rows, stop = 0, 0, 0

    def piece(start: int, stop: int | None, num_rows: int) -> Fragment:
        return replace(fragment, num_rows=num_rows, detail=fragment.detail | {"start": start, "stop": stop})

    with uris.open_read(fragment.uri, _READ_AHEAD_BYTES) as handle:
        for sample in _samples(handle, fragment.uri, 0, None):
            if num_rows == 0:
                start = sample.offset
            elif num_rows >= TAR_ROWS or sample.offset - start >= FRAGMENT_BYTES:
                pieces.append(piece(start, sample.offset, num_rows))
                start, num_rows = sample.offset, 0
            num_rows += 1
            stop = None
    if num_rows:
        pieces.append(piece(start, stop, num_rows))
    return pieces


def read_webdataset(
    fragment: Fragment, settings: DataSettings, columns: Sequence[str], rows: Rows | None
) -> Iterator[pa.Table]:
    """Tables of at most READ_ROWS rows; headers are passed over, and only the asked members of asked rows are read."""
    position_N = positions_of(fragment, rows)
    if not len(position_N):
        return
    asked, last = set(position_N.tolist()), int(position_N[-1])
    taken: list[tuple[int, dict[str, Any]]] = []
    with uris.open_read(fragment.uri, _READ_AHEAD_BYTES) as handle:
        samples = _samples(handle, fragment.uri, fragment.detail["start"], fragment.detail["stop"])
        for position, sample in enumerate(samples):
            if position in asked:
                taken.append((position, _row(sample, fragment, settings, columns)))
            if len(taken) == READ_ROWS or (position == last and taken):
                yield _table(fragment, taken, columns)
                taken = []
            if position >= last:
                return
    raise DataError(
        f"'{fragment.uri}' has fewer samples than when it was counted; expected {fragment.num_rows}; "
        "leave the data as it is during a run, then start again"
    )


def _samples(handle: Any, uri: str, start: int, stop: int | None) -> Iterator[_Sample]:
    """Samples whose headers lie in [start, stop). A damaged header is an error: tarfile itself would end quietly."""
    handle.seek(start)
    current: _Sample | None = None
    try:
        with tarfile.open(fileobj=handle, mode="r:") as tar:
            while (member := tar.next()) is not None and (stop is None or member.offset < stop):
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - tarfile would keep every header of a large tar
                match = _KEY_AND_EXTENSION.match(member.name)
                if not member.isfile() or match is None:
                    continue
                key, extension = match.group(1), match.group(2).lower()
                if current is None or current.key != key or extension in current.members:
                    if current is not None:
                        yield current
                    current = _Sample(uri, handle, key, member.offset)
                current.members[extension] = (member.offset_data, member.size)
            end = tar.offset if member is None else None
        if end is not None:
            _check_end(handle, uri, end)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"'{uri}' cannot be read as a tar ({error}); expected an intact, uncompressed tar; copy it again"
        ) from error
    if current is not None:
        yield current


def _check_end(handle: Any, uri: str, end: int) -> None:
    """Where headers end there must be the end of the file or a block of zeros."""
    handle.seek(end)
    if handle.read(_BLOCK).strip(b"\0"):
        raise DataError(
            f"'{uri}' has a damaged header near byte {end}; expected an intact tar; copy it again or leave it out"
        )


def _row(sample: _Sample, fragment: Fragment, settings: DataSettings, columns: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": sample.key, "source": f"{fragment.detail['path']}/{sample.key}"}
    own_id = settings.id != DataSettings.model_fields["id"].default
    wants_json = {"true_label", "verified", "fault"} & set(columns) or ("id" in columns and own_id)
    fields = sample.fields() if wants_json and _optional(settings, own_id) else {}
    if fields is None:
        row["fault"] = "malformed json"
        fields = {}
    if own_id:
        row["id"] = None if fields.get(settings.id) is None else str(fields[settings.id])
    if "label" in columns:
        row["label"], fault = _as_kind(sample.label(settings.label), fragment.detail["label_kind"])
        row["fault"] = row.get("fault") or fault
    if "true_label" in columns:
        row["true_label"], _ = _as_kind(fields.get(settings.true_label or ""), fragment.detail["label_kind"])
    if settings.verified:
        row["verified"] = fields.get(settings.verified)
    if "image" in columns:
        extension = sample.image()
        row["image"] = sample.content(extension) if extension else None
    if sample.image() is None:
        row["fault"] = row.get("fault") or "missing image"
    return row


def _optional(settings: DataSettings, own_id: bool) -> bool:
    return own_id or settings.true_label is not None or settings.verified is not None


def _table(fragment: Fragment, taken: list[tuple[int, dict[str, Any]]], columns: Sequence[str]) -> pa.Table:
    label = pa.int64() if fragment.detail["label_kind"] == "integer" else pa.string()
    kinds = {"image": pa.binary(), "label": label, "true_label": label}
    rows = [row for _, row in taken]
    values: dict[str, Any] = {
        name: pa.array([row.get(name) for row in rows], kinds.get(name, pa.string()))
        for name in columns
        if name not in ("verified", "fault")
    }
    texts = [None if row.get("verified") is None else str(row["verified"]) for row in rows]
    values["verified"], bad_N = verification_column(pa.array(texts, pa.string()))
    faults = [
        row.get("fault") or ("verification is not 0 or 1" if bad else None)
        for row, bad in zip(rows, bad_N.tolist(), strict=True)
    ]
    values["fault"] = pa.array(faults, pa.string())
    return output_table(fragment, np.array([position for position, _ in taken]), columns, values)


def _text(content: bytes) -> str | None:
    return content.decode("utf-8", "replace").lstrip("\ufeff").strip() or None


def _as_kind(value: Any, kind: str) -> tuple[Any, str | None]:
    """(label as int or str, or None; why not)."""
    if value is None:
        return None, None
    if isinstance(value, (dict, list, bool, float)):
        return None, "unknown label"
    if kind == "string":
        return str(value), None
    number_ = _integer(value)
    return number_, None if number_ is not None else "unknown label"


def _integer(value: Any) -> int | None:
    try:
        number_ = int(value)
    except ValueError:
        return None
    return number_ if -(2**63) <= number_ < 2**63 else None


def _label_source(file: uris.StoredFile, settings: DataSettings) -> str:
    """'integer' or 'string': what the first labelled samples carry."""
    seen: set[str] = set()
    with uris.open_read(file.uri, _FIRST_BYTES) as handle:
        for position, sample in enumerate(_samples(handle, file.uri, 0, None)):
            seen |= set(sample.members)
            value = sample.label(settings.label)
            if value is not None and sample.image() is not None:
                from_text = "cls" not in sample.members and isinstance(value, str)
                return "string" if from_text or _integer(value) is None else "integer"
            if position >= _LOOKED_AT:
                break
    raise DataError(
        f"no image with a label among the first samples of '{file.path}' (members: {', '.join(sorted(seen)) or 'none'}"
        f"); expected an image and .cls, .txt or .json with '{settings.label}' under one key; name it with --data.label"
    )
