"""Treatments by name (`--treatment.name`): how the classifier is trained once it is known which labels are doubtful."""

from __future__ import annotations

from cleanscale.treatments.weights import TREATMENTS, Judged

# Those whose loss is built from a dense model of the noise (stages/supervision.py), and from any.
MATRIX_TREATMENTS = ("forward", "instance_forward", "backward", "bottom_up")
NOISE_TREATMENTS = (*MATRIX_TREATMENTS, "noise_em")
# Those that weigh labels and nothing else.
WEIGHING_TREATMENTS = ("none", "soft", "hard", "probability")

__all__ = ["MATRIX_TREATMENTS", "NOISE_TREATMENTS", "TREATMENTS", "WEIGHING_TREATMENTS", "Judged"]
