"""The table of all settings, docs/settings.md: `make docs` writes it, a test compares it."""

from __future__ import annotations

import json
import sys
import types
import typing
from typing import Any

from pydantic import BaseModel

from cleanscale.config import Settings

INTRODUCTION = """# Settings

Every setting is `--section.name value` on the command line, or `name = value` under `[section]` in a TOML file given
with `--config`; the command line wins. A switch may stand without a value. `none` unsets. `make docs` writes this page.
"""


def settings_table(settings: type[BaseModel]) -> str:
    """A section per settings class: name, kind, default and meaning of each setting."""
    lines = [INTRODUCTION]
    for section, field in settings.model_fields.items():
        part = field.annotation
        assert isinstance(part, type)
        assert issubclass(part, BaseModel)
        lines += [f"## {section}", "", (part.__doc__ or "").strip().splitlines()[0], ""]
        lines += ["| setting | kind | default | |", "|---|---|---|---|"]
        for name, inner in part.model_fields.items():
            cells = [f"`--{section}.{name}`", kind(inner.annotation), default(inner.default), inner.description or ""]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def kind(annotation: Any) -> str:
    """What a value may be, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(kind(one) for one in arguments if one is not type(None))
    if origin in (tuple, list):
        return "list"
    if origin is dict:
        return "table"
    return {bool: "switch", int: "integer", float: "number", str: "text"}.get(annotation, str(annotation))


def default(value: Any) -> str:
    """The default as it would be written in TOML; nothing where there is none."""
    if value is None or repr(value) == "PydanticUndefined":
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


if __name__ == "__main__":
    sys.stdout.write(settings_table(Settings))
