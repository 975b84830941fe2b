"""Noise as matrices of classes by classes, estimated from verified labels, from anchor points, or from the judgement.

# N images of a range of classes, R rows of the input, P verified pairs, C classes, M those that occur in a range
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cleanscale.engine.tasks import map_shards
from cleanscale.maths.evidence import OutOfFold
from cleanscale.maths.loss_correction import (
    anchor_row,
    anchors_of_class,
    judged_column,
    log_odds_in_class,
    rows_of_joint,
    transition_matrix,
)
from cleanscale.stages.evidence_heads import heads_of
from cleanscale.stages.feature_shards import Features, FeatureShards
from cleanscale.stages.judged_shard import places, read_parts
from cleanscale.storage.shards import Shard

BLOCK_IMAGES = 4096


@dataclass(frozen=True)
class Job:
    features: FeatureShards
    num_classes: int
    relevance: str
    evidence: str
    row_folds: int
    known_R: np.ndarray
    seed: int


def matrix_of_pairs(job: Job, observed_P: np.ndarray, true_P: np.ndarray) -> np.ndarray:
    """observed_given_true_CC float64 from verified labels and anchors."""
    anchor_CC = np.eye(job.num_classes)
    images_C = np.zeros(job.num_classes)
    for _, (class_M, anchor_MC, images_M) in map_shards(anchors_of_range, job.features.class_ranges(), job):
        anchor_CC[class_M], images_C[class_M] = anchor_MC, images_M
    return transition_matrix(anchor_CC, images_C, observed_P, true_P)


def anchors_of_range(shards: list[Shard], job: Job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(classes that occur, their rows of the anchors' estimate, their images) of one range of classes."""
    features = job.features.read_all(shards)
    class_M, images_M = np.unique(features.label_N, return_counts=True)
    heads = heads_of(job.evidence, job.row_folds, job.seed)
    anchor_MC = np.empty((len(class_M), job.num_classes))
    for place, label in enumerate(class_M):
        own = features.take(features.label_N == label)
        blocks = np.array_split(np.arange(len(own)), -(-len(own) // BLOCK_IMAGES))
        own_N = np.concatenate([log_probability(heads, own, at)[:, label] for at in blocks])
        anchor_MC[place] = anchor_row(log_probability(heads, own, anchors_of_class(own_N)))
    return class_M, anchor_MC, images_M


def judged_noise(job: Job) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """(observed_given_true_CC float64, (rows, log odds) by range of classes) from the judgement of all images.

    Twice: what labels are mistaken for, as the heads alone see it, helps to see what each wrong one is a mistake for.
    """
    found: list[JudgedRange] = []
    matrix_CC: np.ndarray | None = None
    for _ in range(2):
        found = [one for _, one in map_shards(judged_range, job.features.class_ranges(), job, matrix_CC)]
        joint_CC = np.zeros((job.num_classes, job.num_classes))
        for one in found:
            joint_CC[:, one.class_M] = one.joint_CM
        matrix_CC = rows_of_joint(joint_CC)
    assert matrix_CC is not None
    return matrix_CC, [(one.row_N, one.log_odds_N) for one in found]


@dataclass(frozen=True)
class JudgedRange:
    """A range of classes: those that occur, how many of their images are of which true class, and each image's odds."""

    class_M: np.ndarray
    joint_CM: np.ndarray
    row_N: np.ndarray
    log_odds_N: np.ndarray


def judged_range(shards: list[Shard], job: Job, noise_CC: np.ndarray | None) -> JudgedRange:
    features = job.features.read_all(shards)
    names = ["row", "probability_correct"]
    judged = read_parts(job.relevance, shards, names)
    judged = judged.take(pa.array(places(judged["row"].to_numpy(), features.row_N)))
    probability_N = judged["probability_correct"].to_numpy().astype(np.float64)
    heads = heads_of(job.evidence, job.row_folds, job.seed)
    class_M = np.unique(features.label_N)
    joint_CM, log_odds_N = np.zeros((job.num_classes, len(class_M))), np.zeros(len(features), np.float32)
    for place, label in enumerate(class_M.tolist()):
        own_N = np.flatnonzero(features.label_N == label)
        log_odds_N[own_N] = log_odds_in_class(probability_N[own_N])
        for at in np.array_split(own_N, -(-len(own_N) // BLOCK_IMAGES)):
            noise_C = None if noise_CC is None else noise_CC[:, label]
            joint_CM[:, place] += judged_column(probability_N[at], log_probability(heads, features, at), label, noise_C)
    return JudgedRange(class_M, joint_CM, features.row_N, log_odds_N)


def log_probability(heads: OutOfFold, features: Features, at_N: np.ndarray) -> np.ndarray:
    """float32 [N, C] for the images at these places."""
    return heads.log_probability(features.feature_ND[at_N], features.row_N[at_N])
