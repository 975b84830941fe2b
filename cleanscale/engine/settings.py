"""Settings of the engine: how much of a cluster a run takes. They change how fast a result comes, never the result."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EngineSettings(BaseModel):
    """How much of a cluster a run takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = Field(
        None,
        description="Ray cluster to join ('auto' or host:port). By default RAY_ADDRESS; without it Ray starts here.",
    )
    num_workers: int = Field(1, ge=1, description="Training workers; gradients are averaged over them.")
    use_gpu: bool = Field(False, description="Give each training worker and each feature actor a GPU.")
    threads_per_worker: int = Field(
        0,
        ge=0,
        description="Torch threads of a training worker on CPU; 0 shares all cores but one among the workers.",
    )
    feature_actors: int = Field(
        0, ge=0, description="Actors that run the backbone over images; 0 takes one per GPU, or one per 8 cores."
    )
    max_failures: int = Field(3, ge=0, description="How often a training stage starts again after losing a worker.")
    num_cpus: int | None = Field(None, ge=1, description="Cores that a Ray started here may use; by default all.")
    object_store_bytes: int | None = Field(
        None,
        ge=80 * 2**20,
        description="Shared memory of a Ray started here at most, taken as it is used: what all tasks of a node read "
        "of all classes, and blocks under way; by default three tenths of the memory.",
    )
    scratch: str | None = Field(
        None,
        description="Folder on each node's own disk for what a training worker cannot hold in memory; by default the "
        "system's for temporary files.",
    )
