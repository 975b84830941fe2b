"""features: the backbone over all images, then from image order to class order, once.

First pass, by row: Ray Data reads and decodes, an actor pool runs the backbone, and files of consecutive rows are
written as they are done; each is a unit of resuming, sorted inside by class shard. Second pass, by shard: a task
gathers its shard from all files. Features that the user brings enter at the second half of the first pass.

# M rows of a block, D feature width
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from cleanscale.engine.data import decode_cpus, stream, through_actors
from cleanscale.engine.tasks import map_shards
from cleanscale.errors import StageError
from cleanscale.maths.projection import Projection, fit_projection
from cleanscale.stages import classifier as classifier_stage
from cleanscale.stages.extractor import Extractor
from cleanscale.stages.feature_files import (
    RowFiles,
    copy_features,
    file_name,
    gather_shards,
    rejected,
    sample_features,
    write_rows,
)
from cleanscale.stages.images import Images, requests_in_order
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.stages.settings import FeaturesSettings
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array, write_array
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.shards import plan_shards
from cleanscale.storage.tables import write_table
from cleanscale.training.transforms import AugmentationSettings

BLOCK_IMAGES = 256
COPIED_BYTES = 64 << 20  # of features that the user brings, in a file of the first pass
FORM = 2  # of what images are in which part of a class
FIT, PROJECTION, SAMPLE_ROWS = "fit", "projection.npy", 16_384


def run(
    place: Place,
    folder: str,
    data: Ingested,
    settings: FeaturesSettings,
    augmentation: AugmentationSettings,
    *,
    classifier: tuple[str, str] | None,
    projection: str | None = None,
    name: str = "features",
) -> Manifest:
    """Features of all accepted rows of `data`, one file per class shard.

    classifier: (folder of the classifier whose backbone is used, its fingerprint); None for data that is features.
    projection: FIT one to `settings.dimensions`, take that of another features folder, or None: keep features whole.
    """
    stage = open_stage(
        folder,
        name,
        {
            "features": {"shard_bytes": settings.shard_bytes, "form": FORM}
            | ({"dimensions": settings.dimensions} if projection is not None else {}),
            "augmentation": {"evaluation_crop": augmentation.evaluation_crop} if classifier else {},
        },
        {"ingest": data.fingerprint} | ({"classifier": classifier[1]} if classifier else {}),
    )
    if stage.complete:
        return stage.complete
    width = feature_width(data, classifier)
    shards = plan_shards(*data.class_counts(), max(1, settings.shard_bytes // (2 * width)))
    files = RowFiles(uris.join(folder, "rows"), data, shards)
    with (
        place.timed("features", data.num_accepted, folder=folder),
        place.progress.step(name, data.num_accepted) as step,
    ):
        if classifier is None:
            passed = copy_pass(files, settings)
        else:
            passed = extraction_pass(place, files, settings, augmentation, classifier[0])
        for done in passed:
            step.advance(done)
        project = make_projection(stage.path(PROJECTION), files, projection, settings.dimensions, width, place.seed)
        written = second_pass(place, files, folder, width, project)
    if not any(w["rows"] for w in written):
        raise nothing_usable(data)
    left_out = rejected(files, BLOCK_IMAGES)
    count = sum(w["rows"] for w in written) + left_out.num_rows
    if count != data.num_accepted:
        raise StageError(
            f"{files.folder} holds {count} of {data.num_accepted} images, usable or rejected; expected all of them; "
            "remove that folder and give the same command again"
        )
    write_table(stage.path("rejected.parquet"), left_out)
    uris.remove_tree(files.folder)
    width = width if project is None else project.width
    return stage.finish(written, {"width": width, "projected": project is not None, "rejected": left_out.num_rows})


def nothing_usable(data: Ingested) -> StageError:
    if data.kind == "features":
        return StageError(
            f"none of {data.num_accepted} features can be used; expected finite numbers up to 65504 (float16), equally "
            f"many for each image, in the column --data.feature ({data.settings.feature!r}); name the right one or "
            "scale them"
        )
    return StageError(
        f"none of {data.num_accepted} images could be decoded; expected JPEG, PNG, WebP or another image format in "
        f"the column --data.image ({data.settings.image!r}); name the right column or convert the images"
    )


def default_rows_per_file(num_rows: int) -> int:
    """Some 64 files of a small input, so that little is lost by an interruption; few and large ones of a big input."""
    return int(np.clip(-(-num_rows // 64 // BLOCK_IMAGES) * BLOCK_IMAGES, 4 * BLOCK_IMAGES, 64 * BLOCK_IMAGES))


def feature_width(data: Ingested, classifier: tuple[str, str] | None) -> int:
    if classifier is None:
        assert data.feature_width is not None
        return data.feature_width
    return classifier_stage.load(classifier[0]).backbone.width


def copy_pass(files: RowFiles, settings: FeaturesSettings) -> Iterator[int]:
    """First pass for data that are features, in ranges of rows that are always cut alike. Yields rows as written."""
    data = files.data
    assert data.feature_width is not None
    longest = max(BLOCK_IMAGES, COPIED_BYTES // (2 * data.feature_width))
    length = settings.rows_per_file or min(longest, max(4 * BLOCK_IMAGES, -(-data.num_rows // 16)))
    ranges = [(start, min(start + length, data.num_rows)) for start in range(0, data.num_rows, length)]
    there = {file.path for file in uris.list_files(files.folder, (".parquet",), missing_is_error=False)}
    missing = [span for span in ranges if file_name(*span) not in there]
    yield data.num_accepted if not missing else 0
    for _, rows in map_shards(copy_features, missing, files):
        yield rows


def extraction_pass(
    place: Place, files: RowFiles, settings: FeaturesSettings, augmentation: AugmentationSettings, backbone: str
) -> Iterator[int]:
    """First pass for images: the backbone over those that an interrupted run has left. Yields rows as written."""
    data = files.data
    missing_N = np.setdiff1d(data.accepted_rows(), files.finished(), assume_unique=True)
    yield data.num_accepted - len(missing_N)
    if not len(missing_N):
        return
    images = Images(data.settings, augmentation, classifier_stage.load(backbone).backbone.image_size, place.seed)
    requests = requests_in_order(data.plan(), missing_N, BLOCK_IMAGES)
    written = through_actors(
        stream(requests, images.evaluation, num_cpus=decode_cpus()),
        Extractor,
        {"classifier": backbone, "batch_size": settings.batch_size, "use_gpu": place.engine.use_gpu},
        rows_per_write=settings.rows_per_file or default_rows_per_file(data.num_rows),
        write=partial(write_rows, files),
        settings=place.engine,
    )
    for file in written:
        yield int(file["rows"])


def make_projection(
    uri: str, files: RowFiles, wanted: str | None, dimensions: int, width: int, seed: int
) -> Projection | None:
    """Fit a projection, or take another folder's; it is written beside the features that it made."""
    if wanted is None or (wanted == FIT and not 0 < dimensions < width):
        return None
    found = None
    if wanted != FIT:
        found = load_projection(wanted)
    else:
        sample_ND = sample_features(files, SAMPLE_ROWS, seed)
        if not len(sample_ND):
            return None
        found = fit_projection(sample_ND, dimensions)
    assert found is not None
    write_array(uri, found.to_array())
    return found


def load_projection(folder: str | None) -> Projection | None:
    """The projection that made the features in `folder`."""
    return None if folder is None else Projection.of_array(read_array(uris.join(folder, PROJECTION)))


def second_pass(
    place: Place, files: RowFiles, folder: str, width: int, projection: Projection | None
) -> list[dict[str, Any]]:
    """A task gathers a few class shards from all files of the first pass."""
    written: list[dict[str, Any]] = [{} for _ in files.shards]
    groups = files.groups()
    with place.progress.step("features by class", len(files.shards), "shards") as step:
        for position, made in map_shards(gather_shards, groups, files.files(), folder, width, projection):
            for shard in made:
                written[shard["index"]] = shard
            step.advance(len(groups[position]))
    return written
