"""What pages say of metrics is what docs/metrics.md says."""

from __future__ import annotations

import re
from pathlib import Path

from cluster.watching.meanings import MEANINGS, WARM_START_MEANINGS, meaning
from cluster.watching.names import WARM_START

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_meanings_are_the_words_of_the_documentation() -> None:
    tables = DOCS.read_text().split("\n## While a step runs\n")[0]
    assert dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", tables, re.M)) == MEANINGS
    assert WARM_START_MEANINGS.keys() == WARM_START.keys()


def test_a_metric_has_the_meaning_of_its_row_and_one_of_ones_own_none() -> None:
    assert meaning("debater/entropy") == MEANINGS["<agent>/entropy"]
    assert meaning("kl/mean") == MEANINGS["kl/mean"] != meaning("kl/planner") == MEANINGS["kl/<agent>"]
    assert meaning("planner/loss", warm_start=True) == "cross entropy of a token of the agent's answers"
    assert meaning("my/own") == ""
