"""What of a run folder is logged: its inputs as data sets, its files as artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cleanscale.storage import uris
from cleanscale.storage.manifests import read_manifest
from cleanscale.tracking.runs import Silent

if TYPE_CHECKING:
    from cleanscale.stages.ingest import Ingested

FILES = ("settings.toml", "metrics.json", "rejected.parquet", "per_class.parquet", "most_surely_wrong.parquet")
TABLES = ("relevance", "labels")  # folders of tables with a row per image, or per label of one


def log_inputs(tracker: Silent, train: Ingested, test: Ingested | None, clean: Ingested | None) -> None:
    """Each input by its fingerprint: the same digest in two runs means that they read the same."""
    places = train.settings
    for context, uri, part in (
        ("training", places.train, train),
        ("test", places.test, test),
        ("clean", places.clean, clean),
    ):
        if part is not None and uri is not None:
            columns = {"id": "string", "label": "long", **input_column(part)}
            tracker.dataset(context, dataset_name(uri), uri, part.fingerprint, part.num_accepted, columns)
    checked = train.verification().num_rows
    uri = places.verification or places.train  # a table of its own, or a column of the data
    if checked and uri is not None:
        columns = {"id": "string", "verified": "long"}
        tracker.dataset("verification", dataset_name(uri), uri, verification_digest(train), checked, columns)


def input_column(part: Ingested) -> dict[str, str]:
    return {"image": "binary"} if part.kind == "images" else {"feature": "float"}


def verification_digest(train: Ingested) -> str:
    """The fingerprint of the user's table, or, where a column says it, of everything that was ingested."""
    manifest = read_manifest(train.folder)
    assert manifest is not None
    return manifest.key["inputs"].get("verification", manifest.fingerprint)


def dataset_name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def log_files(tracker: Silent, run_uri: str, table_bytes: int) -> None:
    """Settings, metrics, tables and figures; the tables per image only where they are small."""
    for name in FILES:
        if uris.exists(uris.join(run_uri, name)):
            tracker.artifact_at(name, uris.join(run_uri, name))
    figures = uris.join(run_uri, "figures")
    for figure in uris.list_files(figures, (".png",)) if uris.exists(figures) else []:
        tracker.artifact_at(f"figures/{figure.path}", figure.uri)
    for table in TABLES:
        place = uris.join(run_uri, table)
        parts = uris.list_files(place, (".parquet",)) if uris.exists(place) else []
        if parts:
            tracker.tags({f"{table}.uri": place})
        if sum(part.size_bytes for part in parts) <= table_bytes:
            for part in parts:
                tracker.artifact_at(f"{table}/{part.path}", part.uri)
