"""Neighbour vote: the share of an image's nearest images, over the whole collection, that carry its noisy label.

Every image's nearest neighbours are searched, itself left out, by the cosine of centred features. Up to MOST_VOTERS
images all of them vote and the search is exact, at a cost of images x voters x feature width. Above that an equal
number of images of each class votes (all of a smaller class), those with the smallest hash of their row, each for as
many images as it stands for: a search over everything would grow with the square of the collection, and reference
vectors, which are means over right and wrong images, could not leave an image itself out.

# N images, D feature width
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cleanscale.detectors.neighbour_vote import NEIGHBOURS, SIGNALS
from cleanscale.maths.evidence import unit_rows
from cleanscale.maths.keyed_random import Purpose, hash_rows
from cleanscale.maths.neighbours import Nearest, Voters, voters_per_class
from cleanscale.signals.images import Images, Probabilities

MOST_VOTERS = 200_000
QUERY_IMAGES = 4096  # searched at once, so that what is merged stays small


@dataclass(frozen=True)
class NeighbourVotes:
    """Makes the shares of votes for each number of neighbours."""

    most_voters: int = MOST_VOTERS

    def of_arrays(
        self, images: Images, centre_D: np.ndarray, heads: Probabilities | None, seed: int
    ) -> dict[str, np.ndarray]:
        label_C, size_C = np.unique(images.label_N, return_counts=True)
        each = voters_per_class(size_C, self.most_voters)
        voters = class_voters(voting_images(images, each, seed), label_C, size_C, centre_D)
        return self.votes(images, voters, centre_D)

    def votes(self, images: Images, voters: Voters, centre_D: np.ndarray) -> dict[str, np.ndarray]:
        """float32 [N] of each signal. voters: those of the whole collection."""
        share_NS = np.empty((len(images), len(NEIGHBOURS)), np.float32)
        for start in range(0, len(images), QUERY_IMAGES):
            part = slice(start, start + QUERY_IMAGES)
            nearest = Nearest.none(images.row_N[part], max(NEIGHBOURS))
            nearest = nearest.among(unit_rows(images.feature_ND[part], centre_D), voters)
            share_NS[part] = np.stack(nearest.shares(images.label_N[part], NEIGHBOURS), axis=1)
        return {name: share_NS[:, k] for k, name in enumerate(SIGNALS)}


def voting_images(images: Images, each: int, seed: int) -> Images:
    """At most `each` images of every class, those with the smallest hash of their row; by label and row.

    The parts of a huge class may be asked one after the other: voting(a and b) = voting(voting(a) and b).
    """
    hash_N = hash_rows(seed, Purpose.NEIGHBOUR_VOTERS, images.row_N)
    order_N = np.lexsort((hash_N, images.label_N))
    _, start_C, size_C = np.unique(images.label_N[order_N], return_index=True, return_counts=True)
    chosen_V = order_N[np.arange(len(order_N)) - np.repeat(start_C, size_C) < each]
    return images.select(chosen_V[np.lexsort((images.row_N[chosen_V], images.label_N[chosen_V]))])


def class_voters(voting: Images, label_C: np.ndarray, size_C: np.ndarray, centre_D: np.ndarray) -> Voters:
    """`voting_images` as voters. size_C: how many images the classes `label_C` (sorted) have."""
    class_V = np.searchsorted(label_C, voting.label_N)
    stands_for_C = size_C / np.bincount(class_V, minlength=len(label_C))
    unit_VD = unit_rows(voting.feature_ND, centre_D).astype(np.float16)
    return Voters(voting.row_N, voting.label_N, stands_for_C[class_V].astype(np.float32), unit_VD)


VOTES = NeighbourVotes()
