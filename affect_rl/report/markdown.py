"""The experiments' tables as one Markdown file; plots and episodes stand on the page alone."""

from __future__ import annotations

from collections.abc import Sequence

from affect_rl.report.experiment import Experiment
from affect_rl.report.summaries import Measure, measures
from affect_rl.report.wording import signed


def render_markdown(experiments: Sequence[Experiment]) -> str:
    """Of each experiment what its ``results.md`` says, and the means of its details."""
    parts = []
    for experiment in experiments:
        parts.append(experiment.results.markdown())
        if experiment.details is not None:
            parts.append(_table(measures(experiment.details)))
    return "\n".join(parts)


def _table(found: Sequence[Measure]) -> str:
    rows = ["| measure | arm | mean | samples |", "| --- | --- | --- | --- |"]
    for m in found:
        value, low, high = (signed(x, 3) for x in (m.estimate.value, m.estimate.low, m.estimate.high))
        rows.append(f"| {m.name} | {m.arm} | {value} [{low}, {high}] | {m.samples} |")
    return "\n".join(rows) + "\n"
