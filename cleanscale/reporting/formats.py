"""Numbers as people read them: durations, rates, shares and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def duration(seconds: float) -> str:
    """`12 s`, `1 min 31 s`, `2 h 05 min` or `3 d 04 h`; below ten seconds one decimal."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def rate(per_second: float, unit: str) -> str:
    """`410 images/s`, `3.2 images/s`, and for what takes long `4.0 epochs/min`."""
    if per_second >= 100:
        return f"{per_second:,.0f} {unit}/s"
    if per_second >= 0.1:
        return f"{per_second:.2g} {unit}/s"
    if per_second * 60 >= 0.1:
        return f"{per_second * 60:.2g} {unit}/min"
    return f"{per_second * 3600:.2g} {unit}/h"


def share(part: float, whole: float) -> str:
    """Percent with one decimal; a dash when there is nothing to divide by."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def interval(measured: Mapping[str, Any] | None, *, digits: int = 1, unit: str = "", signed: bool = False) -> str:
    """`19.9 % [18.2, 21.6]` of a measured number of metrics.json, or `not measured`."""
    if not measured or measured.get("value") is None:
        return "not measured"
    sign = "+" if signed else ""
    text = f"{measured['value']:{sign}.{digits}f}{unit}"
    if measured.get("low") is None or measured.get("high") is None:
        return text
    return f"{text} [{measured['low']:{sign}.{digits}f}, {measured['high']:{sign}.{digits}f}]"


def shorten(text: str, width: int) -> str:
    """At most `width` characters, cut at the end with an ellipsis."""
    return text if len(text) <= width else text[: max(width - 1, 0)].rstrip() + "…"
