"""Plots as SVG to stand inline in a page.

Colours are not drawn but named: matplotlib draws with placeholders, which become CSS variables (``var(--ink)``), so a
plot follows its page into dark mode. Words stay text in the page's own font. A plot is as wide as a telephone's
screen; a page lays several side by side. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from affect_rl.experiments.report.summaries import Curve

WIDTH = 340
"""Of a plot, in CSS pixels."""

COLOURS = 8
DASHES = ((), (5, 2), (1.5, 1.8), (7, 2, 1.5, 2))
"""Lines differ by colour, one of the variables ``--series-0`` ..., and by the lengths of their dashes."""

_INK, _MUTED, _RULE, _PAPER = "#000001", "#000002", "#000003", "#000004"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _RULE: "rule", _PAPER: "paper"} | {
    f"#0001{i:02x}": f"series-{i}" for i in range(COLOURS)
}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": _INK,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.labelcolor": _MUTED,
    "axes.labelsize": 11,
    "axes.edgecolor": _RULE,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _RULE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.bottom": False,
    "ytick.left": False,
    "lines.scale_dashes": False,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class Row:
    """An interval to plot, in the ink's colour without a `series`; `sure` ones get a filled mark."""

    label: str
    value: float
    low: float
    high: float
    series: int | None = None
    sure: bool = True


def learning_curves(lines: Sequence[Curve], series: Mapping[str, int], *, key: str, alt: str) -> Markup:
    """A metric over training: a thin line a seed, a thick one for the mean of each arm.

    Args:
        lines: curves of arms.
        series: number of each arm, which decides its colour and dashes.
        key: tells this plot's ids from those of the page's other plots.
        alt: what the plot shows, in words.
    """
    with _style(key):
        figure, axes = _axes(200, left=46, bottom=38)
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        for line in lines:
            look = {"color": _colour(series[line.arm]), "linestyle": (0, dashes(series[line.arm]) or None)}
            if len(line.seeds) > 1:
                for seed in line.seeds:
                    _draw(axes, line.steps, seed, color=look["color"], linewidth=0.7, alpha=0.3)
            _draw(axes, line.steps, line.mean, linewidth=1.9, **look)
        axes.set_xlabel("training step")
        return _svg(figure, alt)


def intervals(rows: Sequence[Row], *, key: str, alt: str, zero: bool = False, unit: str = "") -> Markup:
    """Values with their intervals, one under the other; with `zero`, differences around a line at 0."""
    height = 38 * len(rows) + 44
    with _style(key):
        figure, axes = _axes(height, left=8, bottom=40)
        axes.set_ylim(len(rows) - 0.2, -0.75)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.margins(x=0.06)
        if zero:
            axes.axvline(0, color=_MUTED, linewidth=1)
        for y, row in enumerate(rows):
            colour = _colour(row.series)
            axes.hlines(y, row.low, row.high, color=colour, linewidth=2.2)
            axes.plot(
                row.value, y, "o", markersize=7, color=colour, markerfacecolor=colour if row.sure else _PAPER,
                markeredgewidth=1.8,
            )  # fmt: skip
            axes.annotate(row.label, (0.005, y), (0, 9), axes.get_yaxis_transform(), "offset points", va="baseline")
        axes.set_xlabel(unit)
        return _svg(figure, alt)


def trade_off(
    x: Sequence[float], rows: Sequence[Row], chosen: tuple[float, Row], *, label: str, key: str, alt: str
) -> Markup:
    """A score with its interval against what it costs, and the point that was chosen.

    Args:
        x: cost of each of `rows`, ascending.
        rows: scores.
        chosen: cost and score of that point.
        label: what the cost is.
        key: tells this plot's ids from those of the page's other plots.
        alt: what the plot shows, in words.
    """
    with _style(key):
        figure, axes = _axes(220, left=46, bottom=38)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.fill_between(x, [r.low for r in rows], [r.high for r in rows], color=_colour(0), alpha=0.15, linewidth=0)
        axes.plot(x, [row.value for row in rows], color=_colour(0), linewidth=1.9, marker="o", markersize=3)
        axes.plot(chosen[0], chosen[1].value, "o", markersize=9, color=_INK, markerfacecolor=_PAPER)
        axes.annotate(chosen[1].label, (chosen[0], chosen[1].value), (0, -16), textcoords="offset points", ha="center")
        axes.set_xlabel(label)
        return _svg(figure, alt)


def parallel_coordinates(
    names: Sequence[str], rows: Sequence[tuple[Sequence[object], int]], *, key: str, alt: str
) -> Markup:
    """A line a row through an axis a column; the first row lies on top.

    Args:
        names: of the columns.
        rows: values of the columns, and the series that decides the line's look. Numbers lie between the smallest and
            the largest of their column, by their logarithm if these are ten times apart; others in their order.
        key: makes ids that no other plot has.
        alt: what the plot shows, in words.
    """
    columns = [_unit_interval([values[n] for values, _ in rows]) for n in range(len(names))]
    with _style(key):
        figure, axes = _axes(240, left=30, bottom=46)
        axes.grid(axis="y", visible=False)
        axes.set_yticks([])
        axes.set_ylim(-0.12, 1.12)
        axes.set_xlim(-0.3, len(names) - 0.7)
        for place, (_, marks) in enumerate(columns):
            axes.axvline(place, color=_RULE, linewidth=1)
            for height, mark in marks.items():
                axes.annotate(mark, (place, height), (4, 0), textcoords="offset points", fontsize=9, va="center")
        for number, (_, series) in reversed(list(enumerate(rows))):
            axes.plot(
                range(len(names)), [heights[number] for heights, _ in columns], color=_colour(series),
                linestyle=(0, dashes(series) or None), linewidth=2.4 if number == 0 else 1.2,
            )  # fmt: skip
        axes.set_xticks(range(len(names)), [name.replace(".", "\n", 1) for name in names], fontsize=9)
        return _svg(figure, alt)


def _unit_interval(values: Sequence[object]) -> tuple[list[float], dict[float, str]]:
    """Heights of values on an axis from 0 to 1, and the marks of the axis by their heights."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        numbers = np.array(values, float)
        low, high = numbers.min(), numbers.max()
        marks = {0.0: f"{low:.3g}", 1.0: f"{high:.3g}"} if high > low else {0.5: f"{low:.3g}"}
        if low > 0 and high >= 10 * low:
            numbers, low, high = np.log(numbers), np.log(low), np.log(high)
        heights = (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)
        return heights.tolist(), marks
    words = [str(v) for v in values]
    kinds = list(dict.fromkeys(sorted(words)))
    places = {word: n / (len(kinds) - 1) if len(kinds) > 1 else 0.5 for n, word in enumerate(kinds)}
    return [places[word] for word in words], {height: word for word, height in places.items()}


def grouped_bars(groups: Mapping[str, Sequence[Row]], *, key: str, alt: str) -> Markup:
    """Bars with intervals side by side in each group, for example the weight of each expert in each state."""
    widest = max(len(rows) for rows in groups.values())
    width = 0.8 / widest
    with _style(key):
        figure, axes = _axes(200, left=46, bottom=24)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        for place, rows in enumerate(groups.values()):
            for number, row in enumerate(rows):
                x = place + (number - (len(rows) - 1) / 2) * width
                axes.bar(x, row.value, 0.88 * width, color=_colour(row.series))
                axes.vlines(x, row.low, row.high, color=_INK, linewidth=1.2)
        axes.set_xticks(np.arange(len(groups)), list(groups))
        return _svg(figure, alt)


def timeline(lines: Mapping[str, Sequence[tuple[float, float]]], *, key: str, alt: str) -> Markup:
    """A row of bars for each kind of work: when it began and how long it took, in seconds.

    Args:
        lines: by label, which starts with whose work it is and a colon; those of one owner have one colour.
        key: tells this plot's ids from those of the page's other plots.
        alt: what the plot shows, in words.
    """
    owners = list(dict.fromkeys(label.split(":")[0] for label in lines))
    height = 30 * len(lines) + 44
    with _style(key):
        figure, axes = _axes(height, left=8, bottom=40)
        axes.set_ylim(len(lines) - 0.4, -0.75)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(6))
        for y, (label, spans) in enumerate(lines.items()):
            axes.broken_barh(list(spans), (y, 0.4), color=_colour(owners.index(label.split(":")[0])))
            axes.annotate(label, (0.005, y), (0, 3), axes.get_yaxis_transform(), "offset points", va="baseline")
        axes.set_xlabel("seconds")
        return _svg(figure, alt)


def _draw(axes: Axes, x: np.ndarray, y: np.ndarray, **look: object) -> None:
    """A line through the points that there are; a lone point is a dot."""
    there = np.isfinite(y)
    axes.plot(x[there], y[there], marker="o" if there.sum() == 1 else "", markersize=4, **look)  # type: ignore[arg-type]


def _colour(series: int | None) -> str:
    return _INK if series is None else f"#0001{series % COLOURS:02x}"


def dashes(series: int) -> tuple[float, ...]:
    """Lengths of an arm's dashes and gaps; empty for a whole line. A colour comes back with other dashes."""
    return DASHES[(series + series // COLOURS) % len(DASHES)]


def _style(key: str) -> AbstractContextManager[None]:
    """The look of all plots, whatever the user's own settings; `key` makes ids that no other plot has."""
    return matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": key}])


def _axes(height: float, *, left: float, bottom: float) -> tuple[Figure, Axes]:
    """A figure of `WIDTH` and its axes, margins in CSS pixels; an inch has 72 units of SVG, one a pixel."""
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    edges = {"left": left / WIDTH, "right": 1 - 8 / WIDTH, "bottom": bottom / height, "top": 1 - 8 / height}
    return figure, figure.subplots(gridspec_kw=edges)


def _svg(figure: Figure, alt: str) -> Markup:
    """The plot without what a page does not need: prolog, metadata, styles, ids of groups, fonts."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    text = buffer.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box
    text = text[text.index("</defs>") + len("</defs>") :]
    for pattern, plain in (
        (r'<g id="[^"]*"', "<g"),
        (r" ?font-family: [^;\"]*;", ""),
        (r' transform="rotate\(-0 [^"]*\)"', ""),
        (r'\s*\n\s*(?=[<"LCMz])', ""),
        ("xlink:href", "href"),
    ):
        text = re.sub(pattern, plain, text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    text = re.sub(rf"(?<=: )({'|'.join(_VARIABLES)})\b", lambda found: f"var(--{_VARIABLES[found[0]]})", text)
    return Markup(f'<svg {box[0]} role="img" aria-label="{escape(alt)}">{text}')
