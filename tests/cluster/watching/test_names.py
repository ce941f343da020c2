"""The table of names, docs/metrics.md and the rules of Prometheus agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.watching.names import LIVE, STEP, WARM_START, prometheus_name

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"
VALID = re.compile(r"[a-z][a-z0-9_]*")


def _named_in(section: str) -> list[str]:
    """First cells of the tables of a section, without their quotes."""
    text = DOCS.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)


def test_every_documented_metric_has_a_name_and_every_name_is_documented() -> None:
    explained = set(re.findall(r"^\| `([^`]+)` \|", DOCS.read_text().split("\n## While a step runs\n")[0], re.M))
    known = {prometheus_name(metric)[0] for metric in explained}
    assert known == set(STEP.values()) - {"affect_test_score"}, "which stands where `train.select` asks for it"


def test_the_page_lists_the_names_as_the_table_has_them() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", DOCS.read_text(), flags=re.MULTILINE)
    assert dict(rows) == {**STEP, **{f"{name} (warm start)": series for name, series in WARM_START.items()}}


def test_the_page_explains_what_is_published_live() -> None:
    assert _named_in("While a step runs") == list(LIVE)


def test_names_are_of_the_kind_that_ray_does_not_drop_and_differ() -> None:
    names = [*STEP.values(), *WARM_START.values(), *LIVE]
    assert len(set(names)) == len(names)
    assert all(VALID.fullmatch(name) for name in names)


@pytest.mark.parametrize(
    ("metric", "name", "tags"),
    [
        ("kl/mean", "affect_kl_to_start", {}),
        ("kl/planner", "affect_agent_kl_to_start", {"agent": "planner"}),
        ("debater/kl", "affect_agent_update_kl", {"agent": "debater"}),
        ("episode/score_without_filter", "affect_score_without", {"agent": "filter"}),
        ("time/engines_waited_s", "affect_step_seconds", {"part": "engines_waited"}),
        ("dev/f_s", "affect_dev_score", {"part": "f_s"}),
    ],
)
def test_whose_metric_it_is_becomes_a_tag(metric: str, name: str, tags: dict[str, str]) -> None:
    assert prometheus_name(metric) == (name, tags)


def test_the_warm_start_has_names_of_its_own() -> None:
    assert prometheus_name("planner/loss", warm_start=True) == ("affect_sft_agent_loss", {"agent": "planner"})


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_a_metric_of_ones_own_has_a_name_that_prometheus_takes(metric: str) -> None:
    assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", prometheus_name(metric)[0])
