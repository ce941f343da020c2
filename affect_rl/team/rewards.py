"""Rewards of the agents, equations 1 to 3, for any team."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from affect_rl.team.team import TeamConfig
from affect_rl.trajectory import FULL, Turn


def rewarded(turns: Sequence[Turn], scores: Mapping[str, float], team: TeamConfig) -> list[Turn]:
    """The turns with what each earned.

    An agent's last turn earns ``R_i = S_full + lambda_i (S_full - S_without_i)``; a line that was not played (absent
    from `scores`) contributes nothing, so that an agent without a bypass earns S_full. Every turn pays for itself: the
    format penalty if it could not be read, and the length penalty times the share of its token limit that it took.

    Args:
        turns: of one episode, in the order of play.
        scores: S_full under `FULL` and S_without_i under the agents' names, in [0, 1]; empty without true labels.
        team: the agents' settings.
    """
    last = {turn.agent: turn.number for turn in turns}
    full = scores.get(FULL, 0.0)
    found = []
    for turn in turns:
        own = team[turn.agent]
        earned = full + own.weight * (full - scores.get(turn.agent, full)) if turn.number == last[turn.agent] else 0.0
        length = len(turn.generation.token_ids) / own.tokens
        penalties = own.format_penalty * (turn.problem is not None) + own.length_penalty * length
        found.append(replace(turn, reward=earned - penalties))
    return found
