"""CleanNet (CVPR 2018, section 3.1): an attentive encoder of reference sets and an autoencoder of queries.

# Q queries, S reference sets, K references in the largest of them, D features, H hidden, E embedding
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from cleanscale.models import weight_files

Transform = Literal["none", "log1p", "centre", "standardise"]


class CleanNet(nn.Module):
    """Class embeddings from reference sets and query embeddings from features, in one space.

    The input transform is part of the model, so that saved weights carry it. `activate_outputs` also puts the
    activation after both embeddings and the reconstruction, as the published code does. `shared_projection` adds one
    linear map of queries and of attended references to both embeddings, which the paper does not have: relevance then
    begins as the cosine to an attended mean instead of having to align two unrelated spaces first.
    """

    def __init__(
        self,
        num_features: int,
        *,
        reference_widths: Sequence[int] = (512, 256),
        query_width: int = 256,
        embedding: int = 128,
        activation: Literal["tanh", "relu"] = "tanh",
        activate_outputs: bool = False,
        transform: Transform = "centre",
        dropout: float = 0.0,
        shared_projection: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "num_features": num_features,
            "reference_widths": list(reference_widths),
            "query_width": query_width,
            "embedding": embedding,
            "activation": activation,
            "activate_outputs": activate_outputs,
            "transform": transform,
            "dropout": dropout,
            "shared_projection": shared_projection,
        }
        between = nn.Tanh if activation == "tanh" else nn.ReLU
        after = between if activate_outputs else nn.Identity
        first, second = reference_widths
        self.reference_encoder = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(num_features, first), between(), nn.Linear(first, second), between()
        )
        self.attention = nn.Sequential(nn.Linear(second, second), nn.Tanh())
        self.context_H = nn.Parameter(torch.randn(second) / second**0.5)
        self.class_layer = nn.Sequential(nn.Linear(second, embedding), after())
        self.query_encoder = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(num_features, query_width),
            between(),
            nn.Linear(query_width, embedding),
            after(),
        )
        self.query_decoder = nn.Sequential(
            nn.Linear(embedding, query_width), between(), nn.Linear(query_width, num_features), after()
        )
        self.shared = nn.Linear(num_features, embedding, bias=False) if shared_projection else None
        self.shift_D: torch.Tensor
        self.scale_D: torch.Tensor
        self.register_buffer("shift_D", torch.zeros(num_features))
        self.register_buffer("scale_D", torch.ones(num_features))

    def set_standardisation(self, mean_D: torch.Tensor, deviation_D: torch.Tensor) -> None:
        """Mean and deviation of each feature. `standardise` divides by each deviation, `centre` by their root mean
        square, which keeps what principal components know: that the last ones are mostly noise."""
        if self.config["transform"] == "centre":
            deviation_D = deviation_D.square().mean().sqrt().expand_as(mean_D)
        self.shift_D.copy_(mean_D)
        self.scale_D.copy_(torch.where(deviation_D > 1e-6, 1 / deviation_D.clamp_min(1e-6), torch.zeros_like(mean_D)))

    @torch.no_grad()
    def begin_with_projection(self, component_XD: torch.Tensor) -> None:
        """Both embeddings begin close to this projection (orthonormal rows, X <= E), the rest of the network small."""
        assert self.shared is not None
        self.shared.weight.zero_()[: len(component_XD)] = component_XD
        for last in (self.class_layer[0], self.query_encoder[3]):
            last.weight.mul_(0.3)
            last.bias.zero_()

    def transformed(self, feature_XD: torch.Tensor) -> torch.Tensor:
        """What the encoders see. log1p is sign(x) log(1 + |x|): the published log(1 + x), defined for all features."""
        feature_XD = feature_XD.float()
        transform = self.config["transform"]
        if transform == "log1p":
            return feature_XD.sign() * feature_XD.abs().log1p()
        return feature_XD if transform == "none" else (feature_XD - self.shift_D) * self.scale_D

    def embed_classes(self, reference_SKD: torch.Tensor, real_SK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 2-4: class embeddings [S, E] and attention [S, K], whose rows sum to 1.

        `real_SK` is False where a set is padded; every set needs at least one reference.
        """
        reference_SKD = self.transformed(reference_SKD)
        hidden_SKH = self.reference_encoder(reference_SKD)
        score_SK = self.attention(hidden_SKH) @ self.context_H
        attention_SK = score_SK.masked_fill(~real_SK, float("-inf")).softmax(dim=1)
        class_SE = self.class_layer(_attended(attention_SK, hidden_SKH))
        if self.shared is not None:
            class_SE = class_SE + self.shared(_attended(attention_SK, reference_SKD))
        return class_SE, attention_SK

    def embed_queries(self, feature_QD: torch.Tensor) -> torch.Tensor:
        """[Q, E] query embeddings."""
        feature_QD = self.transformed(feature_QD)
        query_QE = self.query_encoder(feature_QD)
        return query_QE if self.shared is None else query_QE + self.shared(feature_QD)

    def reconstruct(self, embedding_QE: torch.Tensor) -> torch.Tensor:
        """[Q, D] what the autoencoder makes of query embeddings: transformed features."""
        return self.query_decoder(embedding_QE)

    def to_bytes(self) -> bytes:
        """Weights and configuration as one safetensors file."""
        return weight_files.to_bytes(self, "cleannet", self.config)

    @staticmethod
    def from_bytes(data: bytes) -> CleanNet:
        """The model that `to_bytes` wrote. Raises DataError for another file."""
        config, tensors = weight_files.from_bytes(data, "cleannet")
        model = CleanNet(**config)
        model.load_state_dict(tensors)
        return model


def _attended(attention_SK: torch.Tensor, vector_SKX: torch.Tensor) -> torch.Tensor:
    return torch.bmm(attention_SK[:, None].to(vector_SKX.dtype), vector_SKX)[:, 0]
