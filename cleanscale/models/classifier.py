"""The image classifier: a backbone and fully connected layers on its features.

# B images of a batch, S image side, D feature width, C classes
"""

from __future__ import annotations

import torch
from torch import nn

from cleanscale.models import weight_files
from cleanscale.models.backbones import Backbone, BackboneSettings, build_backbone
from cleanscale.models.heads import Head, Layers

STEEPEST = 1e-4  # of features that are about 1


class FeatureProjection(nn.Module):
    """`maths.projection.Projection` inside a network: a head on projected features takes what the backbone gives.

    Backwards the square root counts as no steeper than at STEEPEST: at a feature of 0, of which pooled activations
    have many, its own slope is infinite and fine-tuning would end in NaN.
    """

    array_KD: torch.Tensor

    def __init__(self, array_KD: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("array_KD", array_KD)

    def forward(self, feature_BD: torch.Tensor) -> torch.Tensor:
        size_BD = feature_BD.detach().abs()
        slope_BD = 0.5 / size_BD.clamp_min(STEEPEST).sqrt()
        root_BD = feature_BD.detach().sign() * size_BD.sqrt() + slope_BD * (feature_BD - feature_BD.detach())
        return (root_BD - self.array_KD[0]) @ self.array_KD[1:].T


class Classifier(nn.Module):
    """uint8 images [B, 3, S, S] -> logits [B, C]: backbone, projection of its features where there is one, head.

    A head without output rows (`Layers`: they are spread over workers, or files) gives embeddings [B, H] instead.
    """

    def __init__(self, backbone: Backbone, head: Layers, projection: FeatureProjection | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.head = head
        self.num_classes: int = head.config.get("num_classes", 0)  # outputs that are logits of classes

    def forward(self, image_B3SS: torch.Tensor) -> torch.Tensor:
        feature_BD = self.backbone(image_B3SS)
        return self.head(feature_BD if self.projection is None else self.projection(feature_BD))


def build_classifier(
    settings: BackboneSettings, num_classes: int | None, *, hidden_width: int = 0, dropout: float = 0.0, seed: int = 0
) -> Classifier:
    """A new classifier; the same seed gives the same weights on every worker. num_classes None: no output rows."""
    backbone = build_backbone(settings, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if num_classes is None:
            return Classifier(backbone, Layers(backbone.width, hidden_width, dropout))
        return Classifier(backbone, Head(backbone.width, num_classes, hidden_width, dropout))


def classifier_to_bytes(model: Classifier, settings: BackboneSettings) -> bytes:
    """A safetensors file: all weights and statistics, and what is needed to build the model again."""
    config = {"backbone": settings.model_dump(mode="json"), "head": model.head.config}
    return weight_files.to_bytes(model, "classifier", config)


def classifier_from_bytes(content: bytes, *, source: str = "the file") -> tuple[Classifier, BackboneSettings]:
    """What `classifier_to_bytes` wrote. Raises DataError for anything else. No weights are downloaded."""
    config, tensors = weight_files.from_bytes(content, "classifier", source=source)
    settings = BackboneSettings(**config["backbone"])
    backbone = build_backbone(settings.model_copy(update={"weights": ""}))
    shape = None if "projection.array_KD" not in tensors else tensors["projection.array_KD"].shape
    projection = None if shape is None else FeatureProjection(torch.empty(shape))
    head = Head(**config["head"]) if "num_classes" in config["head"] else Layers(**config["head"])
    model = Classifier(backbone, head, projection)
    model.load_state_dict(tensors)
    return model, settings
