"""System metrics: how busy the driver's machine is, measured by MLflow's monitors and delivered like everything else.

MLflow's own thread around them gives up at the first call that its server does not answer.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cleanscale.tracking.runs import Tracker

log = logging.getLogger(__name__)

MONITORS = (
    ("cpu_monitor", "CPUMonitor"),
    ("disk_monitor", "DiskMonitor"),
    ("network_monitor", "NetworkMonitor"),
    ("gpu_monitor", "GPUMonitor"),
    ("rocm_monitor", "ROCMMonitor"),
)


class SystemMetrics:
    """Measures every `interval_s` seconds while a `with` lasts; an interval of 0 measures nothing."""

    def __init__(self, tracker: Tracker, interval_s: float) -> None:
        self.tracker, self.interval_s = tracker, interval_s
        self.monitors = monitors() if interval_s else []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="system metrics", daemon=True)

    def __enter__(self) -> SystemMetrics:
        if self.monitors:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self.monitors:
            self._thread.join()

    def _measure(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            # Seconds since the run began: a run that goes on after a crash does not start again at 0.
            step = int(time.time() - self.tracker.run.started_ms / 1000)
            self.tracker.report("system", measure(self.monitors), step)
            wait_s = self.interval_s


def monitors() -> list[Any]:
    """MLflow's monitors that work here: psutil comes with Ray, and GPUs are seen where nvidia-ml-py is installed."""
    found = []
    for module, name in MONITORS:
        with contextlib.suppress(Exception):  # what is not there is not measured
            found.append(getattr(importlib.import_module(f"mlflow.system_metrics.metrics.{module}"), name)())
    if not found:
        log.warning("no system metrics: psutil is not there; install it, or give --tracking.system_metrics_s 0")
    return found


def measure(monitors: list[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for monitor in monitors:
        with contextlib.suppress(Exception):
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
    return found
