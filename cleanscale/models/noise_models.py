"""Networks around a classifier that learn how its labels are noisy. The classifier inside is what one keeps.

# B images, C classes, Z noise types
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class WithNoiseTypes(nn.Module):
    """Two networks on the same input (Xiao et al. 2015, Figure 4): logits of classes and of noise types [B, C + Z]."""

    def __init__(self, classifier: nn.Module, noise_types: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.noise_types = noise_types
        self.num_classes = num_classes

    def forward(self, input_B: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.classifier(input_B), self.noise_types(input_B)], dim=1)


class WithNoiseLayer(nn.Module):
    """A noise layer on top of a classifier (Sukhbaatar & Fergus 2014, "bottom-up"): [B, 2 C], class logits and
    log p(observed | image). The layer learns along; weight decay draws it towards even noise, so that it, and not the
    classifier, explains the noise."""

    def __init__(self, classifier: nn.Module, observed_given_true_CC: np.ndarray) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_classes = len(observed_given_true_CC)
        logit_CC = np.log(np.maximum(observed_given_true_CC, 1e-6))
        self.noise_logit_CC = nn.Parameter(torch.from_numpy(logit_CC).float())  # rows (true classes) by softmax

    def forward(self, input_B: torch.Tensor) -> torch.Tensor:
        logit_BC = self.classifier(input_B)
        observed_BC = logit_BC.softmax(1) @ self.noise_logit_CC.softmax(1)
        return torch.cat([logit_BC, observed_BC.clamp_min(1e-12).log()], dim=1)

    def observed_given_true(self) -> np.ndarray:
        """float32 [C, C] as learned; rows sum to 1."""
        return self.noise_logit_CC.detach().softmax(1).cpu().numpy()
