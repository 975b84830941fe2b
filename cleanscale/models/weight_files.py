"""Weights and the configuration to build their module again, in one safetensors file: nothing in it can run."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from cleanscale.errors import DataError


def to_bytes(module: nn.Module, kind: str, config: dict[str, Any]) -> bytes:
    """A file of all weights and statistics of `module`, marked as of this `kind`."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    return safetensors.torch.save(state, metadata={f"cleanscale_{kind}": json.dumps(config)})


def from_bytes(
    content: bytes, kind: str, *, source: str = "the file"
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(configuration, tensors) that `to_bytes` wrote. Raises DataError for a file of another kind."""
    try:
        header_bytes = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + header_bytes])
        config = json.loads(header["__metadata__"][f"cleanscale_{kind}"])
        return config, safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{source} holds no cleanscale {kind} ({type(error).__name__}: {error}); expected a safetensors "
            "file that a run wrote; run the stage that makes it again, or correct the path"
        ) from error
