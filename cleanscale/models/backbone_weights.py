"""Weights files of backbones: safetensors or torch, from a path or URI, with or without a classifier in them."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import socket
import sys
from collections.abc import Iterator
from urllib.parse import urlparse

import fsspec
import torch
from torch import nn

from cleanscale.errors import ConfigError

CONNECT_TIMEOUT_S = 5.0
WRAPPERS = ("model_state_dict", "state_dict_ema", "state_dict", "model")  # where training scripts put the weights
PREFIXES = ("_orig_mod.", "module.", "backbone.network.", "network.", "backbone.", "model.")


def load_backbone_weights(network: nn.Module, uri: str, *, head_names: tuple[str, ...], name: str) -> None:
    """Load the file at `uri` into `network`, which has no classifier; the file's classifier is left out.

    Prefixes of wrappers (torch.compile, data parallel, our own classifier) are taken off, and 16-bit weights widen.
    Raises ConfigError when the file cannot be read or does not hold every weight that the network needs.
    """
    weight = _without_prefix(read_weights(uri), network)
    weight = {key: value for key, value in weight.items() if not key.startswith(tuple(f"{h}." for h in head_names))}
    expected = network.state_dict()
    if not _fits(weight, expected):
        weight = _converted(weight, network)
    missing = sorted(expected.keys() - weight.keys())
    unexpected = sorted(weight.keys() - expected.keys())
    other_shape = [
        f"{key} {list(weight[key].shape)} for {list(expected[key].shape)}"
        for key in sorted(expected.keys() & weight.keys())
        if weight[key].shape != expected[key].shape
    ]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or other_shape:
        raise ConfigError(
            f"{uri} does not hold the weights of '{name}': {_some('missing', missing)}, "
            f"{_some('unexpected', unexpected)}, {_some('of another shape', other_shape)}; expected all "
            f"{len(expected)} tensors of the backbone; check --backbone.name, backbone.options and --backbone.weights"
        )
    network.load_state_dict({key: weight[key] for key in expected if key in weight}, strict=False)


def read_weights(uri: str) -> dict[str, torch.Tensor]:
    """The named tensors in a safetensors or torch file. Nothing in the file is executed. Raises ConfigError."""
    try:
        with fsspec.open(uri, "rb", **_open_options(uri)) as file:
            content: bytes = file.read()  # type: ignore[union-attr]
    except Exception as error:  # every file system brings its own kinds: no such bucket, no credentials, no route
        raise ConfigError(
            f"--backbone.weights {uri} cannot be read: {error}; expected 'pretrained', '' for none, or the path or "
            "URI of a safetensors or torch file"
        ) from error
    loaded = _decode(content, uri)
    for wrapper in WRAPPERS:
        if isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    weight = {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not weight:
        raise ConfigError(f"{uri} holds no named tensors; expected a state dict; save the model's state_dict() there")
    return weight


def _open_options(uri: str) -> dict:
    """An S3 endpoint that does not answer is reported within seconds, where the client would retry for minutes."""
    if not uri.startswith(("s3://", "s3a://")):
        return {}
    return {"config_kwargs": {"connect_timeout": CONNECT_TIMEOUT_S, "retries": {"max_attempts": 2}}}


def _decode(content: bytes, uri: str) -> dict:
    import safetensors.torch
    from safetensors import SafetensorError

    is_torch = content[:2] == b"PK" or content[:1] == b"\x80"  # a zip archive, or an old plain pickle
    try:
        if is_torch:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        else:
            loaded = safetensors.torch.load(content)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{uri} is no weights file ({str(error).splitlines()[0]}); expected safetensors, or a torch file of plain "
            "tensors (saved with torch.save(model.state_dict(), ...))"
        ) from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{uri} holds a {type(loaded).__name__}; expected a state dict; save model.state_dict()")
    return loaded


def _without_prefix(weight: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """Take off wrappers' prefixes for as long as that makes more keys fit; keys beside the prefix are dropped."""
    expected = network.state_dict().keys()
    again = True
    while again:
        again = False
        for prefix in PREFIXES:
            inner = {key.removeprefix(prefix): value for key, value in weight.items() if key.startswith(prefix)}
            if inner and len(inner.keys() & expected) >= len(weight.keys() & expected):
                weight, again = inner, True
    return weight


def _converted(weight: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """timm's own conversion of older and foreign checkpoints (renamed keys, resized position tables), if any."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return weight
    try:
        converted = convert(dict(weight), network)
    except (KeyError, AttributeError, RuntimeError, TypeError, AssertionError, IndexError):
        return weight  # not a checkpoint it knows: the comparison of keys tells the user more
    return converted if len(converted.keys() & network.state_dict().keys()) else weight


def _fits(weight: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return all(key in weight and weight[key].shape == value.shape for key, value in expected.items())


def _some(what: str, names: list[str], shown: int = 4) -> str:
    more = f", ... {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:shown])}{more})" if names else "")


@contextlib.contextmanager
def reachable_or_offline() -> Iterator[None]:
    """Within, the Hugging Face hub uses only its cache when the hub cannot be reached.

    Its client retries for most of a minute before it says so; one connection attempt tells in seconds. Behind a
    proxy no direct connection is tried and the client finds out by itself.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _hub_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_reachable(endpoint: str) -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlparse(endpoint)
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True
