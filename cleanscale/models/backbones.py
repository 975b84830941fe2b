"""Backbones by name: an image network without its classifier, normalisation inside, pooled features out.

# B images of a batch, S image side in pixels, D feature width
"""

from __future__ import annotations

import contextlib
import difflib
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from cleanscale.errors import ConfigError
from cleanscale.models.backbone_weights import load_backbone_weights, reachable_or_offline

TORCHVISION = "torchvision:"


class BackboneSettings(BaseModel):
    """Which network turns an image into a feature, and where its weights come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("resnet50", description="A timm model name, or torchvision:NAME for one of torchvision's.")
    weights: str = Field(
        "pretrained",
        description="'pretrained' for the library's own download, a path or URI of a weights file (safetensors or "
        "torch), or '' to train from scratch.",
    )
    image_size: int = Field(0, ge=0, le=4096, description="Side of the square input in pixels; 0 is the model's own.")
    frozen: bool = Field(False, description="Keep the backbone as loaded and train only a head on its features.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the model's constructor.")
    channels_last: bool = Field(True, description="Keep images in memory with the channels last, faster for most.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of the backbone; 'auto' is bfloat16 on a GPU that has it and float32 elsewhere."
    )
    mean: tuple[float, ...] = Field((), description="Mean of each colour in 0..1; empty is the model's own.")
    std: tuple[float, ...] = Field((), description="Deviation of each colour in 0..1; empty is the model's own.")


class Backbone(nn.Module):
    """uint8 images [B, 3, S, S] -> float32 features [B, D]: pooled, before the classifier (paper: f_v, f_cl).

    Images come as bytes and are normalised here, so what travels between workers is a quarter of the size.
    `width` is D, `image_size` is S. `freeze()` also keeps batch normalisation's running statistics as they are.
    """

    scale_3: torch.Tensor
    shift_3: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        channels_last: bool = True,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network  # type: ignore[call-overload]
        self.image_size, self.mean, self.std = image_size, mean, std
        self.channels_last, self.precision, self.is_frozen = channels_last, precision, False
        self.register_buffer("scale_3", 1 / (255 * torch.tensor(std)), persistent=False)
        self.register_buffer("shift_3", -torch.tensor(mean) / torch.tensor(std), persistent=False)
        self.width = self._measure_width()

    def forward(self, image_B3SS: torch.Tensor) -> torch.Tensor:
        """Features float32 [B, D] of uint8 images [B, 3, S, S]."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x_B3SS = image_B3SS.to(memory_format=layout).float()
        x_B3SS = x_B3SS * self.scale_3[:, None, None] + self.shift_3[:, None, None]
        with self._autocast(image_B3SS.device.type):
            feature_BD = self.network(x_B3SS)
        return feature_BD.float()

    def freeze(self) -> None:
        """No gradients and evaluation mode for good, whatever `train()` is called later."""
        self.requires_grad_(False)
        self.is_frozen = True
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        return super().train(mode and not self.is_frozen)  # type: ignore[return-value]

    def _autocast(self, device_type: str) -> contextlib.AbstractContextManager:
        on_gpu = device_type == "cuda" and torch.cuda.is_bf16_supported()
        if self.precision == "bfloat16" or (self.precision == "auto" and on_gpu):
            return torch.autocast(device_type, torch.bfloat16)
        return contextlib.nullcontext()

    @torch.no_grad()
    def _measure_width(self) -> int:
        """Feature width by one black image, which also finds an image size that the network cannot take."""
        self.eval()
        size = self.image_size
        try:
            feature_1D = self.forward(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        except (AssertionError, RuntimeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"The backbone fails on an image of {size} x {size} pixels: {error}; expected one feature vector per "
                "image; change --backbone.image_size, --backbone.name or backbone.options"
            ) from error
        if feature_1D.ndim != 2:
            raise ConfigError(
                f"The backbone gives {list(feature_1D.shape)} for one image; expected one vector [1, D]; "
                "leave global pooling on in backbone.options"
            )
        self.train()
        return feature_1D.shape[1]


def build_backbone(settings: BackboneSettings, *, seed: int = 0) -> Backbone:
    """The network that `settings` names, with its weights loaded.

    `seed` draws the initial weights of a network trained from scratch; torch's own random state is left alone.
    Raises ConfigError for an unknown name, unusable options, or weights that cannot be reached or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, config = _torchvision(settings) if settings.name.startswith(TORCHVISION) else _timm(settings)
    mean = settings.mean or tuple(config["mean"])
    std = settings.std or tuple(config["std"])
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"backbone.mean {mean} and backbone.std {std}; expected three numbers each, std above 0")
    if settings.weights not in ("", "pretrained"):
        load_backbone_weights(network, settings.weights, head_names=config["head_names"], name=settings.name)
    backbone = Backbone(
        network,
        image_size=settings.image_size or config["image_size"],
        mean=mean,
        std=std,
        channels_last=settings.channels_last,
        precision=settings.precision,
    )
    if settings.frozen:
        backbone.freeze()
    return backbone


def _timm(settings: BackboneSettings) -> tuple[nn.Module, dict[str, Any]]:
    import timm  # here because it takes seconds, which --help need not wait for

    if not timm.is_model(settings.name):
        raise _unknown_name(settings.name, timm.list_models())
    pretrained_config = timm.get_pretrained_cfg(settings.name)
    native = pretrained_config.to_dict() if pretrained_config else {}
    options = dict(settings.options)
    if settings.image_size and native.get("fixed_input_size"):
        options.setdefault("img_size", settings.image_size)  # transformers make their position table for one size
    pretrained = settings.weights == "pretrained"
    with _as_config_errors(settings), reachable_or_offline() if pretrained else contextlib.nullcontext():
        network = timm.create_model(settings.name, pretrained=pretrained, num_classes=0, **options)
    head = native.get("classifier") or ()
    return network, {
        "image_size": (native.get("input_size") or (3, 224, 224))[-1],
        "mean": native.get("mean") or (0.485, 0.456, 0.406),
        "std": native.get("std") or (0.229, 0.224, 0.225),
        "head_names": (head,) if isinstance(head, str) else tuple(head),
    }


def _torchvision(settings: BackboneSettings) -> tuple[nn.Module, dict[str, Any]]:
    import torchvision

    name = settings.name.removeprefix(TORCHVISION)
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise _unknown_name(name, names, prefix=TORCHVISION)
    with _as_config_errors(settings):
        weights = "DEFAULT" if settings.weights == "pretrained" else None
        network = torchvision.models.get_model(name, weights=weights, **_torchvision_options(name, settings))
    head_name = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, child = head_name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network, {
        "image_size": getattr(network, "image_size", 224),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "head_names": (head_name,),
    }


def _torchvision_options(name: str, settings: BackboneSettings) -> dict[str, Any]:
    options = dict(settings.options)
    if settings.image_size and name.startswith("vit_"):
        options.setdefault("image_size", settings.image_size)
    if name in ("googlenet", "inception_v3"):
        options.setdefault("aux_logits", False)  # their side outputs are classifiers of their own
    return options


def _unknown_name(name: str, names: list[str], prefix: str = "") -> ConfigError:
    nearest = difflib.get_close_matches(name.removeprefix("timm/"), names, n=5, cutoff=0.5)
    hint = f"nearest names: {', '.join(prefix + n for n in nearest)}" if nearest else "no name is near to it"
    library = "torchvision" if prefix else "timm"
    return ConfigError(
        f"--backbone.name '{prefix}{name}' is no {library} model; expected one of {len(names)} names ({hint}); "
        f"list them with {library}'s list_models(), or write torchvision:NAME for one of torchvision's"
    )


@contextlib.contextmanager
def _as_config_errors(settings: BackboneSettings):
    """What the libraries raise for bad options or a failed download, as the user's error."""
    try:
        yield
    except (TypeError, KeyError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"backbone '{settings.name}' cannot be built with options {settings.options}: {error}; "
            "expected arguments of its constructor; correct backbone.options"
        ) from error
    except (OSError, RuntimeError) as error:
        if settings.weights != "pretrained":
            raise
        raise ConfigError(
            f"The pretrained weights of '{settings.name}' could not be had: {str(error).splitlines()[0]}; expected a "
            "download from the library's hub or an earlier one in its cache; name a local file with "
            "--backbone.weights FILE, or train from scratch with --backbone.weights ''"
        ) from error
