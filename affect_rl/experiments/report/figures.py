"""Which plots an experiment has, each with a caption and its content in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from affect_rl.experiments.report import plots
from affect_rl.experiments.report.summaries import Curve, curves
from affect_rl.experiments.report.wording import number, scale, signed, title, unit, verdict
from affect_rl.experiments.results import Comparison, Interval, Measure, Results
from affect_rl.scoring.scoring import HIT_METRICS

LABELS_PER_ANSWER, MALFORMED = "Labels per answer", "Share of malformed answers"
WITHOUT = "Score without an agent"
SIGNS_OF_HACKING = frozenset({LABELS_PER_ANSWER, MALFORMED, WITHOUT})
"""Groups of learning curves that show a policy hacking its reward: it lists labels, breaks the format, or spoils what
it is compared with."""

_AGENT_CURVES = {
    "{agent}/reward": "Reward",
    "kl/{agent}": "KL to the SFT policy, nats per token",
    "{agent}/tokens": "Tokens per answer",
    "{agent}/invalid": MALFORMED,
}
_TEAM_CURVES = {
    f"{split}/{metric}": f"{title(metric)} on {split}"
    for split in ("dev", "test")
    for metric in ("weighted_f1", "f_s", "waf")
} | {"episode/score": "Score of the training episodes"}
_SCORE_WITHOUT = "episode/score_without_"


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot and what stands above it."""

    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class FigureGroup:
    """Plots that belong together, for example one an agent."""

    title: str
    figures: Sequence[Figure]


@dataclass(frozen=True, slots=True)
class Compared:
    """All comparisons of one reference by one metric, as rows and as a plot.

    Attributes:
        metric: the one that is compared and plotted.
        reference: an arm.
        rows: one for each other arm.
        beside: for each row the same comparison by the metrics that this one is never shown without.
        figure: the plot.
    """

    metric: str
    reference: str
    rows: Sequence[Comparison]
    beside: Sequence[Sequence[Comparison]]
    figure: Figure


def overview(results: Results, metric: str, series: Mapping[str, int], key: str) -> Figure:
    """A metric of the arms (filled marks) and the baselines (hollow marks).

    Args:
        results: the experiment.
        metric: which one.
        series: number of each arm, which decides its colour and dashes.
        key: starts the plot's ids; every experiment on a page has its own.
    """
    arms = {name: arm.metrics[metric] for name, arm in results.arms.items() if metric in arm.metrics}
    baselines = {name: found[metric] for name, found in results.baselines.items() if metric in found}
    rows = [_row(metric, name, of, series[name]) for name, of in arms.items()]
    rows += [_row(metric, f"{name} (baseline)", of, sure=False) for name, of in baselines.items()]
    caption = f"{title(metric)}, with 95 % intervals"
    said = ", ".join(f"{name} {number(metric, of.value)}" for name, of in (arms | baselines).items())
    return Figure(caption, plots.intervals(rows, key=f"{key}-overview", alt=f"{caption}: {said}", unit=unit(metric)))


def compared(results: Results, metrics: Sequence[str], key: str) -> list[Compared]:
    """The comparisons by metric, in the order of `metrics`, and reference; a hollow mark is one that includes 0."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in sorted(results.comparisons, key=lambda c: metrics.index(c.metric)):
        groups.setdefault((comparison.metric, comparison.reference), []).append(comparison)
    found = []
    for n, ((metric, reference), rows) in enumerate(groups.items()):
        with_it = HIT_METRICS[1:] if metric == HIT_METRICS[0] else ()
        others = [{c.other: c for c in groups.get((other, reference), ())} for other in with_it]
        beside = [[of[row.other] for of in others if row.other in of] for row in rows]
        figure = _forest(metric, reference, rows, f"{key}-compared-{n}")
        found.append(Compared(metric, reference, rows, beside, figure))
    return found


def _forest(metric: str, reference: str, rows: Sequence[Comparison], key: str) -> Figure:
    caption = f"{title(metric)}: {reference} minus the other"
    said = [f"{c.other} {number(metric, c.difference.value, sign=True)}, {verdict(c.difference)}" for c in rows]
    bars = [_row(metric, c.other, c.difference, 0, verdict(c.difference) != "includes 0") for c in rows]
    svg = plots.intervals(bars, key=key, alt=f"{caption}: {'; '.join(said)}", zero=True, unit=unit(metric))
    return Figure(caption, svg)


def _row(metric: str, label: str, of: Interval, series: int | None = None, sure: bool = True) -> plots.Row:
    value, low, high = (scale(metric) * x for x in (of.value, of.low, of.high))
    return plots.Row(label, value, low, high, series, sure)


def learning(table: pa.Table, series: Mapping[str, int], key: str) -> list[FigureGroup]:
    """Learning curves: of the team, then each quantity of the agents."""
    groups: dict[str, Mapping[str, str]] = {"The team": _TEAM_CURVES}
    metrics = list(dict.fromkeys(table["metric"].to_pylist()))
    agents = [metric.removesuffix("/reward") for metric in metrics if metric.endswith("/reward")]
    groups |= {name: {m.format(agent=a): a.capitalize() for a in agents} for m, name in _AGENT_CURVES.items()}
    groups[LABELS_PER_ANSWER] = {"episode/labels": "The team"}
    without = [metric.removeprefix(_SCORE_WITHOUT) for metric in metrics if metric.startswith(_SCORE_WITHOUT)]
    groups[WITHOUT] = {f"{_SCORE_WITHOUT}{agent}": f"Without the {agent}" for agent in without}
    found = [_curve_group(table, name, curves_of, series, key) for name, curves_of in groups.items()]
    return [group for group in found if group.figures]


def _curve_group(
    table: pa.Table, name: str, metrics: Mapping[str, str], series: Mapping[str, int], key: str
) -> FigureGroup:
    figures = []
    for metric, caption in metrics.items():
        if lines := curves(table, metric, list(series)):
            svg = plots.learning_curves(lines, series, key=f"{key}-{metric}", alt=_said(f"{name}, {caption}", lines))
            figures.append(Figure(caption, svg))
    return FigureGroup(name, figures)


def _said(what: str, lines: Sequence[Curve]) -> str:
    ends = []
    for line in lines:
        mean = line.mean[np.isfinite(line.mean)]
        ends += [f"{line.arm} from {mean[0]:.3g} to {mean[-1]:.3g}"] if len(mean) else []
    return f"{what} over training, mean over seeds: {', '.join(ends)}"


def timelines(table: pa.Table, key: str) -> list[Figure]:
    """Who did what when in the last training steps; one figure an arm."""
    arms: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in table.to_pylist():
        lines = arms.setdefault(row["arm"], {})
        lines.setdefault(f"{row['who']}: {row['what']}", []).append((row["begun"], row["seconds"]))
    found = []
    for arm, lines in arms.items():
        said = ", ".join(f"{line} {sum(seconds for _, seconds in spans):.2f} s" for line, spans in lines.items())
        svg = plots.timeline(lines, key=f"{key}-timeline-{arm}", alt=f"timeline of {arm}, seconds in all: {said}")
        found.append(Figure(arm, svg))
    return found


def fusion(found: Sequence[Measure], experts: Sequence[str], series: Mapping[str, int], key: str) -> list[FigureGroup]:
    """Routing weights and entropy of the experts' load by state, gains by relation.

    See `cluster.experiments.fusion_details`.
    """
    groups = [
        FigureGroup("Routing weights by state", _routing(found, experts, key)),
        FigureGroup("Entropy of the experts' load by state", _by_arm(found, "load_entropy", series, key)),
        FigureGroup(
            "Gain of the reference over the arm, by the labels of its support",
            _by_arm(found, "gain", series, key, zero=True),
        ),
    ]
    return [group for group in groups if group.figures]


def expert_of(measure: Measure) -> str | None:
    """The expert of a measure ``routing/<state>/<expert>``; None if it is another one."""
    parts = measure.name.split("/")
    return parts[2] if parts[0] == "routing" and len(parts) == 3 else None


def _routing(found: Sequence[Measure], experts: Sequence[str], key: str) -> list[Figure]:
    arms: dict[str, dict[str, list[plots.Row]]] = {}
    for m in found:
        if expert := expert_of(m):
            row = plots.Row(expert, m.mean.value, m.mean.low, m.mean.high, experts.index(expert))
            arms.setdefault(m.arm, {}).setdefault(m.name.split("/")[1], []).append(row)
    figures = []
    for arm, states in arms.items():
        states = {state: sorted(rows, key=lambda row: experts.index(row.label)) for state, rows in states.items()}
        said = "; ".join(f"{s}: {', '.join(f'{r.label} {r.value:.2f}' for r in rows)}" for s, rows in states.items())
        svg = plots.grouped_bars(states, key=f"{key}-routing-{arm}", alt=f"routing weights of {arm} by state: {said}")
        figures.append(Figure(arm, svg))
    return figures


def _by_arm(
    found: Sequence[Measure], kind: str, series: Mapping[str, int], key: str, zero: bool = False
) -> list[Figure]:
    """Measures ``<kind>/<case>``: a plot an arm, a row a case; with `zero`, they are differences."""
    arms: dict[str, list[plots.Row]] = {}
    for m in found:
        if m.name.startswith(f"{kind}/"):
            e, sure = m.mean, not zero or verdict(m.mean) != "includes 0"
            row = plots.Row(m.name.removeprefix(f"{kind}/"), e.value, e.low, e.high, series[m.arm], sure)
            arms.setdefault(m.arm, []).append(row)
    figures = []
    for arm, rows in arms.items():
        said = ", ".join(f"{row.label} {signed(row.value, 3, sign=zero)}" for row in rows)
        alt = f"{kind.replace('_', ' ')}, {arm}: {said}"
        figures.append(Figure(arm, plots.intervals(rows, key=f"{key}-{kind}-{arm}", alt=alt, zero=zero)))
    return figures
