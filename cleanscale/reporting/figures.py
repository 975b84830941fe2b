"""Report figures as PNG bytes: arrays in, no files, no global drawing state.

N images, C classes, T thresholds, R rounds, B bins. Figures are about finding *wrong* labels: `wrong_N` is the truth, a
decision is (called wrong [N], score [N] higher where more likely right, or None). Colours are Okabe and Ito's, which
people tell apart whatever their colour vision.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cleanscale.maths import detection_metrics
from cleanscale.maths.detection_metrics import Curve

Decision = tuple[np.ndarray, "np.ndarray | None"]

DPI = 120
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#B8A500",
)
GREY, INK = "#8C8C8C", "#222222"
_OTHERS = (ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, INK)
_DASHES = ("-", "--", ":")
_MOST_POINTS = 2000
_MANY_CLASSES = 1500
_GROUP_WORDS = {"held_out_classes": "classes without verification labels", "verified_classes": "verified classes"}


def roc(
    wrong_N: np.ndarray, decisions: Mapping[str, Decision], groups: Mapping[str, np.ndarray], *, main: str = "transfer"
) -> bytes:
    """ROC curves of every detector with a score, one panel per group of rows; dots are the decisions themselves."""

    def draw(axes: Axes, wrong_N: np.ndarray, called_N: np.ndarray, score_N: np.ndarray | None, style: dict) -> float:
        false_rate, recall, _ = detection_metrics.operating_point(wrong_N, called_N)
        curve = None if score_N is None else detection_metrics.roc_curve(wrong_N, score_N)
        area = None if score_N is None else detection_metrics.auroc(wrong_N, score_N)
        _draw_detector(axes, curve, (false_rate, recall), area, "AUROC", style)
        return -1.0 if area is None else area

    def finish(axes: Axes, wrong_N: np.ndarray) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (2, 3)), zorder=1)
        axes.set_xlabel("share of right labels called wrong")
        axes.set_ylabel("share of wrong labels found")

    return _panels("Finding wrong labels: ROC", wrong_N, decisions, groups, main, draw, finish)


def precision_recall(
    wrong_N: np.ndarray, decisions: Mapping[str, Decision], groups: Mapping[str, np.ndarray], *, main: str = "transfer"
) -> bytes:
    """Precision against recall of every detector with a score, a panel per group; dots are the decisions themselves."""

    def draw(axes: Axes, wrong_N: np.ndarray, called_N: np.ndarray, score_N: np.ndarray | None, style: dict) -> float:
        _, recall, precision = detection_metrics.operating_point(wrong_N, called_N)
        curve = None if score_N is None else detection_metrics.precision_recall_curve(wrong_N, score_N)
        area = None if score_N is None else detection_metrics.average_precision(wrong_N, score_N)
        _draw_detector(axes, curve, (recall, precision), area, "AP", style)
        return -1.0 if area is None else area

    def finish(axes: Axes, wrong_N: np.ndarray) -> None:
        if len(wrong_N):
            axes.axhline(wrong_N.mean(), color=GREY, lw=0.8, ls=(0, (2, 3)), zorder=1)
        axes.set_xlabel("recall: share of wrong labels found")
        axes.set_ylabel("precision: share wrong of those called wrong")

    return _panels("Finding wrong labels: precision and recall", wrong_N, decisions, groups, main, draw, finish)


def reliability(right_N: np.ndarray, probability_N: np.ndarray, *, name: str = "transfer", bins: int = 15) -> bytes:
    """Is a label of probability p right in a share p of the cases? Above: equal-mass bins; below: where images lie."""
    points = detection_metrics.reliability(right_N, probability_N, bins)
    error = detection_metrics.expected_calibration_error(right_N, probability_N, bins)
    figure = new_figure(5.4, 6.2)
    axes, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (2, 3)), label="perfect")
    if error is None:
        _say_nothing(axes, "no image with known truth")
    else:
        share_B, images_B = points.share_right_B, points.images_B
        low_B, high_B = _wilson(share_B, images_B)
        axes.errorbar(
            points.probability_B, share_B, yerr=[share_B - low_B, high_B - share_B], color=BLUE, marker="o", ms=5,
            lw=1.6, elinewidth=1, capsize=2, label=f"{len(images_B)} bins of equal mass, 95 %",
        )  # fmt: skip
        axes.legend(loc="best", frameon=False)
        below.hist(probability_N, bins=np.linspace(0, 1, 41).tolist(), color=SKY, edgecolor="white", lw=0.4)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share of labels that are right")
    below.set(xlabel="probability_correct", ylabel="images")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    below.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    said = "" if error is None else f"expected calibration error {error:.3f}, "
    axes.set_title(f"Can the probabilities of {name} be trusted?\n{said}n = {len(probability_N):,} images")
    return to_png(figure)


def error_per_class(
    label_N: np.ndarray,
    wrong_N: np.ndarray,
    mislabeled_N: np.ndarray,
    *,
    held_out_N: np.ndarray | None = None,
    name: str = "transfer",
) -> bytes:
    """Error of each class beside that of naive, which is the class's share of wrong labels; for 1 to 100,000 classes.

    Left: classes sorted by error, each curve by its own. Right: class by class; below the diagonal the detector helps.
    """
    ours = detection_metrics.count_by_class(label_N, wrong_N, mislabeled_N)
    naive = detection_metrics.count_by_class(label_N, wrong_N, np.zeros(len(label_N), bool))
    classes = len(ours.label_C)
    figure = new_figure(10.4, 4.9)
    left, right = figure.subplots(1, 2)
    if classes:
        _draw_sorted(left, naive.error_C, GREY, f"naive, mean {naive.error_C.mean():.1f} %")
        _draw_sorted(left, ours.error_C, BLUE, f"{name}, mean {ours.error_C.mean():.1f} %")
        left.legend(loc="upper left", frameon=False)
        kinds = _kinds_of_classes(label_N, ours.label_C, held_out_N)
        _draw_class_by_class(right, naive.error_C, ours.error_C, kinds)
        helped = int((ours.error_C < naive.error_C).sum())
        right.set_title(f"lower than naive in {helped:,} of {classes:,} classes", fontsize=10)
    else:
        _say_nothing(left, "no image with known truth")
        _say_nothing(right, "no image with known truth")
    left.set(xlabel="classes, sorted by error", ylabel="error, %", ylim=(0, None))
    left.set_title("each curve sorted on its own", fontsize=10)
    right.set(xlabel="naive error of the class, %", ylabel=f"error of {name}, %")
    figure.suptitle(
        f"Error in telling right from wrong labels, class by class: {classes:,} classes, n = {len(label_N):,} images"
    )
    return to_png(figure)


def accuracy_by_round(classification: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> bytes:
    """Test accuracy of each round's classifier with 95 % intervals, from the `classification` table of metrics.json."""
    measures = [measure for measure in ("top1", "top5") if any(measure in by for by in classification.values())]
    figure = new_figure(2.6 + 1.1 * max(len(classification), 2), 3.9)
    shown = figure.subplots(1, max(len(measures), 1), squeeze=False)[0]
    images = 0
    for axes, measure, colour in zip(shown, measures, (BLUE, GREEN), strict=False):
        drawn = {n: by[measure] for n, by in classification.items() if by.get(measure, {}).get("value") is not None}
        images = max([images, *(entry["n"] for entry in drawn.values())])
        value_R = np.array([entry["value"] for entry in drawn.values()])
        low_R = np.array([entry["value"] if entry["low"] is None else entry["low"] for entry in drawn.values()])
        high_R = np.array([entry["value"] if entry["high"] is None else entry["high"] for entry in drawn.values()])
        place_R = np.arange(len(drawn))
        spread_2R = [value_R - low_R, high_R - value_R]
        axes.errorbar(place_R, value_R, yerr=spread_2R, color=colour, marker="o", ms=6, lw=1.4, capsize=4)
        for place, value in enumerate(value_R):
            rises = place + 1 < len(value_R) and value_R[place + 1] > value  # then the line is above the dot
            offset = (7, -13 if rises else 5)
            axes.annotate(f"{value:.1f}", (place, value), offset, textcoords="offset points", fontsize=9, color=colour)
        axes.set_xticks(place_R, [name.replace("_", " ") for name in drawn])
        axes.set_xlim(-0.4, max(len(drawn), 1) - 0.4)
        axes.margins(y=0.2)
        axes.set_ylabel(f"{measure.replace('top', 'top-')} accuracy, %")
    if not measures:
        _say_nothing(shown[0], "no test set")
    figure.suptitle(f"Accuracy on the test set, n = {images:,} images, 95 % intervals", fontsize=11)
    return to_png(figure)


# ---- parts -----------------------------------------------------------------------------------------------------------


def _panels(
    title: str,
    wrong_N: np.ndarray,
    decisions: Mapping[str, Decision],
    groups: Mapping[str, np.ndarray],
    main: str,
    draw: Callable[[Axes, np.ndarray, np.ndarray, np.ndarray | None, dict], float],
    finish: Callable[[Axes, np.ndarray], None],
) -> bytes:
    """One panel per group: every detector in its own colour, the best first in the legend below its panel."""
    wrong_N = np.asarray(wrong_N, bool)
    groups = groups or {"all rows": np.ones(len(wrong_N), bool)}
    legend_height = 0.3 + 0.2 * len(decisions)
    figure = new_figure(5.0 * len(groups), 5.4 + legend_height)
    panels, legends = figure.subplots(2, len(groups), height_ratios=(5.4, legend_height), squeeze=False)
    styles = _styles(list(decisions), main)
    for axes, below, (group, mask_N) in zip(panels, legends, groups.items(), strict=True):
        mask_N = np.asarray(mask_N, bool)
        here_N = wrong_N[mask_N]
        area: dict[str, float] = {}
        for name, (called_N, score_N) in decisions.items():
            score_N = None if score_N is None else np.asarray(score_N)[mask_N]
            area[name] = draw(axes, here_N, np.asarray(called_N, bool)[mask_N], score_N, styles[name])
        finish(axes, here_N)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        words = _GROUP_WORDS.get(group, group.replace("_", " "))
        axes.set_title(f"{words}\nn = {len(here_N):,} images, {int(here_N.sum()):,} wrong", fontsize=10)
        if not here_N.any():
            _say_nothing(axes, "no wrong label among them" if len(here_N) else "no image among them")
        _legend(axes, below, area)
    figure.suptitle(title)
    return to_png(figure)


def _legend(axes: Axes, below: Axes, area: dict[str, float]) -> None:
    """The detectors that were drawn, the best first, in the empty axes below their panel."""
    below.axis("off")
    lines = {str(line.get_gid()): line for line in axes.get_lines() if line.get_gid()}
    best = sorted(lines, key=lambda name: -area[name])
    words = [str(lines[name].get_label()) for name in best]
    below.legend(
        [lines[name] for name in best], words, loc="upper center", frameon=False, fontsize=8.5, handlelength=2.6
    )


def _draw_detector(
    axes: Axes,
    curve: Curve | None,
    point: tuple[float | None, float | None],
    area: float | None,
    word: str,
    style: dict[str, Any],
) -> None:
    """A curve, where there is one, and a dot where the detector's threshold puts it."""
    name = style["gid"]
    label = name if area is None else f"{name}   {word} {area:.3f}"
    if curve is not None:
        curve = _thin(curve)
        axes.plot(curve.x_T, curve.y_T, label=label, **style)
    if point[0] is not None and point[1] is not None:
        dot = {key: style[key] for key in ("color", "zorder")}
        own = {} if curve is not None else {"gid": name, "label": f"{label}   (decision only)"}
        marker = "o" if curve is not None else "D"
        axes.plot(point[0], point[1], marker, ms=6.5, markeredgecolor="white", clip_on=False, **dot, **own)


def _styles(names: list[str], main: str) -> dict[str, dict[str, Any]]:
    """The main detector in thick blue above all others, each of which differs in colour and then in dashes."""
    others = [name for name in names if name not in (main, "naive")]
    styles = {
        name: {
            "color": _OTHERS[i % len(_OTHERS)],
            "ls": _DASHES[i // len(_OTHERS) % len(_DASHES)],
            "lw": 1.3,
            "zorder": 3,
            "gid": name,
        }
        for i, name in enumerate(others)
    }
    styles["naive"] = {"color": GREY, "ls": "-", "lw": 1.3, "zorder": 3, "gid": "naive"}
    return {**styles, main: {"color": BLUE, "ls": "-", "lw": 2.6, "zorder": 4, "gid": main}}


def _thin(curve: Curve) -> Curve:
    """At most some thousand points, evenly along the curve's length: more are not seen."""
    if len(curve.x_T) <= _MOST_POINTS:
        return curve
    length_T = np.concatenate([[0], np.cumsum(np.hypot(np.diff(curve.x_T), np.diff(curve.y_T)))])
    keep = np.searchsorted(length_T, np.linspace(0, length_T[-1], _MOST_POINTS))
    keep = np.unique(np.concatenate([[0], np.minimum(keep, len(length_T) - 1), [len(length_T) - 1]]))
    return Curve(curve.x_T[keep], curve.y_T[keep])


def _draw_sorted(axes: Axes, error_C: np.ndarray, colour: str, label: str) -> None:
    """A curve of sorted errors, at no more points than can be seen; few classes are marked one by one."""
    sorted_C = np.sort(error_C)
    place = np.arange(len(sorted_C))
    if len(place) > _MOST_POINTS:
        place = np.linspace(0, len(sorted_C) - 1, _MOST_POINTS).astype(np.int64)
    few = len(place) <= 60
    axes.plot(place + 1, sorted_C[place], color=colour, lw=1.8, marker="o" if few else None, ms=4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")


def _wilson(share_B: np.ndarray, images_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a share: sensible for none and all of few images too."""
    z2_B = 1.96**2 / images_B
    centre_B = (share_B + z2_B / 2) / (1 + z2_B)
    half_B = np.sqrt(z2_B * (share_B * (1 - share_B) + z2_B / 4)) / (1 + z2_B)
    return np.minimum(centre_B - half_B, share_B), np.maximum(centre_B + half_B, share_B)


def _kinds_of_classes(
    label_N: np.ndarray, label_C: np.ndarray, held_out_N: np.ndarray | None
) -> list[tuple[str, np.ndarray, str, str]]:
    """(words, mask over classes, colour, marker) of the kinds of classes that are told apart."""
    if held_out_N is None:
        return [("classes", np.ones(len(label_C), bool), BLUE, "o")]
    held_out_C = np.isin(label_C, np.unique(np.asarray(label_N)[held_out_N]))
    return [("not verified", held_out_C, BLUE, "o"), ("verified", ~held_out_C, RED, "^")]


def _draw_class_by_class(
    axes: Axes, naive_C: np.ndarray, ours_C: np.ndarray, kinds: list[tuple[str, np.ndarray, str, str]]
) -> None:
    """One dot per class; medians and 10-90 % ranges along the naive error when there are too many to see dots."""
    top = 1.05 * max(float(naive_C.max()), float(ours_C.max()), 1.0)
    axes.plot([0, top], [0, top], color=GREY, lw=0.8, ls=(0, (2, 3)))
    axes.set(xlim=(-0.02 * top, top), ylim=(-0.02 * top, top), aspect="equal")
    many = len(naive_C) > _MANY_CLASSES
    for words, mask_C, colour, marker in kinds:
        label = f"{words} ({int(mask_C.sum()):,})"
        x_C, y_C = naive_C[mask_C], ours_C[mask_C]
        if many and len(x_C) >= 100:
            low_B, middle_B, high_B, x_B = _ranges(x_C, y_C)
            axes.fill_between(x_B, low_B, high_B, color=colour, alpha=0.18, lw=0)
            axes.plot(x_B, middle_B, color=colour, marker=marker, ms=4, lw=1.6, label=f"{label}: median, 10-90 %")
        else:
            size = float(np.clip(2500 / len(naive_C), 8, 45))
            axes.scatter(x_C, y_C, s=size, color=colour, marker=marker, alpha=0.75, lw=0, label=label)
    axes.legend(loc="best", frameon=False)


def _ranges(x_C: np.ndarray, y_C: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """10 %, 50 % and 90 % points of y in bins of x of about equal mass, and the bins' mean x."""
    bin_C = detection_metrics.equal_mass_bins(x_C, 20)
    parts = [np.flatnonzero(bin_C == bin_) for bin_ in np.unique(bin_C)]
    low_middle_high = np.array([np.quantile(y_C[part], [0.1, 0.5, 0.9]) for part in parts]).T
    return (*low_middle_high, np.array([x_C[part].mean() for part in parts]))


def _say_nothing(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes, color=INK, bbox={"color": "white"})


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6", lw=0.6)
        axes.set_axisbelow(True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
