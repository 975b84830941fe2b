"""label_cleaning: classifiers on noisy labels and with the label cleaning network, on features; then every label
cleaned.

One worker group trains what `--cleaning` names, each classifier from the one on noisy labels (Veit et al. 2017).
Verified images are few: every worker holds all of them, and of the others those of its class shards.

# N images of a worker or shard, V verified images, C classes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from cleanscale import schema
from cleanscale.engine.tasks import map_shards
from cleanscale.engine.train import Worker, train_on_workers
from cleanscale.errors import ConfigError
from cleanscale.maths.label_lists import LabelLists
from cleanscale.models.heads import Head
from cleanscale.models.label_cleaner import LabelCleaner, cleaner_from_bytes, cleaner_to_bytes
from cleanscale.stages import head_files, label_edges
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.stages.head_classifier import HEAD, write_classifier
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest, open_stage
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import fingerprint_columns, write_table
from cleanscale.training.head_settings import HeadPlan, HeadSettings
from cleanscale.training.label_cleaning import Fitted, Images, Trainer, Verified, clean
from cleanscale.training.label_cleaning_settings import CleaningSettings

CLEANER, LABELS = "cleaner.safetensors", "labels"  # the table of cleaned labels
BLOCK_VALUES = 1 << 24  # images x classes looked at together
SAY_EVERY = 20  # steps
# Settings of heads that the classifier on noisy labels follows: its batches and its loss are label cleaning's.
OF_HEADS = ("hidden_width", "dropout", "epochs", "learning_rate", "weight_decay")


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs; travels to it as it is."""

    features: FeatureShards
    data: Ingested
    settings: CleaningSettings
    heads: HeadPlan
    backbone_uri: str | None
    seed: int


def run(
    place: Place,
    folder: str,
    features: FeatureShards,
    data: Ingested,
    settings: CleaningSettings,
    heads: HeadSettings,
    *,
    backbone: str | None,
    name: str = "label_cleaning",
) -> Manifest:
    """Train into `folder`: the chosen variant as any classifier on features, the others in folders of their names.

    backbone: file of the classifier whose backbone made the features; None for an input that is features.
    Raises: ConfigError when nothing is verified.
    """
    verification = data.verification()
    stage = open_stage(
        folder,
        name,
        {
            "cleaning": settings.model_dump(mode="json"),
            "heads": heads.dense().model_dump(mode="json", include=set(OF_HEADS)),
            "run": {"seed": place.seed},
        },
        {
            "features": features.fingerprint,
            "ingest": data.fingerprint,
            "verification": fingerprint_columns(label_edges.verdicts(verification)),
        },
    )
    if stage.complete:
        return stage.complete
    if not verification.num_rows:
        raise ConfigError(
            "--treatment.name label_cleaning learns from verified labels, and none are given; expected a table with "
            "--data.verification (id, label, verified); name one, or take another treatment"
        )
    job = Job(features, data, settings, heads.dense(), backbone, place.seed)
    images = features.num_images
    with place.timed(name, images, folder=folder):
        with place.progress.step(name, 100, "%") as step:
            train_on_workers(fit_loop, job, uri=folder, settings=place.engine, on_progress=place.follow(step, name))
        with place.progress.step("cleaned labels", images) as step:
            written = [{} for _ in features.shards]
            for position, rows in map_shards(clean_shard, features.shards, job, folder):
                written[position] = {"file": f"{features.shards[position].name}.parquet", "rows": rows}
                step.advance(features.shards[position].rows)
    return stage.finish(written, notes={"trained": list(settings.trained())})


def fit_loop(worker: Worker, job: Job) -> None:
    verification = job.data.verification()
    own = job.features.read_share(worker.rank, worker.world, worker.scratch)
    images = Images(
        own.feature_ND,
        label_edges.noisy(job.data, own.row_N),
        np.isin(own.row_N, verification["row"].to_numpy()),
    )
    history: list[dict[str, float]] = []
    done, total = 0, 0

    def on_step(losses: dict[str, float]) -> None:
        nonlocal done
        done += 1
        if done % SAY_EVERY == 0 or done == total:
            history.append({"step": done, **{k: round(v, 5) for k, v in losses.items()}})
            worker.say(100 * done // total, 100, "%", history)

    trainer = Trainer(
        images,
        verified_images(job, verification),
        job.data.num_classes,
        job.settings,
        job.heads,
        seed=job.seed,
        collectives=worker.collectives,
        device=worker.device,
        on_step=on_step,
    )
    total = sum(trainer.steps(name) for name in job.settings.trained())
    start: Head | None = None
    for name in job.settings.trained():
        fitted = trainer.fit(name, start)
        start = start or fitted.head
        if worker.rank == 0:
            chosen = name == job.settings.variant
            write(uris.join(worker.uri, *([] if chosen else [name])), fitted, job, whole=chosen)


def write(folder: str, fitted: Fitted, job: Job, *, whole: bool) -> None:
    """What was fitted; whole: also as a classifier of images, where there is a backbone."""
    head_files.write_dense(uris.join(folder, HEAD), fitted.head)
    if fitted.cleaner is not None:
        uris.write_bytes(uris.join(folder, CLEANER), cleaner_to_bytes(fitted.cleaner))
    if whole:
        write_classifier(folder, fitted.head, job.features, job.backbone_uri)


def folder_of(folder: str, settings: CleaningSettings, name: str) -> str:
    """Where `run` left the classifier of this name."""
    return folder if name == settings.variant else uris.join(folder, name)


def verified_images(job: Job, verification: pa.Table) -> Verified:
    """All verified images, with what is known of their labels."""
    first = pa.table({name: verification[name] for name in ("row", "label")})
    if job.data.multi_label:  # images lie in the shard of their first label, whatever label was judged
        row_V = np.unique(verification["row"].to_numpy())
        first = pa.table({"row": row_V, "label": job.data.labels()[row_V]})
    checked = job.features.read_rows(first["row"].to_numpy(), first["label"].to_numpy())
    verdicts = label_edges.verdicts(verification)
    row_E, label_E = verdicts["row"].to_numpy(), verdicts["label"].to_numpy()
    right_E = verdicts["verified"].to_numpy() == schema.RIGHT
    right = LabelLists.of_edges(row_E[right_E], label_E[right_E], checked.row_N)
    complete_V = np.full(len(checked), job.settings.unnamed == "absent")
    if not job.data.multi_label:
        # Its only label is wrong and nobody named the right one: one of the others is there.
        complete_V &= right.length_N > 0
    return Verified(
        checked.feature_ND,
        label_edges.noisy(job.data, checked.row_N),
        right,
        LabelLists.of_edges(row_E[~right_E], label_E[~right_E], checked.row_N),
        complete_V,
    )


def clean_shard(shard: Shard, job: Job, folder: str) -> int:
    """Write the cleaned labels of one shard; returns how many pairs they are."""
    features = job.features.read(shard, ids=True)
    cleaner = cleaner_from_bytes(uris.read_bytes(uris.join(folder, CLEANER)))
    table = cleaned_table(features, cleaner, job)
    write_table(uris.join(folder, LABELS, f"{shard.name}.parquet"), table)
    return table.num_rows


def cleaned_table(features: Features, cleaner: LabelCleaner, job: Job) -> pa.Table:
    """CLEANED: all noisy and all verified pairs of these images, and those that cleaning adds; by row and label."""
    noisy = label_edges.noisy(job.data, features.row_N)
    verdicts = label_edges.verdicts(job.data.verification())
    mine_E = np.isin(verdicts["row"].to_numpy(), features.row_N)
    seen = verdicts.filter(pa.array(mine_E))
    place_of_row = np.argsort(features.row_N)
    image_P = place_of_row[np.searchsorted(features.row_N[place_of_row], seen["row"].to_numpy())]
    label_P, verdict_P = seen["label"].to_numpy(), seen["verified"].to_numpy()
    blocks = []
    each = max(1, BLOCK_VALUES // job.data.num_classes)
    for start in range(0, len(features), each):
        at_B = np.arange(start, min(start + each, len(features)))
        here_P = (image_P >= start) & (image_P < start + each)
        judged = image_P[here_P] - start, label_P[here_P], verdict_P[here_P]
        blocks.append((start, cleaned_block(features.feature_ND[at_B], noisy.take(at_B), judged, cleaner, job)))
    image_E = np.concatenate([start + block[0] for start, block in blocks] or [np.empty(0, np.int64)])
    label_E, noisy_E, verified_E, cleaned_E = (
        np.concatenate([block[k] for _, block in blocks] or [np.empty(0)]) for k in range(1, 5)
    )
    assert features.id_N is not None
    columns = [features.row_N[image_E], features.id_N.take(pa.array(image_E)), label_E, noisy_E, verified_E, cleaned_E]
    table = pa.table(dict(zip(schema.CLEANED.names, columns, strict=True))).cast(schema.CLEANED)
    return table.sort_by([("row", "ascending"), ("label", "ascending")])


def cleaned_block(
    feature_BD: np.ndarray,
    noisy: LabelLists,
    judged: tuple[np.ndarray, np.ndarray, np.ndarray],
    cleaner: LabelCleaner,
    job: Job,
) -> tuple[np.ndarray, ...]:
    """(image, label, noisy, verified, cleaned) of the pairs of some images; judged: image, label and verdict."""
    noisy_BC = noisy.multi_hot(None, job.data.num_classes)
    with torch.inference_mode():
        feature = torch.from_numpy(feature_BD.astype(np.float32))
        cleaned_BC = clean(cleaner, feature, noisy, torch.from_numpy(noisy_BC), None).clamp(0, 1).numpy()
    verified_BC = np.full(noisy_BC.shape, schema.UNSEEN, np.int8)
    verified_BC[judged[0], judged[1]] = judged[2]
    cleaned_BC = np.where(verified_BC == schema.UNSEEN, cleaned_BC, verified_BC).astype(np.float32)
    told_BC = (noisy_BC > 0) | (verified_BC != schema.UNSEEN) | (cleaned_BC >= job.settings.threshold)
    image_E, label_E = np.nonzero(told_BC)
    pair = (image_E, label_E)
    return image_E, label_E, noisy_BC[pair].astype(np.int8), verified_BC[pair], cleaned_BC[pair]
