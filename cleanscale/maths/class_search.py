"""The nearest classes of vectors of length 1, over ranges of classes that are searched apart and merged by score.

One coarse quantiser, trained once, serves all ranges; where a query looks is decided once and for all of them. A range
answers in two scores: the first, which follows from the code that is searched (8 bits a dimension), ranks candidates;
the second, the exact cosine, ranks what is left of them. Both depend on the query and the class alone and ties go to
the lower label, so the answer is the same however the classes are cut into ranges.

# Q queries, C classes of a range, E width, P probed lists, R candidates, K answers, X candidates of several ranges
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cleanscale.maths.class_embeddings import gathered
from cleanscale.maths.compared_classes import blocks_of_rows
from cleanscale.maths.keyed_random import Purpose, sampled

SLACK = 8  # candidates asked for beyond those wanted: classes that tie at the end show
ROUNDING = 1e-5  # of an inner product of vectors of length 1 in blocks of another shape
REFINED = 2  # candidates by first score for each answer by exact score
TRAINING_PER_LIST = 40  # sampled classes that a centroid is trained on
NOTHING = np.iinfo(np.int64).max


@dataclass(frozen=True)
class SearchPlan:
    """How all ranges of one index are searched."""

    kind: str  # "flat" or "ivf_sq8"
    width: int
    lists: int = 0  # cells of the coarse quantiser
    probes: int = 0  # of which so many are searched

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def candidates(self, most: int) -> int:
        return most if self.kind == "flat" else REFINED * most


@dataclass(frozen=True)
class Candidates:
    """The best classes of each query by first score; label -1 and scores -inf where there are fewer."""

    label_QR: np.ndarray  # int32
    first_QR: np.ndarray  # float32
    exact_QR: np.ndarray  # float32

    def best(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """(int32 [Q, K], float32 [Q, K]): the answers by exact score."""
        return unpacked(np.sort(packed(self.label_QR, self.exact_QR), axis=1)[:, :most], most)


def _faiss() -> Any:
    """faiss, loaded by who searches: not by all who could."""
    import faiss

    return faiss


def lists_for(classes: int) -> int:
    """Cells of the coarse quantiser: finding the cells then costs about as much as searching a few of them."""
    return max(1, round(4 * classes**0.5))


def tried_probes(most: int) -> list[int]:
    """How many cells are tried, rising, to reach a recall: 1, 2, 3, 4, 6, 8, 12, ... and `most`."""
    steps = {two for k in range(most.bit_length()) for two in (1 << k, 3 << k)}
    return sorted({n for n in steps if n < most} | {most})


def training_sample(seed: int, label_C: np.ndarray, classes: int) -> np.ndarray:
    """bool [C]: which classes of a range the quantiser is trained on, out of `classes` of all ranges."""
    return sampled(seed, Purpose.CLASS_INDEX, label_C, TRAINING_PER_LIST * lists_for(classes) / max(classes, 1))


def train(sample_CE: np.ndarray, lists: int, seed: int) -> Any:
    """An empty faiss index whose coarse quantiser and 8-bit codes are trained: every range fills a copy of it."""
    faiss = _faiss()
    width = sample_CE.shape[1]
    lists = min(lists, len(sample_CE))
    fit = faiss.Kmeans(
        width,
        lists,
        niter=8,
        spherical=True,
        seed=seed % 2**31 + 1,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample_CE),
    )
    fit.train(np.ascontiguousarray(sample_CE, np.float32))
    coarse = faiss.IndexFlatIP(width)
    coarse.add(fit.centroids)
    eight_bits, inner_product = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(coarse, width, lists, eight_bits, inner_product, False)
    index.train(np.ascontiguousarray(sample_CE, np.float32))
    return index


def filled(trained: Any, vector_CE: np.ndarray) -> Any:
    """A copy of the trained index with these classes; they are numbered by their place in the range."""
    index = _faiss().clone_index(trained)
    index.add(np.ascontiguousarray(vector_CE, np.float32))
    return index


def probed_lists(trained: Any, query_QE: np.ndarray, probes: int) -> np.ndarray:
    """int64 [Q, P]: the cells that each query looks into, in every range."""
    return trained.quantizer.search(np.ascontiguousarray(query_QE, np.float32), min(probes, trained.nlist))[1]


def joined(parts: Sequence[RangeIndex]) -> RangeIndex:
    """Neighbouring ranges, in order, as one: searching it costs less than searching each. Takes the codes of parts."""
    if len(parts) == 1:
        return parts[0]
    codes, size = parts[0].codes, len(parts[0])
    for part in parts[1:]:
        if codes is not None:
            codes.merge_from(part.codes, size)
        size += len(part)
    label_C = np.concatenate([part.label_C for part in parts])
    return RangeIndex(label_C, np.concatenate([part.vector_CE for part in parts]), codes)


class RangeIndex:
    """The classes of one range, or of several one after the other.

    label_C sorted; vector_CE float32 of length 1; codes: what is searched of them, None where all are compared.
    """

    def __init__(self, label_C: np.ndarray, vector_CE: np.ndarray, codes: Any | None) -> None:
        self.label_C = np.ascontiguousarray(label_C, np.int32)
        self.vector_CE = np.ascontiguousarray(vector_CE, np.float32)
        self.codes = codes
        self.flat: Any | None = None

    def to_gpu(self, gpu: Any) -> RangeIndex:
        """Candidates are found on the card of these faiss resources; exact scores are computed here, as everywhere."""
        faiss = _faiss()
        flat = faiss.IndexFlatIP(self.vector_CE.shape[1])
        flat.add(self.vector_CE)
        self.flat = faiss.index_cpu_to_gpu(gpu, 0, flat)
        if self.codes is not None:
            self.codes = faiss.index_cpu_to_gpu(gpu, 0, self.codes)
        return self

    def __len__(self) -> int:
        return len(self.label_C)

    def search(self, query_QE: np.ndarray, list_QP: np.ndarray | None, candidates: int) -> Candidates:
        """The best classes; in the lists probed, or (None) among all."""
        query_QE = np.ascontiguousarray(query_QE, np.float32)
        label_QR = np.full((len(query_QE), candidates), -1, np.int32)
        first_QR = np.full(label_QR.shape, -np.inf, np.float32)
        exact_QR = first_QR.copy()
        zero_Q = ~query_QE.any(axis=1)  # is as like to every class: the lowest labels
        label_QR[zero_Q, : len(self)] = self.label_C[:candidates]
        first_QR[zero_Q, : len(self)] = exact_QR[zero_Q, : len(self)] = 0
        open_Q, asked = np.flatnonzero(~zero_Q), candidates + SLACK
        while len(open_Q) and len(self):
            asked = min(asked, len(self))
            unsure = []
            for rows in blocks_of_rows(len(open_Q), asked):
                open_X = open_Q[rows]
                lists_XP = None if list_QP is None else list_QP[open_X]
                best, unsure_X = self._best(query_QE[open_X], lists_XP, candidates, asked)
                kept = np.s_[open_X, : best.label_QR.shape[1]]
                label_QR[kept], first_QR[kept], exact_QR[kept] = best.label_QR, best.first_QR, best.exact_QR
                unsure.append(open_X[unsure_X])
            open_Q, asked = np.concatenate(unsure), 4 * asked
        return Candidates(label_QR, first_QR, exact_QR)

    def _best(
        self, query_XE: np.ndarray, list_XP: np.ndarray | None, candidates: int, asked: int
    ) -> tuple[Candidates, np.ndarray]:
        """The best of `asked` classes, and bool [X]: where a class that was not seen may equal the last one kept."""
        at_XR, first_XR = self._found(query_XE, list_XP, asked)
        exact_XR = self._exact(query_XE, at_XR)
        last_X = first_XR[:, -1]
        if list_XP is None:
            last_X, first_XR = last_X + np.float32(ROUNDING), exact_XR
        key_XR = packed(np.where(at_XR >= 0, self.label_C[at_XR], -1), first_XR)
        order_XR = np.argsort(key_XR, axis=1)[:, :candidates]
        at_XR, first_XR, exact_XR = (np.take_along_axis(a, order_XR, 1) for a in (at_XR, first_XR, exact_XR))
        unsure_X = (first_XR[:, -1] <= last_X) & np.isfinite(last_X) & (asked < len(self))
        return Candidates(np.where(at_XR >= 0, self.label_C[at_XR], -1), first_XR, exact_XR), unsure_X

    def _found(self, query_QE: np.ndarray, list_QP: np.ndarray | None, most: int) -> tuple[np.ndarray, np.ndarray]:
        if list_QP is not None and self.codes is not None:
            self.codes.nprobe = list_QP.shape[1]
            score_QR, at_QR = self.codes.search_preassigned(query_QE, most, list_QP, None)
        elif self.flat is not None:
            score_QR, at_QR = self.flat.search(query_QE, most)
        else:
            faiss = _faiss()
            score_QR, at_QR = faiss.knn(query_QE, self.vector_CE, most, metric=faiss.METRIC_INNER_PRODUCT)
        return at_QR, np.where(at_QR >= 0, score_QR, -np.inf)

    def _exact(self, query_QE: np.ndarray, at_QR: np.ndarray) -> np.ndarray:
        """float32 [Q, R]: one product after the other, so that it is the same in whatever block."""
        faiss = _faiss()
        exact_QR = np.empty(at_QR.shape, np.float32)
        place_QR = np.ascontiguousarray(np.maximum(at_QR, 0), np.int64)
        arrays = (faiss.swig_ptr(a) for a in (exact_QR, query_QE, self.vector_CE, place_QR))
        faiss.fvec_inner_products_by_idx(*arrays, query_QE.shape[1], *at_QR.shape)
        return np.where(at_QR >= 0, exact_QR, -np.inf)

    def embeddings(self, label_N: np.ndarray) -> np.ndarray:
        """float32 [N, E]; NaN for classes that are not here."""
        return gathered(self.label_C, self.vector_CE, label_N)


def merged(parts: Sequence[Candidates], candidates: int) -> Candidates:
    """The best `candidates` by first score of what several ranges found."""
    if len(parts) == 1 and parts[0].label_QR.shape[1] <= candidates:
        return parts[0]
    label_QX, first_QX, exact_QX = (
        np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("label_QR", "first_QR", "exact_QR")
    )
    key_QX = packed(label_QX, first_QX)
    if key_QX.shape[1] > candidates:
        order_QR = np.argpartition(key_QX, candidates - 1, axis=1)[:, :candidates]
        label_QX, first_QX, exact_QX = (np.take_along_axis(a, order_QR, 1) for a in (label_QX, first_QX, exact_QX))
    return Candidates(label_QX, first_QX, exact_QX)


def packed(label_QX: np.ndarray, score_QX: np.ndarray) -> np.ndarray:
    """int64 [Q, X] that sort by falling score and then by label; label -1 comes last.

    Sorting numbers is many times faster than sorting by two keys.
    """
    bits_QX = (0.0 - score_QX.astype(np.float32)).view(np.int32)  # and no negative zero, which would differ from zero
    ordered_QX = (bits_QX ^ ((bits_QX >> 31) & 0x7FFFFFFF)).astype(np.int64)
    return np.where(label_QX >= 0, (ordered_QX << 32) | label_QX.astype(np.int64), NOTHING)


def unpacked(key_QX: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, scores) of `packed`, with columns of nothing up to `width`."""
    label_QK = np.full((len(key_QX), width), -1, np.int32)
    score_QK = np.full(label_QK.shape, -np.inf, np.float32)
    ordered_QX = (key_QX >> 32).astype(np.int32)
    bits_QX = ordered_QX ^ ((ordered_QX >> 31) & 0x7FFFFFFF)
    there_QX = key_QX != NOTHING
    columns = slice(0, key_QX.shape[1])
    label_QK[:, columns] = np.where(there_QX, (key_QX & 0xFFFFFFFF).astype(np.int64), -1)
    score_QK[:, columns] = np.where(there_QX, -bits_QX.view(np.float32), -np.inf)
    return label_QK, score_QK


def without(label_QK: np.ndarray, score_QK: np.ndarray, own_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One column less: the answers without each query's own class, or without the last where it is not among them."""
    own_QK = label_QK == own_Q[:, None]
    drop_Q = np.where(own_QK.any(axis=1), own_QK.argmax(axis=1), label_QK.shape[1] - 1)
    keep_QK = np.arange(label_QK.shape[1]) != drop_Q[:, None]
    shape = (len(label_QK), label_QK.shape[1] - 1)
    return label_QK[keep_QK].reshape(shape), score_QK[keep_QK].reshape(shape)


def recall(found_QK: np.ndarray, true_QK: np.ndarray) -> float:
    """Share of the true answers that were found."""
    there_QK = true_QK >= 0
    hit_QK = (true_QK[:, :, None] == found_QK[:, None, :]).any(axis=2) & there_QK
    return float(hit_QK.sum() / max(there_QK.sum(), 1))
