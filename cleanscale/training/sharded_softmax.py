"""Cross-entropy over classes whose rows of the output layer are spread over workers: forward and backward in one.

Worker r of W owns the rows of the classes C*r//W .. C*(r+1)//W. The embeddings and targets of all workers' images come
together; each worker computes the logits of its own classes; the highest logit, the sum of exponentials and the logit
of the target are reduced over workers, and so is the gradient of the embeddings. No logits of all classes ever exist:

- exact: the worker's classes in chunks, each chunk's logits made twice, its rows updated before the next chunk's;
- sampled: the targets of the batch and their hard negatives (each for sure), and classes drawn evenly from the others,
  each of which stands for as many as it was drawn from: its logit gets the log of that number, so that the sum of
  exponentials, given the targets, is without bias. (Jean et al. 2015, section 3; An et al. 2022 keep targets alike.)

# B images of all workers, H embedding width, C classes, R rows of this worker, K classes of a block, T targets an image
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from cleanscale.training.collectives import Collectives

NOWHERE = -1


def owned(num_classes: int, rank: int, world: int) -> tuple[int, int]:
    """[first, stop) of the classes whose rows this worker owns."""
    return num_classes * rank // world, num_classes * (rank + 1) // world


class Rows(NamedTuple):
    """The rows of the output layer that a worker owns; the classes are numbered from `first`."""

    first: int
    weight_RH: torch.Tensor
    bias_R: torch.Tensor

    @property
    def stop(self) -> int:
        return self.first + len(self.bias_R)


class Gathered(NamedTuple):
    """The images of one step, of all workers: T targets an image with a coefficient each.

    The loss is the sum over images and targets of coefficient x -log p(target | image): weights, means and the shares
    of two mixed images are all in the coefficients.
    """

    embedded_BH: torch.Tensor
    target_BT: torch.Tensor
    coefficient_BT: torch.Tensor


class Block(NamedTuple):
    """Some of the worker's rows: which, log of how many classes each stands for, where targets are among them."""

    rows: slice | torch.Tensor
    log_count_K: torch.Tensor | None
    place_BT: torch.Tensor  # NOWHERE for a target that is not in the block


Blocks = Callable[[], Iterator[Block]]
Update = Callable[[slice | torch.Tensor, torch.Tensor, torch.Tensor], None]  # (rows, gradient_KH, gradient_K)


def loss_and_gradients(
    given: Gathered, rows: Rows, blocks: Blocks, update: Update, together: Collectives
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, its gradient [B, H] by the embeddings), both over all workers; `update` gets the gradients of the rows.

    `blocks()` is gone through twice, and `update` is called after a block's last use: it may change the rows in place.
    """
    normaliser_B, target_BT = _normaliser(given, rows, blocks, together)
    total_B = given.coefficient_BT.sum(1)
    loss = (total_B * normaliser_B).sum() - (given.coefficient_BT * target_BT).sum()
    gradient_BH = torch.zeros_like(given.embedded_BH)
    log_total_B = torch.where(total_B > 0, total_B.log() - normaliser_B, -torch.inf)
    for block in blocks():
        weight_KH = rows.weight_RH[block.rows]
        logit_BK = _logits(given, rows, block, weight_KH)
        logit_BK += log_total_B[:, None]
        logit_BK.exp_()  # coefficient x probability: what the gradient by the logits is but for the targets
        image_X, which_X = (block.place_BT != NOWHERE).nonzero(as_tuple=True)
        place_X = block.place_BT[image_X, which_X]
        logit_BK.index_put_((image_X, place_X), -given.coefficient_BT[image_X, which_X], accumulate=True)
        gradient_BH.addmm_(logit_BK, weight_KH)
        update(block.rows, logit_BK.T @ given.embedded_BH, logit_BK.sum(0))
    return loss, together.sum(gradient_BH)


def _normaliser(
    given: Gathered, rows: Rows, blocks: Blocks, together: Collectives
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log of the sum of exponentials [B], logits of the targets [B, T]), over all workers."""
    log_sum_B = given.embedded_BH.new_full((len(given.embedded_BH),), -1e30)
    for block in blocks():
        logit_BK = _logits(given, rows, block, rows.weight_RH[block.rows])
        if logit_BK.shape[1]:
            # As torch.logsumexp, in place: the block's logits are the largest thing in memory.
            highest_B1 = logit_BK.amax(1, keepdim=True)
            sum_B = logit_BK.sub_(highest_B1).exp_().sum(1)
            log_sum_B = torch.logaddexp(log_sum_B, sum_B.log_() + highest_B1[:, 0])
    highest_B = together.maximum(log_sum_B)
    sums_BX = torch.cat([(log_sum_B - highest_B).exp_()[:, None], _target_logits(given, rows)], dim=1)
    sums_BX = together.sum(sums_BX)
    return sums_BX[:, 0].log() + highest_B, sums_BX[:, 1:]


def _logits(given: Gathered, rows: Rows, block: Block, weight_KH: torch.Tensor) -> torch.Tensor:
    bias_K = rows.bias_R[block.rows]
    if block.log_count_K is not None:
        bias_K = bias_K + block.log_count_K
    return torch.addmm(bias_K, given.embedded_BH, weight_KH.T)


def _target_logits(given: Gathered, rows: Rows) -> torch.Tensor:
    """[B, T] of those targets that this worker owns, 0 for the others."""
    own_BT = (given.target_BT >= rows.first) & (given.target_BT < rows.stop)
    image_X, which_X = own_BT.nonzero(as_tuple=True)
    row_X = given.target_BT[image_X, which_X] - rows.first
    logit_BT = torch.zeros_like(given.coefficient_BT)
    logit_X = (given.embedded_BH[image_X] * rows.weight_RH[row_X]).sum(1) + rows.bias_R[row_X]
    logit_BT[image_X, which_X] = logit_X
    return logit_BT


def all_classes(given: Gathered, rows: Rows, chunk: int) -> Blocks:
    """Every class, a chunk of rows after the other."""

    def blocks() -> Iterator[Block]:
        for start in range(0, len(rows.bias_R), chunk):
            stop = min(start + chunk, len(rows.bias_R))
            place_BT = given.target_BT - (rows.first + start)
            inside_BT = (place_BT >= 0) & (place_BT < stop - start)
            yield Block(slice(start, stop), None, torch.where(inside_BT, place_BT, NOWHERE))

    return blocks


def sampled_classes(
    given: Gathered, rows: Rows, negatives: int, random: np.random.Generator, hard_X: np.ndarray | None = None
) -> Blocks:
    """The targets and `hard_X` that this worker owns, and about `negatives` classes drawn evenly from its others.

    A drawn class that is a target or hard negative of the batch is left out: it is there already.
    """
    target_BT = given.target_BT.cpu().numpy()
    sure_X = np.unique(target_BT if hard_X is None else np.concatenate([target_BT.reshape(-1), hard_X]))
    sure_X = sure_X[(sure_X >= rows.first) & (sure_X < rows.stop)] - rows.first
    others = len(rows.bias_R) - len(sure_X)
    if negatives >= others:
        drawn_X = np.setdiff1d(np.arange(len(rows.bias_R)), sure_X, assume_unique=True)
    else:
        drawn_X = np.setdiff1d(random.integers(0, len(rows.bias_R), negatives), sure_X)
    log_count_K = np.zeros(len(sure_X) + len(drawn_X), np.float32)
    log_count_K[len(sure_X) :] = np.log(max(1, others) / max(1, len(drawn_X)))
    place_BT = np.searchsorted(sure_X, target_BT - rows.first)
    place_BT[(target_BT < rows.first) | (target_BT >= rows.stop)] = NOWHERE
    device = given.embedded_BH.device
    row_K = torch.from_numpy(np.concatenate([sure_X, drawn_X])).to(device)
    block = Block(row_K, torch.from_numpy(log_count_K).to(device), torch.from_numpy(place_BT).to(device))
    return lambda: iter([block])
