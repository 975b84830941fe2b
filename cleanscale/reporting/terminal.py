"""The summary at the end of a run: what was found, where, how sure, how accuracy changed, and where the files are.

N images, C classes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cleanscale.reporting import formats

WIDTHS = (80, 120)
_WORST_CLASSES = 8
_PLACES = "Where the files are"
# A class is listed by its share of wrong labels only when it has images enough for a share to mean something.
_FEWEST_IMAGES = 10
_GROUPS = {"held_out_classes": "not verified", "verified_classes": "verified"}


@dataclass(frozen=True)
class Found:
    """What a relevance table says, class by class: enough for the summary, and small however many images there are."""

    label_C: np.ndarray
    images_C: np.ndarray
    called_wrong_C: np.ndarray
    expected_wrong_C: np.ndarray  # sum of 1 - probability_correct
    expected_hits_C: np.ndarray  # the same sum over those that are called wrong

    @classmethod
    def count(cls, label_N: np.ndarray, mislabeled_N: np.ndarray, probability_correct_N: np.ndarray) -> Found:
        """Count one table, or one shard of it."""
        label_C, class_N = np.unique(np.asarray(label_N), return_inverse=True)
        called_N = np.asarray(mislabeled_N, bool)
        wrong_N = 1.0 - np.asarray(probability_correct_N, np.float64)
        sums = (None, called_N.astype(np.float64), wrong_N, wrong_N * called_N)
        images, called, expected, hits = (np.bincount(class_N, weight_N, len(label_C)) for weight_N in sums)
        return cls(label_C, images, called, expected, hits)

    @classmethod
    def merge(cls, parts: Iterable[Found]) -> Found:
        """The counts of several shards together."""
        parts = [*parts, cls(*(np.empty(0, np.int64),) * 5)]
        label_C, class_N = np.unique(np.concatenate([part.label_C for part in parts]), return_inverse=True)
        names = ("images_C", "called_wrong_C", "expected_wrong_C", "expected_hits_C")
        joined = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return cls(label_C, *(np.bincount(class_N, weight_N, len(label_C)) for weight_N in joined))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that the summary shows; what a run does not have is left out.

    Attributes:
        title: what was run on what, for example "glyphs".
        found: counts of the newest relevance table.
        class_names: name of a label (a sequence indexed by label or a mapping); None shows numbers.
        metrics: metrics.json; its detection and calibration are there only where the truth is known. Paired differences
            are looked for in `metrics["difference"]`.
        detector: the detector that the relevance table comes from.
        rejected: number of rows by reason.
        places: what lies where, for example {"relevance table": "runs/glyphs/relevance"}.
        seconds: of the whole run.
    """

    title: str
    found: Found
    class_names: Sequence[str] | Mapping[int, str] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    detector: str = "transfer"
    rejected: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None


def report_console(file: TextIO | None = None) -> Console:
    """A console for the summary: coloured on a terminal, plain text of 100 columns elsewhere."""
    stream = file or sys.stdout
    console = Console(file=stream, highlight=False, soft_wrap=False)
    if not console.is_terminal or console.is_dumb_terminal:
        return Console(file=stream, highlight=False, width=100, color_system=None, force_terminal=False)
    return Console(file=stream, highlight=False, width=min(max(console.width, WIDTHS[0]), WIDTHS[1]))


def print_summary(console: Console, summary: Summary) -> None:
    """Print the whole summary."""
    took = "" if summary.seconds is None else f" in {formats.duration(summary.seconds)}"
    console.print()
    console.print(Text(f"{summary.title}: done{took}", style="bold"))
    for heading, content in (
        ("What was found", _found(summary)),
        ("In which classes", _worst_classes(summary)),
        ("How sure, where the truth is known (95 % intervals)", _how_sure(summary)),
        ("Accuracy on the test set, % (95 % intervals)", _accuracy(summary)),
        ("Average precision on the test set (95 % intervals)", _average_precision(summary)),
        ("Labels of the images nobody looked at (95 % intervals)", _labels(summary)),
        ("Rows left out", _rejected(summary)),
        (_PLACES, _places(summary)),
    ):
        if content is not None:
            console.print()
            console.print(Text(heading, style="bold cyan"))
            console.print(content, soft_wrap=heading == _PLACES)  # a path on two lines cannot be copied
    console.print()


def _found(summary: Summary) -> RenderableType:
    found = summary.found
    images, called = int(found.images_C.sum()), int(found.called_wrong_C.sum())
    expected, hits = float(found.expected_wrong_C.sum()), float(found.expected_hits_C.sum())
    lines = [
        f"{called:,} of {images:,} labels are called wrong ({formats.share(called, images)}), "
        f"in {int((found.called_wrong_C > 0).sum()):,} of {len(found.label_C):,} classes."
    ]
    if called:
        lines.append(
            f"Their probabilities say: {formats.share(hits, called)} of those are wrong indeed; "
            f"in all {expected:,.0f} labels are wrong ({formats.share(expected, images)})."
        )
    return Text("\n".join(lines))


def _worst_classes(summary: Summary) -> RenderableType | None:
    found = summary.found
    enough_C = found.images_C >= min(_FEWEST_IMAGES, found.images_C.max(initial=0))
    share_C = np.where(enough_C, found.called_wrong_C / np.maximum(found.images_C, 1), -1.0)
    worst = np.lexsort((found.label_C, -share_C))[:_WORST_CLASSES]
    worst = worst[share_C[worst] > 0]
    if not len(worst):
        return None
    table = plain_table("class", "called wrong", "images", "share", "expected wrong")
    for at in worst.tolist():
        called, images = int(found.called_wrong_C[at]), int(found.images_C[at])
        table.add_row(
            Text(formats.shorten(_name(summary.class_names, int(found.label_C[at])), 36)),
            f"{called:,}",
            f"{images:,}",
            formats.share(called, images),
            f"{found.expected_wrong_C[at]:,.0f}",
        )
    return table


def _how_sure(summary: Summary) -> RenderableType | None:
    detection = summary.metrics.get("detection", {})
    main = detection.get(summary.detector)
    if not main:
        return None
    table = plain_table("classes", "error, %", "naive error, %", "AUROC", "n")
    for group, words in _GROUPS.items():
        error = main.get("error_per_class", {}).get(group)
        if not error or error.get("value") is None:
            continue
        table.add_row(
            words,
            formats.interval(error),
            formats.interval(detection.get("naive", {}).get("error_per_class", {}).get(group)),
            formats.interval(main.get("auroc", {}).get(group), digits=3),
            f"{error['n']:,}",
        )
    lines: list[RenderableType] = [table] if table.row_count else []
    calibration = summary.metrics.get("calibration", {}).get(summary.detector, {}).get("expected_calibration_error")
    if calibration and calibration.get("value") is not None:
        lines.append(Text(f"Calibration error of the probabilities: {formats.interval(calibration, digits=3)}"))
    return Group(*lines) if lines else None


def _accuracy(summary: Summary) -> RenderableType | None:
    rounds = summary.metrics.get("classification", {})
    if not rounds:
        return None
    gains = summary.metrics.get("difference", {}).get("classification", {})
    measures = [measure for measure in ("top1", "top5") if any(measure in by for by in rounds.values())]
    first = next(iter(rounds))
    table = plain_table(
        "classifier", *({"top1": "top-1", "top5": "top-5"}[m] for m in measures), f"gain over {first}", "n"
    )
    for name, by_measure in rounds.items():
        gain = gains.get(name, {}).get(first, {}).get("top1")
        table.add_row(
            Text(name),
            *(formats.interval(by_measure.get(measure)) for measure in measures),
            "" if name == first else formats.interval(gain, digits=2, signed=True),
            f"{next(iter(by_measure.values()))['n']:,}" if by_measure else "",
        )
    return table


def _average_precision(summary: Summary) -> RenderableType | None:
    """Of classifiers of several labels per image: mean over classes (MAP), and over all labels (AP_all)."""
    found = summary.metrics.get("multi_label", {})
    if not found.get("map"):
        return None
    first = next(iter(found["map"]))
    table = plain_table("classifier", "MAP", "AP_all", f"MAP over {first}", f"AP_all over {first}")
    for name in found["map"]:
        gain = found["difference"].get(name, {}).get(first, {})
        table.add_row(
            Text(name),
            *(formats.interval(found[m][name]["all_classes"], digits=3) for m in ("map", "ap_all")),
            *(
                formats.interval(gain[m]["all_classes"], digits=3, signed=True) if gain else ""
                for m in ("map", "ap_all")
            ),
        )
    return table


def _labels(summary: Summary) -> RenderableType | None:
    found = summary.metrics.get("multi_label", {}).get("labels")
    if not found:
        return None
    table = plain_table("labels", "judged wrongly, %", "false per image", "missing per image")
    for name, by_measure in found.items():
        table.add_row(
            Text(name),
            formats.interval(by_measure["error_of_labels"]),
            *(formats.interval(by_measure[m], digits=2) for m in ("false_per_image", "missing_per_image")),
        )
    return table


def _rejected(summary: Summary) -> RenderableType | None:
    rejected = {reason: number for reason, number in summary.rejected.items() if number}
    if not rejected:
        return None
    table = plain_table("reason", "rows")
    for reason, number in sorted(rejected.items(), key=lambda item: -item[1]):
        table.add_row(Text(reason), f"{number:,}")
    return table


def _places(summary: Summary) -> RenderableType | None:
    if not summary.places:
        return None
    width = max(len(what) for what in summary.places)
    return Text("\n".join(f"{what:{width}}  {where}" for what, where in summary.places.items()))


def plain_table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, header_style="dim")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _name(names: Sequence[str] | Mapping[int, str] | None, label: int) -> str:
    if isinstance(names, Mapping):
        return str(names.get(label, label))
    return str(names[label]) if names is not None and 0 <= label < len(names) else str(label)
