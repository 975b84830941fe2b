"""Where a run is logged, and how MLflow behaves while it is."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from cleanscale.storage import uris

RECORD = "tracking.json"
# A user's own value wins. By itself MLflow tries a server that does not answer for four minutes; delivery tries again.
DEFAULT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingSettings(BaseModel):
    """Where metrics, figures, tables and settings are logged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="Log the run with MLflow.")
    uri: str | None = Field(
        None,
        description="MLflow tracking URI; by default MLFLOW_TRACKING_URI, else mlflow.db beside the run folders.",
    )
    experiment: str = Field("cleanscale", min_length=1, description="MLflow experiment that the run belongs to.")
    system_metrics_s: float = Field(
        10.0, ge=0, description="Seconds between measurements of the driver's machine (CPU, memory, GPU); 0: none."
    )
    table_bytes: int = Field(
        16 * 2**20,
        ge=0,
        description="Size up to which the relevance table is logged whole; of a larger one the rows most surely wrong.",
    )
    patience_s: float = Field(
        30.0, ge=0, description="How long the end of a run waits for a tracking server that is away."
    )


def tracking_uri(settings: TrackingSettings, run_uri: str) -> str | None:
    """Where to log: the setting, MLFLOW_TRACKING_URI, or mlflow.db beside local run folders; None: nowhere."""
    if not settings.enabled:
        return None
    chosen = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if chosen or not uris.is_local(run_uri):
        return chosen or None
    return f"sqlite:///{beside(run_uri) / 'mlflow.db'}"


def beside(run_uri: str) -> Path:
    return Path(run_uri.removeprefix("file://")).resolve().parent
