"""Demonstrations by rule: they fit the agent's limit and can be read, whatever the sample says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from team_cases import DEBATE, make_team

from affect_rl.errors import AffectError
from affect_rl.evidence import Evidence
from affect_rl.sample import AffectSample
from affect_rl.team.board import Board
from affect_rl.team.demonstrations import demonstrate, demonstration
from affect_rl.team.planner import careful_plan, render_plan, whole_utterance
from affect_rl.team.prompts import Prompts
from affect_rl.team.team import Team
from affect_rl.trajectory import Turn
from retrieval_service.retriever import LocalRetriever

LONG = " ".join(f"word{number}" for number in range(27))
CHINESE = "我真的没有想到你会在这个时候来看我所以我什么都没有准备" * 3
AWKWARD = {
    "long": {"text": LONG, "description": ""},
    "long with a long description": {"text": LONG, "description": f"voice {LONG}"},
    "very long": {"text": " ".join([LONG] * 6), "description": ""},
    "of two lines": {"text": "well,\nthere  it is", "description": "a bright\u2028voice"},
    "without spaces": {"text": CHINESE, "description": ""},
}


def played(sample: AffectSample, team: Team, retriever: LocalRetriever, prompts: Prompts, seed: int) -> Sequence[Turn]:
    return asyncio.run(demonstrate(sample, team, retriever, prompts, seed, teacher_forcing=0.5)).turns


@pytest.mark.parametrize("changes", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("careful", [0, 1])
def test_what_is_taught_fits_and_can_be_read(
    world: list[AffectSample],
    retriever: LocalRetriever,
    prompts: Prompts,
    changes: dict[str, str],
    careful: int,
) -> None:
    """Else SFT teaches an answer that RL cuts off, or punishes."""
    roomy = Prompts(prompts.tokenizer, soft_tokens=4, context=4096, evidence_tokens=32)
    agents = ("planner", "filter", "debater", "generator")
    team = make_team(*DEBATE, *(f"team.{name}.careful={careful}" for name in agents))
    for seed in range(3):
        for turn in played(replace(world[0], **changes), team, retriever, roomy, seed):  # type: ignore[arg-type]
            assert turn.problem is None, turn.generation.text
            assert len(turn.generation.token_ids) <= team.config[turn.agent].tokens
            assert len(turn.generation.text.splitlines()) == {"debater": 1, "generator": 2}.get(turn.agent, 3)


def test_a_quote_is_cut_behind_its_first_words_and_no_further_than_the_limit_asks(
    world: list[AffectSample], prompts: Prompts
) -> None:
    planner, board = make_team().agents["planner"], Board(replace(world[0], text=f" {LONG}", description=""))
    text, tokens = demonstration(planner, board, prompts, careful=False)
    (quoted,) = {line.partition(": ")[2] for line in text.splitlines()}
    words = len(quoted.split())
    assert quoted == " ".join(LONG.split()[:words])
    longer = " ".join(LONG.split()[: words + 1])
    one_more = render_plan(whole_utterance(replace(world[0], text=longer)))
    assert len(tokens) <= planner.settings.tokens < len(prompts.answer(one_more))
    assert tokens == prompts.answer(text)


def test_evidence_is_quoted_to_its_end_which_is_its_label(world: list[AffectSample], prompts: Prompts) -> None:
    generator = make_team("team.generator.tokens=24").agents["generator"]
    sample = replace(world[0], description="")
    item = Evidence("e", f"{LONG}: {sample.labels[0]}", sample.labels, 0.5)
    text, _ = demonstration(generator, Board(sample, {"kept": {"supportive": (item,)}}), prompts, careful=True)
    reason = text.splitlines()[0].removeprefix("reason: ")
    assert item.text.endswith(f" {reason}") and 1 < len(reason.split()) < 12


def test_what_fits_is_taught_as_it_stands(world: list[AffectSample], prompts: Prompts) -> None:
    """Spaces included: a demonstration that is of use as it is stays what it was."""
    planner = make_team().agents["planner"]
    for sample in (*world, replace(world[0], text="well,  there it is")):
        for careful, plan in ((True, careful_plan(sample)), (False, whole_utterance(sample))):
            found = demonstration(planner, Board(sample), prompts, careful=careful)
            assert found == (render_plan(plan), prompts.answer(render_plan(plan)))


def test_there_is_something_to_demonstrate_where_words_are_withheld(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    for care in (0, 1):
        team = make_team("episode.absent=[text]", *(f"team.{name}.careful={care}" for name in ("planner", "filter")))
        assert [turn.problem for turn in played(world[0], team, retriever, prompts, 0)] == [None, None, None]


def test_an_agent_without_room_for_any_demonstration_names_the_sample(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    message = rf"^sample {world[0].id}: the demonstration of planner is of no use: it takes \d+ tokens; raise team\.pl"
    with pytest.raises(AffectError, match=message + r"anner\.tokens=6$"):
        played(world[0], make_team("team.planner.tokens=6"), retriever, prompts, 0)


def test_a_demonstration_that_its_own_agent_cannot_read_names_the_sample(
    world: list[AffectSample], prompts: Prompts
) -> None:
    sample = replace(world[0], labels=("no candidate",))
    generator = make_team().agents["generator"]
    with pytest.raises(AffectError, match=rf"^sample {sample.id}: .* generator .* `no candidate` is not one of "):
        demonstration(generator, Board(sample), prompts, careful=True)


def test_no_more_open_labels_are_demonstrated_than_may_be_named(world: list[AffectSample], prompts: Prompts) -> None:
    names = ("calm", "joy", "fear", "anger", "pride", "shame", "guilt", "hope", "envy", "relief")
    sample = replace(world[0], labels=names, label_kind="open", candidates=(), description="a bright voice")
    generator = make_team("team.generator.tokens=96", label_kind="open").agents["generator"]
    text, _ = demonstration(generator, Board(sample), prompts, careful=True)
    assert text == f"reason: a bright voice\nlabel: {', '.join(names[:8])}"
