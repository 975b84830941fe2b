"""Treatments by name (`--treatment.name`): how the classifier is trained once it is known which labels are doubtful."""

from __future__ import annotations

from cleanscale.treatments.weights import TREATMENTS, Judged

__all__ = ["TREATMENTS", "Judged"]
