"""Training a sigmoid classifier and the label cleaning network on shared features (Veit et al. 2017).

Plain loops over arrays, one worker or many. First a classifier on the noisy labels; every other starts from it.

# N images of this worker, V verified images (all of them on every worker), D feature width, C classes
# B images of a batch, of which T nobody looked at; S classes of a step
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from cleanscale.errors import ConfigError, DataError, StageError
from cleanscale.maths.keyed_random import Purpose, generator
from cleanscale.maths.label_cleaning import (
    StepClasses,
    classification_loss,
    cleaned_labels,
    cleaning_loss,
    prior_logit,
    step_classes,
    targets,
)
from cleanscale.maths.label_lists import LabelLists, concatenate
from cleanscale.models.heads import Head
from cleanscale.models.label_cleaner import LabelCleaner, output_rows
from cleanscale.training.collectives import Alone, Collectives
from cleanscale.training.head_settings import HeadPlan
from cleanscale.training.heads import SUMMED_ROWS, standardisation, warm_cosine
from cleanscale.training.label_cleaning_settings import NOISY, CleaningSettings

# Second parts of the random keys.
_MODEL, _ORDER, _DROPOUT = 0, 1, 2


class Rows(Protocol):
    """Features by position: an array, a memory map, or anything that reads rows when asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, position_B: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Images:
    """This worker's images; verified_N: somebody looked at them."""

    feature_ND: Rows
    noisy: LabelLists
    verified_N: np.ndarray


@dataclass(frozen=True)
class Verified:
    """All verified images. right, wrong: labels known to be there, and known not to be.

    complete_V: whether all other labels are known not to be there; where False, nothing is known of them.
    """

    feature_VD: np.ndarray
    noisy: LabelLists
    right: LabelLists
    wrong: LabelLists
    complete_V: np.ndarray

    def __len__(self) -> int:
        return len(self.feature_VD)


class Fitted(NamedTuple):
    """A classifier, and the cleaner that it learned with, if any."""

    head: Head
    cleaner: LabelCleaner | None


class Trainer:
    """Fits classifiers and cleaners on the same images, each by its own keyed randomness.

    seed: with the number of workers and the settings all that results depend on, on CPU. on_step(losses) hears of every
    step. Raises: DataError when there is nothing to learn from, ConfigError when a worker's part of the batch is too
    small for the share of verified images, StageError when a loss is no longer finite.
    """

    def __init__(
        self,
        images: Images,
        verified: Verified,
        num_classes: int,
        settings: CleaningSettings,
        heads: HeadPlan,
        *,
        seed: int,
        collectives: Collectives | None = None,
        device: str = "cpu",
        on_step: Callable[[dict[str, float]], None] = lambda _: None,
    ) -> None:
        self.images, self.verified, self.num_classes = images, verified, num_classes
        self.settings, self.heads, self.seed, self.device = settings, heads, seed, device
        self.together = collectives or Alone()
        self.on_step = on_step
        counts = torch.tensor([len(images.noisy), len(images.noisy.label_E)], dtype=torch.float64)
        self.total, self.labels = (int(value) for value in self.together.sum(counts).tolist())
        if self.total == 0:
            raise DataError("no image is left to train on; expected at least one accepted image; see rejected.parquet")
        self.per_worker = max(1, settings.batch // self.together.world)
        self.verified_each = min(max(1, round(settings.verified_share * self.per_worker)), self.per_worker)
        if self.together.world > 1 and settings.verified_share * self.per_worker < 0.5:
            raise ConfigError(
                f"--cleaning.batch is {settings.batch} for {self.together.world} workers: a share of "
                f"{settings.verified_share:g} verified images in {self.per_worker} is less than half of one; expected "
                "one for each worker; raise --cleaning.batch or lower --engine.num_workers"
            )

    def steps(self, name: str) -> int:
        """Steps of `fit(name)`, known beforehand."""
        passes = math.ceil(self.total / (self.per_worker * self.together.world))
        if name == NOISY:
            return passes * self.heads.epochs
        return passes * self.settings.epochs + (self.settings.pretrain_steps if name == "pretrained" else 0)

    def fit(self, name: str, start: Head | None = None) -> Fitted:
        """The classifier of this name: noisy without a start, the others from it, which is not changed."""
        if name == NOISY:
            return Fitted(self._fit_noisy(), None)
        assert start is not None
        if not len(self.verified):
            raise DataError(
                "no label is verified; label_cleaning learns from verified images; expected some; name a table with "
                "--data.verification"
            )
        head = copy.deepcopy(start).to(self.device)
        cleaner = self._new_cleaner(start) if name in ("joint", "pretrained") else None
        number = ("clean", "mixed", "joint", "pretrained").index(name) + 1
        steps = self.steps(name)
        if name == "pretrained" and cleaner is not None:
            steps -= self.settings.pretrain_steps
            self._descend(_Step(self, None, cleaner), 0, self.per_worker, self.settings.pretrain_steps, 16 + number)
            cleaner.requires_grad_(False)
        noisy_each = 0 if name == "clean" else self.per_worker - self.verified_each
        self._descend(_Step(self, head, cleaner), noisy_each, self.verified_each, steps, number)
        return Fitted(head.eval(), None if cleaner is None else cleaner.eval())

    def _fit_noisy(self) -> Head:
        heads, feature_ND = self.heads, self.images.feature_ND
        with self._seeded(_MODEL, 0):
            head = Head(feature_ND.shape[1], self.num_classes, heads.hidden_width, heads.dropout)
            nn.init.normal_(head.output.weight, std=1e-2)
            nn.init.constant_(head.output.bias, prior_logit(self.labels / self.total, self.num_classes))
        head.mean_D, head.scale_D = self._standardisation()
        self._descend(_Step(self, head.to(self.device), None), self.per_worker, 0, self.steps(NOISY), 0)
        return head.eval()

    def _new_cleaner(self, start: Head) -> LabelCleaner:
        s = self.settings
        widths = s.label_width, s.feature_width, s.hidden_width, s.dropout
        with self._seeded(_MODEL, 1):
            cleaner = LabelCleaner(self.images.feature_ND.shape[1], self.num_classes, *widths)
        cleaner.mean_D, cleaner.scale_D = start.mean_D.clone(), start.scale_D.clone()
        return cleaner.to(self.device)

    @contextlib.contextmanager
    def _seeded(self, *about: int) -> Iterator[None]:
        """torch's random state for what is done inside, keyed; afterwards it is as before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(self.seed, Purpose.LABEL_CLEANING, *about).integers(2**62)))
            yield

    def _standardisation(self) -> tuple[torch.Tensor, torch.Tensor]:
        rows, feature_ND = len(self.images.noisy), self.images.feature_ND
        parts = (np.arange(start, min(start + SUMMED_ROWS, rows)) for start in range(0, rows, SUMMED_ROWS))
        blocks = (torch.from_numpy(np.asarray(feature_ND[part], np.float32)) for part in parts)
        return standardisation(blocks, feature_ND.shape[1], self.total, self.together)

    def _descend(self, step: _Step, noisy_each: int, verified_each: int, steps: int, about: int) -> None:
        """AdamW over `steps` batches of so many images that nobody looked at and so many verified ones.

        about: key of the order; 0 is the classifier on noisy labels, which takes all images as nobody's.
        """
        optimizer = self._optimizer(step, first=about == 0)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps))
        rng = generator(self.seed, Purpose.LABEL_CLEANING, _ORDER, about, self.together.rank)
        own = np.arange(len(self.images.noisy)) if about == 0 else np.flatnonzero(~self.images.verified_N)
        noisy = _endless(own, noisy_each, rng)
        verified = _endless(np.arange(len(self.verified)), verified_each, rng)
        # Workers take equally many steps: one with more images than others stands for more in each.
        all_own = int(self.together.sum(torch.tensor([len(own)], dtype=torch.float64)).item())
        share = len(own) * self.together.world / all_own if noisy_each and all_own else 1.0
        with self._seeded(_DROPOUT, about, self.together.rank):
            step.train()
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                loss, said = step(next(noisy), next(verified), rng)
                if not math.isfinite(sum(said.values())):
                    raise StageError(
                        f"label_cleaning's losses are {said}; expected finite numbers; lower --cleaning.learning_rate "
                        "or --cleaning.cleaner_learning_rate"
                    )
                if loss is not None:
                    (loss * share).backward()
                self.together.average_gradients(trained)
                optimizer.step()
                schedule.step()
                self.on_step(said)

    def _optimizer(self, step: _Step, *, first: bool) -> torch.optim.Optimizer:
        s = self.settings
        rates = (
            (step.head, self.heads.learning_rate if first else s.learning_rate),
            (step.cleaner, s.cleaner_learning_rate),
        )
        groups = []
        for model, rate in rates:
            trained = [] if model is None else [p for p in model.parameters() if p.requires_grad]
            groups += [{"params": trained, "lr": rate}] if trained else []
        decay = self.heads.weight_decay if first else s.weight_decay
        return torch.optim.AdamW(groups, weight_decay=decay)


class _Step:
    """The loss of one batch: of the classifier, of the cleaner, or of both."""

    def __init__(self, trainer: Trainer, head: Head | None, cleaner: LabelCleaner | None) -> None:
        self.images, self.verified, self.trainer = trainer.images, trainer.verified, trainer
        self.head, self.cleaner = head, cleaner

    def train(self) -> None:
        for model in (self.head, self.cleaner):
            if model is not None:
                model.train()

    def __call__(
        self, at_T: np.ndarray, at_V: np.ndarray, rng: np.random.Generator
    ) -> tuple[torch.Tensor | None, dict[str, float]]:
        """(loss, what is told of it): sums over images that nobody looked at and verified ones, by their number."""
        if not len(at_T) + len(at_V):
            return None, {}
        settings, device = self.trainer.settings, self.trainer.device
        pieces = [np.asarray(f, np.float32) for f in (self._noisy_features(at_T), self.verified.feature_VD[at_V])]
        feature_BD = torch.from_numpy(np.concatenate(pieces)).to(device)
        noisy = concatenate(self.images.noisy.take(at_T), self.verified.noisy.take(at_V))
        right, wrong = self.verified.right.take(at_V), self.verified.wrong.take(at_V)
        named_E = np.concatenate([noisy.label_E, right.label_E, wrong.label_E])
        classes = step_classes(named_E, self.trainer.num_classes, settings.sampled_classes, rng)
        weight_S = torch.from_numpy(classes.weight_S).to(device)
        hot = self._hot(classes)
        noisy_BS = hot(noisy)
        verified_VS, known_VS = hot(right), torch.maximum(hot(right), hot(wrong))
        if len(at_V):
            complete_V = torch.from_numpy(self.verified.complete_V[at_V].astype(np.float32)).to(device)
            # In a complete image, everything but noisy labels without a verdict is known.
            known_VS = torch.maximum(known_VS, complete_V[:, None] * (1 - noisy_BS[len(at_T) :]))
        class_S = None if classes.class_S is None else torch.from_numpy(classes.class_S).to(device)
        said: dict[str, float] = {}
        loss, target_BS = None, noisy_BS
        if self.cleaner is not None and self.cleaner.bias_C.requires_grad:
            its_own = self.verified.noisy.take(at_V)
            cleaned_VS = clean(self.cleaner, feature_BD[len(at_T) :], its_own, noisy_BS[len(at_T) :], class_S)
            each_V = cleaning_loss(cleaned_VS, verified_VS, known_VS, weight_S)
            loss = settings.clean_weight * each_V.sum() / len(noisy)
            said["clean_loss"] = float(each_V.detach().sum() / max(len(at_V), 1))
        if self.head is not None:
            if self.cleaner is not None:
                target_BS = self._constant_labels(feature_BD, noisy, noisy_BS, class_S)
            known_BS = torch.cat([torch.zeros_like(noisy_BS[: len(at_T)]), known_VS])
            verified_BS = torch.cat([torch.zeros_like(noisy_BS[: len(at_T)]), verified_VS])
            logit_BS = output_rows(self.head.embed(feature_BD), self.head.output.weight, self.head.output.bias, class_S)
            each_B = classification_loss(logit_BS, targets(target_BS, verified_BS, known_BS), weight_S)
            classify = settings.classify_weight * each_B.mean()
            loss = classify if loss is None else loss + classify
            said["classify_loss"] = float(each_B.detach().mean())
        return loss if loss is not None and loss.requires_grad else None, said

    def _constant_labels(
        self, feature_BD: torch.Tensor, noisy: LabelLists, noisy_BS: torch.Tensor, class_S: torch.Tensor | None
    ) -> torch.Tensor:
        """c_hat as a target: without gradient, and by the whole cleaner, none of its units dropped."""
        assert self.cleaner is not None
        with torch.no_grad():
            self.cleaner.eval()
            cleaned_BS = clean(self.cleaner, feature_BD, noisy, noisy_BS, class_S)
            self.cleaner.train()
        return cleaned_BS

    def _noisy_features(self, at_T: np.ndarray) -> np.ndarray:
        if len(at_T):
            return self.images.feature_ND[at_T]
        return np.empty((0, self.images.feature_ND.shape[1]), np.float32)

    def _hot(self, classes: StepClasses) -> Callable[[LabelLists], torch.Tensor]:
        trainer = self.trainer
        return lambda lists: torch.from_numpy(lists.multi_hot(classes.class_S, trainer.num_classes)).to(trainer.device)


def clean(
    cleaner: LabelCleaner,
    feature_BD: torch.Tensor,
    noisy: LabelLists,
    noisy_BS: torch.Tensor,
    class_S: torch.Tensor | None,
) -> torch.Tensor:
    """[B, S] cleaned labels of images with these noisy ones, given as lists and for the classes asked for."""
    label_E, start_B = (torch.from_numpy(x).to(feature_BD.device) for x in (noisy.label_E, noisy.start_N1[:-1]))
    return cleaned_labels(noisy_BS, cleaner.residual(cleaner.embed(feature_BD, label_E, start_B), class_S))


def _endless(own: np.ndarray, each: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of `each` of `own`, in one random order after the other; empty ones where there are none."""
    if not each or not len(own):
        while True:
            yield np.empty(0, np.int64)
    left = np.empty(0, np.int64)
    while True:
        while len(left) < each:
            left = np.concatenate([left, rng.permutation(own)])
        yield left[:each]
        left = left[each:]
