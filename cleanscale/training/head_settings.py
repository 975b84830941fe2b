"""Settings of classifier heads on features, dense and sharded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cleanscale.errors import ConfigError

# What stands for a setting that is not given: heads that one worker holds whole, and heads sharded by class.
# A batch of 0 follows from the number of images (`HeadPlan.batch_of`).
DENSE = {"hidden_width": 512, "epochs": 8, "batch": 0, "mixup": 1.0}
SHARDED = {"hidden_width": 0, "epochs": 1, "batch": 512, "mixup": 0.0}
STEPS_PER_EPOCH = 50  # with fewer, heads of a few thousand images do not learn what there is to learn (docs/log.md)
BATCHES = (32, 512)  # smallest and largest


class HeadSettings(BaseModel):
    """A classifier head on frozen features and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_width: int | None = Field(
        None, ge=0, description="Width of the hidden layer; 0 is softmax regression [default: 512; sharded: 0]."
    )
    dropout: float = Field(0.0, description="Share of inputs and of hidden units dropped in training.", ge=0, lt=1)
    epochs: int | None = Field(None, ge=1, description="Passes over the images [default: 8; sharded: 1].")
    batch: int | None = Field(
        None,
        ge=1,
        description="Images per step over all workers [default: 512, in small collections fewer, 32 at least, so that "
        "an epoch has 50 steps; sharded: 512]. Not label_cleaning's: --cleaning.batch.",
    )
    learning_rate: float = Field(2e-3, description="Peak learning rate of AdamW; falls to zero along a cosine.", gt=0)
    weight_decay: float = Field(0.02, description="Decoupled weight decay of AdamW.", ge=0)
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of each target spread evenly over all classes; in the plain loss alone, not in that of a "
        "noise model or of label_cleaning.",
    )
    mixup: float | None = Field(
        None,
        ge=0,
        description="Beta(mixup, mixup) mixes images and targets; 0: off [default: 1; sharded: 0]. Not in "
        "label_cleaning.",
    )
    sharded: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether each worker owns the output rows of a range of classes; auto: by sharded_from."
    )
    sharded_from: int = Field(100_000, ge=2, description="Number of classes from which on auto means on.")
    exact: bool = Field(False, description="Sharded: compare with all classes, in chunks, instead of sampled ones.")
    negatives: float = Field(
        512, gt=0, description="Sharded: sampled classes per step over all workers; below 1, as a share of all."
    )
    hard_negatives: int = Field(
        1, ge=0, description="Sharded: similar classes per image of a step, where they are known."
    )
    row_learning_rate: float = Field(
        0.01, gt=0, description="Sharded: peak step of an output row (row-wise Adagrad), as a share of the rows' size."
    )

    def is_sharded(self, num_classes: int) -> bool:
        """Whether a head of so many classes is sharded."""
        return self.sharded == "on" or (self.sharded == "auto" and num_classes >= self.sharded_from)

    def dense(self) -> HeadPlan:
        """The same for a head that is not sharded, however many classes it has."""
        return self.model_copy(update={"sharded": "off"}).resolved(2)

    def resolved(self, num_classes: int) -> HeadPlan:
        """The same with a value for everything that depends on whether the head is sharded.

        Raises: ConfigError for a setting that a sharded head cannot follow.
        """
        sharded = self.is_sharded(num_classes)
        if sharded and self.label_smoothing:
            raise ConfigError(
                f"--heads.label_smoothing is {self.label_smoothing} and the head of {num_classes} classes is sharded; "
                "expected 0, since a share for every class would touch every row; leave it out, or --heads.sharded off"
            )
        defaults = SHARDED if sharded else DENSE
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return HeadPlan.model_validate(defaults | given | {"sharded": "on" if sharded else "off"})

    def relevant(self, num_classes: int) -> dict[str, Any]:
        """The settings that change the result for so many classes: what a stage is made from."""
        values = self.resolved(num_classes).model_dump(mode="json")
        only_sharded = ("sharded", "exact", "negatives", "hard_negatives", "row_learning_rate")
        unused = ("sharded_from", *(() if self.is_sharded(num_classes) else only_sharded))
        return {name: value for name, value in values.items() if name not in unused}

    def negatives_of(self, num_classes: int) -> int:
        """Sampled classes of a step, over all workers."""
        return max(1, round(self.negatives * num_classes if self.negatives < 1 else self.negatives))


class HeadPlan(HeadSettings):
    """Settings of which every one has a value."""

    hidden_width: int  # pyright: ignore[reportIncompatibleVariableOverride]
    epochs: int  # pyright: ignore[reportIncompatibleVariableOverride]
    batch: int  # pyright: ignore[reportIncompatibleVariableOverride]
    mixup: float  # pyright: ignore[reportIncompatibleVariableOverride]

    def batch_of(self, images: int) -> int:
        """Images of a step over all workers: as given, or by the number of images, a power of two."""
        least, most = BATCHES
        return self.batch or min(max(1 << (images // STEPS_PER_EPOCH).bit_length() >> 1, least), most)
