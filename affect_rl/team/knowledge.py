"""What a critic may know beside an agent's prompt: the team's findings, the truth, and the score without the agent.

A baseline may use anything that does not depend on the agent's own tokens: it stays unbiased (MAPPO, arXiv 2103.01955,
gives its critic such a global state). Hence the rules: only what stood on the board *before* the agent's turn; and of
the lines played without somebody only the agent's own, ``S_without_i``, because in every other line the agent itself
speaks, with the same random numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from affect_rl.evidence import GROUPS, Evidence
from affect_rl.sample import AffectSample
from affect_rl.scoring.emotions import CLUSTERS, clusters
from affect_rl.team.board import Board
from affect_rl.team.planner import simple_label

LABELS = 16
"""Labels of a closed set that are told apart; of a larger one the later ones are not."""


def columns(sees: str) -> list[int]:
    """Which numbers of `knowledge` a critic gets that sees ``own``, ``team`` or ``privileged``."""
    levels: tuple[str, ...] = {"own": (), "team": ("team",), "privileged": ("team", "privileged")}[sees]
    return [place for place, (level, _) in enumerate(NAMES) if level in levels]


def knowledge(board: Board, score_without: float | None) -> tuple[float, ...]:
    """The numbers ``[F]`` named by `NAMES`; shares in [0, 1], similarities in [-1, 1].

    Args:
        board: what stood on it before the turn; the sample's labels may be unknown.
        score_without: score of the counterfactual branch without the agent; None: not played.
    """
    return tuple(value for _, _, value in _numbers(board, score_without))


def note(board: Board, score_without: float | None, sees: str) -> str:
    """The same in words, for a separate critic's prompt; empty if it ``sees`` its ``own`` prompt alone.

    What agents wrote in words in slots of their own, and in `notes`, stands at the end.
    """
    lines = []
    if sees != "own":
        lines += [f"{group} query: {query}" for group, query in board.queries.items()]
        lines += [f"{group} found: {_labels(items)}" for group, items in board.candidates.items() if items]
        lines += [f"{group} kept: {_labels(items)}" for group, items in board.kept.items() if items]
    if sees == "privileged":
        lines += [f"truth: {', '.join(board.sample.labels)}"]
        lines += [f"neighbours: {'; '.join(', '.join(labels) for labels in board.support.labels)}"]
        lines += [f"without: {score_without:.2f}"] if score_without is not None else []
    if sees != "own":
        lines += [f"{slot}: {text}" for slot, written in board.slots.items() for text in _texts(written)]
    return "".join(f"{line}\n" for line in lines)


def _texts(written: Any) -> list[str]:
    """What a slot holds in words: a text, or several."""
    texts = written if isinstance(written, tuple) else (written,)
    return [" ".join(text.split()) for text in texts if isinstance(text, str) and text]


def _labels(items: Sequence[Evidence]) -> str:
    return "; ".join(", ".join(item.labels) for item in items)


def _numbers(board: Board, score_without: float | None) -> Iterator[tuple[str, str, float]]:
    """Level, name and value of each number."""
    sample, support = board.sample, board.support
    plural = simple_label(sample, support) if support.labels else ""
    for group in GROUPS:
        items = board.candidates.get(group, ())
        yield "team", f"{group} similarity", max((item.score for item in items), default=0.0)
        yield "team", f"{group} plurality", _share(items, lambda item: plural in item.labels)
    yield "team", "neighbours agree", _plurality(support.labels)
    yield "team", "candidates agree", _plurality([i.labels for g in GROUPS for i in board.candidates.get(g, ())])

    truth = set(sample.labels)
    yield "privileged", "score without", score_without or 0.0
    yield "privileged", "played without", float(score_without is not None)
    yield "privileged", "neighbours right", _mean([bool(truth & set(labels)) for labels in support.labels])
    yield "privileged", "plurality right", float(plural in truth)
    for group in GROUPS:
        found, kept = board.candidates.get(group, ()), board.kept.get(group, ())
        right, first = (_share(items, lambda item: item.agrees(sample)) for items in (found, found[:1]))
        yield "privileged", f"{group} right", right
        yield "privileged", f"{group} first right", first
        # A linear critic cannot tell by itself that candidates matter more where the branch without the agent failed.
        yield "privileged", f"{group} right x score without", right * (score_without or 0.0)
        yield "privileged", f"{group} first right x score without", first * (score_without or 0.0)
        yield "privileged", f"{group} kept", float(bool(kept))
        yield "privileged", f"{group} kept right", _share(kept, lambda item: item.agrees(sample))
    for place, present in enumerate(_truth(sample)):
        yield "privileged", f"truth {place}", present


def _truth(sample: AffectSample) -> list[float]:
    """The true labels, as places in their closed set or as clusters of the emotion wheel ``[LABELS]``."""
    names, true = (sample.candidates, set(sample.labels)) if sample.candidates else (CLUSTERS, clusters(sample.labels))
    return [float(place < len(names) and names[place] in true) for place in range(LABELS)]


def _share(items: Sequence[Evidence], test: Callable[[Evidence], bool]) -> float:
    return _mean([test(item) for item in items])


def _mean(found: list[bool]) -> float:
    return sum(found) / len(found) if found else 0.0


def _plurality(of: Iterable[Sequence[str]]) -> float:
    """Share of the most frequent label."""
    counts = Counter(label for labels in of for label in labels)
    return counts.most_common(1)[0][1] / counts.total() if counts else 0.0


_NOBODY = AffectSample("", "", "train", "", "", "", (), "closed")
NAMES = tuple((level, name) for level, name, _ in _numbers(Board(_NOBODY), None))
"""Level (``team`` or ``privileged``) and name of each number."""
