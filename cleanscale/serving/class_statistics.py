"""What a new image's signals are compared with: the images that the run found in its class.

`maths.evidence.class_signals` ranks the images of a class among each other. A new image is ranked among them as if it
were one more of the class: its rank, its share of a pair of classes; means and sizes of the class stay the run's.

# N images, C classes with images, G signals that are ranked, W signals that are one number for each class,
# V values kept of all classes, P pairs of a class and another
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from cleanscale.errors import DataError
from cleanscale.maths.evidence import CLASS_SIGNALS, RANKED_SIGNALS

MOST_VALUES = 512  # of a class: so many quantiles stand for a larger one
OF_CLASS = tuple(n for n in CLASS_SIGNALS if not n.endswith("_in_class") and n != "pair_log_share")


@dataclass(frozen=True)
class ClassStatistics:
    """Of the classes `label_C` (sorted)."""

    label_C: np.ndarray  # int64
    images_C: np.ndarray  # int64
    class_CW: np.ndarray  # float32: OF_CLASS
    offset_C1: np.ndarray  # int64: the values of class c are offset[c] : offset[c + 1]
    value_GV: np.ndarray  # float32: RANKED_SIGNALS, ascending within each class
    pair_P2: np.ndarray  # int64: (class, best other class), sorted
    pair_sum_P: np.ndarray  # float64: probability that the images of the class with this best other give to it

    @classmethod
    def of_signals(
        cls, signals: Mapping[str, np.ndarray], label_N: np.ndarray, best_other_N: np.ndarray
    ) -> ClassStatistics:
        """From the evidence of all images of some classes."""
        label_C, class_N, images_C = np.unique(label_N, return_inverse=True, return_counts=True)
        first_C = np.searchsorted(class_N[np.argsort(class_N, kind="stable")], np.arange(len(label_C)))
        image_C = np.argsort(class_N, kind="stable")[first_C]
        kept_C = np.minimum(images_C, MOST_VALUES)
        offset_C1 = np.concatenate([[0], np.cumsum(kept_C)])
        class_V = np.repeat(np.arange(len(label_C)), kept_C)
        step_V = (np.arange(len(class_V)) - offset_C1[class_V] + 0.5) * images_C[class_V] / kept_C[class_V]
        place_V = first_C[class_V] + step_V.astype(np.int64)
        value_GV = [signals[name][np.lexsort((signals[name], class_N))][place_V] for name in RANKED_SIGNALS]
        pair_P2, pair_N = np.unique(np.stack([label_N, best_other_N], axis=1), axis=0, return_inverse=True)
        probability_N = np.exp(signals["log_probability"] - signals["margin"], dtype=np.float64)
        return cls(
            label_C.astype(np.int64),
            images_C.astype(np.int64),
            np.stack([signals[name][image_C] for name in OF_CLASS], axis=1).astype(np.float32),
            offset_C1.astype(np.int64),
            np.stack(value_GV).astype(np.float32),
            pair_P2.astype(np.int64),
            np.bincount(pair_N.reshape(-1), probability_N),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[ClassStatistics]) -> ClassStatistics:
        """Of several ranges of classes, in their order."""
        length_C = np.concatenate([np.diff(part.offset_C1) for part in parts])
        return cls(
            np.concatenate([part.label_C for part in parts]),
            np.concatenate([part.images_C for part in parts]),
            np.concatenate([part.class_CW for part in parts]),
            np.concatenate([[0], np.cumsum(length_C)]),
            np.concatenate([part.value_GV for part in parts], axis=1),
            np.concatenate([part.pair_P2 for part in parts]),
            np.concatenate([part.pair_sum_P for part in parts]),
        )

    def known(self, label_N: np.ndarray) -> np.ndarray:
        """bool [N]: the run found images of this class."""
        return np.isin(label_N, self.label_C)

    def signals(
        self, signals: Mapping[str, np.ndarray], label_N: np.ndarray, best_other_N: np.ndarray
    ) -> dict[str, np.ndarray]:
        """CLASS_SIGNALS, each float32 [N], of new images of known classes, from their IMAGE_SIGNALS."""
        class_N = np.searchsorted(self.label_C, label_N)
        found = {name: self.class_CW[class_N, w] for w, name in enumerate(OF_CLASS)}
        for g, name in enumerate(RANKED_SIGNALS):
            found[f"{name}_in_class"] = self.rank_logit(g, signals[name], class_N)
        probability_N = np.exp(signals["log_probability"] - signals["margin"], dtype=np.float64)
        share_N = (self.pair_sum(label_N, best_other_N) + probability_N) / (self.images_C[class_N] + 1)
        found["pair_log_share"] = np.log(np.maximum(share_N, 1e-30)).astype(np.float32)
        return {name: found[name] for name in CLASS_SIGNALS}

    def rank_logit(self, signal: int, value_N: np.ndarray, class_N: np.ndarray) -> np.ndarray:
        """log(q / (1 - q)) of the share q of the class, the new image in it, that lies below the new image."""
        share_N = np.empty(len(value_N))
        for c in np.unique(class_N):
            at = np.flatnonzero(class_N == c)
            kept_K = self.value_GV[signal, self.offset_C1[c] : self.offset_C1[c + 1]]
            below_X = (np.searchsorted(kept_K, value_N[at]) + np.searchsorted(kept_K, value_N[at], side="right")) / 2
            share_N[at] = (below_X * self.images_C[c] / len(kept_K) + 0.5) / (self.images_C[c] + 1)
        return np.log(share_N / (1 - share_N)).astype(np.float32)

    def pair_sum(self, label_N: np.ndarray, best_other_N: np.ndarray) -> np.ndarray:
        """float64 [N]; 0 for pairs that the run did not see."""
        bound = 1 + max(int(self.pair_P2.max(initial=0)), int(best_other_N.max(initial=0)), int(label_N.max(initial=0)))
        key_P = self.pair_P2[:, 0] * (bound + 1) + self.pair_P2[:, 1] + 1  # -1: there is no other class
        key_N = label_N.astype(np.int64) * (bound + 1) + best_other_N + 1
        place_N = np.minimum(np.searchsorted(key_P, key_N), len(key_P) - 1)
        return np.where(key_P[place_N] == key_N, self.pair_sum_P[place_N], 0.0)

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        from safetensors.numpy import save

        return save({field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)})

    @classmethod
    def from_bytes(cls, content: bytes) -> ClassStatistics:
        """What `to_bytes` wrote. Raises: DataError for another file."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return cls(**load(content))
        except (SafetensorError, TypeError) as error:
            raise DataError(
                f"found no class statistics ({error}); expected what registering a run writes; register it again"
            ) from error
