"""How numbers and names are written in tables and captions, the same in HTML and Markdown."""

from __future__ import annotations

import json

from affect_rl.experiments.results import Interval, Results
from affect_rl.scoring.bootstrap import Estimate
from affect_rl.scoring.metrics import METRICS
from affect_rl.scoring.tables import COUNTS, header

SELECTION = {
    "dev": "the policy that was best on dev",
    "last": "the policy of the last step",
    "test_oracle": "the policy that was best on the test set itself (test_oracle): no honest result",
}
"""What each selection rule picks."""


def metrics(results: Results) -> list[str]:
    """The columns of the main table, the main metric first."""
    present = dict.fromkeys(name for arm in results.arms.values() for name in arm.metrics)
    usual = [name for name in (results.main, *METRICS) if name in present]
    return list(dict.fromkeys([*usual, *present]))


def title(metric: str) -> str:
    """What a caption that starts with a metric calls it."""
    return header(metric)[:1].upper() + header(metric)[1:]


def unit(metric: str) -> str:
    """What a metric is counted in."""
    return "" if metric in COUNTS else "percent"


def scale(metric: str) -> float:
    """What a metric is multiplied by to be in its unit."""
    return 1 if metric in COUNTS else 100


def number(metric: str, value: float, sign: bool = False) -> str:
    """A metric's value in its unit."""
    return signed(scale(metric) * value, 2 if metric in COUNTS else 1, sign)


def interval(metric: str, of: Interval, sign: bool = False) -> str:
    """The ends of a metric's interval in its unit, ``[60.8, 69.8]``."""
    return f"[{number(metric, of.low, sign)}, {number(metric, of.high, sign)}]"


def signed(value: float, digits: int, sign: bool = False) -> str:
    """A number with a minus as long as its plus; never minus 0."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "+" if sign else "")
    return text.replace("-", "\N{MINUS SIGN}")


def verdict(difference: Interval | Estimate) -> str:
    """What an interval says of a difference: ``above 0``, ``below 0`` or ``includes 0``."""
    if difference.low > 0:
        return "above 0"
    return "below 0" if difference.high < 0 else "includes 0"


def setting(name: str, value: object) -> str:
    """An override as a command line takes it, ``episode.agents=["generator"]``."""
    return f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def p_value(p: float) -> str:
    """A p-value as tables show it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
