"""Which images each training worker sees in which order: a pure function of (seed, epoch), whoever asks.

Images are *positions* 0 .. N-1 among the accepted rows of the input. Neighbours lie together in storage, so an epoch
shuffles contiguous *chunks* of positions, deals the shuffled sequence out in equal parts, and every worker shuffles
inside *windows* of several chunks of its own part. All workers take the same number of steps of equal size, which may
be more than a part fills: the caller fills up with images of weight 0.

# N images, W workers, B images of one worker's batch
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cleanscale.maths.keyed_random import Purpose, generator, hash_rows


def steps_per_epoch(num_images: int, batch: int, world: int) -> int:
    """Steps that every worker takes in every epoch, with `batch` images per worker and step."""
    _check(num_images, world)
    return -(-_longest_part(num_images, world) // batch)


def epoch_chunks(
    num_images: int, chunk_images: int, seed: int, epoch: int, rank: int, world: int
) -> list[tuple[int, int]]:
    """Ranges [start, stop) of positions that worker `rank` reads in this epoch, in order.

    Over all workers every position occurs exactly once; parts differ by one image at most, so a chunk at the border
    of two parts is cut. Shorter chunks shuffle better, longer ones read faster.
    """
    _check(num_images, world)
    num_chunks = -(-num_images // chunk_images)
    order = generator(seed, Purpose.EPOCH_ORDER, epoch).permutation(num_chunks)
    start = order * chunk_images
    stop = np.minimum(start + chunk_images, num_images)
    end = np.cumsum(stop - start)  # where each chunk ends in the shuffled sequence
    part_start, part_stop = rank * num_images // world, (rank + 1) * num_images // world
    first, last = np.searchsorted(end, [part_start, part_stop - 1], side="right")
    here = slice(first, last + 1)
    begin = end[here] - (stop - start)[here]
    cut_start = start[here] + np.maximum(part_start - begin, 0)
    cut_stop = stop[here] - np.maximum(end[here] - part_stop, 0)
    return [(int(a), int(b)) for a, b in zip(cut_start, cut_stop, strict=True) if a < b]


def shuffled(position_M: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The positions of one window in the order of this epoch, whatever order they arrived in."""
    key_M = hash_rows(seed + epoch * 1_000_003, Purpose.EPOCH_ORDER, position_M)
    return position_M[np.lexsort((position_M, key_M))]


def epoch_windows(
    num_images: int, chunk_images: int, window_chunks: int, seed: int, epoch: int, rank: int, world: int
) -> Iterator[np.ndarray]:
    """int64 positions of one window after the other, shuffled inside: what a worker reads together and trains on.

    A window is `window_chunks` chunks; the worker holds about two windows in memory.
    """
    chunks = epoch_chunks(num_images, chunk_images, seed, epoch, rank, world)
    for first in range(0, len(chunks), window_chunks):
        window = [np.arange(start, stop) for start, stop in chunks[first : first + window_chunks]]
        yield shuffled(np.concatenate(window), seed, epoch)


def _longest_part(num_images: int, world: int) -> int:
    return -(-num_images // world)


def _check(num_images: int, world: int) -> None:
    assert num_images > 0, "an epoch without images: the caller reports that to the user"
    assert world > 0
