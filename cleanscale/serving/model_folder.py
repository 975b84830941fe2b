"""The folder of a served model: a description in JSON, weights as safetensors, arrays as .npy. Nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cleanscale.errors import DataError

DESCRIPTION, FORMAT = "model.json", 1


def read_description(folder: Path, kind: str) -> dict[str, Any]:
    """model.json. Raises: DataError where it is another kind of model, or one of a version that is not known here."""
    described = json.loads((folder / DESCRIPTION).read_text())
    found = (described.get("kind"), described.get("format"))
    if found != (kind, FORMAT):
        raise DataError(
            f"the model in {folder} is a {found[0]} of format {found[1]}; expected a {kind} of format {FORMAT}; "
            "load it with the version of cleanscale that registered it, or register the run again"
        )
    return described


def write_description(folder: Path, kind: str, described: dict[str, Any]) -> None:
    document = {"kind": kind, "format": FORMAT} | described
    (folder / DESCRIPTION).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)
