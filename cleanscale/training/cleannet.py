"""Fitting CleanNet and what it says about images: plain loops over arrays, without files or a cluster.

# N images of this worker, C classes, M reference vectors, D features, E embedding, Q queries, S classes of a step
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cleanscale.errors import DataError, StageError
from cleanscale.maths.cleannet_losses import Weights, cosines, total_loss
from cleanscale.maths.keyed_random import class_fold_masks
from cleanscale.maths.references import ReferenceSets
from cleanscale.models.cleannet import CleanNet
from cleanscale.schema import UNSEEN
from cleanscale.training.cleannet_batches import GroupedBatches, reference_positions
from cleanscale.training.cleannet_settings import CleanNetSettings
from cleanscale.training.collectives import Alone, Collectives

OnStep = Callable[[int, dict[str, torch.Tensor]], None]
OnModel = Callable[[int, CleanNet], None]
OnCosines = Callable[[int, np.ndarray], None]


def fit_cleannet(
    feature_ND: np.ndarray,
    label_N: np.ndarray,
    verified_N: np.ndarray,
    references: ReferenceSets,
    settings: CleanNetSettings,
    *,
    seed: int,
    collectives: Collectives | None = None,
    own_N: np.ndarray | None = None,
    start: CleanNet | None = None,
    steps: int | None = None,
    on_step: OnStep | None = None,
    on_model: OnModel | None = None,
    device: str = "cpu",
) -> CleanNet:
    """CleanNet fitted on these images. verified_N: 1 right, 0 wrong, -1 unseen.

    Without verified images the terms that need none remain. Data parallel: every worker brings its own unverified
    images and *all* verified ones, with the references of their classes. own_N: bool, the images that are this
    worker's to draw as unseen, None: all; verified images that a fit takes for unseen would otherwise count once for
    each worker. `start` is a model to begin from (it is not changed), `steps` overrides the settings'.
    `on_step(step, losses)` gets tensors and `on_model(steps done, model)` the model, to look at. Same seed and number
    of workers: same weights on CPU. Raises DataError for sizes that disagree, StageError when no image's class has
    references.
    """
    settings, workers = settings.resolved(), collectives or Alone()
    _check(feature_ND, label_N, verified_N, references)
    own_N = np.ones(len(label_N), bool) if own_N is None else own_N
    batches = GroupedBatches(
        label_N,
        verified_N,
        references,
        own_N=own_N,
        classes=settings.classes_per_half,
        queries_per_class=settings.queries_per_class,
        references_per_step=settings.references_per_step,
        seed=seed,
        stream=0 if start is None else 1,
        rank=workers.rank,
    )
    if batches.empty and workers.world == 1:
        raise StageError(
            f"found no image of a class with references among {len(label_N)} images and {len(references)} reference "
            "sets; expected at least one; make the references from these images"
        )
    on = torch.device(device)
    with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
        torch.manual_seed(seed)
        model = copy.deepcopy(start) if start is not None else _new_model(feature_ND, own_N, settings, workers)
        torch.manual_seed(seed * 1_000_003 + 1 + workers.rank)  # dropout
        model.to(on).train()
        heard = (on_step, on_model)
        _fit(model, feature_ND, verified_N, references, batches, settings, workers, steps or settings.steps, heard)
    return model.eval()


def _check(feature_ND: np.ndarray, label_N: np.ndarray, verified_N: np.ndarray, references: ReferenceSets) -> None:
    if not len(feature_ND) == len(label_N) == len(verified_N):
        raise DataError(
            f"found {len(feature_ND)} features, {len(label_N)} labels and {len(verified_N)} verification labels; "
            "expected one of each per image; pass -1 as the verification label of images that nobody looked at"
        )
    if feature_ND.shape[1] != references.vector_MD.shape[1]:
        raise DataError(
            f"found features of width {feature_ND.shape[1]} and references of width {references.vector_MD.shape[1]}; "
            "expected the same; make the references again from these features"
        )


def _new_model(feature_ND: np.ndarray, own_N: np.ndarray, settings: CleanNetSettings, workers: Collectives) -> CleanNet:
    model = CleanNet(
        feature_ND.shape[1],
        reference_widths=settings.reference_widths,
        query_width=settings.query_width,
        embedding=settings.embedding,
        activation=settings.activation,
        activate_outputs=settings.activate_outputs,
        transform=settings.transform,
        dropout=settings.dropout,
        shared_projection=settings.shared_projection,
    )
    if settings.transform in ("centre", "standardise"):
        model.set_standardisation(*_moments(feature_ND, own_N, workers))
    if settings.shared_projection:
        model.begin_with_projection(_components(model, feature_ND, own_N, settings.embedding, workers))
    return model


def spread(own_N: np.ndarray, most: int) -> np.ndarray:
    """Positions of about `most` of these images, evenly over all of them."""
    mine = np.flatnonzero(own_N)
    return mine[:: max(1, len(mine) // most)]


def _moments(feature_ND: np.ndarray, own_N: np.ndarray, workers: Collectives) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [D] over all workers' images; of each worker at most some 65,000 of them."""
    mine = spread(own_N, 65_536)
    width = feature_ND.shape[1]
    total_3D = np.zeros((3, width))
    for part in np.array_split(mine, max(1, len(mine) // 8_192)):
        rows_XD = np.asarray(feature_ND[part], np.float64)
        total_3D += np.stack([np.full(width, len(part)), rows_XD.sum(axis=0), np.square(rows_XD).sum(axis=0)])
    count_D, sum_D, square_D = workers.sum(torch.from_numpy(total_3D))
    mean_D = sum_D / count_D.clamp_min(1)
    deviation_D = (square_D / count_D.clamp_min(1) - mean_D.square()).clamp_min(0).sqrt()
    return mean_D.float(), deviation_D.float()


@torch.no_grad()
def _components(
    model: CleanNet, feature_ND: np.ndarray, own_N: np.ndarray, most: int, workers: Collectives
) -> torch.Tensor:
    """[X, D] leading principal components of transformed features; of each worker some 8,000 images have a say."""
    width = feature_ND.shape[1]
    mine = spread(own_N, 8_192)
    sample_XD = model.transformed(torch.from_numpy(np.asarray(feature_ND[mine], np.float32)))
    square_DD = workers.sum((sample_XD.T @ sample_XD).double())
    sum_D = workers.sum(sample_XD.sum(dim=0).double())
    count = workers.sum(torch.tensor(float(len(sample_XD)), dtype=torch.float64)).clamp_min(1)
    _, vector_DD = torch.linalg.eigh(square_DD / count - torch.outer(sum_D, sum_D) / count**2)
    component_XD = vector_DD.flip(1)[:, : min(most, width)].T.float().contiguous()
    # signs and rotations of components are the solver's choice: every worker takes the first one's
    return workers.sum(component_XD if workers.rank == 0 else torch.zeros_like(component_XD))


def _fit(
    model: CleanNet,
    feature_ND: np.ndarray,
    verified_N: np.ndarray,
    references: ReferenceSets,
    batches: GroupedBatches,
    settings: CleanNetSettings,
    workers: Collectives,
    steps: int,
    heard: tuple[OnStep | None, OnModel | None],
) -> None:
    on_step, on_model = heard
    parameters = list(model.parameters())
    on = parameters[0].device
    optimizer, schedule = _optimizer(parameters, settings, steps)
    weights = Weights(
        settings.beta,
        settings.gamma,
        settings.rho,
        settings.omega,
        settings.contrastive,
        settings.temperature,
        settings.robustness,
        settings.reconstruction,
    )
    half = settings.bf16 and on.type == "cuda"
    precision = torch.autocast(on.type, torch.bfloat16) if half else contextlib.nullcontext()
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        terms: dict[str, torch.Tensor] = {}
        if not batches.empty:
            batch = batches.batch(step)
            reference_SKD = _tensor(references.vector_MD[batch.reference_SK], on)
            query_QD = _tensor(feature_ND[batch.image_Q], on)
            with precision:
                class_SE, _ = model.embed_classes(reference_SKD, _tensor(batch.real_SK, on))
                query_QE = model.embed_queries(query_QD)
                output_QD = model.reconstruct(query_QE)
            total, terms = total_loss(
                model.transformed(query_QD),
                output_QD.float(),
                cosines(query_QE.float(), class_SE.float()),
                _tensor(batch.own_Q, on),
                _tensor(np.asarray(verified_N)[batch.image_Q], on),
                weights,
            )
            total.backward()
        workers.average_gradients(parameters)
        if settings.clip > 0:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, {name: term.detach() for name, term in terms.items()})
        if on_model is not None:
            on_model(step + 1, model)


def _optimizer(
    parameters: list[torch.nn.Parameter], settings: CleanNetSettings, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay)
    else:
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)
    if settings.decay_at:
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, list(settings.decay_at), 0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


def _tensor(values: np.ndarray, on: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(on, non_blocking=True)


@torch.inference_mode()
def encode_references(model: CleanNet, references: ReferenceSets, *, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """(class embeddings [C, E] of length 1, attention [M] of each reference vector: sums to 1 in a class)."""
    on = model.context_H.device
    embedding_CE = np.empty((len(references), model.config["embedding"]), np.float32)
    attention_M = np.empty(len(references.vector_MD), np.float32)
    for first in range(0, len(references), batch):
        position_S = np.arange(first, min(first + batch, len(references)))
        reference_SK, real_SK = reference_positions(references.offset_C1, position_S)
        class_SE, attention_SK = model.embed_classes(
            _tensor(references.vector_MD[reference_SK], on), _tensor(real_SK, on)
        )
        embedding_CE[position_S] = torch.nn.functional.normalize(class_SE, dim=1, eps=1e-6).cpu().numpy()
        attention_M[reference_SK[real_SK]] = attention_SK.cpu().numpy()[real_SK]
    return embedding_CE, attention_M


def class_embeddings(model: CleanNet, references: ReferenceSets, *, batch: int = 256) -> np.ndarray:
    """float32 [C, E] class embeddings of length 1, in the order of `references.label_C`."""
    return encode_references(model, references, batch=batch)[0]


@torch.inference_mode()
def query_embeddings(model: CleanNet, feature_ND: np.ndarray, *, batch: int = 8192) -> np.ndarray:
    """float32 [N, E] query embeddings of length 1."""
    on = model.context_H.device
    embedding_NE = np.empty((len(feature_ND), model.config["embedding"]), np.float32)
    for first in range(0, len(feature_ND), batch):
        query_QE = model.embed_queries(_tensor(np.asarray(feature_ND[first : first + batch]), on))
        embedding_NE[first : first + batch] = torch.nn.functional.normalize(query_QE, dim=1, eps=1e-6).cpu().numpy()
    return embedding_NE


def relevance(
    model: CleanNet, references: ReferenceSets, feature_ND: np.ndarray, label_N: np.ndarray, *, batch: int = 8192
) -> np.ndarray:
    """float32 [N] in [-1, 1]: cosine of each image to the class embedding of its label; NaN without references."""
    references = references.select(label_N)
    class_CE = class_embeddings(model, references)
    position_N = references.position(label_N)
    cosine_N = np.full(len(position_N), np.nan, np.float32)
    known_N = np.flatnonzero(position_N >= 0)
    for first in range(0, len(known_N), batch):
        images = known_N[first : first + batch]
        query_XE = query_embeddings(model, np.asarray(feature_ND[images], np.float32), batch=batch)
        cosine_N[images] = np.einsum("xe,xe->x", query_XE, class_CE[position_N[images]]).clip(-1, 1)
    return cosine_N


@dataclass(frozen=True)
class CrossFitted:
    """The class-fold protocol's result."""

    cosine_N: np.ndarray  # float32: for verified images, from a model that saw no verification label of their class
    model: CleanNet  # fitted on all verification labels


def cross_fitted_relevance(
    feature_ND: np.ndarray,
    label_N: np.ndarray,
    verified_N: np.ndarray,
    references: ReferenceSets,
    settings: CleanNetSettings,
    *,
    seed: int,
    collectives: Collectives | None = None,
    own_N: np.ndarray | None = None,
    on_step: OnStep | None = None,
    on_cosines: OnCosines | None = None,
    cosines_every: int = 100,
    device: str = "cpu",
) -> CrossFitted:
    """CleanNet fitted on everything, and cosines of verified images fitted without their class's verification labels.

    Verified classes are split into folds; for each fold a model is fitted that sees its images as unseen. All fits
    begin from one that saw no verification label (`fold_start = "unverified"`) or from scratch, and take equally many
    steps, so that delta carries over to the final model. `cosine_N` is NaN for images without a verification label.
    own_N: as in `fit_cleannet`.

    on_cosines(steps done, cosine_N) hears every `cosines_every` steps of the first fit what it says of the verified
    images, of which it saw no label, and then after each fold the cosines of all folds so far; NaN: not known yet.
    """
    settings, verified_N = settings.resolved(), np.asarray(verified_N)
    cosine_N = np.full(len(verified_N), np.nan, np.float32)
    seen_V = np.flatnonzero(verified_N != UNSEEN)
    shared = {"references": references, "settings": settings, "seed": seed, "collectives": collectives, "own_N": own_N}
    fit = functools.partial(fit_cleannet, feature_ND, label_N, **shared, on_step=on_step, device=device)

    def cosines_of(model: CleanNet, at_X: np.ndarray) -> np.ndarray:
        return relevance(model, references, feature_ND[at_X], np.asarray(label_N)[at_X])

    def look(step: int, model: CleanNet) -> None:
        if on_cosines is not None and step % cosines_every == 0:
            now_N = np.full(len(verified_N), np.nan, np.float32)
            model.eval()  # which draws nothing: training goes on as if nobody had looked
            now_N[seen_V] = cosines_of(model, seen_V)
            model.train()
            on_cosines(step, now_N)

    start, done = None, 0
    if settings.fold_start == "unverified":
        start = fit(np.full_like(verified_N, UNSEEN), start=None, steps=settings.start_steps, on_model=look)
        done = settings.start_steps
    folds = class_fold_masks(np.asarray(label_N)[seen_V], settings.class_folds, seed)
    if not folds:  # nothing to leave out: the start saw no label, and otherwise there is no cosine
        if start is not None:
            cosine_N[seen_V] = cosines_of(start, seen_V)
        return CrossFitted(cosine_N, fit(verified_N, start=start, steps=settings.steps))
    for left_V in folds:
        left_X = seen_V[left_V]
        unseen_N = verified_N.copy()
        unseen_N[left_X] = UNSEEN
        cosine_N[left_X] = cosines_of(fit(unseen_N, start=start, steps=settings.steps), left_X)
        done += settings.steps
        if on_cosines is not None:
            on_cosines(done, cosine_N.copy())
    return CrossFitted(cosine_N, fit(verified_N, start=start, steps=settings.steps))
