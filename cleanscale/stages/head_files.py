"""Heads on disk: a dense one is a safetensors file; a sharded one is a folder of ranges of classes.

    head-0.safetensors                     or      head-0/weight-000000000.npy, bias-000000000.npy, ...
                                                   head-0/layers.safetensors, written last

Every worker writes the rows that it owns, cut where other numbers of workers cut them too, so that any number of
workers, or a task that scores, reads them again. A checkpoint is such a folder with the optimiser's state.

# C classes, R rows of a worker, H embedding width, D feature width
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from cleanscale.models import weight_files
from cleanscale.models.heads import FrozenHead, Head, Layers, head_from_bytes, head_to_bytes
from cleanscale.storage import class_arrays, uris
from cleanscale.storage.arrays import of_npz, to_npz
from cleanscale.training.collectives import Collectives
from cleanscale.training.sharded_heads import HeadPart, row_size_of
from cleanscale.training.sharded_softmax import Rows, owned

HEAD = "head"  # of a classifier, in its folder
DENSE, LAYERS, STATE = ".safetensors", "layers.safetensors", "state.npz"
PIECE_CLASSES = 65536  # 33 MB of rows of 128
KIND = "sharded_head"


def write_dense(uri: str, head: Head) -> None:
    """uri: without the ending."""
    uris.write_bytes(uri + DENSE, head_to_bytes(head))


def exists(uri: str) -> bool:
    """Whether there is a head, dense or sharded, whole."""
    return uris.exists(uri + DENSE) or uris.exists(uris.join(uri, LAYERS))


def write_part(uri: str, part: HeadPart, together: Collectives, *, with_state: bool = False) -> None:
    """Every worker calls it; when it returns the head is there, whole."""
    if together.rank == 0:
        uris.remove_tree(uri)  # another number of workers may have left other pieces
    together.wait()
    rows = part.rows
    columns = {"weight": rows.weight_RH, "bias": rows.bias_R} | ({"square": part.square_R} if with_state else {})
    for first, stop in pieces(rows.first, rows.stop):
        for name, value_RX in columns.items():
            piece = value_RX[first - rows.first : stop - rows.first].detach().cpu().numpy()
            class_arrays.write_range(uri, name, first, piece)
    together.wait()
    if together.rank == 0:
        uris.write_bytes(uris.join(uri, STATE), to_npz(_state(part)))
        layers = part.layers
        config = layers.config | {
            "num_classes": part.num_classes,
            "row_size": part.row_size,
            "epochs_done": part.epochs_done,
        }
        uris.write_bytes(uris.join(uri, LAYERS), weight_files.to_bytes(layers, KIND, config))
    together.wait()


def pieces(first: int, stop: int) -> list[tuple[int, int]]:
    """[first, stop) cut at multiples of PIECE_CLASSES."""
    inner = range((first // PIECE_CLASSES + 1) * PIECE_CLASSES, stop, PIECE_CLASSES)
    cuts = [first, *inner, stop]
    return [(a, b) for a, b in pairwise(cuts) if a < b]


def _state(part: HeadPart) -> dict[str, np.ndarray]:
    state = {} if part.precision_HH is None else {"precision": part.precision_HH.cpu().numpy()}
    for number, values in part.optimizer.get("state", {}).items():
        state |= {f"{number}.{name}": value.cpu().numpy() for name, value in values.items()}
    return state


def read_part(uri: str, together: Collectives, device: str = "cpu") -> HeadPart:
    """The part of a sharded head that this worker owns, whoever wrote it.

    Of a head without the optimiser's state the rows begin as at a start.
    """
    config, layers = _read_layers(uri)
    first, stop = owned(config["num_classes"], together.rank, together.world)
    weight_RH, bias_R = (
        torch.from_numpy(class_arrays.read_some(uri, name, first, stop)).to(device) for name in ("weight", "bias")
    )
    state = of_npz(uris.read_bytes(uris.join(uri, STATE)))
    square_R = torch.zeros_like(bias_R)
    if uris.exists(uris.join(uri, class_arrays.file_name("square", 0))):
        square_R = torch.from_numpy(class_arrays.read_some(uri, "square", first, stop)).to(device)
    precision_HH = torch.from_numpy(state.pop("precision")).to(device) if "precision" in state else None
    return HeadPart(
        layers.to(device),
        Rows(first, weight_RH, bias_R),
        config["num_classes"],
        square_R,
        precision_HH,
        config["row_size"],
        config["epochs_done"],
        _optimizer(state),
    )


def _optimizer(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """AdamW's moments by parameter number, without the settings, which are the fit's own."""
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        number, _, name = key.partition(".")
        moments.setdefault(int(number), {})[name] = torch.from_numpy(value)
    return {"state": moments} if moments else {}


def fresh(part: HeadPart, together: Collectives) -> HeadPart:
    """A finished head as the start of another fit."""
    size = row_size_of(part.rows, part.num_classes, together)
    return replace(part, square_R=torch.zeros_like(part.square_R), row_size=size, epochs_done=0, optimizer={})


def _read_layers(uri: str) -> tuple[dict[str, Any], Layers]:
    content = uris.read_bytes(uris.join(uri, LAYERS))
    config, tensors = weight_files.from_bytes(content, KIND, source=uris.join(uri, LAYERS))
    layers = Layers(config["num_features"], config["hidden_width"], config["dropout"])
    layers.load_state_dict(tensors)
    return config, layers


def load_frozen(uri: str) -> FrozenHead:
    """The head as arrays, dense or sharded. uri: without the ending. Memory: the rows once."""
    content = uris.read_if_there(uri + DENSE)
    if content is not None:
        return head_from_bytes(content).frozen()
    config, layers = _read_layers(uri)
    num_classes = config["num_classes"]
    weight_CH, bias_C = (class_arrays.read_classes(uri, name, num_classes, every=True) for name in ("weight", "bias"))
    return FrozenHead(*layers.frozen_layers(), weight_CH, bias_C)


def load_dense(uri: str) -> Head:
    """The head as one module, with the rows of all classes: for who needs all logits, or a file of its own."""
    content = uris.read_if_there(uri + DENSE)
    if content is not None:
        return head_from_bytes(content)
    config, layers = _read_layers(uri)
    names = ("num_features", "num_classes", "hidden_width", "dropout")
    with torch.device("meta"):
        head = Head(*(config[name] for name in names))
    rows = {
        f"output.{name}": torch.from_numpy(class_arrays.read_classes(uri, name, config["num_classes"], every=True))
        for name in ("weight", "bias")
    }
    head.load_state_dict(layers.state_dict() | rows, assign=True)
    return head.eval()
