"""Several labels per image, ragged: nothing of size images x classes.

# N images, E (image, label) pairs, B images of a batch, S classes of a step
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelLists:
    """label_E[start_N1[n] : start_N1[n + 1]] are the labels of image n, ascending."""

    start_N1: np.ndarray  # int64 [N + 1]
    label_E: np.ndarray  # int64 [E]

    @classmethod
    def of_edges(cls, row_E: np.ndarray, label_E: np.ndarray, row_N: np.ndarray) -> LabelLists:
        """Of the images `row_N`, each once and in any order, from pairs in any order; other images' are left out."""
        order_N = np.argsort(row_N, kind="stable")
        place_E = np.minimum(np.searchsorted(row_N[order_N], row_E), max(len(row_N) - 1, 0))
        mine_E = row_N[order_N[place_E]] == row_E if len(row_N) else np.zeros(len(row_E), bool)
        image_E, label_E = order_N[place_E[mine_E]], np.asarray(label_E)[mine_E].astype(np.int64)
        order_E = np.lexsort((label_E, image_E))
        counts_N = np.bincount(image_E, minlength=len(row_N))
        return cls(np.concatenate([[0], np.cumsum(counts_N)]).astype(np.int64), label_E[order_E])

    @classmethod
    def single(cls, label_N: np.ndarray) -> LabelLists:
        """One label for each image."""
        return cls(np.arange(len(label_N) + 1), np.asarray(label_N).astype(np.int64))

    def __len__(self) -> int:
        return len(self.start_N1) - 1

    @property
    def length_N(self) -> np.ndarray:
        """int64 [N]: how many labels each image has."""
        return np.diff(self.start_N1)

    @property
    def image_E(self) -> np.ndarray:
        """int64 [E]: the image of each pair."""
        return np.repeat(np.arange(len(self)), self.length_N)

    def take(self, position_B: np.ndarray) -> LabelLists:
        """Of the images at these positions, in their order; a position may come twice."""
        length_B = self.length_N[position_B]
        start_B = np.cumsum(length_B) - length_B
        within_E = np.arange(int(length_B.sum())) - np.repeat(start_B, length_B)
        label_E = self.label_E[np.repeat(self.start_N1[:-1][position_B], length_B) + within_E]
        return LabelLists(np.concatenate([[0], np.cumsum(length_B)]).astype(np.int64), label_E)

    def multi_hot(self, class_S: np.ndarray | None, num_classes: int) -> np.ndarray:
        """float32 [B, S]: 1 where the image has the class; class_S: ascending classes, None for all."""
        columns = num_classes if class_S is None else len(class_S)
        hot_BS = np.zeros((len(self), columns), np.float32)
        if class_S is None:
            hot_BS[self.image_E, self.label_E] = 1.0
            return hot_BS
        place_E = np.minimum(np.searchsorted(class_S, self.label_E), columns - 1)
        there_E = class_S[place_E] == self.label_E
        hot_BS[self.image_E[there_E], place_E[there_E]] = 1.0
        return hot_BS

    def counts(self, num_classes: int) -> np.ndarray:
        """int64 [C]: images with each label."""
        return np.bincount(self.label_E, minlength=num_classes)

    def padded(self, length: int) -> np.ndarray:
        """int64 [N, length]: the labels of each image, -1 behind the last; longer lists are cut."""
        padded = np.full((len(self), length), -1, np.int64)
        within_E = np.arange(len(self.label_E)) - np.repeat(self.start_N1[:-1], self.length_N)
        fits_E = within_E < length
        padded[self.image_E[fits_E], within_E[fits_E]] = self.label_E[fits_E]
        return padded


def concatenate(first: LabelLists, second: LabelLists) -> LabelLists:
    """The images of one behind those of the other."""
    start = np.concatenate([first.start_N1, first.start_N1[-1] + second.start_N1[1:]])
    return LabelLists(start, np.concatenate([first.label_E, second.label_E]))
