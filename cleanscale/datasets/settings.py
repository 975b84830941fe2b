"""What the user's data is and how its columns are called."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Format = Literal["auto", "parquet", "folder", "webdataset", "features", "tsv"]


class DataSettings(BaseModel):
    """The `--data.*` settings: places, column names and the format of the inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str | None = Field(
        None,
        description="Images with noisy labels: a file, folder or glob pattern; a local path, s3:// or any fsspec URI.",
    )
    test: str | None = Field(
        None, description="Images with right labels on which the classifier is evaluated; none means no evaluation."
    )
    verification: str | None = Field(
        None, description="Parquet or CSV table with the columns id and verified (1 the noisy label is right, 0 wrong)."
    )
    clean: str | None = Field(
        None, description="More images whose labels are known to be right, for treatments that train on clean data."
    )
    format: Format = Field("auto", description="How the data is stored; auto finds it out from the files.")
    id: str = Field("id", min_length=1, description="Column with a unique name of each image; made up when missing.")
    label: str = Field("label", min_length=1, description="Column with the noisy label, an integer or a class name.")
    image: str = Field("image", min_length=1, description="Column with the encoded image (JPEG, PNG, ... bytes).")
    feature: str = Field("feature", min_length=1, description="Column with a feature vector, for data without images.")
    verified: str | None = Field(
        None, description="Column of the data with verification labels (1 right, 0 wrong, -1 or null nobody looked)."
    )
    true_label: str | None = Field(
        None, description="Column with the true label; used by the evaluation alone, never to fit or select anything."
    )
    cache_size: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="Shorter side in pixels of copies kept in the run folder for training; none reads the originals.",
    )

    def found_at(self, places: dict[str, str | None]) -> DataSettings:
        """The same for a data set that was made; a verification table that the user names wins over its own."""
        own = {} if self.verification is None else {"verification": self.verification}
        return self.model_copy(update=places | own)
