"""The report as one HTML page that needs nothing but itself.

The page carries its styles and plots, runs no script, and forbids its reader's browser by policy to fetch anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from affect_rl.errors import AffectError
from affect_rl.experiments.report import plots, wording
from affect_rl.experiments.report.experiment import Experiment
from affect_rl.experiments.report.section import section
from affect_rl.files import whole_file


def render_page(experiments: Sequence[Experiment], most_episodes: int = 40) -> str:
    """The page; the same experiments give the same bytes.

    Args:
        experiments: in the page's order.
        most_episodes: how many to show of each experiment.

    Raises:
        AffectError: an experiment's files contradict each other.
    """
    sections = [section(e, f"e{number}", most_episodes) for number, e in enumerate(experiments, start=1)]
    return templates().get_template("page.html.jinja").render(sections=sections)


def write(path: Path, text: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        AffectError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf8")
    except OSError as error:
        raise AffectError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


def templates() -> jinja2.Environment:
    """Where the pages' templates are found, with what they all use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # texts of datasets are not ours
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("header", "interval", "number", "p_value", "setting", "signed", "verdict", "SELECTION")
    environment.globals |= {name: getattr(wording, name) for name in names}
    environment.globals |= {"COLOURS": plots.COLOURS, "dashes": plots.dashes}
    return environment
