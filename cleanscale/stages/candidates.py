"""The classes that each image is compared with where there are too many for all.

Those whose mean reference is nearest to the image, searched in few cells of the index, and those nearest to its own
label's, which no image has to be searched for: labels are mostly mistaken for others that look alike.

# N images, C classes, D feature width, M candidates
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cleanscale.detectors.settings import EvidenceSettings
from cleanscale.engine.class_index import ClassIndex, opened
from cleanscale.maths.keyed_random import Purpose, generator, hash_rows
from cleanscale.stages import references as references_stage
from cleanscale.stages import vector_index
from cleanscale.stages.feature_shards import FeatureShards
from cleanscale.stages.settings import ClassIndexSettings
from cleanscale.storage import uris
from cleanscale.storage.shards import Shard

FOLDER = "index"  # in the stage's
SAMPLED_RUNS, RUN_CLASSES = 16, 32  # of neighbouring classes, whose images recall is measured with


@dataclass(frozen=True)
class MeanReferences:
    """Mean reference of each class of a range."""

    folder: str
    features: FeatureShards

    def __call__(self, shards: Sequence[Shard]) -> tuple[np.ndarray, np.ndarray]:
        sets = references_stage.read(self.folder, list(shards), self.features)
        return sets.label_C, sets.mean_CD()


@dataclass(frozen=True)
class SampledImages:
    """An image of each of some classes: which ones depends on neither shards nor who asks."""

    features: FeatureShards
    seed: int

    def __call__(self) -> np.ndarray:
        """float32 [N, D]"""
        wanted_X = self.classes()
        found: dict[int, tuple[int, np.ndarray]] = {}
        for shard in self.features.shards:
            low, high = np.searchsorted(wanted_X, [shard.label_start, shard.label_stop])
            if low == high:
                continue
            images = self.features.read(shard)
            at_X = np.flatnonzero(np.isin(images.label_N, wanted_X[low:high]))
            key_X = hash_rows(self.seed, Purpose.CLASS_INDEX, images.row_N[at_X])
            for at, key in zip(at_X, key_X.tolist(), strict=True):
                label = int(images.label_N[at])
                if label not in found or key < found[label][0]:
                    found[label] = key, images.feature_ND[at].astype(np.float32)
        vectors = [found[label][1] for label in sorted(found)]
        return np.stack(vectors) if vectors else np.empty((0, self.features.width), np.float32)

    def classes(self) -> np.ndarray:
        """int64, sorted: some runs of neighbouring classes, so that few shards are read for them."""
        stop = max((shard.label_stop for shard in self.features.shards), default=0)
        start_X = generator(self.seed, Purpose.CLASS_INDEX).integers(0, max(1, stop), SAMPLED_RUNS)
        return np.unique(start_X[:, None] + np.arange(RUN_CLASSES))


def make(
    folder: str,
    made: str,
    features: FeatureShards,
    references: str,
    settings: EvidenceSettings,
    index: ClassIndexSettings,
    *,
    seed: int,
    use_gpu: bool = False,
) -> None:
    """The index of mean references in `folder`/index, with the nearest other classes of each; nothing if it is there.

    made: fingerprint of what it is made from.
    """
    folder = uris.join(folder, FOLDER)
    if vector_index.complete(folder, made):
        return
    own = index.model_copy(update={"recall": settings.recall})
    job = vector_index.Build(folder, made, features.width, own, seed, MeanReferences(references, features))
    vector_index.build(job, features.class_ranges(), SampledImages(features, seed), use_gpu=use_gpu)


@contextlib.contextmanager
def candidate_index(folder: str, *, use_gpu: bool = False) -> Iterator[ClassIndex]:
    """What `make` made, for the time of a `with`."""
    with opened(uris.join(folder, FOLDER), use_gpu=use_gpu) as index:
        yield index


def nearest_classes(feature_ND: np.ndarray, label_N: np.ndarray, index: ClassIndex, most: int) -> np.ndarray:
    """int32 [N, M]: the `most` classes whose mean is most like each image, by cosine, and the neighbours of its label's
    class; may hold a class twice, -1 where there are fewer classes."""
    near_NM = index.search(feature_ND, most)[0]
    if not len(label_N):
        return near_NM
    first = int(label_N.min())
    neighbour_XK = vector_index.read_neighbours(index.files.folder, first, int(label_N.max()) + 1)
    return np.concatenate([near_NM, neighbour_XK[label_N - first]], axis=1)
