"""A debate: the generator sees what is argued, and the debater's bypass is silence."""

from __future__ import annotations

import pytest
from team_cases import DEBATE, Recorder, make_team, play, turn_of

from affect_rl.evidence import Evidence, Support
from affect_rl.sample import AffectSample
from affect_rl.team.board import Board
from affect_rl.team.debater import leading_label
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Prompt
from retrieval_service.retriever import LocalRetriever

SAMPLE = AffectSample("u", "made-up", "train", "c", "s", "a glass harbour", ("joy",), "closed", ("anger", "joy"))
ANGRY, JOYFUL = (Evidence(f"{label}-1", f"text: {label}", (label,), 0.5) for label in ("anger", "joy"))
DEBATER = make_team(*DEBATE).agents["debater"]
ARGUMENT = "against: she smiles all the while"


def _shown(prompts: Prompts, prompt: Prompt) -> str:
    return prompts.tokenizer.decode(prompt.token_ids)


def test_the_generator_sees_the_argument_and_in_the_line_without_the_debater_silence(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder.of(prompts, {"debater": ARGUMENT})
    trajectory = play(world[0], make_team(*DEBATE), recorder, retriever, prompts)
    assert [turn.agent for turn in trajectory.turns] == ["planner", "filter", "debater", "generator"]
    assert set(trajectory.scores) == {"full", "planner", "filter", "debater"}
    label = leading_label(Board(world[0], {"kept": trajectory.kept}))
    assert f"against {label}: she smiles all the while\n" in _shown(prompts, turn_of(trajectory, "generator").prompt)
    (silent,) = recorder.prompts_of("generator", "debater")
    assert "against" not in _shown(prompts, silent)
    assert recorder.asked("debater") == ["generator"]

    published = Recorder.of(prompts)
    answered = play(world[0], make_team(), published, retriever, prompts)
    assert silent.token_ids == turn_of(answered, "generator").prompt.token_ids, "as if it had never been there"


def test_an_argument_that_cannot_be_read_is_silence(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    recorder = Recorder.of(prompts, {"debater": "I see no reason"})
    trajectory = play(world[0], make_team(*DEBATE), recorder, retriever, prompts)
    turn = turn_of(trajectory, "debater")
    assert turn.problem and turn.reward == trajectory.scores["full"] - 0.5
    assert trajectory.scores["debater"] == trajectory.scores["full"]
    asked = [p.token_ids for line in ("full", "debater") for p in recorder.prompts_of("generator", line)]
    assert asked == [turn_of(trajectory, "generator").prompt.token_ids], "one prompt in both lines"


@pytest.mark.parametrize(
    ("kept", "leading"),
    [((ANGRY,), "anger"), ((JOYFUL, ANGRY, ANGRY), "anger"), ((), "joy")],
    ids=["one", "most", "neighbours"],
)
def test_it_argues_against_the_leading_label(kept: tuple[Evidence, ...], leading: str) -> None:
    board = Board(SAMPLE, {"kept": {"supportive": kept}, "support": Support(("n",), (("joy",),))})
    assert leading_label(board) == leading
    assert DEBATER.read("against: so", board).writes == {"notes": (f"against {leading}: so",)}


def test_what_others_noted_stays() -> None:
    board = Board(SAMPLE, {"notes": ("said before",), "kept": {"supportive": (ANGRY,)}})
    assert DEBATER.read(ARGUMENT, board).writes["notes"][0] == "said before"
    assert DEBATER.read("?", board).writes == DEBATER.bypass(board) == {"notes": ("said before",)}


def test_an_annotator_argues_only_where_the_leading_label_is_wrong() -> None:
    wrong, right = (Board(SAMPLE, {"kept": {"supportive": (item,)}}) for item in (ANGRY, JOYFUL))
    assert DEBATER.demonstrate(right, careful=True) == "against: nothing"
    assert DEBATER.demonstrate(wrong, careful=True) == "against: a glass harbour"
    for board in (wrong, right):
        for careful in (True, False):
            assert DEBATER.read(DEBATER.demonstrate(board, careful=careful), board).problem is None
