"""Stages on disk. A stage folder counts only when its manifest is there, and the manifest is written last.

A stage's *key* is what it was made from: its settings and the fingerprints of its inputs. The same key again means the
same result, so a complete stage is skipped, a half-made one goes on, and one with another key is redone, saying why.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cleanscale.storage import uris

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STARTED = "started.json"


def fingerprint(value: Any) -> str:
    """16 hex digits that stand for a JSON-able value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Manifest:
    """What a complete stage says of itself: `key` as given, the `shards` it wrote, and anything else in `notes`."""

    key: dict[str, Any]
    shards: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder and the key it is to be made with."""

    uri: str
    key: dict[str, Any]
    complete: Manifest | None
    resumed: bool

    def path(self, *parts: str) -> str:
        return uris.join(self.uri, *parts)

    def finish(self, shards: Sequence[Mapping[str, Any]] = (), notes: Mapping[str, Any] | None = None) -> Manifest:
        """Write the manifest. From now on the stage counts as done."""
        manifest = Manifest(self.key, [dict(s) for s in shards], dict(notes or {}))
        document = {
            "key": self.key,
            "fingerprint": manifest.fingerprint,
            "shards": manifest.shards,
            "notes": manifest.notes,
        }
        write_json(self.path(MANIFEST), document)
        return manifest


def open_stage(uri: str, stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> StageFolder:
    """Find out whether the stage at `uri` is done, half done or to be made anew, and clear away what does not fit.

    settings: the JSON-able settings that change this stage's result.
    inputs: name -> fingerprint of everything it reads.
    """
    key = json.loads(json.dumps({"stage": stage, "settings": settings, "inputs": inputs}, default=str))
    manifest = read_manifest(uri)
    if manifest is not None and manifest.key == key:
        return StageFolder(uri, key, manifest, resumed=False)
    started = read_json(uris.join(uri, STARTED))
    if manifest is None and started == key:
        log.info("%s: going on where it was interrupted", stage_name(uri))
        return StageFolder(uri, key, None, resumed=True)
    before = manifest.key if manifest is not None else started
    if before is not None:
        log.info("%s: redone because %s", stage_name(uri), "; ".join(differences(before, key)))
    if manifest is not None:  # first of all: a stage that is half removed must not count
        uris.remove_tree(uris.join(uri, MANIFEST))
    uris.remove_tree(uri)
    write_json(uris.join(uri, STARTED), key)
    return StageFolder(uri, key, None, resumed=False)


def read_manifest(uri: str) -> Manifest | None:
    """The manifest of a complete stage; None when the stage never happened."""
    document = read_json(uris.join(uri, MANIFEST))
    return None if document is None else Manifest(document["key"], document["shards"], document["notes"])


def stage_name(uri: str) -> str:
    """`rounds/00/features` or `ingest/train` from a stage folder's URI, for messages."""
    parts = uri.rstrip("/").split("/")
    starts = [k for k, part in enumerate(parts) if part in ("rounds", "ingest", "cache")]
    return "/".join(parts[starts[-1] :]) if starts else parts[-1]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed between two keys, in words that name settings and inputs."""
    old, new = flatten(before.get("settings", {})), flatten(now["settings"])
    changed = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    inputs = before.get("inputs", {})
    changed += [f"its input '{name}' changed" for name, value in now["inputs"].items() if inputs.get(name) != value]
    changed += [f"its input '{name}' is gone" for name in inputs if name not in now["inputs"]]
    return changed or ["this version of cleanscale makes it in another way"]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}: the names that the command line uses."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def read_json(uri: str) -> Any:
    """The document at `uri`; None when there is none. A half-written one counts as none."""
    try:
        content = uris.read_if_there(uri)
        return None if content is None else json.loads(content)
    except ValueError:  # no JSON, or no text at all
        return None


def defined(value: Any) -> Any:
    """Numbers as JSON has them: NaN and infinity, which it has not, become null, which means "not defined"."""
    if isinstance(value, Mapping):
        return {name: defined(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [defined(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(uri: str, document: Any) -> None:
    uris.write_bytes(uri, (json.dumps(document, indent=1, default=str, allow_nan=False) + "\n").encode())
