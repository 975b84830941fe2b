"""Settings of label cleaning (Veit et al. 2017).

Their numbers where their paper is quoted: weights 0.1 and 1.0 of the losses, batches of nine parts noisy to one
part verified, absolute distance, no gradient from the classifier into the cleaner. Widths, optimiser and passes are
ours: theirs are for Inception-v3 trained whole.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

NOISY = "noisy"  # the classifier that all others start from
Variant = Literal["joint", "pretrained"]
Baseline = Literal["clean", "mixed", "joint", "pretrained"]


class CleaningSettings(BaseModel):
    """The label cleaning network, the classifiers that learn with it, and those that they are compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Variant = Field(
        "joint",
        description="joint: cleaner and classifier learn at the same time; pretrained: the cleaner first, on verified "
        "images alone, and then it stays as it is.",
    )
    compare: tuple[Baseline, ...] = Field(
        ("clean", "mixed"),
        description="Trained and reported beside it and the noisy labels alone: fine-tuned on clean labels, on mixed "
        "ones (verified where known, noisy elsewhere), or the other variant.",
    )
    clean_weight: float = Field(0.1, ge=0, description="Weight of the cleaner's loss (the paper's).")
    classify_weight: float = Field(1.0, gt=0, description="Weight of the classifier's loss (the paper's).")
    verified_share: float = Field(
        0.1, gt=0, lt=1, description="Share of verified images in a batch (the paper's 9 to 1)."
    )
    unnamed: Literal["absent", "unknown"] = Field(
        "absent",
        description="Labels that neither the list nor the verification of a verified image names: absent (as in the "
        "paper, whose verified label vectors are complete) or unknown, of which nothing is learned.",
    )
    label_width: int = Field(64, ge=1, description="Dimensions that the noisy labels are projected to.")
    feature_width: int = Field(128, ge=1, description="Dimensions that the features are projected to.")
    hidden_width: int = Field(128, ge=1, description="Width of the cleaner's hidden layer.")
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of the cleaner's hidden units dropped in training: verified images are few."
    )
    epochs: int = Field(
        8, ge=1, description="Passes over the images after the classifier has learned the noisy labels."
    )
    pretrain_steps: int = Field(500, ge=1, description="Steps of a cleaner that is trained first.")
    batch: int = Field(
        128,
        ge=2,
        description="Images per step over all workers, verified ones included; also of the classifier on noisy labels.",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of the classifier, by AdamW.")
    cleaner_learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate of the cleaner, by AdamW.")
    weight_decay: float = Field(0.02, ge=0, description="Decoupled weight decay of both.")
    sampled_classes: int = Field(
        8192,
        ge=0,
        description="Classes drawn for a step besides those that its images name, the sums standing for all classes; "
        "exact where there are no more, or with 0.",
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="Cleaned value from which an image has a label.")

    def trained(self) -> tuple[str, ...]:
        """What is trained, in the order of reports; the chosen variant last."""
        return (NOISY, *(name for name in dict.fromkeys(self.compare) if name != self.variant), self.variant)
