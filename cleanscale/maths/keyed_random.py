"""Randomness keyed by what it is about (seed, purpose, class or row), never by who computes it."""

from __future__ import annotations

import enum

import numpy as np


class Purpose(enum.IntEnum):
    """The first part of every key. Values are part of the results' determinism: append, never renumber."""

    GLYPHS = 1
    EPOCH_ORDER = 2
    AUGMENTATION = 3
    REFERENCES = 4
    CLEANNET = 5
    ROW_FOLDS = 6
    CLASS_FOLDS = 7
    HEAD = 8
    BOOTSTRAP = 9
    PROJECTION = 10
    CLASSIFIER = 11
    CANDIDATES = 12
    BUDGETS = 13
    CLASS_DETECTORS = 14
    NEIGHBOUR_VOTERS = 15
    EVALUATION = 16
    GENERATED = 17
    CLASS_INDEX = 18
    NEGATIVES = 20
    DUPLICATE_IDS = 21
    MIXUP = 22
    PARTS = 23
    LABEL_CLEANING = 30
    VERIFICATION_PLAN = 40


def generator(seed: int, purpose: Purpose, *about: int) -> np.random.Generator:
    """A generator for one thing, for example `generator(seed, Purpose.REFERENCES, class_id)`."""
    return np.random.default_rng([seed, int(purpose), *about])


def hash_rows(seed: int, purpose: Purpose, row_N: np.ndarray) -> np.ndarray:
    """uint64 hash of each row (splitmix64): the same for a row wherever and with whatever others it is computed."""
    key = np.random.SeedSequence([seed, int(purpose)]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        x_N = np.asarray(row_N).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
        x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def sampled(seed: int, purpose: Purpose, row_N: np.ndarray, share: float) -> np.ndarray:
    """bool [N]: about this share of the rows, those with the smallest hashes; all of them from a share of 1."""
    if share >= 1.0:
        return np.ones(len(row_N), bool)
    return hash_rows(seed, purpose, row_N) < np.uint64(share * 2.0**64)


def hash_about(seed: int, purpose: Purpose, key: int, about_N: np.ndarray) -> np.ndarray:
    """uint64 hashes as `hash_rows`, several (by key, below 65536) of each thing; things are numbered below 2^48."""
    return hash_rows(seed, purpose, np.asarray(about_N).astype(np.uint64) + (np.uint64(key) << np.uint64(48)))


def uniform_about(seed: int, purpose: Purpose, key: int, about_N: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from `hash_about`."""
    return (hash_about(seed, purpose, key, about_N) >> np.uint64(11)) * 2.0**-53


def folds_of_rows(seed: int, row_N: np.ndarray, folds: int) -> np.ndarray:
    """int32 [N] in 0 .. folds-1: the fold of each image for out-of-fold heads."""
    return (hash_rows(seed, Purpose.ROW_FOLDS, row_N) % np.uint64(folds)).astype(np.int32)


def folds_of_classes(seed: int, label_C: np.ndarray, folds: int) -> np.ndarray:
    """int32 [C] in 0 .. folds-1 for distinct class ids: as equal in size as can be (the class-fold protocol)."""
    order = np.argsort(hash_rows(seed, Purpose.CLASS_FOLDS, label_C), kind="stable")
    fold_C = np.empty(len(label_C), np.int32)
    fold_C[order] = np.arange(len(label_C)) % folds
    return fold_C


def class_fold_masks(label_N: np.ndarray, class_folds: int, seed: int) -> list[np.ndarray]:
    """bool [N] of each class fold (contracts.md, the class-fold protocol); none of fewer than two classes."""
    label_C, class_N = np.unique(label_N, return_inverse=True)
    if len(label_C) < 2:
        return []
    fold_N = folds_of_classes(seed, label_C, min(class_folds, len(label_C)))[class_N]
    return [fold_N == fold for fold in range(fold_N.max() + 1)]
