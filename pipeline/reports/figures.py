"""Draws the figures of reports as SVG that takes its colours from the page."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.special import logit

MODEL: Final = "#2563eb"
OTHER: Final = "#d97706"
QUIET: Final = "#94a3b8"
GOOD: Final = "#059669"
BAD: Final = "#dc2626"
_BLACK: Final = "#000000"
_CARD: Final = "#fefefe"
_COLOURS: Final = {
    _BLACK: "currentColor",
    _CARD: "var(--card)",
    MODEL: "var(--model)",
    OTHER: "var(--other)",
    QUIET: "var(--quiet)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
}
"""What each colour becomes on the page, which has one value of it for light and one for dark."""
_WIDTH: Final = 4.7
_STYLE: Final[dict[Any, Any]] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9.5,
    "grid.alpha": 0.15,
    "grid.color": _BLACK,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
_DASHED: Final = (0, (4, 3))
_SCORES: Final = (0.0001, 0.01, 0.5, 0.99, 0.9999)
Point = Mapping[str, Any]


def svg(alt: str, draw: Callable[..., Figure], *content: Any, **settings: Any) -> str:
    """What one of the functions below draws, as SVG to stand in a page.

    Args:
      alt: what it shows, for those who do not see it.
      draw: the function.
      content, settings: its arguments.
    """
    stream = io.StringIO()
    # Names within the drawing, which are of the whole page, are made from this text.
    with mpl.rc_context(_STYLE | {"svg.hashsalt": alt}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw(*content, **settings).savefig(stream, format="svg", transparent=True, metadata=nothing)
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>\s*", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", drawn)
    drawn = drawn.replace("xlink:href", "href")
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    drawn = re.sub(r'(<svg)[^>]*?(viewBox="[^"]*")[^>]*>', r"\1 \2>", drawn, count=1)
    drawn = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", drawn)
    for colour, on_page in _COLOURS.items():
        drawn = drawn.replace(colour, on_page)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return drawn.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def subplots(height: float, rows: int = 1, **settings: Any) -> tuple[Figure, Any]:
    """A figure of the width of a column, in inches: pyplot would keep it and choose a backend."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, **settings)


def accuracies(rows: Sequence[Point]) -> Figure:
    """The model with its interval, the best baseline and chance, a row a kind of trial.

    Args:
      rows: `title`, `value`, `interval`, `baseline`, `chance`, and `published`, values by name.
    """
    figure, axes = subplots(0.5 * len(rows) + 1.45)
    for at, row in enumerate(reversed(rows)):
        _interval(axes, row["value"], at, row["interval"])
        if row["baseline"] is not None:
            axes.plot(row["baseline"], at, "D", color=QUIET, ms=5)
        axes.plot(row["chance"], at, "|", color=_BLACK, ms=12, mew=1.5)
        for name, value in row["published"].items():
            marker = "^" if name == "People" else "v"
            axes.plot(value, at + 0.3, marker, color=OTHER, ms=5)
    handles = {
        "model, 95 % interval": axes.plot([], [], "o", color=MODEL)[0],
        "best without training": axes.plot([], [], "D", color=QUIET, ms=5)[0],
        "chance": axes.plot([], [], "|", color=_BLACK, ms=10, mew=1.5)[0],
    }
    if any(row["published"] for row in rows):
        handles["people"] = axes.plot([], [], "^", color=OTHER, ms=6)[0]
        handles["Koch 2015"] = axes.plot([], [], "v", color=OTHER, ms=6)[0]
    figure.legend([*handles.values()], [*handles], loc="outside upper left", ncols=2)
    axes.set_yticks(range(len(rows)), [row["title"].replace(", ", "\n") for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(_percent())
    axes.set_xlabel("trials answered right")
    return figure


def groups(rows: Sequence[Point]) -> Figure:
    """Accuracy by group, the best on top; rows have `title`, `value` and `interval`."""
    figure, axes = subplots(0.26 * len(rows) + 0.9)
    for at, row in enumerate(sorted(rows, key=lambda row: row["value"])):
        _interval(axes, row["value"], at, row["interval"])
    ordered = [row["title"] for row in sorted(rows, key=lambda row: row["value"])]
    axes.set_yticks(range(len(rows)), ordered)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.xaxis.set_major_formatter(_percent())
    axes.set_xlabel("trials answered right, with 95 % interval")
    return figure


def rates(curve: Mapping[str, Any]) -> Figure:
    """False rejects against false accepts, with the thresholds that people choose."""
    figure, axes = subplots(3.3)
    pairs = zip(curve["false_accepts"], curve["false_rejects"], strict=True)
    # An axis of powers of ten has no place for zero.
    shown = [pair for pair in pairs if min(pair) > 0]
    if shown:
        axes.plot(*zip(*shown, strict=True), color=MODEL)
    named = {"half": "score 50 %", "equal": "equal errors", "few_accepts": "1 % false accepts"}
    for (name, point), marker in zip(curve["points"].items(), "osD", strict=True):
        if point["false_accepts"] and point["false_rejects"]:
            label = f"{named[name]} (threshold {100 * point['score']:.0f} %)"
            at = (point["false_accepts"], point["false_rejects"])
            axes.plot(*at, marker, color=OTHER, ms=6, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_percent())
        axis.set_minor_formatter("")
    axes.set_xlabel("pairs of two classes accepted (FAR, false accept rate)")
    axes.set_ylabel("pairs of one class refused (FRR)")
    axes.legend(loc="best")
    return figure


def histogram(curve: Mapping[str, Any]) -> Figure:
    """How scores of pairs of one class and of two are spread, with the same thresholds."""
    figure, axes = subplots(3.3)
    counts = curve["histogram"]
    for kind, colour, label in (
        ("different", OTHER, "two classes"),
        ("same", MODEL, "one class"),
    ):
        total = sum(counts[kind])
        share = [count / total for count in counts[kind]]
        axes.stairs(share, counts["logits"], fill=True, color=colour, alpha=0.35)
        axes.stairs(share, counts["logits"], color=colour, label=label)
    # One below the other, so that lines that are near keep their names apart.
    names = {"half": "50 %", "equal": "EER", "few_accepts": "1 % FAR"}
    top = axes.get_ylim()[1]
    ordered = sorted(names, key=lambda name: float(curve["points"][name]["score"]))
    for line, name in enumerate(ordered):
        at = float(logit(min(max(curve["points"][name]["score"], 1e-6), 1 - 1e-6)))
        axes.axvline(at, color=_BLACK, lw=0.8, ls=_DASHED)
        where = (at, (1 - 0.08 * line) * top)
        axes.annotate(names[name], where, (3, -2), textcoords="offset points", fontsize=8, va="top")
    low, high = counts["logits"][0], counts["logits"][-1]
    scores = [one for one in _SCORES if low <= logit(one) <= high]
    axes.set_xticks([float(logit(one)) for one in scores], [f"{100 * one:g} %" for one in scores])
    axes.yaxis.set_major_formatter(_percent())
    axes.set_xlabel("score")
    axes.set_ylabel("share of pairs")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def reliability(bins: Sequence[Point]) -> Figure:
    """The share of pairs of one class by score: on the diagonal scores mean what they say."""
    figure, axes = subplots(3.3)
    axes.plot([0, 1], [0, 1], color=_BLACK, lw=0.8, ls=_DASHED)
    axes.plot([b["score"] for b in bins], [b["same"] for b in bins], color=MODEL, alpha=0.4)
    for one in bins:
        axes.plot([one["score"]] * 2, [one["low"], one["high"]], color=MODEL, lw=1.4)
        axes.plot(one["score"], one["same"], "o", color=MODEL, ms=5)
    _both_percent(axes)
    axes.set_xlabel("score")
    axes.set_ylabel("of these, pairs of one class")
    return figure


def ways(curves: Mapping[str, Sequence[Point]], titles: Mapping[str, str]) -> Figure:
    """Accuracy over the number of candidates, beside chance."""
    figure, axes = subplots(3.3)
    for (name, curve), colour in zip(curves.items(), (MODEL, OTHER), strict=False):
        numbers = [point["ways"] for point in curve]
        low, high = ([point[end] for point in curve] for end in ("low", "high"))
        axes.fill_between(numbers, low, high, color=colour, alpha=0.18, lw=0)
        accuracy = [point["accuracy"] for point in curve]
        axes.plot(numbers, accuracy, color=colour, label=titles[name])
    most = max(point["ways"] for curve in curves.values() for point in curve)
    every = range(2, most + 1)
    axes.plot(
        every, [1 / number for number in every], color=_BLACK, lw=1, ls=_DASHED, label="chance"
    )
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(_percent())
    axes.set_xlabel("candidates")
    axes.set_ylabel("answered right, with 95 % interval")
    axes.legend(loc="center right")
    return figure


def forgery_rates(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """The share of genuine signatures accepted by that of forgeries, a curve a kind of these."""
    figure, axes = subplots(3.3)
    for (kind, curve), colour in zip(curves.items(), (MODEL, OTHER), strict=False):
        axes.plot(*zip(*curve, strict=True), color=colour, label=f"{kind} forgeries")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_percent())
    axes.yaxis.set_major_formatter(_percent())
    axes.set_xlabel("forgeries accepted")
    axes.set_ylabel("genuine signatures accepted")
    axes.legend(loc="lower right")
    return figure


def training(history: Sequence[Mapping[str, Any]], *, validated: bool) -> Figure:
    """Loss and, where there are enough held-out classes, validation accuracy over the steps."""
    parts = 2 if validated else 1
    figure, axes = subplots(2.0 * parts + 0.2, parts, sharex=True, squeeze=False)
    steps = [entry["step"] for entry in history]
    axes[0, 0].plot(steps, [entry["loss"] for entry in history], color=OTHER, marker=".")
    axes[0, 0].set_ylabel("training loss")
    axes[0, 0].set_ylim(bottom=0)
    if validated:
        known = [entry for entry in history if entry.get("accuracy") is not None]
        values = [entry["accuracy"] for entry in known]
        axes[1, 0].plot([entry["step"] for entry in known], values, color=MODEL, marker=".")
        axes[1, 0].set_ylabel("validation accuracy")
        axes[1, 0].yaxis.set_major_formatter(_percent())
    axes[-1, 0].set_xlabel("training step")
    return figure


def seconds(rows: Sequence[tuple[str, float, bool]]) -> Figure:
    """Seconds by step, of cached ones in grey: (title, seconds, cached)."""
    figure, axes = subplots(0.3 * len(rows) + 0.8)
    for at, (_, value, cached) in enumerate(reversed(rows)):
        axes.barh(at, value, height=0.62, color=QUIET if cached else MODEL)
        shown = f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
        axes.annotate(
            shown, (value, at), (4, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    axes.set_yticks(range(len(rows)), [title for title, _, _ in reversed(rows)])
    axes.margins(x=0.14)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds of work")
    return figure


def lineage(boxes: Sequence[Point], arrows: Sequence[tuple[str, str]]) -> Figure:
    """Steps as boxes from the top down, and what they took from which.

    Args:
      boxes: `id`, `title`, `text`, `layer` from 0 and `cached`.
      arrows: from and to, by id.
    """
    layers = max(box["layer"] for box in boxes) + 1
    figure, axes = subplots(0.85 * layers + 0.1)
    axes.set_axis_off()
    axes.set_xlim(0, 3)
    axes.set_ylim(layers, 0)
    centre: dict[str, tuple[float, float]] = {}
    for layer in range(layers):
        here = [box for box in boxes if box["layer"] == layer]
        for at, box in enumerate(here):
            centre[box["id"]] = (3 * (at + 0.5) / len(here), layer + 0.5)
    for start, end in arrows:
        (x, y), (to_x, to_y) = centre[start], centre[end]
        far = to_y - y > 1.5
        bend = (0.25 if to_x >= x else -0.25) if far else 0
        axes.annotate(
            "",
            (to_x, to_y - 0.27),
            (x, y + 0.27),
            zorder=1,
            arrowprops={
                "arrowstyle": "-|>",
                "color": QUIET,
                "lw": 1,
                "shrinkA": 0,
                "shrinkB": 0,
                "connectionstyle": f"arc3,rad={bend}",
            },
        )
    for box in boxes:
        x, y = centre[box["id"]]
        colour = QUIET if box["cached"] else MODEL
        axes.text(
            x,
            y,
            f"{box['title']}\n{box['text']}",
            ha="center",
            va="center",
            fontsize=8,
            linespacing=1.5,
            bbox={"boxstyle": "round,pad=0.45", "fc": _CARD, "ec": colour, "lw": 1.2},
        )
    return figure


def trend(rows: Sequence[Point]) -> Figure:
    """Accuracy over the runs, the oldest on the left; rows have `value`, `interval`, `blessed`."""
    figure, axes = subplots(2.8)
    numbers = range(1, len(rows) + 1)
    for before, after in pairwise(zip(numbers, rows, strict=True)):
        ends = ([before[0], after[0]], [before[1]["value"], after[1]["value"]])
        axes.plot(*ends, color=MODEL, alpha=0.35)
    for number, row in zip(numbers, rows, strict=True):
        colour = GOOD if row["blessed"] else BAD
        if row["interval"]:
            axes.plot([number] * 2, row["interval"], color=colour, lw=1.4)
        axes.plot(number, row["value"], "o" if row["blessed"] else "X", color=colour, ms=6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, len(rows) + 0.5)
    axes.yaxis.set_major_formatter(_percent())
    axes.set_xlabel("run, in the order of time")
    axes.set_ylabel("trials answered right")
    return figure


def _interval(axes: Axes, value: float, row: int, interval: Sequence[float] | None) -> None:
    if interval:
        axes.plot(interval, [row, row], color=MODEL, lw=1.6)
    axes.plot(value, row, "o", color=MODEL, ms=5.5)


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %")


def _both_percent(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(_percent())
    axes.yaxis.set_major_formatter(_percent())
