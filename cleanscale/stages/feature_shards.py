"""Reading features by class shard, for every stage after `features`.

# N images of what is read, D feature width
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest
from cleanscale.storage.shards import Shard, deal
from cleanscale.storage.tables import read_table


@dataclass(frozen=True)
class FeatureShards:
    """The features of one round: where they are, and in which shards."""

    folder: str
    fingerprint: str
    width: int
    shards: tuple[Shard, ...]
    projected: bool = False

    @property
    def projection(self) -> str | None:
        """The folder whose projection made these features; None when they are as the backbone gave them."""
        return self.folder if self.projected else None

    @classmethod
    def of(cls, folder: str, manifest: Manifest) -> FeatureShards:
        fields = ("index", "label_start", "label_stop", "part", "parts", "rows")
        shards = tuple(Shard(**{name: s[name] for name in fields}) for s in manifest.shards)
        return cls(folder, manifest.fingerprint, manifest.notes["width"], shards, manifest.notes["projected"])

    @property
    def num_images(self) -> int:
        return sum(s.rows for s in self.shards)

    def class_ranges(self) -> list[list[Shard]]:
        """Shards by class range: all parts of a huge class together, every other shard alone."""
        ranges: dict[int, list[Shard]] = {}
        for shard in self.shards:
            ranges.setdefault(shard.label_start, []).append(shard)
        return list(ranges.values())

    def deal(self, world: int) -> list[list[Shard]]:
        """Shards to training workers, about equally many images each."""
        return deal(list(self.shards), world)

    def read(self, shard: Shard) -> Features:
        return Features.of_table(read_table(uris.join(self.folder, f"{shard.name}.parquet")), self.width)

    def read_all(self, shards: list[Shard]) -> Features:
        """By label and row: what trains on it must not depend on how classes were cut into shards."""
        return Features.concatenate([self.read(s) for s in shards], self.width).ordered()


@dataclass(frozen=True)
class Features:
    """Features of some images as arrays, by class and row."""

    row_N: np.ndarray
    label_N: np.ndarray
    feature_ND: np.ndarray  # float16, as stored
    id_N: pa.ChunkedArray

    @classmethod
    def of_table(cls, table: pa.Table, width: int) -> Features:
        flat = pa.chunked_array([c.flatten() for c in table["feature"].chunks], pa.float16())
        feature_ND = flat.to_numpy().reshape(-1, width)
        return cls(table["row"].to_numpy(), table["label"].to_numpy(), feature_ND, table["id"])

    @classmethod
    def empty(cls, width: int) -> Features:
        nothing = np.empty(0, np.int64)
        return cls(
            nothing, nothing.astype(np.int32), np.empty((0, width), np.float16), pa.chunked_array([[]], pa.string())
        )

    @classmethod
    def concatenate(cls, pieces: list[Features], width: int) -> Features:
        pieces = pieces or [cls.empty(width)]
        return cls(
            np.concatenate([p.row_N for p in pieces]),
            np.concatenate([p.label_N for p in pieces]),
            np.concatenate([p.feature_ND for p in pieces]),
            pa.chunked_array([c for p in pieces for c in p.id_N.chunks], pa.string()),
        )

    def take(self, mask_N: np.ndarray) -> Features:
        return Features(
            self.row_N[mask_N], self.label_N[mask_N], self.feature_ND[mask_N], self.id_N.filter(pa.array(mask_N))
        )

    def ordered(self) -> Features:
        """By label and row; only the parts of a huge class come in another order."""
        order_N = np.lexsort((self.row_N, self.label_N))
        if (np.diff(order_N) == 1).all():
            return self
        columns = (self.row_N[order_N], self.label_N[order_N], self.feature_ND[order_N])
        return Features(*columns, self.id_N.take(pa.array(order_N)))

    def __len__(self) -> int:
        return len(self.row_N)
