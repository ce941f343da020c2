"""Readers of the agents' answers: strict on structure, tolerant of white space and case, never raising.

Each reader returns what it could use and, if the answer broke the format, what was wrong with it.
A broken answer is replaced by the role's fallback; the caller applies the format penalty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from affect_rl.evidence import GROUPS, Evidence, Group
from affect_rl.sample import AffectSample
from affect_rl.scoring.emotions import normalise

MAX_OPEN_LABELS = 8
"""An open answer may name this many labels."""
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
"""Marks around a label."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The planner's queries, why the answer was not usable (None: it was), and the emotion it expects (if asked)."""

    queries: Mapping[Group, str]
    problem: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The evidence kept per group, and why the answer was not usable (None: it was)."""

    kept: Mapping[Group, tuple[Evidence, ...]]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The generator's labels and rationale, and why the answer was not usable (None: it was)."""

    labels: tuple[str, ...]
    rationale: str
    problem: str | None = None


def render_plan(queries: Mapping[Group, str], label: str | None = None) -> str:
    """A plan as the planner should write it."""
    named = [f"label: {label}"] if label else []
    return "\n".join([*(f"{group}: {queries[group]}" for group in GROUPS), *named])


def render_selection(numbers: Mapping[Group, tuple[int, ...]]) -> str:
    """A selection as the filter should write it; numbers count through all groups from 1."""
    return "\n".join(f"{group}: {', '.join(map(str, numbers.get(group, ()))) or 'none'}" for group in GROUPS)


def render_answer(rationale: str, labels: tuple[str, ...]) -> str:
    """An answer as the generator should write it."""
    return f"reason: {rationale}\nlabel: {', '.join(labels)}"


def parse_plan(text: str, sample: AffectSample, *, with_label: bool = False) -> Plan:
    """Read ``group: query`` lines, one per group, and ``label:`` if asked. Fallback: the text for every group."""
    fields, problem = _fields(text, (*GROUPS, "label") if with_label else GROUPS)
    if problem:
        return Plan(dict.fromkeys(GROUPS, sample.text), problem)
    return Plan({group: fields[group] for group in GROUPS}, label=fields.get("label"))


def parse_selection(text: str, candidates: Mapping[Group, tuple[Evidence, ...]], keep: int) -> Selection:
    """Read ``group: numbers`` lines. Fallback: the first `keep` of each group in retrieval order."""
    fields, problem = _fields(text, GROUPS)
    kept: dict[Group, tuple[Evidence, ...]] = {}
    first = 1
    for group in GROUPS:
        items = candidates.get(group, ())
        if not problem:
            chosen, problem = _numbers(fields[group], group, first, len(items), keep)
            kept[group] = tuple(items[n - first] for n in chosen)
        first += len(items)
    if problem:
        return Selection({group: candidates.get(group, ())[:keep] for group in GROUPS}, problem)
    return Selection(kept)


def parse_answer(text: str, sample: AffectSample) -> Answer:
    """Read ``reason:`` and ``label:`` lines. A broken answer has no labels.

    Closed sets and sentiment take exactly one of the sample's candidates. Open labels take up to `MAX_OPEN_LABELS`
    words, which stay as they are written but for case: published wheels know other forms than our own wheel.
    """
    fields, problem = _fields(text, ("reason", "label"))
    if problem:
        return Answer((), "", problem)
    labels: dict[str, str] = {}
    for written in fields["label"].split(","):
        if form := normalise(written):
            labels.setdefault(form, _EDGES.sub("", written.casefold()))
    if sample.label_kind == "open":
        if not 1 <= len(labels) <= MAX_OPEN_LABELS:
            return Answer((), fields["reason"], f"label: {len(labels)} labels, expected 1 to {MAX_OPEN_LABELS}")
        return Answer(tuple(labels.values()), fields["reason"])
    known = {normalise(candidate): candidate for candidate in sample.candidates}
    if len(labels) != 1:
        return Answer((), fields["reason"], f"label: {len(labels)} labels, expected one")
    (form,) = labels
    if form not in known:
        return Answer((), fields["reason"], f"label: `{form}` is not one of {', '.join(sample.candidates)}")
    return Answer((known[form],), fields["reason"])


def _fields(text: str, names: tuple[str, ...]) -> tuple[dict[str, str], str | None]:
    """Read ``name: value`` lines; each of `names` once, nothing else."""
    fields: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, value = line.partition(":")
        name, value = name.strip().lower(), " ".join(value.split())
        if not colon or name not in names:
            return fields, f"`{line[:40]}` is not one of the lines {', '.join(f'`{n}:`' for n in names)}"
        if name in fields:
            return fields, f"`{name}:` stands twice"
        if not value:
            return fields, f"`{name}:` is empty"
        fields[name] = value
    for name in names:
        if name not in fields:
            return fields, f"`{name}:` is missing"
    return fields, None


def _numbers(value: str, group: str, first: int, count: int, keep: int) -> tuple[tuple[int, ...], str | None]:
    """Read ``none`` or distinct numbers in ``[first, first + count)``, at most `keep` of them."""
    if value.lower() == "none":
        return (), None
    if not re.fullmatch(r"[0-9]{1,4}(\s*,\s*[0-9]{1,4})*", value, flags=re.ASCII):
        return (), f"{group}: `{value[:40]}` is neither numbers nor `none`"
    numbers = tuple(int(n) for n in value.split(","))
    if len(set(numbers)) < len(numbers):
        return (), f"{group}: a number stands twice"
    if outside := [n for n in numbers if not first <= n < first + count]:
        return (), f"{group}: {outside[0]} is not a candidate of this group"
    if len(numbers) > keep:
        return (), f"{group}: {len(numbers)} kept, at most {keep}"
    return numbers, None
