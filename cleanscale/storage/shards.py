"""Class shards: contiguous ranges of class ids, a huge class in several parts. The plan follows from class sizes alone.

Shards decide who works on what and how much memory that takes; they never change a result.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cleanscale.maths.keyed_random import Purpose, hash_rows

# S shards, C classes, N images


@dataclass(frozen=True)
class Shard:
    """Images whose original label is in [label_start, label_stop); of a class in several parts, one part."""

    index: int
    label_start: int
    label_stop: int
    part: int
    parts: int
    rows: int

    @property
    def name(self) -> str:
        return f"shard-{self.index:06d}"

    def contains(self, label_N: np.ndarray, row_N: np.ndarray) -> np.ndarray:
        """bool [N]: which of these images belong to this shard."""
        inside_N = (label_N >= self.label_start) & (label_N < self.label_stop)
        return inside_N if self.parts == 1 else inside_N & (part_of_rows(row_N, self.parts) == self.part)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def part_of_rows(row_N: np.ndarray, parts: int | np.ndarray) -> np.ndarray:
    """int64 [N]: by a hash of the row, so parts stay about equal however classes are ordered in the input."""
    return (hash_rows(0, Purpose.PARTS, row_N) % np.asarray(parts, np.uint64)).astype(np.int64)


def plan_shards(label_C: np.ndarray, count_C: np.ndarray, target_rows: int) -> list[Shard]:
    """Pack classes, in order of id, into shards of about `target_rows` images.

    label_C: distinct class ids, sorted; gaps allowed. count_C: images of each.
    A class of more than 1.5 * target_rows images gets shards of its own, in equal parts.
    """
    shards: list[Shard] = []
    big_C = count_C > 1.5 * target_rows
    # A new shard starts at each huge class, after it, and wherever the running number of images passes a multiple.
    small_C = np.where(big_C, 0, count_C)
    group_C = (np.cumsum(small_C) - small_C) // target_rows + 2 * np.cumsum(big_C) * (len(label_C) + 1) - big_C
    starts = np.flatnonzero(np.diff(group_C, prepend=group_C[:1] - 1)) if len(label_C) else np.empty(0, int)
    for start, stop in zip(starts, [*starts[1:], len(label_C)], strict=True):
        rows = int(count_C[start:stop].sum())
        parts = -(-rows // target_rows) if big_C[start] else 1
        for part in range(parts):
            span = int(label_C[start]), int(label_C[stop - 1]) + 1
            shards.append(Shard(len(shards), *span, part, parts, rows if parts == 1 else rows // parts))
    return shards


def deal(shards: list[Shard], world: int) -> list[list[Shard]]:
    """Shards to workers, largest first to whoever has fewest images: the same for everyone who asks."""
    hands: list[list[Shard]] = [[] for _ in range(world)]
    load = np.zeros(world, np.int64)
    for shard in sorted(shards, key=lambda s: (-s.rows, s.index)):
        to = int(load.argmin())
        hands[to].append(shard)
        load[to] += shard.rows
    return [sorted(hand, key=lambda s: s.index) for hand in hands]
