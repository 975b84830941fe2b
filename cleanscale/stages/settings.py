"""Settings of stages that are not the settings of one model, loop or reader."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

FROZEN = ConfigDict(frozen=True, extra="forbid")

DetectorName = Literal[
    "transfer",
    "cleannet",
    "naive",
    "classification_filtering",
    "average",
    "self_confidence",
    "margin",
    "prediction_disagrees",
    "neighbour_vote",
    "mlp",
    "knn",
    "svm",
    "label_propagation",
    "label_spreading",
    "drae",
    "confident_learning",
]
TreatmentName = Literal[
    "probability",
    "soft",
    "hard",
    "none",
    "relabel",
    "forward",
    "instance_forward",
    "backward",
    "bottom_up",
    "noise_em",
    "label_cleaning",
]


class FeaturesSettings(BaseModel):
    """How features are made and stored."""

    model_config = FROZEN

    batch_size: int = Field(64, ge=1, description="Images that the backbone takes at once.")
    dimensions: int = Field(
        256,
        ge=0,
        description="Width of features: wider ones are projected (square roots, principal components); 0 keeps all.",
    )
    rows_per_file: int = Field(
        0, ge=0, description="Images per file while features are made, the unit of resuming; 0 follows from the input."
    )
    shard_bytes: int = Field(
        64 * 2**20, ge=2**10, description="Size of a class shard's features; what a task holds in memory."
    )


class ReferencesSettings(BaseModel):
    """Reference sets: the feature vectors that stand for a class (CleanNet, section 3.1)."""

    model_config = FROZEN

    per_class: int = Field(0, ge=0, description="Vectors per class (the paper's 50); 0 follows --cleannet.preset.")
    method: Literal["kmeans", "random"] = Field(
        "kmeans", description="Centroids of the class's images, or a random sample of them (the paper's two ways)."
    )
    iterations: int = Field(10, ge=1, description="Rounds of k-means.")
    max_images: int = Field(500, ge=1, description="Images of a class that its references are made from, at most.")


class DetectorSettings(BaseModel):
    """What decides that a label is wrong."""

    model_config = FROZEN

    name: DetectorName = Field(
        "transfer", description="Method that fills the relevance table; others are reported beside."
    )
    compare: tuple[DetectorName, ...] = Field(
        (),
        description="Detectors that are reported too. Those that judge by the evidence of the run always are; the "
        "others (neighbour_vote to confident_learning) make signals of their own, only when named here or above.",
    )
    delta: float | None = Field(
        None,
        description="Score below which a label is called wrong, on the detector's scale (cleannet: cosine; transfer: "
        "probability_correct); by default chosen on verification labels, whole classes held out.",
    )
    published_steps: int = Field(
        0,
        ge=0,
        description="Also fit CleanNet as published (preset paper) for so many steps and report it too; 0: no.",
    )

    @property
    def named(self) -> tuple[DetectorName, ...]:
        """The chosen detector and those it is compared with, each once."""
        return tuple(dict.fromkeys((self.name, *self.compare)))


class TreatmentSettings(BaseModel):
    """How the classifier is trained once it is known which labels are doubtful."""

    model_config = FROZEN

    name: TreatmentName = Field(
        "probability",
        description="Weights of the images: probability_correct, soft (Eq. 12), hard (Eq. 13), or none (all 1); "
        "relabel: wrong images under the suggested label; a loss that knows the noise: forward, backward (Patrini), "
        "instance_forward (the same with the judgement of each image), "
        "bottom_up (Sukhbaatar), noise_em (Xiao); label_cleaning (Veit): labels as a network cleans them, also for "
        "lists of labels.",
    )
    matrix_classes: int = Field(
        4096,
        ge=2,
        description="Most classes for which treatments with a matrix of classes by classes hold one: forward, "
        "instance_forward, backward and bottom_up.",
    )

    @field_validator("name", mode="before")
    @classmethod
    def none_is_a_name(cls, name: object) -> object:
        """On the command line `none` unsets a setting; here it is one of the names."""
        return "none" if name is None else name


class EvaluateSettings(BaseModel):
    """What is measured at the end, and how surely."""

    model_config = FROZEN

    resamples: int = Field(1000, ge=20, description="Bootstrap resamples behind the 95 % intervals.")
    images: int = Field(
        200_000,
        ge=1,
        description="Images with a true label that are evaluated at most; of more, classes drawn, and of huge "
        "classes some of their images.",
    )
    figures: bool = Field(True, description="Draw the figures and contact sheets.")
    sheet_images: int = Field(48, ge=1, le=400, description="Pictures on the sheet of the images most surely wrong.")


class ClassIndexSettings(BaseModel):
    """How the nearest classes are searched."""

    model_config = FROZEN

    kind: Literal["auto", "flat", "ivf_sq8"] = Field(
        "auto",
        description="flat compares all classes, ivf_sq8 those of the nearest cells in 8 bits; auto: by their number.",
    )
    flat_classes: int = Field(16384, ge=1, description="Most classes that auto compares one by one.")
    recall: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Share of the ten nearest classes that ivf_sq8 is to find; how many cells that takes is measured.",
    )
    shard_bytes: int = Field(
        128 * 2**20, ge=2**10, description="Size of the vectors of a range of classes; changes no result."
    )
    neighbours: int = Field(16, ge=1, description="Nearest other classes that are kept of each class.")
    suggestions: Literal["neighbours", "search"] = Field(
        "neighbours",
        description="Where not all classes are compared, suggested labels come from the neighbours of the classes that "
        "the evidence found, or from a search that takes many times as long and is right a little more often.",
    )

    def content(self) -> dict[str, Any]:
        """What the index itself depends on."""
        return self.model_dump(mode="json", exclude={"shard_bytes", "suggestions"})
