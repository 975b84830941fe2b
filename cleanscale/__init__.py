"""Find wrong labels and train better classifiers. See README.md.

In memory: `find_wrong_labels(features, labels, verified)`, or `WrongLabelFinder` to learn on one collection and judge
another. From images to a run folder: `load(["--data.train", "photos/"])` for settings, then `run(settings)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cleanscale.config import Settings, load
    from cleanscale.in_memory import WrongLabelFinder, find_wrong_labels
    from cleanscale.pipeline import run

__version__ = "0.1.0"
__all__ = ["Settings", "WrongLabelFinder", "find_wrong_labels", "load", "run"]

# Imported when first used: in-memory work never loads Ray, and `import cleanscale` loads nothing.
_HOMES = {
    "Settings": "cleanscale.config",
    "WrongLabelFinder": "cleanscale.in_memory",
    "find_wrong_labels": "cleanscale.in_memory",
    "load": "cleanscale.config",
    "run": "cleanscale.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cleanscale' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
