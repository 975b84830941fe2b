"""Settings of the evidence that detectors decide by."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvidenceSettings(BaseModel):
    """Out-of-fold heads, the classes that an image is compared with, and class folds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_folds: int = Field(4, ge=2, description="Folds of images: each is scored by a head fitted on the other folds.")
    class_folds: int = Field(3, ge=2, description="Folds of verified classes for fitting and calibrating detectors.")
    exact_classes: int = Field(
        1024, ge=2, description="Up to this many classes each image is compared with all of them."
    )
    candidates: int = Field(32, ge=1, description="Above that: the nearest classes that each image is compared with.")
    recall: float = Field(
        0.45, gt=0, le=1, description="Share of the ten nearest classes that the search for candidates is to find."
    )
    tail: int = Field(256, ge=1, description="Above that: sampled classes that stand for all the others.")
