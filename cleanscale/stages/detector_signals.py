"""signals of a detector that is named and makes its own from features, shard by shard.

A file per class shard, with the row and the detector's signals of each image; `judged_shard` puts them beside the
evidence. Three ways, by what has to be at hand together: a class (fitted class by class), one shard and the voters of
all others (neighbour vote), or everything (confident learning, which is limited for this reason).

# N images of a shard, V verified images, C classes, D feature width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cleanscale.detectors.settings import EvidenceSettings
from cleanscale.engine.tasks import map_shards
from cleanscale.maths.neighbours import Voters, voters_per_class
from cleanscale.signals import MAKERS, FeatureSignals, Images
from cleanscale.signals.class_learning import ClassLearner
from cleanscale.signals.confident_learning import ConfidentLearning, check_confident_learning
from cleanscale.signals.neighbour_vote import NeighbourVotes, class_voters, voting_images
from cleanscale.stages import evidence_heads
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.place import Place
from cleanscale.stages.relevance import verified_of
from cleanscale.stages.settings import DetectorSettings
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import fingerprint_columns, read_table, write_table

VOTERS = "voters"


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    maker: FeatureSignals
    verification: pa.Table
    evidence: str
    row_folds: int
    seed: int
    folder: str

    def images(self, shard: Shard) -> Images:
        features = self.features.read(shard)
        verified_N = verified_of(self.verification, features.row_N)
        return Images(features.row_N, features.label_N, features.feature_ND, verified_N)

    @property
    def centre_D(self) -> np.ndarray:
        return read_array(uris.join(self.evidence, "centre.npy"))

    def write(self, shard: Shard, row_N: np.ndarray, signals: dict[str, np.ndarray]) -> None:
        write_table(uris.join(self.folder, f"{shard.name}.parquet"), pa.table({"row": row_N} | signals))

    def missing(self, shards: Sequence[Shard]) -> bool:
        """Whether an interrupted run has left any of these shards to do."""
        return any(not uris.exists(uris.join(self.folder, f"{shard.name}.parquet")) for shard in shards)


def of_named(
    place: Place,
    folder: str,
    settings: DetectorSettings,
    evidence_settings: EvidenceSettings,
    features: FeatureShards,
    verification: pa.Table,
    *,
    evidence: tuple[str, str],
) -> dict[str, tuple[str, str]]:
    """(folder, fingerprint) of the signals of each named detector that makes its own."""
    made = {}
    for name in settings.named:
        if name in MAKERS:
            uri = uris.join(folder, name)
            row_folds = evidence_settings.row_folds
            stage = run(place, uri, name, features, verification, evidence=evidence, row_folds=row_folds)
            made[name] = uri, stage.fingerprint
    return made


def check(settings: DetectorSettings, *, images: int, classes: int) -> None:
    """Raises ConfigError for a detector that cannot work on this collection: before hours are spent on its features."""
    if "confident_learning" in settings.named:
        check_confident_learning(images, classes)


def run(
    place: Place,
    folder: str,
    name: str,
    features: FeatureShards,
    verification: pa.Table,
    *,
    evidence: tuple[str, str],
    row_folds: int,
) -> Manifest:
    """The signals of the detector `name`. verification: row, label, verified. evidence: (folder, fingerprint)."""
    maker = MAKERS[name]
    by_class = isinstance(maker, ClassLearner)
    inputs = {"features": features.fingerprint} | ({} if by_class else {"evidence": evidence[1]})
    if by_class and maker.supervised:
        inputs["verification"] = fingerprint_columns(verification)
    stage = open_stage(folder, f"signals of {name}", {"run": {"seed": place.seed}}, inputs)
    if stage.complete:
        return stage.complete
    job = Job(features, maker, verification, evidence[0], row_folds, place.seed, folder)
    make = learn_classes if by_class else vote if isinstance(maker, NeighbourVotes) else learn_confidently
    with place.timed(name, features.num_images), place.progress.step(name, features.num_images) as step:
        make(job, step.advance)
    return stage.finish([{"file": f"{s.name}.parquet", "rows": s.rows} for s in features.shards])


def images_in(shards: Sequence[Shard]) -> int:
    return sum(shard.rows for shard in shards)


# ---- class by class --------------------------------------------------------------------------------------------------


def learn_classes(job: Job, advance: Callable[[int], None]) -> None:
    ranges = job.features.class_ranges()
    missing = [shards for shards in ranges if job.missing(shards)]
    advance(job.features.num_images - sum(map(images_in, missing)))
    for position, _ in map_shards(learn_range, missing, job):
        advance(images_in(missing[position]))


def learn_range(shards: list[Shard], job: Job) -> None:
    """The classes of one shard; or one huge class, whose parts are read one by one."""
    assert isinstance(job.maker, ClassLearner)
    if len(shards) == 1:
        images = job.images(shards[0])
        job.write(shards[0], images.row_N, job.maker.learned(images, job.seed))
        return
    known = job.maker.known(job.images(shards[0]), job.seed)
    for shard in shards[1:]:
        known = job.maker.known(Images.concatenate([known, job.images(shard)]), job.seed)
    for shard in shards:
        part = job.images(shard)
        value_NH = job.maker.class_values(known, part, shard.label_start, job.seed)
        job.write(shard, part.row_N, {name: value_NH[:, h] for h, name in enumerate(job.maker.method.signals)})


# ---- neighbour vote --------------------------------------------------------------------------------------------------


def vote(job: Job, advance: Callable[[int], None]) -> None:
    assert isinstance(job.maker, NeighbourVotes)
    ranges = job.features.class_ranges()
    counts = dict(map_shards(class_sizes, ranges, job))
    each = voters_per_class(np.concatenate([counts[k][1] for k in range(len(ranges))]), job.maker.most_voters)
    for _ in map_shards(
        write_voters, [shards for shards in ranges if not uris.exists(voters_uri(job, shards))], job, each
    ):
        pass
    missing = [shard for shard in job.features.shards if job.missing([shard])]
    advance(job.features.num_images - images_in(missing))
    for position, _ in map_shards(vote_on_shard, missing, job):
        advance(missing[position].rows)


def voters_uri(job: Job, shards: Sequence[Shard]) -> str:
    return uris.join(job.folder, VOTERS, f"{shards[0].name}.parquet")


def class_sizes(shards: list[Shard], job: Job) -> tuple[np.ndarray, np.ndarray]:
    """(labels, images of each) of a range of classes."""
    tables = [read_table(uris.join(job.features.folder, f"{s.name}.parquet"), ["label"]) for s in shards]
    return np.unique(pa.concat_tables(tables)["label"].to_numpy(), return_counts=True)


def write_voters(shards: list[Shard], job: Job, each: int) -> None:
    """Those images of a range of classes whose labels count as votes."""
    label_C, size_C = class_sizes(shards, job)
    chosen = voting_images(job.images(shards[0]), each, job.seed)
    for shard in shards[1:]:
        chosen = voting_images(Images.concatenate([chosen, job.images(shard)]), each, job.seed)
    voters = class_voters(chosen, label_C, size_C, job.centre_D)
    width = voters.unit_VD.shape[1]
    table = {
        "row": voters.row_V,
        "label": voters.label_V,
        "weight": voters.weight_V,
        "unit": pa.FixedSizeListArray.from_arrays(pa.array(voters.unit_VD.reshape(-1)), width),
    }
    write_table(voters_uri(job, shards), pa.table(table))


def read_voters(job: Job) -> Voters:
    table = pa.concat_tables([read_table(voters_uri(job, shards)) for shards in job.features.class_ranges()])
    unit_X = pa.chunked_array([chunk.flatten() for chunk in table["unit"].chunks], pa.float16()).to_numpy()
    columns = [table[name].to_numpy() for name in ("row", "label", "weight")]
    return Voters(*columns, unit_X.reshape(-1, job.features.width))


def vote_on_shard(shard: Shard, job: Job) -> None:
    assert isinstance(job.maker, NeighbourVotes)
    images = job.images(shard)
    job.write(shard, images.row_N, job.maker.votes(images, read_voters(job), job.centre_D))


# ---- confident learning ----------------------------------------------------------------------------------------------


def learn_confidently(job: Job, advance: Callable[[int], None]) -> None:
    for _ in map_shards(confident_shards, [list(job.features.shards)], job):
        advance(job.features.num_images)


def confident_shards(shards: list[Shard], job: Job) -> None:
    """All shards in one task, as cleanlab wants it: features one after the other, probabilities together."""
    assert isinstance(job.maker, ConfidentLearning)
    heads = evidence_heads.heads_of(job.evidence, job.row_folds, job.seed)
    label_C = np.concatenate([class_sizes(r, job)[0] for r in job.features.class_ranges()])
    rows, labels, parts = [], [], []
    for shard in shards:
        features = job.features.read(shard)
        rows.append(features.row_N)
        labels.append(features.label_N)
        parts.append(heads.log_probability(features.feature_ND, features.row_N)[:, label_C])
    signals = job.maker.verdicts(np.concatenate(labels), label_C, np.concatenate(parts))
    start = 0
    for shard, row_N in zip(shards, rows, strict=True):
        stop = start + len(row_N)
        job.write(shard, row_N, {name: value[start:stop] for name, value in signals.items()})
        start = stop
