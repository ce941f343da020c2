"""Markdown tables keep their shape, and metrics stand in their units."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from affect_rl.scoring.bootstrap import Difference, Estimate
from affect_rl.scoring.tables import header, in_unit, markdown_table

CELLS = st.text(alphabet="a|- é", max_size=5)


@given(rows=st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1)))
def test_bars_in_cells_do_not_change_the_shape(rows: list[list[str]]) -> None:
    first, rule, *rest = markdown_table(rows).splitlines()
    assert rule == "|" + " --- |" * len(rows[0])
    for line, row in zip([first, *rest], rows, strict=True):
        between = re.split(r"(?<!\\)\|", line)[1:-1]
        assert [cell[1:-1].replace("\\|", "|") for cell in between] == row


def test_shares_are_percent_and_counts_are_not() -> None:
    share = Estimate(0.5, 0.25, 0.75)
    assert in_unit("weighted_f1", share) == "50.0 [25.0, 75.0]"
    assert in_unit("labels_per_answer", share) == "0.50 [0.25, 0.75]"
    assert in_unit("hit", Difference(-0.02, -0.1, 0.05, p=0.4), "+") == "-2.0 [-10.0, +5.0]"
    assert [header(name) for name in ("f_s", "invalid_rate", "macro_f1")] == ["F_s", "invalid", "macro F1"]
