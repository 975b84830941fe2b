"""Settings of CleanNet and its presets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# What differs from the defaults below. The paper leaves omega, the optimiser and the widths open: the code's stand in.
_PUBLISHED_CODE: dict[str, Any] = {
    "references_per_class": 32,
    "steps": 80_000,
    "fold_start": "scratch",
    "classes_per_half": 8,
    "queries_per_class": 4,
    "references_per_step": 0,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "decay_at": (30_000, 60_000),
    "weight_decay": 1e-4,
    "clip": 0.0,
    "transform": "log1p",
    "reference_widths": (512, 256),
    "query_width": 256,
    "embedding": 128,
    "activation": "tanh",
    "activate_outputs": True,
    "dropout": 0.0,
    "shared_projection": False,
    "beta": 0.1,
    "gamma": 0.1,
    "rho": 0.1,
    "omega": 5.0,
    "contrastive": 0.0,
    "reconstruction": "mean",
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": _PUBLISHED_CODE | {"references_per_class": 50, "activate_outputs": False, "reconstruction": "sum"},
    "published_code": _PUBLISHED_CODE,
}


class CleanNetSettings(BaseModel):
    """CleanNet and its training. A field that is given wins over the preset; `resolved` puts the two together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["default", "paper", "published_code"] = Field(
        "default",
        description="Starting point: the defaults here, the paper's method, or the settings of its published code.",
    )
    references_per_class: int = Field(50, ge=1, description="Reference vectors that stand for a class.")
    steps: int = Field(150, ge=1, description="Optimiser steps of a fit with verification labels.")
    start_steps: int = Field(
        400, ge=1, description="Optimiser steps of the fit without them that the others start from."
    )
    class_folds: int = Field(3, ge=2, description="Folds of verified classes for cosines that did not see their class.")
    fold_start: Literal["unverified", "scratch"] = Field(
        "unverified", description="Fits begin from one fit without verification labels, or each from scratch."
    )
    classes_per_half: int = Field(
        32, ge=1, description="Classes of the verified half of a batch, and of the other half."
    )
    queries_per_class: int = Field(8, ge=1, description="Images drawn of each class of a batch.")
    references_per_step: int = Field(
        8, ge=0, description="References of a class that one step uses, drawn anew each time; 0 uses all."
    )
    optimizer: Literal["adam", "sgd"] = Field("adam", description="AdamW, or SGD with momentum 0.9.")
    learning_rate: float = Field(2e-3, gt=0, description="Learning rate at the first step.")
    decay_at: tuple[int, ...] = Field(
        (), description="Steps at which the learning rate falls to a tenth; none: it falls linearly to zero."
    )
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay.")
    clip: float = Field(0.0, ge=0, description="Largest gradient norm; 0 does not clip.")
    bf16: bool = Field(False, description="Encode in bfloat16 on a GPU.")
    transform: Literal["none", "log1p", "centre", "standardise"] = Field(
        "centre", description="What is done to features before the encoders; saved with the model."
    )
    reference_widths: tuple[int, int] = Field((256, 128), description="Widths of the reference encoder's two layers.")
    query_width: int = Field(256, ge=1, description="Width of the query encoder's hidden layers.")
    embedding: int = Field(128, ge=1, description="Width of class and query embeddings.")
    activation: Literal["tanh", "relu"] = Field("relu", description="Activation of hidden layers.")
    activate_outputs: bool = Field(
        False, description="Put the activation after embeddings and reconstructions too, as the published code does."
    )
    shared_projection: bool = Field(
        True,
        description="Add one linear map of queries and attended references to both embeddings (not in the paper).",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of input features dropped in training.")
    beta: float = Field(0.1, ge=0, description="Weight of the reconstruction error.")
    gamma: float = Field(0.0, ge=0, description="Weight of the self-reinforcing term of unverified images.")
    rho: float = Field(0.2, ge=-1, le=1, description="Margin: the cosine below which a wrong image costs nothing.")
    omega: float = Field(5.0, ge=0, description="Weight of images verified as wrong.")
    contrastive: float = Field(1.0, ge=0, description="Weight of the class-contrastive term; 0 leaves it out.")
    temperature: float = Field(15.0, gt=0, description="Factor on cosines in the class-contrastive softmax.")
    robustness: float = Field(
        0.8, ge=0, le=1, description="Of the class-contrastive term to wrong labels: 0 cross-entropy, 1 absolute error."
    )
    reconstruction: Literal["sum", "mean"] = Field("mean", description="Reconstruction error over features.")

    def resolved(self) -> CleanNetSettings:
        """These settings with the preset's value in every field that was not given."""
        preset = {k: v for k, v in PRESETS[self.preset].items() if k not in self.model_fields_set}
        return self.model_copy(update=preset)
