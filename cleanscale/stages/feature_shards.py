"""Reading features by class shard, for every stage after `features`.

# N images of what is read, D feature width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cleanscale.storage import uris
from cleanscale.storage.manifests import Manifest
from cleanscale.storage.rows import empty_rows, fit_in_memory
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

    @property
    def fit_in_memory(self) -> bool:
        return fit_in_memory(self.num_images, self.width, np.float16)

    def deal(self, world: int) -> list[list[Shard]]:
        """Whole shards to training workers, about equally many images each; a shard more or less where they are few."""
        return deal(list(self.shards), world)

    def read(self, shard: Shard, *, ids: bool = False) -> Features:
        """The features of a shard; of their ids only who writes tables wants to know."""
        columns = ["row", "label", "feature", *(["id"] if ids else [])]
        return Features.of_table(read_table(uris.join(self.folder, f"{shard.name}.parquet"), columns), self.width)

    def read_all(self, shards: list[Shard], scratch: str | None = None) -> Features:
        """By label and row: what trains on it must not depend on how classes were cut into shards.

        More than fits in memory lies in a file of this node, in the folder `scratch`, and is read as it is asked for.
        """
        return self._read_spans([(shard, slice(None)) for shard in shards], scratch)

    def read_share(self, rank: int, world: int, scratch: str | None = None) -> Features:
        """A training worker's share, in the order of `read_all`: equally many images for each, to within one.

        Of few images every world-th, so that each worker meets all classes; of many a range, so that none reads all.
        """
        if world > 1 and self.fit_in_memory:
            everything = self.read_all(list(self.shards))
            return everything.take(np.arange(len(everything)) % world == rank)
        start, stop = (self.num_images * r // world for r in (rank, rank + 1))
        spans, before = [], 0
        for shard in self.shards:
            span = slice(max(0, start - before), min(shard.rows, stop - before))
            if span.start < span.stop:
                spans.append((shard, span))
            before += shard.rows
        return self._read_spans(spans, scratch)

    def _read_spans(self, spans: list[tuple[Shard, slice]], scratch: str | None) -> Features:
        row_N, label_N = self._rows_and_labels(spans)
        order_N = np.lexsort((row_N, label_N))
        feature_ND = empty_rows(len(row_N), self.width, np.float16, scratch)
        in_order = bool((np.diff(order_N) == 1).all())
        place_N = None if in_order else np.argsort(order_N)
        start = 0
        for shard, span in spans:
            part_XD = self.read(shard).feature_ND[span]
            here = slice(start, start + len(part_XD))
            feature_ND[here if place_N is None else place_N[here]] = part_XD
            start = here.stop
        return Features(row_N[order_N], label_N[order_N], feature_ND)

    def read_rows(self, row_V: np.ndarray, label_V: np.ndarray) -> Features:
        """The features of some images, by label and row: a shard without any of them is not opened."""
        pieces = []
        for shard in self.shards:
            if shard.contains(label_V, row_V).any():
                piece = self.read(shard)
                pieces.append(piece.take(np.isin(piece.row_N, row_V)))
        return Features.concatenate(pieces, self.width).ordered()

    def _rows_and_labels(self, spans: list[tuple[Shard, slice]]) -> tuple[np.ndarray, np.ndarray]:
        """(int64 rows, int32 labels) of these pieces of shards, one after the other."""
        pieces = [
            (read_table(uris.join(self.folder, f"{shard.name}.parquet"), ["row", "label"]), span)
            for shard, span in spans
        ]
        return tuple(
            np.concatenate([np.empty(0, kind), *(table[name].to_numpy()[span] for table, span in pieces)])
            for name, kind in (("row", np.int64), ("label", np.int32))
        )  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Features:
    """Features of some images as arrays, by class and row."""

    row_N: np.ndarray
    label_N: np.ndarray
    feature_ND: Any  # float16, as stored: an array, or `storage.rows.MappedRows` of very many
    id_N: pa.ChunkedArray | None = None  # where they were asked for

    @classmethod
    def of_table(cls, table: pa.Table, width: int) -> Features:
        flat = pa.chunked_array([c.flatten() for c in table["feature"].chunks], pa.float16())
        id_N = table["id"] if "id" in table.column_names else None
        return cls(table["row"].to_numpy(), table["label"].to_numpy(), flat.to_numpy().reshape(-1, width), id_N)

    @classmethod
    def empty(cls, width: int) -> Features:
        nothing = np.empty(0, np.int64)
        return cls(nothing, nothing.astype(np.int32), np.empty((0, width), np.float16))

    @classmethod
    def concatenate(cls, pieces: list[Features], width: int) -> Features:
        """Few of them, in memory and without ids."""
        pieces = pieces or [cls.empty(width)]
        names = ("row_N", "label_N", "feature_ND")
        return cls(*(np.concatenate([getattr(p, name) for p in pieces]) for name in names))

    def take(self, mask_N: np.ndarray) -> Features:
        return Features(self.row_N[mask_N], self.label_N[mask_N], self.feature_ND[mask_N])

    def ordered(self) -> Features:
        """By label and row; only the parts of a huge class come in another order."""
        order_N = np.lexsort((self.row_N, self.label_N))
        return self if (np.diff(order_N) == 1).all() else self.take(order_N)

    def __len__(self) -> int:
        return len(self.row_N)
