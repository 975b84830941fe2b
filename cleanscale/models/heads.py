"""Classifier heads on features: linear or one hidden layer, with the features' standardisation inside.

# N images, D feature width, H hidden width, C classes, B batch, X classes of a chunk, K best classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cleanscale.models import weight_files


class Layers(nn.Module):
    """features_ND -> what the output layer sees: the standardisation and the hidden layer, where there is one.

    `mean_D` and `scale_D` (standardisation) are buffers, so that raw features go in wherever it is loaded.
    `Layers(**config)` followed by `load_state_dict` gives them back.
    """

    mean_D: torch.Tensor
    scale_D: torch.Tensor

    def __init__(self, num_features: int, hidden_width: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "num_features": num_features,
            "hidden_width": hidden_width,
            "dropout": dropout,
        }
        self.register_buffer("mean_D", torch.zeros(num_features))
        self.register_buffer("scale_D", torch.ones(num_features))
        self.hidden = nn.Linear(num_features, hidden_width) if hidden_width else None
        self.dropout = nn.Dropout(dropout)
        self.width = hidden_width or num_features

    def embed(self, feature_ND: torch.Tensor) -> torch.Tensor:
        """What the output layer sees, [N, H] (or standardised features when there is no hidden layer)."""
        x_ND = (feature_ND.to(self.mean_D.dtype) - self.mean_D) * self.scale_D
        if self.hidden is None:
            return self.dropout(x_ND)
        return self.dropout(torch.relu(self.hidden(self.dropout(x_ND))))

    def forward(self, feature_ND: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, H]; of a `Head`, logits."""
        return self.embed(feature_ND)

    def frozen_layers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
        """(mean_D, scale_D, hidden_HD, hidden_bias_H) as float32 arrays."""
        state = {name: value.detach().float().cpu().numpy() for name, value in self.state_dict().items()}
        return state["mean_D"], state["scale_D"], state.get("hidden.weight"), state.get("hidden.bias")


class Head(Layers):
    """features_ND -> logits_NC. `hidden_width` 0 is softmax regression.

    `Head(**config)` followed by `load_state_dict` gives a head back.
    """

    def __init__(self, num_features: int, num_classes: int, hidden_width: int = 0, dropout: float = 0.0) -> None:
        super().__init__(num_features, hidden_width, dropout)
        self.config |= {"num_classes": num_classes}
        self.num_classes = num_classes
        self.output = nn.Linear(self.width, num_classes)

    def forward(self, feature_ND: torch.Tensor) -> torch.Tensor:
        """Logits [N, C]."""
        return self.output(self.embed(feature_ND))

    def frozen(self) -> FrozenHead:
        """The head as arrays, for scoring."""
        weight_CH, bias_C = (p.detach().float().cpu().numpy() for p in (self.output.weight, self.output.bias))
        return FrozenHead(*self.frozen_layers(), weight_CH, bias_C)


@dataclass(frozen=True)
class FrozenHead:
    """A fitted head as float32 arrays (the rows of classes may be mapped from a file): what tasks that score get."""

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

    def top(self, feature_ND: np.ndarray, k: int, *, batch: int = 1024, classes: int = 16384) -> np.ndarray:
        """int32 [N, K]: the k most probable classes, best first, without ever holding all logits of an image."""
        k = min(k, len(self.bias_C))
        best_NK = np.empty((len(feature_ND), k), np.int32)
        for start in range(0, len(feature_ND), batch):
            embedded_BH = torch.from_numpy(self.embed(feature_ND[start : start + batch]))
            logit_BK = torch.empty(len(embedded_BH), 0)
            class_BK = torch.empty(len(embedded_BH), 0, dtype=torch.int64)
            for first in range(0, len(self.bias_C), classes):
                weight_XH, bias_X = (torch.tensor(x[first : first + classes]) for x in (self.weight_CH, self.bias_C))
                logit_BX = torch.addmm(bias_X, embedded_BH, weight_XH.T)
                found = logit_BX.topk(min(k, logit_BX.shape[1]), dim=1)
                logit_BX = torch.cat([logit_BK, found.values], dim=1)
                kept = logit_BX.topk(min(k, logit_BX.shape[1]), dim=1)
                logit_BK = kept.values
                class_BK = torch.cat([class_BK, found.indices + first], dim=1).gather(1, kept.indices)
            best_NK[start : start + batch] = class_BK.numpy()
        return best_NK


def head_to_bytes(head: Head) -> bytes:
    """Weights and configuration as one safetensors file."""
    return weight_files.to_bytes(head, "head", head.config)


def head_from_bytes(content: bytes) -> Head:
    """The head that `head_to_bytes` wrote, in evaluation mode. Raises DataError for another file."""
    config, tensors = weight_files.from_bytes(content, "head")
    head = Head(**config)
    head.load_state_dict(tensors)
    return head.eval()
