"""The label cleaning network (Veit et al. 2017): from noisy labels and visual features to a residual on the labels.

Labels and features are projected to few dimensions each, put side by side, passed through a hidden layer and
projected back to the classes. No weight has two sides of C: the noisy labels are sparse (an embedding bag sums the
rows of those that an image has), and the way back is one row per class, of which only those asked for are used.

# B images, D feature width, C classes, S classes asked for, H hidden width
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cleanscale.models import weight_files


class LabelCleaner(nn.Module):
    """`residual` is zero at first: before anything is learned, the cleaned labels are the noisy ones.

    `mean_D` and `scale_D` standardise the features.
    """

    mean_D: torch.Tensor
    scale_D: torch.Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        label_width: int,
        feature_width: int,
        hidden_width: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "num_features": num_features,
            "num_classes": num_classes,
            "label_width": label_width,
            "feature_width": feature_width,
            "hidden_width": hidden_width,
            "dropout": dropout,
        }
        self.register_buffer("mean_D", torch.zeros(num_features))
        self.register_buffer("scale_D", torch.ones(num_features))
        self.labels = nn.EmbeddingBag(num_classes, label_width, mode="sum")
        self.features = nn.Linear(num_features, feature_width)
        self.hidden = nn.Linear(label_width + feature_width, hidden_width)
        self.dropout = nn.Dropout(dropout)
        self.output_CH = nn.Parameter(torch.randn(num_classes, hidden_width) * 1e-3)
        self.bias_C = nn.Parameter(torch.zeros(num_classes))

    def embed(self, feature_BD: torch.Tensor, label_E: torch.Tensor, start_B: torch.Tensor) -> torch.Tensor:
        """[B, H]: the hidden layer. label_E, start_B: noisy labels, one image behind the other, and their starts."""
        x_BD = (feature_BD.to(self.mean_D.dtype) - self.mean_D) * self.scale_D
        joined_BX = torch.cat([self.labels(label_E, start_B), self.features(x_BD)], dim=1)
        return self.dropout(torch.relu(self.hidden(joined_BX)))

    def residual(self, hidden_BH: torch.Tensor, class_S: torch.Tensor | None = None) -> torch.Tensor:
        """[B, S]: what is added to the noisy labels of these classes; all of them for None."""
        return output_rows(hidden_BH, self.output_CH, self.bias_C, class_S)


def output_rows(
    hidden_BH: torch.Tensor, weight_CH: torch.Tensor, bias_C: torch.Tensor, class_S: torch.Tensor | None
) -> torch.Tensor:
    """[B, S]: a linear layer of which only the rows of some classes are used."""
    if class_S is None:
        return nn.functional.linear(hidden_BH, weight_CH, bias_C)
    return nn.functional.linear(hidden_BH, weight_CH[class_S], bias_C[class_S])


def cleaner_to_bytes(cleaner: LabelCleaner) -> bytes:
    """Weights and configuration as one safetensors file."""
    return weight_files.to_bytes(cleaner, "label_cleaner", cleaner.config)


def cleaner_from_bytes(content: bytes) -> LabelCleaner:
    """What `cleaner_to_bytes` wrote, in evaluation mode. Raises DataError for another file."""
    config, tensors = weight_files.from_bytes(content, "label_cleaner")
    cleaner = LabelCleaner(**config)
    cleaner.load_state_dict(tensors)
    return cleaner.eval()
