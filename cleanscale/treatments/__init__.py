"""Treatments by name (`--treatment.name`): how the classifier is trained once it is known which labels are doubtful."""

from __future__ import annotations

from cleanscale.treatments.weights import TREATMENTS, Judged

# Those whose matrix of the noise comes from verified labels and anchor points, without a judgement of the images; those
# whose loss is built from a dense matrix (stages/supervision.py); and from any model of the noise.
ANCHORED = ("forward", "backward", "bottom_up")
MATRIX_TREATMENTS = (*ANCHORED, "instance_forward")
NOISE_TREATMENTS = (*MATRIX_TREATMENTS, "noise_em")
# Those that weigh labels and nothing else.
WEIGHING_TREATMENTS = ("none", "soft", "hard", "probability")

__all__ = ["ANCHORED", "MATRIX_TREATMENTS", "NOISE_TREATMENTS", "TREATMENTS", "WEIGHING_TREATMENTS", "Judged"]
