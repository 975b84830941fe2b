"""supervision: what a treatment gives the training of a classifier besides images and their noisy labels.

That is weights, other targets, or a model of the noise from which the loss is built; and which verified images are seen
how often. Training stages get a `Supervision`, which says where things are, and read a `Taught` from it on the worker.

What verification says feeds it in two strengths. A verdict (right or wrong) of an image makes its right label certain,
or excludes it. A named true class (`verified_label`) is what matrices are estimated from. Without names, the matrix of
forward, backward and bottom_up gets its diagonal from verdicts and the rest from anchor points; those of noise_em
(stages/noise_pairs.py) and instance_forward come from the judgement of all labels.

# N images of a shard, R rows of the input, P verified pairs, C classes
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from cleanscale import schema
from cleanscale.engine.tasks import map_shards, shared_value
from cleanscale.errors import ConfigError
from cleanscale.maths.compared_classes import Others
from cleanscale.maths.evidence import OutOfFold
from cleanscale.maths.label_lists import LabelLists
from cleanscale.maths.noise_types import WRONG_UNNAMED
from cleanscale.models.noise_models import WithNoiseLayer
from cleanscale.stages import label_edges, noise_pairs
from cleanscale.stages.evidence_heads import heads_of
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.ingest import Ingested
from cleanscale.stages.judged_shard import places
from cleanscale.stages.noise_matrices import Job, judged_noise, matrix_of_pairs
from cleanscale.stages.place import Place
from cleanscale.stages.settings import TreatmentSettings
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array, scatter, write_array
from cleanscale.storage.manifests import Manifest, open_stage, read_manifest
from cleanscale.storage.shards import Shard
from cleanscale.storage.tables import fingerprint_columns, read_table, write_table
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.losses import ODDS_UNIT, Loss, NoiseModel, listed_loss, noise_loss
from cleanscale.treatments import ANCHORED, MATRIX_TREATMENTS, NOISE_TREATMENTS
from cleanscale.treatments.relabel import Suggested, relabelled

log = logging.getLogger(__name__)

WEIGHTS, TARGETS, KNOWN, ODDS = "weights.npy", "targets.npy", "known.npy", "log_odds.npy"
MATRIX, CONFUSION = "observed_given_true.npy", "confusion.parquet"
# noise_em shows verified images so often that there are this many of them for each image (Xiao et al., section 4).
VERIFIED_SHARE = 0.5
RELABEL_FORM = 2  # of what relabel leaves


@dataclass(frozen=True)
class Supervision:
    """Where it is; travels to workers as it is. AS_LABELLED: the noisy labels as they are.

    fingerprint: of what made it, by the name of the input. certain: images whose true class is known (with a noise
    model). verified_only: see these alone. lists: images have lists of labels, of which this is the input.
    """

    fingerprint: tuple[tuple[str, str], ...] = ()
    weights: str | None = None
    targets: str | None = None
    noise: str | None = None
    certain: int = 0
    verified_only: bool = False
    lists: Ingested | None = None

    @classmethod
    def of_weights(cls, made: tuple[str, str]) -> Supervision:
        """Weights alone: (URI of weights by row, fingerprint of what made them)."""
        return cls((("weights", made[1]),), weights=made[0])

    def inputs(self) -> dict[str, str]:
        """What a stage that uses it depends on."""
        return dict(self.fingerprint) | ({"images": "whose true class is known"} if self.verified_only else {})

    def read(self) -> Taught:
        return Taught(self, *(None if uri is None else read_array(uri) for uri in (self.weights, self.targets)))


AS_LABELLED = Supervision()


@dataclass(frozen=True)
class Taught:
    """What training is told of each image, by row."""

    of: Supervision
    weight_R: np.ndarray | None
    target_R: np.ndarray | None

    @cached_property
    def noise(self) -> NoiseModel | None:
        return None if self.of.noise is None else read_noise(self.of.noise)

    @cached_property
    def known_R(self) -> np.ndarray | None:
        return None if self.of.noise is None else read_array(uris.join(self.of.noise, KNOWN))

    @cached_property
    def odds_R(self) -> np.ndarray | None:
        """Of a treatment in which the noise depends on the image."""
        by_image = self.noise is not None and self.noise.treatment == "instance_forward"
        return read_array(uris.join(str(self.of.noise), ODDS)) if by_image else None

    @cached_property
    def labels(self) -> LabelLists | None:
        """All labels of each row, where images have several."""
        data = self.of.lists
        return None if data is None else label_edges.noisy(data, np.arange(data.num_rows))

    def rows(self, row_N: np.ndarray) -> np.ndarray:
        """The rows of an epoch, of those that may be seen: all of them, the verified ones of a noise model repeated."""
        if self.of.noise is None or self.known_R is None:
            return row_N
        # Those that are only known to be wrong too: without them all that is certain would be noise-free.
        verified_N = row_N[self.known_R[row_N] != schema.UNSEEN]
        if self.of.verified_only:
            return verified_N
        manifest = read_manifest(self.of.noise)
        assert manifest is not None, f"{self.of.noise} is not complete"
        return np.concatenate([row_N, np.tile(verified_N, manifest.notes.get("repeats", 1) - 1)])

    def targets(self, row_B: np.ndarray, label_B: np.ndarray) -> np.ndarray:
        """int64 [B], or [B, 2 or 3] with a noise model, [B, L] for lists: what `training/losses.py` takes."""
        if self.labels is not None:
            return self.labels.take(row_B).padded(int(self.labels.length_N.max(initial=1)))
        if self.known_R is not None:
            odds = [] if self.odds_R is None else [np.rint(ODDS_UNIT * self.odds_R[row_B])]
            return np.stack([label_B, self.known_R[row_B], *odds], axis=1).astype(np.int64)
        return (label_B if self.target_R is None else self.target_R[row_B]).astype(np.int64)

    def weights(self, row_B: np.ndarray) -> np.ndarray:
        """float32 [B]"""
        return np.ones(len(row_B), np.float32) if self.weight_R is None else np.nan_to_num(self.weight_R[row_B])

    def loss(self, device: str | torch.device) -> Loss | None:
        """None: plain cross-entropy."""
        if self.labels is not None and self.of.lists is not None:
            data = self.of.lists
            return listed_loss(len(self.labels.label_E) / max(data.num_accepted, 1), data.num_classes)
        return None if self.noise is None else noise_loss(self.noise, device)

    def layered(self, classifier: nn.Module) -> nn.Module:
        """The network that learns, where the noise model is a layer on it."""
        if self.noise is None or self.noise.treatment != "bottom_up":
            return classifier
        assert self.noise.observed_given_true_CC is not None
        return WithNoiseLayer(classifier, self.noise.observed_given_true_CC)


def check(settings: TreatmentSettings, heads: HeadSettings, num_classes: int) -> None:
    """Raises: ConfigError when the treatment would hold too large a matrix, or compares all classes of an image (a
    model of the noise) where no worker has the rows of all of them."""
    if settings.name in NOISE_TREATMENTS and heads.is_sharded(num_classes):
        raise ConfigError(
            f"the heads of {num_classes} classes are sharded, and --treatment.name {settings.name} compares all "
            "classes of an image; expected a treatment of weights or labels; use --treatment.name probability, or "
            "--heads.sharded off where the classes fit on one worker"
        )
    if settings.name in MATRIX_TREATMENTS and num_classes > settings.matrix_classes:
        raise ConfigError(
            f"--treatment.name {settings.name} holds a matrix of classes by classes and the data has {num_classes} "
            f"classes; expected at most {settings.matrix_classes}; use noise_em, whose matrix is sparse, or relabel, "
            "or raise --treatment.matrix_classes (4 bytes for each pair of classes, four times that for bottom_up)"
        )


def run(
    place: Place,
    folder: str,
    treatment: TreatmentSettings,
    features: FeatureShards,
    data: Ingested,
    *,
    relevance: tuple[str, str],
    evidence: tuple[str, str],
    row_folds: int,
) -> Supervision:
    """Make what a treatment needs: targets and weights, or a model of the noise.

    relevance, evidence: (folder, fingerprint) of the judgement and of out-of-fold heads; row_folds: how many of them.
    """
    made = make(place, folder, treatment, features, data, relevance, evidence, row_folds)
    known = Supervision((("supervision", made.fingerprint),))
    if treatment.name in NOISE_TREATMENTS:
        return replace(known, noise=folder, certain=made.notes["right"] + made.notes["wrong_named"])
    return replace(known, weights=uris.join(folder, WEIGHTS), targets=uris.join(folder, TARGETS))


def make(
    place: Place,
    folder: str,
    treatment: TreatmentSettings,
    features: FeatureShards,
    data: Ingested,
    relevance: tuple[str, str],
    evidence: tuple[str, str],
    row_folds: int,
) -> Manifest:
    verification, num_classes = data.verification(), data.num_classes
    name = treatment.name
    inputs = {
        "features": features.fingerprint,
        "verification": fingerprint_columns(verification, verification.column_names),
    }
    inputs |= {"evidence": evidence[1]}
    inputs |= {"relevance": relevance[1]} if name not in ANCHORED else {}
    form = {"form": RELABEL_FORM} if name == "relabel" else {}
    key = {"treatment": {"name": name} | form, "run": {"seed": place.seed}}
    stage = open_stage(folder, "supervision", key, inputs)
    if stage.complete:
        return stage.complete
    known_R = np.full(data.num_rows, schema.UNSEEN, np.int32)
    observed_P, true_P = verified_pairs(verification)
    known_R[verification["row"].to_numpy()] = true_P
    job = Job(features, num_classes, relevance[0], evidence[0], row_folds, known_R, place.seed)
    with place.timed("supervision", folder=folder):
        if name not in NOISE_TREATMENTS:
            write_relabelled(stage.path, job)
            return stage.finish()
        write_array(stage.path(KNOWN), known_R)
        notes: dict[str, Any] = {"treatment": name, "num_classes": num_classes} | tell(name, observed_P, true_P)
        if name == "noise_em":
            sources = noise_pairs.Sources(features, num_classes, relevance[0], evidence[0], known_R)
            confusion, notes["noise_free"] = noise_pairs.estimate(sources)
            write_table(stage.path(CONFUSION), noise_pairs.to_table(confusion))
            notes["repeats"] = max(1, round(VERIFIED_SHARE * features.num_images / max(1, len(true_P))))
        elif name == "instance_forward":
            matrix_CC, odds = judged_noise(job)
            write_array(stage.path(MATRIX), matrix_CC.astype(np.float32))
            write_array(stage.path(ODDS), scatter(data.num_rows, odds, 0.0, np.float32))
        else:
            write_array(stage.path(MATRIX), matrix_of_pairs(job, observed_P, true_P).astype(np.float32))
    return stage.finish(notes=notes)


def verified_pairs(verification: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(observed label, true class or WRONG_UNNAMED), int64 [P]: the label where it is right, else what was named."""
    columns = (verification[n].to_numpy() for n in ("label", "verified", "verified_label"))
    label_P, verdict_P, named_P = (column.astype(np.int64) for column in columns)
    wrong_P = np.where(named_P >= 0, named_P, WRONG_UNNAMED)
    return label_P, np.where(verdict_P == schema.RIGHT, label_P, wrong_P)


def tell(treatment: str, observed_P: np.ndarray, true_P: np.ndarray) -> dict[str, int]:
    """How many verdicts of each kind there are; and a word where what is missing matters."""
    right = int((true_P == observed_P).sum())
    named = int((true_P >= 0).sum()) - right
    unnamed = len(true_P) - right - named
    log.info("%s: %d labels known to be right, %d wrong and named, %d wrong", treatment, right, named, unnamed)
    if not named and treatment != "instance_forward":
        source = "the judgement of the labels" if treatment == "noise_em" else "anchor points"
        lost = f"which classes are confused is taken from {source}"
        advice = "a column verified_label in the verification table would tell"
        log.warning("%s: no true class of a wrong label is known, so %s; %s", treatment, lost, advice)
    return {"right": right, "wrong_named": named, "wrong_unnamed": unnamed}


def read_noise(folder: str) -> NoiseModel:
    """The noise model that `run` left in `folder`."""
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} is not complete"
    name, classes = manifest.notes["treatment"], manifest.notes["num_classes"]
    if name != "noise_em":
        return NoiseModel(name, classes, observed_given_true_CC=read_array(uris.join(folder, MATRIX)))
    confusion = noise_pairs.of_table(read_table(uris.join(folder, CONFUSION)), classes)
    return NoiseModel(name, classes, confusion=confusion, noise_free=manifest.notes.get("noise_free"))


def write_relabelled(path: Any, job: Job) -> None:
    heads = shared_value(heads_of, job.evidence, job.row_folds, job.seed)
    found = [one for _, one in map_shards(relabel_shard, list(job.features.shards), job, heads)]
    rows = len(job.known_R)
    write_array(path(TARGETS), scatter(rows, [(row_N, target_N) for row_N, target_N, _ in found], -1, np.int32))
    write_array(path(WEIGHTS), scatter(rows, [(row_N, weight_N) for row_N, _, weight_N in found], 0.0, np.float32))


def relabel_shard(shard: Shard, job: Job, heads: OutOfFold) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, targets, weights) of one shard."""
    judged = read_table(uris.join(job.relevance, f"{shard.name}.parquet"))
    row_N = judged["row"].to_numpy()
    names = ["row", "log_probability", "best_other", "best_other_log_probability"]
    seen = read_table(uris.join(job.evidence, f"{shard.name}.parquet"), names)
    seen = seen.take(pa.array(places(seen["row"].to_numpy(), row_N)))
    suggested_N = judged["suggested_label"].fill_null(-1).to_numpy()
    target_N, weight_N = relabelled(
        Suggested(
            judged["label"].to_numpy(),
            judged["probability_correct"].to_numpy(),
            judged["mislabeled"].to_numpy(),
            suggested_N,
            seen["log_probability"].to_numpy(),
            suggested_log_probability(shard, job, heads, row_N, suggested_N, seen),
            job.known_R[row_N],
        )
    )
    return row_N, target_N, weight_N


def suggested_log_probability(
    shard: Shard, job: Job, heads: OutOfFold, row_N: np.ndarray, suggested_N: np.ndarray, seen: pa.Table
) -> np.ndarray:
    """float32 [N]: of the suggestion, by heads that have not seen the image; of the best other class where there is
    none. seen: what the evidence says of these rows.

    Where the suggestion is not the evidence's best other class but the class index's, its logit is compared with that
    of the best other class, or of the label where the evidence has none.
    """
    best_N, log_probability_N = (seen[name].to_numpy() for name in ("best_other", "best_other_log_probability"))
    at_X = np.flatnonzero((suggested_N >= 0) & (suggested_N != best_N))
    if not len(at_X):
        return log_probability_N
    features = job.features.read(shard)
    of_X = features.take(places(features.row_N, row_N[at_X]))
    known_X = np.where(best_N[at_X] >= 0, best_N[at_X], of_X.label_N).astype(np.int64)
    known_log_probability_X = np.where(best_N >= 0, log_probability_N, seen["log_probability"].to_numpy())[at_X]
    only = Others(np.zeros((len(at_X), 1), np.float32), suggested_N[at_X, None].astype(np.int64), np.empty(0, np.int64))
    known_logit_X, logit_X1 = heads.own_and_others(of_X.feature_ND.astype(np.float32), of_X.row_N, known_X, only)
    found_N = log_probability_N.copy()
    found_N[at_X] = np.minimum(known_log_probability_X + logit_X1[:, 0] - known_logit_X, 0)
    return found_N
