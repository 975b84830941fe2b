"""Any accepted input as fragments: `plan_fragments` cuts it, `read_fragment` reads a piece. Nothing is decoded here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from cleanscale.datasets.folder_format import plan_folder, read_folder
from cleanscale.datasets.inputs import (
    COLUMNS,
    IMAGE_SUFFIXES,
    Fragment,
    Plan,
    Rows,
    asked_columns,
)
from cleanscale.datasets.parquet_format import PARQUET_SUFFIXES, plan_parquet, read_parquet
from cleanscale.datasets.settings import DataSettings
from cleanscale.datasets.tsv_format import count_tsv, plan_tsv, read_tsv
from cleanscale.datasets.webdataset_format import count_webdataset, plan_webdataset, read_webdataset
from cleanscale.errors import DataError
from cleanscale.storage import uris

__all__ = ["COLUMNS", "Fragment", "Plan", "Rows", "count_rows", "plan_fragments", "read_fragment"]

_SUFFIXES = {
    "parquet": PARQUET_SUFFIXES,
    "features": PARQUET_SUFFIXES,
    "folder": IMAGE_SUFFIXES,
    "webdataset": (".tar",),
    "tsv": (".tsv",),
}
_KINDS = {"Parquet": "parquet", "image": "folder", "tar": "webdataset", "TSV": "tsv"}


def plan_fragments(data_uri: str, settings: DataSettings, workspace_uri: str) -> Plan:
    """Cut the data at `data_uri` into fragments; what needs a place for itself (a listing) goes to `workspace_uri`.

    Only footers and listings are read, so tars and TSV files have fragments with num_rows -1: map `count_rows` over
    them and give the answers to `Plan.with_counts`. A wrong place, file or column is a DataError.
    """
    listing = uris.list_files(data_uri)
    kind = settings.format if settings.format != "auto" else _detect(data_uri, listing)
    files = [file for file in listing if file.path.lower().endswith(_SUFFIXES[kind])]
    if not files:
        raise DataError(
            f"no {' or '.join(_SUFFIXES[kind])} file among {len(listing)} files at '{data_uri}'; expected some because "
            f"--data.format is {kind}; correct the place or the format"
        )
    fingerprint = uris.fingerprint_files(files)
    if kind in ("parquet", "features"):
        plan = plan_parquet(files, settings, fingerprint)
    elif kind == "folder":
        plan = plan_folder(data_uri, files, settings, workspace_uri, fingerprint)
    elif kind == "webdataset":
        plan = plan_webdataset(files, settings, fingerprint)
    else:
        plan = plan_tsv(files, settings, fingerprint)
    if not plan.fragments:
        raise DataError(f"no rows in the {len(files)} files at '{data_uri}'; expected at least one; check the place")
    return plan


def count_rows(fragment: Fragment) -> list[Fragment]:
    """The fragment with its rows counted, cut into several when it is large; for `Plan.with_counts`."""
    if fragment.format == "webdataset":
        return count_webdataset(fragment)
    if fragment.format == "tsv":
        return count_tsv(fragment)
    return [fragment]


def read_fragment(
    fragment: Fragment,
    settings: DataSettings,
    columns: Sequence[str] = ("id", "label", "image"),
    rows: Rows | None = None,
) -> Iterator[pa.Table]:
    """Tables of `row` and the asked columns (names: COLUMNS), in order of rows, a few hundred rows each.

    row int64; id, source, fault string; label and true_label int64 or string as stored; image binary, still encoded;
    feature list<float32>; verified int8. `rows`: absolute rows (a range or an array), those outside are ignored.
    Only what is asked is read, so reading labels costs no image bytes.
    """
    wanted = asked_columns(columns)
    if fragment.format in ("parquet", "features"):
        return read_parquet(fragment, settings, wanted, rows)
    if fragment.format == "webdataset":
        return read_webdataset(fragment, settings, wanted, rows)
    if fragment.format == "tsv":
        return read_tsv(fragment, wanted, rows)
    return read_folder(fragment, wanted, rows)


def _detect(data_uri: str, listing: Sequence[uris.StoredFile]) -> str:
    counts = {
        name: sum(file.path.lower().endswith(_SUFFIXES[kind]) for file in listing) for name, kind in _KINDS.items()
    }
    found = {name: count for name, count in counts.items() if count}
    if len(found) == 1:
        return _KINDS[next(iter(found))]
    if found:
        what = ", ".join(f"{count} {name}" for name, count in found.items())
        raise DataError(
            f"several kinds of files at '{data_uri}' ({what}); expected one kind; name it with --data.format or point "
            "to the folder that has it"
        )
    example = f", such as '{listing[0].path}'" if listing else ""
    raise DataError(
        f"{len(listing)} files at '{data_uri}'{example} and none that can be read; expected Parquet, .tar, .tsv or "
        "folders of images; correct the place (compressed tars must be unpacked)"
    )
