"""What a sweep shows at its end: the curve of verification budgets as a figure and a table, and the settings tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.text import Text

from cleanscale.reporting import formats
from cleanscale.reporting.figures import BLUE, GREEN, GREY, ORANGE, RED, SKY, new_figure, to_png
from cleanscale.reporting.terminal import plain_table

_COLOURS = (BLUE, ORANGE, GREEN, RED, SKY)
_MARKS = "osD^vP"
MOST_ROWS = 12


def verification_budget(summary: Mapping[str, Any]) -> bytes:
    """PNG: error in classes left out, and accuracy, against the number of verification labels; 95 % intervals."""
    points = summary["budgets"]
    has_accuracy = any(point.get("accuracy") for point in points)
    figure = new_figure(5.6 * (2 if has_accuracy else 1), 4.4)
    shown = figure.subplots(1, 2 if has_accuracy else 1, squeeze=False)[0]
    detector = summary["detector"]
    _curves(shown[0], points, lambda point: point["error"][detector]["evaluation"])
    shown[0].set_ylabel(f"error of {detector} in classes left out, %")
    if has_accuracy:
        _curves(shown[1], points, lambda point: point.get("accuracy"))
        shown[1].set_ylabel("top-1 accuracy on the test set, %")
        before = summary.get("accuracy_without_verification")
        if before:
            shown[1].axhline(before["value"], color=GREY, lw=1, ls="--", label="trained on the noisy labels")
    chosen = summary["stops_paying"]
    for axes in shown:
        if chosen:
            axes.axvline(chosen["labels"], color=GREY, lw=1, ls=":")
        axes.set_xscale("log")
        axes.set_xlabel("verification labels")
        axes.legend(fontsize=8, title="share of verified classes" if axes is shown[0] else None, title_fontsize=8)
    said = f"more than {chosen['labels']:,.0f} labels stop paying" if chosen else "more labels may still pay"
    figure.suptitle(f"Verification budgets: {said} (margin {summary['margin']:g} points, 95 % intervals)", fontsize=11)
    return to_png(figure)


def _curves(axes: Axes, points: Sequence[Mapping[str, Any]], of: Any) -> None:
    """A line for each share of classes."""
    for k, share in enumerate(sorted({point["classes"] for point in points})):
        measured = [(point["labels"], of(point)) for point in points if point["classes"] == share]
        measured = [(labels, m) for labels, m in measured if m and m["value"] is not None]
        if not measured:
            continue
        x_B = np.array([labels for labels, _ in measured])
        value_B = np.array([m["value"] for _, m in measured])
        low_B, high_B = (
            np.array([m["value"] if m[end] is None else m[end] for _, m in measured]) for end in ("low", "high")
        )
        axes.errorbar(
            x_B,
            value_B,
            yerr=[value_B - low_B, high_B - value_B],
            color=_COLOURS[k % len(_COLOURS)],
            marker=_MARKS[k % len(_MARKS)],
            ms=5,
            lw=1.3,
            capsize=3,
            label=f"{100 * share:g} %",
        )


def print_budgets(console: Console, summary: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """The curve as a table, and the answer."""
    detector = summary["detector"]
    table = plain_table("budget", "labels", "error, %", "minus largest", "true error, %", "top-1, %")
    for point in summary["budgets"]:
        table.add_row(
            f"{point['verified_classes']:.0f} x {point['labels_per_class']}",
            f"{point['labels']:,.0f}",
            formats.interval(point["error"][detector]["evaluation"]),
            formats.interval(point.get("error_minus_largest"), signed=True),
            formats.interval(point.get("true_error", {}).get(detector)),
            formats.interval(point.get("accuracy")),
        )
    console.print()
    said = "Verification budgets: classes x labels (95 % intervals; error: in verified classes left out)"
    console.print(Text(said, style="bold cyan"))
    console.print(table)
    console.print(Text(answer(summary), style="bold"))
    _print_places(console, places)


def answer(summary: Mapping[str, Any]) -> str:
    """Where more verification stops paying, in words."""
    chosen, top, margin = summary["stops_paying"], summary["largest"], summary["margin"]
    if chosen is None:
        return (
            f"No smaller budget is sure to be within {margin:g} points of the largest one "
            f"({top['labels']:,.0f} labels): more verification may still pay."
        )
    return (
        f"After {chosen['labels']:,.0f} labels ({100 * chosen['classes']:g} % of the verified classes x "
        f"{chosen['labels_per_class']}) more verification stops paying: up to {top['labels']:,.0f} labels it gains "
        f"less than {margin:g} points of error."
    ) + accuracy_there(summary)


def accuracy_there(summary: Mapping[str, Any]) -> str:
    """What test accuracy says of the chosen budget; nothing was chosen by it."""
    chosen = summary["stops_paying"]
    for point in summary["budgets"]:
        same = all(point[name] == chosen[name] for name in ("classes", "labels_per_class"))
        if same and point.get("accuracy_minus_largest"):
            gap = formats.interval(point["accuracy_minus_largest"], digits=2, signed=True)
            return f" Test accuracy there against the largest budget, which chose nothing: {gap} points."
    return ""


def print_search(console: Console, summary: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """The best settings tried, and how they compare with the run's own where neither was chosen by."""
    tried = [trial for trial in summary["trials"] if trial["objective"] is not None]
    names = sorted({name for trial in tried for name in trial["values"]})
    table = plain_table("trial", *names, "error, %", "steps", "ended")
    for trial in tried[:MOST_ROWS]:
        values = [_shown(trial["values"].get(name)) for name in names]
        table.add_row(trial["name"], *values, f"{trial['objective']:.2f}", f"{trial['steps']:,}", trial["ended"])
    console.print()
    console.print(Text(f"Settings tried: the best of {len(summary['trials'])} by class-fold error", style="bold cyan"))
    console.print(table)
    compared = plain_table("settings", "class-fold error, %", "true error, unverified classes, %", "top-1, %")
    for name in ("run", "best"):
        found = summary[name]
        compared.add_row(
            "the run's own" if name == "run" else f"best ({summary['best']['name']})",
            "-" if found["objective"] is None else f"{found['objective']:.2f}",
            formats.interval(found.get("true_error")),
            formats.interval(found.get("accuracy")),
        )
    console.print(compared)
    _print_places(console, places)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_places(console: Console, places: Mapping[str, str]) -> None:
    width = max(len(what) for what in places)
    console.print(Text("\n".join(f"{what:{width}}  {where}" for what, where in places.items())), soft_wrap=True)
    console.print()
