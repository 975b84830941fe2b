"""The image classifier: a backbone and fully connected layers on its features.

# B images of a batch, S image side, D feature width, C classes
"""

from __future__ import annotations

import json

import torch
from torch import nn

from cleanscale.errors import DataError
from cleanscale.models.backbones import Backbone, BackboneSettings, build_backbone
from cleanscale.models.heads import Head


class FeatureProjection(nn.Module):
    """`maths.projection.Projection` inside a network: a head on projected features takes what the backbone gives."""

    array_KD: torch.Tensor

    def __init__(self, array_KD: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("array_KD", array_KD)

    def forward(self, feature_BD: torch.Tensor) -> torch.Tensor:
        root_BD = feature_BD.sign() * feature_BD.abs().sqrt()
        return (root_BD - self.array_KD[0]) @ self.array_KD[1:].T


class Classifier(nn.Module):
    """uint8 images [B, 3, S, S] -> logits [B, C]: backbone, projection of its features where there is one, head."""

    def __init__(self, backbone: Backbone, head: Head, projection: FeatureProjection | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.head = head
        self.num_classes: int = head.config["num_classes"]

    def forward(self, image_B3SS: torch.Tensor) -> torch.Tensor:
        feature_BD = self.backbone(image_B3SS)
        return self.head(feature_BD if self.projection is None else self.projection(feature_BD))

    def freeze_backbone(self) -> None:
        """From now on only the fully connected layers train; batch normalisation keeps its statistics."""
        self.backbone.freeze()


def build_classifier(
    settings: BackboneSettings, num_classes: int, *, hidden_width: int = 0, dropout: float = 0.0, seed: int = 0
) -> Classifier:
    """A new classifier; the same seed gives the same initial weights on every worker."""
    backbone = build_backbone(settings, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(backbone.width, num_classes, hidden_width=hidden_width, dropout=dropout)
    return Classifier(backbone, head)


def classifier_to_bytes(model: Classifier, settings: BackboneSettings) -> bytes:
    """A safetensors file: all weights and statistics, and what is needed to build the model again."""
    import safetensors.torch

    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    config = {"backbone": settings.model_dump(mode="json"), "head": model.head.config}
    return safetensors.torch.save(tensors, metadata={"cleanscale_classifier": json.dumps(config)})


def classifier_from_bytes(content: bytes, *, source: str = "the file") -> tuple[Classifier, BackboneSettings]:
    """What `classifier_to_bytes` wrote. Raises DataError for anything else. No weights are downloaded."""
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        config = json.loads(_metadata(content)["cleanscale_classifier"])
        tensors = safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError, IndexError) as error:
        raise DataError(
            f"{source} holds no cleanscale classifier ({type(error).__name__}: {error}); expected a safetensors file "
            "that a classifier stage wrote; a bare backbone is named with --backbone.weights"
        ) from error
    settings = BackboneSettings(**config["backbone"])
    backbone = build_backbone(settings.model_copy(update={"weights": ""}))
    shape = None if "projection.array_KD" not in tensors else tensors["projection.array_KD"].shape
    projection = None if shape is None else FeatureProjection(torch.empty(shape))
    model = Classifier(backbone, Head(**config["head"]), projection)
    model.load_state_dict(tensors)
    return model, settings


def _metadata(content: bytes) -> dict[str, str]:
    """The text fields of a safetensors file, whose header is JSON behind its own length in 8 bytes."""
    header_bytes = int.from_bytes(content[:8], "little")
    if not 2 <= header_bytes <= len(content) - 8:
        raise ValueError("no safetensors header")
    return json.loads(content[8 : 8 + header_bytes])["__metadata__"]
