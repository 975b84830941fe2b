"""Classifier heads on features: linear or one hidden layer, with the features' standardisation inside.

# N images, D feature width, H hidden width, C classes, B batch
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cleanscale.models import weight_files


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
        self.num_classes = num_classes
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

    def frozen(self) -> FrozenHead:
        """The head as arrays, for scoring."""
        state = {name: value.detach().float().cpu().numpy() for name, value in self.state_dict().items()}
        return FrozenHead(
            state["mean_D"],
            state["scale_D"],
            state.get("hidden.weight"),
            state.get("hidden.bias"),
            state["output.weight"],
            state["output.bias"],
        )


@dataclass(frozen=True)
class FrozenHead:
    """A fitted head as float32 arrays: what tasks that score shards get."""

    mean_D: np.ndarray
    scale_D: np.ndarray
    hidden_HD: np.ndarray | None
    hidden_bias_H: np.ndarray | None
    weight_CH: np.ndarray
    bias_C: np.ndarray

    def embed(self, feature_BD: np.ndarray) -> np.ndarray:
        """float32 [B, H]: what the output layer sees."""
        x_BD = (feature_BD.astype(np.float32) - self.mean_D) * self.scale_D
        if self.hidden_HD is None or self.hidden_bias_H is None:
            return x_BD
        x_BH = x_BD @ self.hidden_HD.T
        x_BH += self.hidden_bias_H
        return np.maximum(x_BH, 0, out=x_BH)

    def log_probability(self, feature_ND: np.ndarray, *, batch: int = 8192) -> np.ndarray:
        """float32 [N, C]: for few classes, and for the classifier's own evaluation."""
        log_probability_NC = np.empty((len(feature_ND), len(self.bias_C)), np.float32)
        for start in range(0, len(feature_ND), batch):
            logit_BC = self.embed(feature_ND[start : start + batch]) @ self.weight_CH.T + self.bias_C
            logit_BC -= logit_BC.max(axis=1, keepdims=True)
            log_probability_NC[start : start + batch] = logit_BC - np.log(np.exp(logit_BC).sum(axis=1, keepdims=True))
        return log_probability_NC


def head_to_bytes(head: Head) -> bytes:
    """Weights and configuration as one safetensors file."""
    return weight_files.to_bytes(head, "head", head.config)


def head_from_bytes(content: bytes) -> Head:
    """The head that `head_to_bytes` wrote, in evaluation mode. Raises DataError for another file."""
    config, tensors = weight_files.from_bytes(content, "head")
    head = Head(**config)
    head.load_state_dict(tensors)
    return head.eval()
