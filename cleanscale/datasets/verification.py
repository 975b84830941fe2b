"""The user's verification table (Parquet or CSV) and its join to the ingested images."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported, where pyright does not see them)
from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cleanscale.datasets.inputs import is_label_type, label_column, verification_column
from cleanscale.datasets.labels import MISSING, LabelMap
from cleanscale.datasets.rejects import Reason, rejected_rows
from cleanscale.errors import DataError
from cleanscale.schema import REJECTED, UNSEEN
from cleanscale.storage import uris

_TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
_PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class Verification:
    """Usable rows of a verification table, and those that are not.

    `table`: id string, verified int8 (1 the noisy label is right, 0 wrong), label and verified_label as text (null
    when not given), source. `rejected` has the contract's columns.
    """

    table: pa.Table
    rejected: pa.Table


@dataclass(frozen=True)
class Joined:
    """What a verification table says about some images (N, in their order).

    verified_N int8: 1, 0 or -1 nobody looked. verified_label_N int32: the class the person named, -1 none.
    used_M: rows of the verification table that were decided here, whether used or rejected.
    """

    verified_N: np.ndarray
    verified_label_N: np.ndarray
    used_M: np.ndarray
    rejected: pa.Table


def read_verification(uri: str) -> Verification:
    """Read `id, verified[, label][, verified_label]` from a Parquet or CSV file, or from a folder of them.

    CSV may have a byte-order mark, CRLF, spaces around cells, and `,`, `;` or tabs between them; it needs a header.
    """
    files = [file for file in uris.list_files(uri) if file.path.lower().endswith((*_TEXT_SUFFIXES, *_PARQUET_SUFFIXES))]
    if not files:
        raise DataError(
            f"no Parquet or CSV file at '{uri}'; expected a verification table; correct --data.verification"
        )
    read = [_read_file(file) for file in files]
    return Verification(
        pa.concat_tables([one.table for one in read]),
        pa.concat_tables([one.rejected for one in read]),
    )


def join_verification(images: pa.Table, verification: pa.Table, label_map: LabelMap) -> Joined:
    """Verification labels of `images` (id, label int32: accepted rows of any part of the data).

    Duplicates that agree are merged. Rejected: two that disagree, one that names another label than the image has, one
    whose verified_label contradicts its own verdict. Rows for images of other parts are left to those parts;
    `never_used` tells in the end which found no image anywhere.
    """
    num_images = images.num_rows
    verified_N = np.full(num_images, UNSEEN, np.int8)
    verified_label_N = np.full(num_images, -1, np.int32)
    here_M = np.flatnonzero(np.asarray(pc.is_in(verification.column("id"), value_set=images.column("id"))))
    mine = verification.take(pa.array(here_M))
    image_M = np.asarray(pc.index_in(mine.column("id"), value_set=images.column("id"))).astype(np.int64)
    image_label_M = np.asarray(images.column("label")).astype(np.int64)[image_M]
    label_M = label_map.encode_text(mine.column("label"))
    named_M = label_map.encode_text(mine.column("verified_label"))
    verdict_M = np.asarray(mine.column("verified")).astype(np.int64)

    reason_M = np.full(len(here_M), "", object)
    reason_M[(label_M != MISSING) & (label_M != image_label_M)] = str(Reason.VERIFICATION_LABEL)
    contradicts_M = (named_M != MISSING) & ((named_M == image_label_M) != (verdict_M == 1))
    reason_M[contradicts_M & (reason_M == "")] = str(Reason.VERIFICATION_CONTRADICTION)
    good_M = reason_M == ""
    disagree_N = _disagreeing(num_images, image_M[good_M], verdict_M[good_M], named_M[good_M])
    reason_M[good_M & disagree_N[image_M]] = str(Reason.VERIFICATION_DISAGREES)
    good_M = reason_M == ""
    verified_N[image_M[good_M]] = verdict_M[good_M]
    with_name_M = good_M & (named_M >= 0)
    verified_label_N[image_M[with_name_M]] = named_M[with_name_M]
    return Joined(verified_N, verified_label_N, here_M, rejected_rows(mine, [reason or None for reason in reason_M]))


def _disagreeing(num_images: int, image_M: np.ndarray, verdict_M: np.ndarray, named_M: np.ndarray) -> np.ndarray:
    """bool [N]: images about which two verdicts, or two named classes, differ."""
    disagree_N = np.zeros(num_images, bool)
    for value_M, counts_M in ((verdict_M, np.ones(len(image_M), bool)), (named_M, named_M != MISSING)):
        low_N = np.full(num_images, np.iinfo(np.int64).max)
        high_N = np.full(num_images, np.iinfo(np.int64).min)
        np.minimum.at(low_N, image_M[counts_M], value_M[counts_M])
        np.maximum.at(high_N, image_M[counts_M], value_M[counts_M])
        disagree_N |= low_N < high_N
    return disagree_N


def never_used(verification: pa.Table, used: Iterable[np.ndarray]) -> pa.Table:
    """The `rejected` rows of verifications whose image is in no part; `used`: the parts' `Joined.used_M`."""
    unknown_M = np.ones(verification.num_rows, bool)
    for used_M in used:
        unknown_M[used_M] = False
    return rejected_rows(verification, [Reason.VERIFICATION_UNKNOWN_ID if one else None for one in unknown_M.tolist()])


def _read_file(file: uris.StoredFile) -> Verification:
    is_text = file.path.lower().endswith(_TEXT_SUFFIXES)
    raw, malformed = _read_csv(file) if is_text else (_read_parquet(file), 0)
    for name in ("id", "verified"):
        if name not in raw.column_names:
            raise DataError(
                f"no column '{name}' in {file.path} (columns: {', '.join(raw.column_names)}); expected id and "
                "verified, and maybe label and verified_label; rename the columns"
            )
    verified, bad_N = verification_column(raw.column("verified"))
    ids = pc.cast(raw.column("id"), pa.string())
    table = pa.table(
        {
            "id": ids,
            "verified": verified,
            "label": _labels(raw, "label", file.path),
            "verified_label": _labels(raw, "verified_label", file.path),
            "source": pa.array([f"{file.path}#{position}" for position in range(raw.num_rows)], pa.string()),
        }
    )
    unseen_N = np.asarray(verified) == UNSEEN
    missing_N = np.asarray(pc.or_kleene(pc.is_null(ids), pc.equal(ids, ""))).astype(bool)
    reasons = [
        Reason.MISSING_ID if missing else Reason.VERIFICATION_VALUE if bad or unseen else None
        for missing, bad, unseen in zip(missing_N.tolist(), bad_N.tolist(), unseen_N.tolist(), strict=True)
    ]
    lines = [{"id": None, "source": file.path, "reason": str(Reason.MALFORMED_LINE)}] * malformed
    rejected = pa.concat_tables([rejected_rows(table, reasons), pa.Table.from_pylist(lines, REJECTED)])
    return Verification(table.filter(pa.array([reason is None for reason in reasons], pa.bool_())), rejected)


def _labels(raw: pa.Table, name: str, path: str) -> pa.ChunkedArray | pa.Array:
    """Labels as text, since a CSV knows nothing else; all null when the table has no such column."""
    if name not in raw.column_names:
        return pa.nulls(raw.num_rows, pa.string())
    column = raw.column(name)
    if pa.types.is_floating(column.type):  # integers with nulls, as pandas writes them
        column = pc.cast(pc.if_else(pc.is_nan(column), None, column), pa.int64(), safe=False)
    if not is_label_type(column.type) and not pa.types.is_null(column.type):
        raise DataError(f"'{name}' is {column.type} in {path}; expected integer or string; cast it")
    return pc.cast(label_column(column), pa.string())


def _read_parquet(file: uris.StoredFile) -> pa.Table:
    content = uris.read_bytes(file.uri)
    try:
        return pq.read_table(io.BytesIO(content))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"'{file.uri}' cannot be read as Parquet ({str(error).splitlines()[0][:120]}); expected an intact file; "
            "copy it again"
        ) from error


def _read_csv(file: uris.StoredFile) -> tuple[pa.Table, int]:
    """(cells as trimmed text, number of lines with another number of cells than the header)."""
    content = uris.read_bytes(file.uri).removeprefix(b"\xef\xbb\xbf")
    header = content.split(b"\n", 1)[0].decode("utf-8", "replace")
    delimiter = max(",;\t", key=header.count)
    names = [name.strip().strip('"').strip() for name in header.strip("\r\n").split(delimiter)]
    if not content.strip() or len(set(names)) != len(names) or "id" not in names:
        raise DataError(
            f"{file.path} begins with '{header.strip()[:80]}'; expected a header with id and verified; add it"
        )
    malformed = 0

    def count_malformed(row: pyarrow.csv.InvalidRow) -> str:
        nonlocal malformed
        malformed += 1
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(content),
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, invalid_row_handler=count_malformed),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise DataError(
                f"{file.path} cannot be read as CSV ({str(error).splitlines()[0]}); expected UTF-8 text with a header; "
                "write it again"
            ) from error
        table = pa.table({name: pa.array([], pa.string()) for name in names})
    trimmed = {name: pc.utf8_trim_whitespace(table.column(name)) for name in names}
    return pa.table(trimmed), malformed
