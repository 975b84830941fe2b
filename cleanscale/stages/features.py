"""features: the backbone over all images, then from image order to class order, once.

First pass, by row: Ray Data reads and decodes, an actor pool runs the backbone, and files of consecutive rows are
written as they are done; each is a unit of resuming, sorted inside by class shard. Second pass, by shard: a task
gathers its shard from all files. Features that the user brings enter at the second half of the first pass.

# M rows of a block, D feature width
"""

# pyarrow.compute makes its functions when it is imported, which pyright cannot see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from cleanscale import schema
from cleanscale.datasets.fragments import read_fragment
from cleanscale.engine.data import decode_cpus, stream, through_actors
from cleanscale.engine.tasks import map_shards
from cleanscale.errors import StageError
from cleanscale.stages import classifier as classifier_stage
from cleanscale.stages.images import Images, Request, requests_in_order, unreadable_reasons
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.stages.settings import FeaturesSettings
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.shards import Shard, plan_shards
from cleanscale.storage.tables import read_table, write_table
from cleanscale.training.transforms import AugmentationSettings

log = logging.getLogger(__name__)

BLOCK_IMAGES = 256
SHARDS_OF_GROUPS = b"cleanscale.shards"


def run(
    place: Place,
    folder: str,
    data: Ingested,
    settings: FeaturesSettings,
    augmentation: AugmentationSettings,
    *,
    classifier: tuple[str, str] | None,
    name: str = "features",
) -> Manifest:
    """Features of all accepted rows of `data`, one file per class shard.

    classifier: (folder of the classifier whose backbone is used, its fingerprint); None for data that is features.
    """
    stage = open_stage(
        folder,
        name,
        {
            "features": {"shard_bytes": settings.shard_bytes},
            "augmentation": {"evaluation_crop": augmentation.evaluation_crop} if classifier else {},
        },
        {"ingest": data.fingerprint} | ({"classifier": classifier[1]} if classifier else {}),
    )
    if stage.complete:
        return stage.complete
    rows_per_file = settings.rows_per_file or default_rows_per_file(data.num_rows)
    with place.timed("features", data.num_accepted), place.progress.step(name, data.num_accepted) as step:
        row_files = uris.join(folder, "rows")
        missing_N = np.setdiff1d(data.accepted_rows(), finished_rows(row_files), assume_unique=True)
        step.advance(data.num_accepted - len(missing_N))
        width = feature_width(data, classifier)
        shards = plan_shards(*data.class_counts(), max(1, settings.shard_bytes // (2 * width)))
        job = Job(data, augmentation, settings, row_files, classifier[0] if classifier else None, shards)
        for done in first_pass(place, job, missing_N, rows_per_file):
            step.advance(done)
        written = second_pass(place, job, folder, width)
    if not any(w["rows"] for w in written):
        raise StageError(
            f"none of {data.num_accepted} images could be decoded; expected JPEG, PNG, WebP or another format in the "
            f"column --data.image ({data.settings.image!r}); see rejected.parquet for the reasons"
        )
    rejected = collect_rejected(data, row_files)
    write_table(stage.path("rejected.parquet"), rejected)
    uris.remove_tree(row_files)
    return stage.finish(written, {"width": width, "rejected": rejected.num_rows})


@dataclass(frozen=True)
class Job:
    """What tasks and actors need; travels to them as it is."""

    data: Ingested
    augmentation: AugmentationSettings
    settings: FeaturesSettings
    row_files: str
    classifier: str | None
    shards: list[Shard]


def default_rows_per_file(num_rows: int) -> int:
    """Some 64 files of a small input, so that little is lost by an interruption; few and large ones of a big input."""
    return int(np.clip(-(-num_rows // 64 // BLOCK_IMAGES) * BLOCK_IMAGES, 4 * BLOCK_IMAGES, 64 * BLOCK_IMAGES))


def finished_rows(row_files: str) -> np.ndarray:
    """Rows that an interrupted first pass has written."""
    if not uris.exists(row_files):
        return np.empty(0, np.int64)
    files = uris.list_files(row_files, (".parquet",))
    return np.concatenate([np.empty(0, np.int64), *(read_table(f.uri, ["row"])["row"].to_numpy() for f in files)])


def feature_width(data: Ingested, classifier: tuple[str, str] | None) -> int:
    if classifier is None:
        assert data.feature_width is not None
        return data.feature_width
    return classifier_stage.load(classifier[0]).backbone.width


def first_pass(place: Place, job: Job, missing_N: np.ndarray, rows_per_file: int) -> Iterator[int]:
    """Yield the number of rows of each file as it is written."""
    if not len(missing_N):
        return
    plan = job.data.plan()
    if job.classifier is None:
        for _, done in map_shards(copy_features, requests_in_order(plan, missing_N, rows_per_file), job):
            yield done
        return
    size = classifier_stage.load(job.classifier).backbone.image_size
    images = Images(job.data.settings, job.augmentation, size, place.seed)
    requests = requests_in_order(plan, missing_N, BLOCK_IMAGES)
    written = through_actors(
        stream(requests, images.evaluation, num_cpus=decode_cpus(place.engine)),
        Extractor,
        {"classifier": job.classifier, "batch_size": job.settings.batch_size, "use_gpu": place.engine.use_gpu},
        rows_per_write=rows_per_file,
        write=partial(write_rows, job),
        settings=place.engine,
    )
    for file in written:
        yield int(file["rows"])


class Extractor:
    """One backbone on one device; blocks of images in, features float16 out."""

    def __init__(self, classifier: str, batch_size: int, use_gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = "cuda" if use_gpu else "cpu"
        self.backbone = classifier_stage.load(classifier).backbone.eval().to(self.device)
        self.batch_size = batch_size

    @torch.inference_mode()
    def __call__(self, block: dict[str, np.ndarray]) -> pa.Table:
        image_M3SS = torch.from_numpy(block["image"].copy())
        feature = [self.backbone(b.to(self.device)).half().cpu().numpy() for b in image_M3SS.split(self.batch_size)]
        return pa.table({"row": block["row"], "ok": block["ok"], "feature": fixed_size(np.concatenate(feature))})


def fixed_size(feature_MD: np.ndarray) -> pa.FixedSizeListArray:
    """float16 [M, D] as an Arrow column."""
    flat = pa.array(np.ascontiguousarray(feature_MD, np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, feature_MD.shape[1])


def feature_matrix(table: pa.Table) -> np.ndarray:
    """float32 [M, D] of a table's feature column."""
    column = table["feature"].combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = column.type.list_size
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width).astype(np.float32)


def copy_features(request: Request, job: Job) -> int:
    """First pass for data that are features: read, check, write."""
    row_M, fragments = request
    tables = [t for f in fragments for t in read_fragment(f, job.data.settings, ("feature",), row_M)]
    table = pa.concat_tables(tables)
    assert job.data.feature_width is not None
    flat = table["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    feature_MD = flat.reshape(table.num_rows, job.data.feature_width).astype(np.float32)
    # float16 holds up to 65504: what exceeds it would become infinite in the table.
    ok_M = np.isfinite(feature_MD).all(1) & (np.abs(feature_MD) < 65504).all(1)
    feature_MD[~ok_M] = 0
    rows = pa.table({"row": table["row"], "ok": ok_M, "feature": fixed_size(feature_MD)})
    return int(write_rows(job, rows)["rows"])


def write_rows(job: Job, table: pa.Table) -> dict[str, Any]:
    """One file of the first pass: a row group per class shard, named by its first row."""
    row_M = table["row"].to_numpy()
    label_M = job.data.labels()[row_M]
    table = table.append_column("label", pa.array(label_M, pa.int32())).append_column("id", job.data.ids(row_M))
    shard_M = shards_of(job.shards, label_M, row_M)
    order_M = np.lexsort((row_M, label_M, shard_M))
    table, shard_M = table.take(pa.array(order_M)), shard_M[order_M]
    present, first = np.unique(shard_M, return_index=True)
    pieces = [table.slice(a, b - a) for a, b in zip(first, [*first[1:], len(shard_M)], strict=True)]
    uri = uris.join(job.row_files, f"{int(row_M.min()):012d}.parquet")
    write_table(uri, pieces, metadata={SHARDS_OF_GROUPS: ",".join(map(str, present))})
    return {"rows": len(row_M)}


def shards_of(shards: list[Shard], label_M: np.ndarray, row_M: np.ndarray) -> np.ndarray:
    """int64 [M]: the index of each image's shard."""
    start_S = np.array([s.label_start for s in shards])
    parts_S = np.array([s.parts for s in shards])
    # Parts of one class are neighbours in the plan: the first of them is found by label, the right one by row.
    first_M = np.searchsorted(start_S, label_M, side="left")
    first_M = np.where(
        (first_M == len(shards)) | (start_S[np.minimum(first_M, len(shards) - 1)] > label_M), first_M - 1, first_M
    )
    return first_M + row_M % parts_S[first_M]


def second_pass(place: Place, job: Job, folder: str, width: int) -> list[dict[str, Any]]:
    """A task per class shard gathers it from all files of the first pass."""
    files = [f.uri for f in uris.list_files(job.row_files, (".parquet",))]
    written: list[dict[str, Any]] = [{} for _ in job.shards]
    with place.progress.step("features by class", len(job.shards), "shards") as step:
        for position, shard in map_shards(gather_shard, job.shards, files, folder, width):
            written[position] = shard
            step.advance(1)
    return written


def gather_shard(shard: Shard, files: list[str], folder: str, width: int) -> dict[str, Any]:
    pieces = [piece for uri in files for piece in groups_of_shard(uri, shard.index)]
    form = schema.features_schema(width)
    if pieces:
        table = pa.concat_tables(pieces)
        table = (
            table.filter(table["ok"])
            .select(form.names)
            .cast(form)
            .sort_by([("label", "ascending"), ("row", "ascending")])
        )
    else:
        table = form.empty_table()
    uri = uris.join(folder, f"{shard.name}.parquet")
    size_bytes = write_table(uri, [table])
    return shard.to_json() | {"file": f"{shard.name}.parquet", "rows": table.num_rows, "bytes": size_bytes}


def groups_of_shard(uri: str, index: int) -> list[pa.Table]:
    with uris.open_read(uri) as handle:
        file = pq.ParquetFile(handle)
        metadata = file.schema_arrow.metadata or {}
        present = metadata[SHARDS_OF_GROUPS].decode().split(",")
        return [file.read_row_group(g) for g, name in enumerate(present) if name == str(index)]


def collect_rejected(data: Ingested, row_files: str) -> pa.Table:
    """The images that could not be decoded (or features that are not finite), with the reason."""
    rows: list[int] = []
    for f in uris.list_files(row_files, (".parquet",)):
        table = read_table(f.uri, ["row", "ok"])
        rows += table.filter(pc.invert(table["ok"]))["row"].to_pylist()
    row_M = np.array(sorted(rows), np.int64)
    if data.kind == "features":
        reasons = dict.fromkeys(rows, "feature is NaN, infinite or beyond float16")
    else:
        plan = data.plan()
        found = [r for q in requests_in_order(plan, row_M, BLOCK_IMAGES) for r in unreadable_reasons(q, data.settings)]
        reasons = {r["row"]: f"unreadable image: {r['reason']}" for r in found}
    table = data.table(row_M)
    return pa.table(
        [table["id"], table["source"], pa.array([reasons[r] for r in row_M.tolist()], pa.string())],
        schema=schema.REJECTED,
    )
