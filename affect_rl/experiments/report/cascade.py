"""A cascade as one HTML page: the score against tokens and against time, and the curve as a table."""

from __future__ import annotations

from markupsafe import Markup

from affect_rl.experiments.cascade import Cascade, Point
from affect_rl.experiments.report import plots
from affect_rl.experiments.report.figures import Figure
from affect_rl.experiments.report.page import templates
from affect_rl.experiments.report.plots import Row
from affect_rl.scoring.tables import header


def render_cascade(found: Cascade) -> str:
    """The page; the same cascade gives the same bytes."""
    figures = [
        Figure(f"{header(found.metric)} on test against {what}", _curve(found, what))
        for what in ("tokens a sample", "ms a sample")
    ]
    return templates().get_template("cascade.html.jinja").render(c=found, figures=figures)


def _curve(found: Cascade, what: str) -> Markup:
    def cost(point: Point) -> float:
        return point.tokens if what == "tokens a sample" else point.ms

    points, chosen = sorted(found.splits["test"], key=cost), found.chosen["test"]
    return plots.trade_off(
        [cost(point) for point in points],
        [_row(point) for point in points],
        (cost(chosen), _row(chosen)),
        label=what,
        key=f"cascade-{what.split()[0]}",
        alt=f"{header(found.metric)} against {what}, from the classifier alone to the team alone; "
        f"chosen: {100 * chosen.score.value:.1f} at {cost(chosen):.0f}",
    )


def _row(point: Point) -> Row:
    score = point.score
    return Row("chosen on dev", 100 * score.value, 100 * score.low, 100 * score.high)
