"""The experiments' tables as one Markdown file; plots and episodes stand on the page alone."""

from __future__ import annotations

from collections.abc import Sequence

from affect_rl.experiments.report.experiment import Experiment


def render_markdown(experiments: Sequence[Experiment]) -> str:
    """Of each experiment what its ``results.md`` says."""
    return "\n".join(experiment.results.markdown() for experiment in experiments)
