"""Wrong labels in arrays: one call, no cluster, no files.

    from cleanscale.in_memory import find_wrong_labels
    table = find_wrong_labels(features, labels, verified)

# N images, D feature width, C classes
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from cleanscale.detectors import Evidence, FittedDetector, detector
from cleanscale.detectors.settings import EvidenceSettings
from cleanscale.errors import DataError
from cleanscale.maths import evidence as maths
from cleanscale.schema import RELEVANCE, UNSEEN, WRONG
from cleanscale.signals import MAKERS, Images
from cleanscale.training.head_settings import HeadSettings
from cleanscale.training.heads import fit_out_of_fold_heads

log = logging.getLogger(__name__)


def find_wrong_labels(
    features_ND: np.ndarray,
    labels_N: np.ndarray | Sequence[int] | Sequence[str],
    verified_N: np.ndarray | Sequence[int] | None = None,
    *,
    seed: int = 0,
    detector_name: str = "transfer",
    heads: HeadSettings | None = None,
    evidence: EvidenceSettings | None = None,
) -> pa.Table:
    """Which labels are wrong, how sure that is, and what they might be instead.

    features_ND: floats, any extractor's. labels_N: integers (gaps and negative numbers allowed) or strings.
    verified_N: 1 where somebody found the label right, 0 wrong, -1 where nobody looked; None: nobody looked anywhere,
    and the rule that is left is unsupervised. Some hundreds of labels of some classes teach what is wrong in all.

    The table has the columns of `schema.RELEVANCE`, one row per image in input order; `row` and `id` are the position.
    `relevance` is the cosine to the prototype of the label's class; `suggested_label` is null unless the label is
    called wrong. Every detector's name is taken but those of CleanNet and of reference sets (`cleannet`, `average`).
    With string labels, `label` and `suggested_label` are strings. Verified images keep what the person
    said: probability 1 or 0. Same arrays and seed, same table. Raises DataError for arrays that cannot be used.
    """
    finder = WrongLabelFinder(seed=seed, detector_name=detector_name, heads=heads, evidence=evidence)
    return finder.fit(features_ND, labels_N, verified_N).table()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Matrices are small here: on a busy machine threads that wait for each other take many times as long as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


class WrongLabelFinder:
    """The same in two steps: `fit` learns what wrong labels look like, `decide` applies it to another collection."""

    def __init__(
        self,
        *,
        seed: int = 0,
        detector_name: str = "transfer",
        heads: HeadSettings | None = None,
        evidence: EvidenceSettings | None = None,
    ) -> None:
        self.seed = seed
        self.kind = detector(detector_name)
        self.heads = heads or HeadSettings()
        # Two folds of images where a run takes four: a third of the time, for 0.3 points more error (docs/log.md).
        self.evidence = evidence or EvidenceSettings(row_folds=2)
        self.fitted: FittedDetector | None = None
        self._collection: _Collection | None = None

    def fit(
        self,
        features_ND: np.ndarray,
        labels_N: np.ndarray | Sequence[int] | Sequence[str],
        verified_N: np.ndarray | Sequence[int] | None = None,
    ) -> WrongLabelFinder:
        """Collect the evidence and fit the detector on the verified images."""
        arrays = _Arrays.checked(features_ND, labels_N, verified_N)
        self._collection = self._collect(arrays)
        seen_N = arrays.verified_N != UNSEEN
        self.fitted = self.kind.fit(
            self._collection.evidence.select(seen_N),
            arrays.verified_N[seen_N],
            class_folds=self.evidence.class_folds,
            seed=self.seed,
        )
        return self

    def table(self) -> pa.Table:
        """Decisions about the images of `fit`: the relevance table of `find_wrong_labels`."""
        fitted, collection = self._learned()
        return collection.table(fitted)

    def decide(
        self,
        features_ND: np.ndarray,
        labels_N: np.ndarray | Sequence[int] | Sequence[str],
        verified_N: np.ndarray | Sequence[int] | None = None,
    ) -> pa.Table:
        """Decisions about another collection: its evidence is its own, what evidence means is what `fit` learned."""
        fitted, collection = self._learned()
        arrays, known = _Arrays.checked(features_ND, labels_N, verified_N), collection.arrays
        if arrays.feature_ND.shape[1] != known.feature_ND.shape[1]:
            raise DataError(
                f"features are {arrays.feature_ND.shape[1]} wide; expected {known.feature_ND.shape[1]} as in fit: what "
                "evidence means was learned on those; extract features as for fit"
            )
        found = self._collect(arrays)
        evidence = replace(found.evidence, label_N=known.numbers_of(arrays))
        return replace(found, evidence=evidence).table(fitted)

    def _learned(self) -> tuple[FittedDetector, _Collection]:
        """The detector and the collection it was fitted on. Raises DataError before `fit`."""
        if self.fitted is None or self._collection is None:
            raise DataError(
                "nothing has been fitted; expected a call of fit(features, labels, verified) first; call it"
            )
        return self.fitted, self._collection

    def _collect(self, arrays: _Arrays) -> _Collection:
        with one_thread():
            return self._collected(arrays)

    def _collected(self, arrays: _Arrays) -> _Collection:
        feature_ND, class_N, num_classes = arrays.feature_ND, arrays.class_N, len(arrays.label_C)
        row_N = np.arange(len(class_N))
        fitted = fit_out_of_fold_heads(
            feature_ND, class_N, None, row_N, num_classes, self.heads, seed=self.seed, folds=self.evidence.row_folds
        )
        heads = maths.OutOfFold([head.frozen() for head in fitted], self.seed)
        centre_D = feature_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
        compared = self._compared(feature_ND, class_N, num_classes, centre_D)
        found = maths.logit_signals(heads, feature_ND, class_N, row_N, compared)
        sums = maths.class_sums(feature_ND, class_N, found.signals["log_probability"], centre_D)
        prototype_CD = maths.denoised_prototypes(sums)
        cosines = maths.cosine_signals(prototype_CD, feature_ND, class_N, centre_D, compared)
        signals = found.signals | cosines.signals
        signals |= maths.class_signals(signals, class_N, found.best_other_N)
        signals |= maths.other_class_signals(maths.class_statistics(sums), class_N, found.best_other_N)
        if self.kind.own_signals:
            images = Images(row_N, class_N, feature_ND, arrays.verified_N)
            signals |= MAKERS[self.kind.name].of_arrays(images, centre_D, heads, self.seed)
        suggestion_N = np.maximum(found.best_other_N, 0)
        return _Collection(
            arrays,
            Evidence(row_N, class_N.astype(np.int32), signals, feature_ND),
            found.best_other_N,
            maths.cosine_to_class(feature_ND, suggestion_N, prototype_CD, centre_D),
        )

    def _compared(
        self, feature_ND: np.ndarray, class_N: np.ndarray, num_classes: int, centre_D: np.ndarray
    ) -> maths.Compared:
        if num_classes <= self.evidence.exact_classes:
            return maths.Compared(num_classes)
        even_N = np.zeros(len(class_N), np.float32)
        prototype_CD = maths.denoised_prototypes(maths.class_sums(feature_ND, class_N, even_N, centre_D))
        candidate_NM = maths.nearest_classes(feature_ND, prototype_CD, centre_D, self.evidence.candidates)
        return maths.Compared.candidates(candidate_NM, num_classes, tail=self.evidence.tail, seed=self.seed)


@dataclass(frozen=True)
class _Arrays:
    """What the user passed, checked: classes numbered from 0, `label_C[class_N]` are the user's labels."""

    feature_ND: np.ndarray
    class_N: np.ndarray
    label_C: np.ndarray
    verified_N: np.ndarray

    @classmethod
    def checked(cls, features_ND, labels_N, verified_N) -> _Arrays:
        feature_ND, label_N = np.asarray(features_ND), np.asarray(labels_N)
        _check_features(feature_ND)
        if label_N.shape != feature_ND.shape[:1]:
            raise DataError(
                f"labels have shape {label_N.shape} and features {feature_ND.shape}; expected one label per feature "
                "row; pass labels of shape [N]"
            )
        if label_N.dtype.kind == "O" and all(isinstance(label, str) for label in label_N):
            label_N = label_N.astype(str)
        if label_N.dtype.kind not in "iuU":
            raise DataError(f"labels are {label_N.dtype}; expected integers or strings, one for each image; cast them")
        label_C, class_N = np.unique(label_N, return_inverse=True)
        if len(label_C) < 2:
            raise DataError(
                f"all {len(label_N)} labels are {label_C[0]!r}; expected at least two classes: a label is judged "
                "against others; pass images of several classes"
            )
        return cls(feature_ND, class_N.astype(np.int64), label_C, _checked_verified(verified_N, len(label_N)))

    def numbers_of(self, other: _Arrays) -> np.ndarray:
        """int32 [N]: the numbers that classes of another collection have here; -1 for those that are not here."""
        at_C = np.minimum(np.searchsorted(self.label_C, other.label_C), len(self.label_C) - 1)
        number_C = np.where(self.label_C[at_C] == other.label_C, at_C, -1)
        return number_C[other.class_N].astype(np.int32)


def _type_of(label_C: np.ndarray) -> pa.DataType:
    """Of a column of such labels: integers as in the tables of runs, where they fit."""
    if label_C.dtype.kind == "U":
        return pa.string()
    fits = np.iinfo(np.int32).min <= label_C[0] and label_C[-1] <= np.iinfo(np.int32).max
    return pa.int32() if fits else pa.from_numpy_dtype(label_C.dtype)


def _check_features(feature_ND: np.ndarray) -> None:
    if feature_ND.ndim != 2 or 0 in feature_ND.shape:
        raise DataError(
            f"features have shape {feature_ND.shape}; expected [images, feature width], both at least 1; "
            "flatten or pool each image's features into one vector"
        )
    if feature_ND.dtype.kind != "f":
        raise DataError(f"features are {feature_ND.dtype}; expected float16, float32 or float64; cast them")
    bad_N = (~np.isfinite(feature_ND)).any(axis=1)
    if bad_N.any():
        raise DataError(
            f"features hold NaN or infinity in {int(bad_N.sum())} of {len(feature_ND)} rows, the first is row "
            f"{int(bad_N.argmax())}; expected finite numbers; drop these rows or extract their features again"
        )


def _checked_verified(verified_N, images: int) -> np.ndarray:
    if verified_N is None:
        return np.full(images, UNSEEN, np.int8)
    verified_N = np.asarray(verified_N)
    if verified_N.shape != (images,):
        raise DataError(
            f"verification labels have shape {verified_N.shape} for {images} images; expected one for each image; "
            "pass -1 for images that nobody verified"
        )
    values = np.unique(verified_N)
    if not np.isin(values, (-1, 0, 1)).all():
        raise DataError(
            f"verification labels hold the values {values[:5].tolist()}; expected 1 (right), 0 (wrong) and -1 (nobody "
            "looked); translate them"
        )
    return verified_N.astype(np.int8)


@dataclass(frozen=True)
class _Collection:
    """Evidence about a user's arrays, and how decisions about it become their table."""

    arrays: _Arrays
    evidence: Evidence
    suggestion_N: np.ndarray
    suggestion_cosine_N: np.ndarray

    def table(self, fitted: FittedDetector) -> pa.Table:
        arrays, decision = self.arrays, fitted.decide(self.evidence)
        seen_N = arrays.verified_N != UNSEEN
        mislabeled_N = np.where(seen_N, arrays.verified_N == WRONG, decision.mislabeled_N)
        probability_N = decision.probability_correct_N
        if probability_N is None:
            probability_N = (~mislabeled_N).astype(np.float32)
        probability_N = np.where(seen_N, arrays.verified_N, probability_N).astype(np.float32)
        unsuggested_N = ~mislabeled_N | (self.suggestion_N < 0)
        label_type = _type_of(arrays.label_C)
        columns = {
            "row": self.evidence.row_N,
            "id": self.evidence.row_N.astype(str),
            "label": arrays.label_C[arrays.class_N],
            "relevance": self.evidence.signals["cosine"].clip(-1, 1),
            "probability_correct": probability_N,
            "weight": probability_N,
            "mislabeled": mislabeled_N,
            "suggested_label": pa.array(
                arrays.label_C[np.maximum(self.suggestion_N, 0)], label_type, mask=unsuggested_N
            ),
            "suggested_relevance": pa.array(self.suggestion_cosine_N.clip(-1, 1), pa.float32(), mask=unsuggested_N),
            "verified": arrays.verified_N,
        }
        schema = RELEVANCE
        for name in ("label", "suggested_label"):
            schema = schema.set(schema.get_field_index(name), pa.field(name, label_type))
        return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
