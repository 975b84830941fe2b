"""Classifier heads on features: linear or one hidden layer, with the features' standardisation inside.

# N images, D feature width, H hidden width, C classes, M candidate classes of one image
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn


class Head(nn.Module):
    """features_ND -> logits_NC. `hidden_width` 0 is softmax regression.

    `mean_D` and `scale_D` (standardisation) are buffers, so a head takes raw features wherever it is loaded:
    `Head(**config)` followed by `load_state_dict` gives it back.
    """

    mean_D: torch.Tensor
    scale_D: torch.Tensor

    def __init__(self, num_features: int, num_classes: int, hidden_width: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "num_features": num_features,
            "num_classes": num_classes,
            "hidden_width": hidden_width,
            "dropout": dropout,
        }
        self.register_buffer("mean_D", torch.zeros(num_features))
        self.register_buffer("scale_D", torch.ones(num_features))
        self.hidden = nn.Linear(num_features, hidden_width) if hidden_width else None
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_width or num_features, num_classes)

    def embed(self, feature_ND: torch.Tensor) -> torch.Tensor:
        """What the output layer sees, [N, H] (or standardised features when there is no hidden layer)."""
        x_ND = (feature_ND.to(self.mean_D.dtype) - self.mean_D) * self.scale_D
        if self.hidden is None:
            return self.dropout(x_ND)
        return self.dropout(torch.relu(self.hidden(self.dropout(x_ND))))

    def forward(self, feature_ND: torch.Tensor) -> torch.Tensor:
        """Logits [N, C]."""
        return self.output(self.embed(feature_ND))

    def candidate_logits(self, feature_ND: torch.Tensor, candidate_NM: torch.Tensor) -> torch.Tensor:
        """Logits of the named classes alone, [N, M]: a gather and dot products, without the N x C matrix."""
        embedded_NH = self.embed(feature_ND)
        weight_NMH = self.output.weight[candidate_NM]
        return torch.einsum("nh,nmh->nm", embedded_NH, weight_NMH) + self.output.bias[candidate_NM]


@torch.no_grad()
def predict(head: Head, feature_ND: np.ndarray, *, batch: int = 4096, device: str = "cpu") -> np.ndarray:
    """Log-probabilities float32 [N, C], in batches; leaves the head in evaluation mode."""
    head.eval().to(device)
    log_probability_NC = np.empty((len(feature_ND), head.config["num_classes"]), np.float32)
    for start in range(0, len(feature_ND), batch):
        x_BD = torch.from_numpy(np.ascontiguousarray(feature_ND[start : start + batch])).to(device)
        log_probability_NC[start : start + batch] = head(x_BD).log_softmax(1).cpu().numpy()
    return log_probability_NC
