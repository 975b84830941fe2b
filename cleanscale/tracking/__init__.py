"""MLflow: one run for a run folder, with nested runs for rounds and trials. MLflow lives here and in the registry.

Only drivers write, and no call of theirs waits for the tracking server: what is told is delivered in the background.
"""

from cleanscale.tracking.runs import Silent, Tracker, end_abandoned, open_run, tracked, tracked_trial
from cleanscale.tracking.settings import RECORD, TrackingSettings, tracking_uri

__all__ = [
    "RECORD",
    "Silent",
    "Tracker",
    "TrackingSettings",
    "end_abandoned",
    "open_run",
    "tracked",
    "tracked_trial",
    "tracking_uri",
]
