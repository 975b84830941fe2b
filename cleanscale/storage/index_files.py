"""A class index on any file system: one JSON, the trained quantiser, and three files for every range of classes.

    index.json             how it is searched and its ranges; written last
    trained.faiss          coarse quantiser and codes without classes; absent where all classes are compared
    labels-000012500.npy   int32 [C], sorted: the classes of a range, named by its first class
    vectors-000012500.npy  float32 [C, E] of length 1
    codes-000012500.faiss  what is searched of them

# C classes of a range, E width
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cleanscale.errors import StageError
from cleanscale.maths.class_search import RangeIndex, SearchPlan
from cleanscale.storage import uris
from cleanscale.storage.arrays import read_array, write_array
from cleanscale.storage.manifests import read_json, write_json

INDEX, TRAINED = "index.json", "trained.faiss"


@dataclass(frozen=True)
class ClassRange:
    """Classes first <= label < stop; `classes` of them are there."""

    first: int
    stop: int
    classes: int

    def file(self, kind: str) -> str:
        return f"{kind}-{self.first:09d}.{'faiss' if kind == 'codes' else 'npy'}"


@dataclass(frozen=True)
class IndexFiles:
    """What index.json says. `made`: which index it is. `measured`: how the number of cells was chosen.

    Two are equal when they are the same index, so that a process keeps what it has loaded.
    """

    folder: str
    made: str
    plan: SearchPlan
    ranges: tuple[ClassRange, ...]
    measured: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def classes(self) -> int:
        return sum(r.classes for r in self.ranges)

    @property
    def vector_bytes(self) -> int:
        return 4 * self.plan.width * self.classes

    def write(self) -> None:
        document = {
            "made": self.made,
            "plan": self.plan.to_json(),
            "ranges": [[r.first, r.stop, r.classes] for r in self.ranges],
            "measured": self.measured,
        }
        write_json(uris.join(self.folder, INDEX), document)

    @classmethod
    def read(cls, folder: str) -> IndexFiles:
        """Raises: StageError where there is no index."""
        document = read_json(uris.join(folder, INDEX))
        if document is None:
            raise StageError(f"no class index at '{folder}'; expected {INDEX}; run the job again, which makes it")
        ranges = tuple(ClassRange(*r) for r in document["ranges"])
        return cls(folder, document["made"], SearchPlan(**document["plan"]), ranges, document["measured"])

    def load(self, one: ClassRange) -> RangeIndex:
        """A range, ready to be searched."""
        label_C = read_array(uris.join(self.folder, one.file("labels")))
        vector_CE = mapped_array(uris.join(self.folder, one.file("vectors")))
        codes = None if self.plan.kind == "flat" else read_faiss(uris.join(self.folder, one.file("codes")))
        return RangeIndex(label_C, vector_CE, codes)

    def trained(self) -> Any | None:
        """The quantiser without classes; None where all classes are compared."""
        return None if self.plan.kind == "flat" else read_faiss(uris.join(self.folder, TRAINED))


def write_vectors(folder: str, one: ClassRange, label_C: np.ndarray, vector_CE: np.ndarray) -> None:
    write_array(uris.join(folder, one.file("labels")), label_C.astype(np.int32))
    write_array(uris.join(folder, one.file("vectors")), np.ascontiguousarray(vector_CE, np.float32))


def mapped_array(uri: str) -> np.ndarray:
    """An array that all processes of a node share where it lies on a disk; otherwise read whole."""
    if not uris.is_local(uri):
        return read_array(uri)
    path = uris.open_filesystem(uri)[1]
    with uris.translate_errors(uri):
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # an empty array cannot be mapped
            return np.load(path, allow_pickle=False)


def write_faiss(uri: str, index: Any) -> None:
    import faiss

    uris.write_bytes(uri, faiss.serialize_index(index).tobytes())


def read_faiss(uri: str) -> Any:
    import faiss

    return faiss.deserialize_index(np.frombuffer(uris.read_bytes(uri), np.uint8))
