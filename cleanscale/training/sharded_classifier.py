"""An image classifier whose output rows are spread over workers: what `training/classifier.py` compares outputs with.

The network gives embeddings. Those of all workers come together, each worker compares them with its own rows, and the
gradient of the embeddings, summed over workers, flows back into each worker's own images; gradients of the network are
averaged as ever. Rows make their step at once (`training/sharded_heads.py`), whatever the network's optimiser does.

# B images of one worker's batch, C classes, R rows of this worker, H embedding width
"""

from __future__ import annotations

import math

import numpy as np
import torch

from cleanscale.maths.keyed_random import Purpose, generator
from cleanscale.models.heads import Layers
from cleanscale.training.classifier import Batch, Compared
from cleanscale.training.collectives import Collectives
from cleanscale.training.head_settings import HeadPlan
from cleanscale.training.sharded_heads import HeadPart, flow_back, row_size_of, step_of_rows
from cleanscale.training.sharded_softmax import Gathered, Rows, owned

DRAWN_CLASSES = 4096  # that one random key draws the rows of


def drawn_part(layers: Layers, num_classes: int, seed: int, together: Collectives, device: str = "cpu") -> HeadPart:
    """This worker's rows before the first step, drawn as torch's linear layer draws them, the same for any number of
    workers."""
    first, stop = owned(num_classes, together.rank, together.world)
    bound = 1 / math.sqrt(layers.width)
    weight_RH = np.empty((stop - first, layers.width), np.float32)
    for start in range(first // DRAWN_CLASSES * DRAWN_CLASSES, stop, DRAWN_CLASSES):
        random = generator(seed, Purpose.HEAD, 2, start)
        low, high = max(first, start), min(stop, start + DRAWN_CLASSES)
        drawn_XH = random.uniform(-bound, bound, (DRAWN_CLASSES, layers.width))
        weight_RH[low - first : high - first] = drawn_XH[low - start : high - start]
    rows = Rows(first, torch.from_numpy(weight_RH).to(device), torch.zeros(stop - first, device=device))
    size = row_size_of(rows, num_classes, together)
    return HeadPart(layers, rows, num_classes, torch.zeros_like(rows.bias_R), None, size)


class OfSpreadRows:
    """Cross-entropy of embeddings with all classes or sampled ones, the rows of which the workers own."""

    def __init__(
        self,
        part: HeadPart,
        plan: HeadPlan,
        together: Collectives,
        seed: int,
        neighbour_CK: np.ndarray | None = None,
    ) -> None:
        self.part, self.plan, self.together, self.seed = part, plan, together, seed
        self.neighbour_CK = neighbour_CK

    def backward(self, output_BX: torch.Tensor, batch: Batch, step: int, rate: float) -> Compared:
        together = self.together
        coefficient_B1 = batch.weight_B[:, None] / (len(batch.weight_B) * together.world)
        own = (output_BX, batch.label_B[:, None], coefficient_B1)
        given = Gathered(*(together.gather(tensor) for tensor in own))
        random = generator(self.seed, Purpose.NEGATIVES, step, together.rank)
        loss, gradient_BH = step_of_rows(self.part, given, self.plan, rate, random, self.neighbour_CK, together)
        flow_back(output_BX, gradient_BH, together)
        return Compared(loss, None)
