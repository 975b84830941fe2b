"""Heads as files: weights and configuration in one safetensors file."""

from __future__ import annotations

import json

import safetensors.torch

from cleanscale.errors import DataError
from cleanscale.models.heads import Head


def head_to_bytes(head: Head) -> bytes:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    return safetensors.torch.save(state, metadata={"cleanscale_head": json.dumps(head.config)})


def head_from_bytes(content: bytes) -> Head:
    """The head that `head_to_bytes` wrote, in evaluation mode. Raises DataError for another file."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        config = json.loads(header["__metadata__"]["cleanscale_head"])
    except (ValueError, KeyError) as error:
        raise DataError(
            "found a file that is no saved head; expected safetensors with a 'cleanscale_head' configuration; "
            "run the stage that makes it again"
        ) from error
    head = Head(**config)
    head.load_state_dict(safetensors.torch.load(content))
    return head.eval()
