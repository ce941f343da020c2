"""Emotion wheels: which labels mean the same.

An emotion wheel is a tree of words, three levels deep, from basic emotions to shades of them. The benchmark
MER-UniBench (Lian et al., 2025, "AffectGPT", arXiv 2501.16566) asks for labels in free words and groups them by five
wheels: a label passes two tables, from its written form to base words and from these to words of the wheels, and
ends in a cluster of each wheel. The tables are read from a user's directory, as they are published:

- ``wheel1.xlsx`` .. ``wheel5.xlsx``: columns level1, level2, level3; an empty cell repeats the one above.
- ``synonym.xlsx``: columns word_run1, synonym_run1 .. word_run8, synonym_run8: synonyms of each wheel word, as a
  language model named them in eight runs.
- ``format.csv``: columns name (a base word) and format (its written forms).

There are two releases of them, the mappings `unibench` and `mer2026`. Published results were scored with `unibench`, in
which "fear" is also a form of "fearless", so that it falls into "happy" of wheel 2 and "joyful" of wheels 3 and 5.
`mer2026` mends that in its format.csv. Values under the two are not comparable.
`own_wheel` is the project's own wheel (`affect_rl.scoring.emotions`) in the same shape; it needs no download.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from affect_rl.data.records import Record, read_records
from affect_rl.data.validation import near
from affect_rl.errors import AffectError
from affect_rl.scoring.emotions import CLUSTER_OF_WORD, normalise

Level = Literal[1, 2]
WheelMapping = Literal["unibench", "mer2026"]
WHEELS = tuple(f"wheel{k}.xlsx" for k in range(1, 6))
LEVELS = ("level1", "level2", "level3")
RUNS = tuple((f"word_run{run}", f"synonym_run{run}") for run in range(1, 9))

_FEAR_IS_FEARLESS: Mapping[WheelMapping, bool] = {"unibench": True, "mer2026": False}


def _unchanged(label: str) -> str:
    return label


@dataclass(frozen=True, slots=True)
class Wheels:
    """Emotion wheels and the way of a label to their words.

    Attributes:
        name: the mapping, or ``own``.
        words: the wheel words that a written form leads to, in alphabetic order.
        clusters: for each level, one table a wheel: from a word to its cluster.
        form: makes a label the written form that `words` knows.
    """

    name: str
    words: Mapping[str, Sequence[str]]
    clusters: Mapping[Level, tuple[Mapping[str, str], ...]]
    form: Callable[[str], str] = _unchanged

    def group(self, labels: Iterable[str], level: Level = 1) -> tuple[frozenset[str], ...]:
        """The clusters M_k(labels) of each wheel k; a label without a word in a wheel falls into none of it.

        The first of a label's words, in alphabetic order, that stands in the wheel at any level decides.

        Raises:
            AffectError: these wheels have no such level.
        """
        if level not in self.clusters:
            raise AffectError(f"level {level}: the wheel {self.name!r} has none; choose {max(self.clusters)}")
        reached = [self.words.get(self.form(label), ()) for label in labels]
        return tuple(
            frozenset(wheel[word] for words in reached if (word := _first(words, wheel)) is not None)
            for wheel in self.clusters[level]
        )


def parse_labels(answer: str | Iterable[str] | None) -> tuple[str, ...]:
    """The labels of a list such as ``[happy, "light-hearted"]``, in lower case and order, without empty ones.

    One outer ``[`` and ``]`` is dropped, then the text is cut at quotes and commas. A list of texts is read text by
    text; None is an empty list. Anything can be read, so nothing is raised.
    """
    if answer is None:
        return ()
    if not isinstance(answer, str):
        return tuple(label for text in answer for label in parse_labels(text))
    inner = answer.strip().removeprefix("[").removesuffix("]")
    return tuple(label for piece in re.split(r"[\"',]", inner) if (label := piece.strip().lower()))


def own_wheel() -> Wheels:
    """The project's own wheel: one, of one level. Unlike the published ones it has a cluster for neutral."""
    return Wheels("own", {word: (word,) for word in CLUSTER_OF_WORD}, {1: (CLUSTER_OF_WORD,)}, normalise)


def read_wheels(directory: Path | str, mapping: WheelMapping = "unibench") -> Wheels:
    """The five wheels of MER-UniBench from the directory of the published tables.

    Args:
        directory: where the tables lie.
        mapping: which of the two they are.

    Raises:
        AffectError: a table is missing, damaged or empty, lacks a column or a first cell, or is the other mapping's.
    """
    directory = Path(directory)
    if mapping not in get_args(WheelMapping):
        raise AffectError(f"mapping {mapping!r} is unknown; {near(mapping, get_args(WheelMapping))}")
    if not directory.is_dir():
        raise AffectError(f"{directory}: is not a directory; give the one that holds {WHEELS[0]} and format.csv")
    bases_of = _bases(directory / "format.csv", mapping)
    wheel_words_of = _synonyms(directory / "synonym.xlsx")
    words = {
        form: sorted(set().union(*(wheel_words_of[base] for base in bases if base in wheel_words_of)))
        for form, bases in bases_of.items()
    }
    trees = [_tree(directory / file) for file in WHEELS]
    clusters: dict[Level, tuple[Mapping[str, str], ...]] = {
        1: tuple(map(_level1_clusters, trees)),
        2: tuple(map(_level2_clusters, trees)),
    }
    return Wheels(mapping, words, clusters)


def _first(words: Sequence[str], wheel: Mapping[str, str]) -> str | None:
    return next((word for word in words if word in wheel), None)


def _bases(path: Path, mapping: WheelMapping) -> dict[str, set[str]]:
    """Base words by written form; a base word is a form of itself."""
    bases_of: dict[str, set[str]] = defaultdict(set)
    for record in read_records(path, ("name", "format")):
        base = _cell(record, "name")
        for form in (base, *parse_labels(record.values["format"])):
            bases_of[form].add(base)
    if "fearless" in bases_of and ("fearless" in bases_of.get("fear", ())) != _FEAR_IS_FEARLESS[mapping]:
        other = next(name for name in _FEAR_IS_FEARLESS if name != mapping)
        raise AffectError(f"{path}: belongs to the mapping {other}, not {mapping}; choose that, or give other files")
    return dict(bases_of)


def _synonyms(path: Path) -> dict[str, set[str]]:
    """Wheel words by synonym, the union over the runs; a wheel word is a synonym of itself."""
    wheel_words_of: dict[str, set[str]] = defaultdict(set)
    for record in read_records(path, [column for run in RUNS for column in run]):
        for word_column, synonym_column in RUNS:
            word = _cell(record, word_column)
            for synonym in (word, *parse_labels(record.values[synonym_column])):
                wheel_words_of[synonym].add(word)
    return dict(wheel_words_of)


def _tree(path: Path) -> dict[str, dict[str, list[str]]]:
    """Level 3 under level 2 under level 1, in the order of the table."""
    tree: dict[str, dict[str, list[str]]] = {}
    above: dict[str, str] = {}
    for record in read_records(path, LEVELS):
        for level in LEVELS:
            if level not in above or record.values[level] is not None:
                above[level] = _cell(record, level)
        level1, level2, level3 = (above[level] for level in LEVELS)
        tree.setdefault(level1, {}).setdefault(level2, []).append(level3)
    return tree


def _level1_clusters(tree: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """The level-1 word above each word. Of a word that stands twice the last place counts, as published."""
    clusters: dict[str, str] = {}
    for level1, branches in tree.items():
        clusters[level1] = level1
        for level2, leaves in branches.items():
            clusters |= dict.fromkeys((level2, *leaves), level1)
    return clusters


def _level2_clusters(tree: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """The level-2 word above each word; a level-1 word falls into the first of its own, alphabetically."""
    clusters: dict[str, str] = {}
    for level1, branches in tree.items():
        clusters[level1] = min(branches)
        for level2, leaves in branches.items():
            clusters |= dict.fromkeys((level2, *leaves), level2)
    return clusters


def _cell(record: Record, column: str) -> str:
    """The text of a cell, trimmed and in lower case."""
    text = str(record.values[column] or "").strip().lower()
    if not text:
        raise AffectError(f"{record.place}: {column} is empty; fill it in")
    return text
