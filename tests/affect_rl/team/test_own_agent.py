"""An agent of one's own, defined here and named in the configuration: it plays, is paid and is bypassed as ours are."""

from __future__ import annotations

import asyncio

import pytest
from team_cases import Recorder, make_team, play, turn_of

from affect_rl.config.load import dump_config, load_config
from affect_rl.errors import AffectError
from affect_rl.sample import AffectSample
from affect_rl.section import Positive
from affect_rl.team.agent import Agent, AgentSettings, Reading, Writes
from affect_rl.team.board import Board
from affect_rl.team.demonstrations import Annotator, demonstrate
from affect_rl.team.prompts import Prompts
from affect_rl.trajectory import Output, Prompt
from retrieval_service.retriever import LocalRetriever

GLOSS = "gloss"
"""A slot of its own."""


class InterpreterSettings(AgentSettings):
    """The interpreter's settings."""

    tokens: Positive = 16
    """Longest answer, in tokens."""
    most: Positive = 2
    """Words of a gloss."""


class Interpreter(Agent):
    """Says in a few words what the evidence comes to."""

    reads = ("kept",)
    writes = (GLOSS, "notes")
    Settings = InterpreterSettings

    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        return prompts.build(board.sample, self.settings.tokens, "Task: interpret.\n", evidence=board.kept)

    def read(self, text: str, board: Board) -> Reading:
        assert isinstance(self.settings, InterpreterSettings)
        words = text.split()
        problem = None if len(words) <= self.settings.most else f"{len(words)} words, at most {self.settings.most}"
        return Reading({GLOSS: text, "notes": (f"gloss: {text}",)}, problem)

    def demonstrate(self, board: Board, *, careful: bool) -> str:
        return board.sample.labels[0] if careful else "nothing"

    def bypass(self, board: Board) -> Writes:
        return {GLOSS: "", "notes": ()}

    def texts(self) -> list[str]:
        return ["Task: interpret.\n"]


class Parrot(Agent):
    """Answers with the gloss alone, whatever else was found; it does not even look."""

    reads = (GLOSS,)
    writes = ("output",)

    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        return prompts.build(board.sample, self.settings.tokens, "Task: repeat.\n", note=f"{board[GLOSS]}\n")

    def read(self, text: str, board: Board) -> Reading:
        return Reading({"output": Output(text, (board[GLOSS],) if board[GLOSS] else ())})

    def demonstrate(self, board: Board, *, careful: bool) -> str:
        return str(board[GLOSS])


class Ruler(Agent):
    """Answers by rule, without asking the model."""

    reads = ("kept",)
    writes = ("output",)

    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        raise AssertionError

    def read(self, text: str, board: Board) -> Reading:
        raise AssertionError

    def demonstrate(self, board: Board, *, careful: bool) -> str:
        raise AssertionError

    async def act(self, board: Board, episode: object, number: int, line: str) -> Reading:
        (label,) = board.kept["supportive"][0].labels
        return Reading({"output": Output("", (label,))})


class Curious(Interpreter):
    """Asks for what it has not said that it reads."""

    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        return prompts.build(board.sample, 16, f"Task: {board['weather']}.\n")


OWN = ("team.agents=[planner, filter, interpreter, generator]", "team.interpreter.kind=test_own_agent:Interpreter")


def test_it_plays_is_seen_paid_and_bypassed(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    team = make_team(*OWN, "team.interpreter.weight=1", "team.interpreter.careful=1")
    recorder = Recorder.of(prompts, {"interpreter": "bright spirits"})
    trajectory = play(world[0], team, recorder, retriever, prompts)
    assert [turn.agent for turn in trajectory.turns] == ["planner", "filter", "interpreter", "generator"]
    assert set(trajectory.scores) == {"full", "planner", "filter", "interpreter"}
    full, without = trajectory.scores["full"], trajectory.scores["interpreter"]
    assert turn_of(trajectory, "interpreter").reward == full + (full - without)
    decode = prompts.tokenizer.decode
    assert "gloss: bright spirits" in decode(turn_of(trajectory, "generator").prompt.token_ids)
    (alone,) = recorder.prompts_of("generator", "interpreter")
    assert "gloss" not in decode(alone.token_ids)
    assert "Task: interpret.\n" in team.texts()


def test_its_settings_are_read_checked_and_written(tmp_path: object) -> None:
    config = load_config(None, [*OWN, "team.interpreter.most=1"])
    settings = config.team["interpreter"]
    assert isinstance(settings, InterpreterSettings) and (settings.most, settings.tokens) == (1, 16)
    assert "most: 1" in dump_config(config)
    with pytest.raises(AffectError, match=r"unknown key `team\.interpreter\.mosst`; did you mean `most`\?"):
        load_config(None, [*OWN, "team.interpreter.mosst=1"])


def test_its_fallback_costs_the_penalty(world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts) -> None:
    recorder = Recorder.of(prompts, {"interpreter": "far too many words"})
    trajectory = play(world[0], make_team(*OWN, "team.interpreter.weight=0"), recorder, retriever, prompts)
    turn = turn_of(trajectory, "interpreter")
    assert turn.problem == "4 words, at most 2" and turn.reward == trajectory.scores["full"] - 0.5
    assert "interpreter" not in trajectory.scores, "a weight of 0: its line is not played"


def test_it_is_demonstrated_like_the_others(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    team = make_team(*OWN, "team.interpreter.careful=1")
    turns = asyncio.run(demonstrate(world[0], team, retriever, prompts, 1)).turns
    assert turns[2].generation.text == world[0].labels[0]


@pytest.mark.parametrize("measured", [False, True])
def test_a_team_may_answer_without_looking_at_what_was_found(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts, measured: bool
) -> None:
    """Nobody reads the neighbours' features here, so they are not searched for."""
    searched = []

    class Watched(LocalRetriever):
        def __init__(self) -> None:
            self.__dict__ |= retriever.__dict__

        async def perceptual(self, *args: object) -> object:  # type: ignore[override]
            searched.append("perceptual")
            return await super().perceptual(*args)  # type: ignore[arg-type]

    team = make_team(
        "team.agents=[planner, filter, interpreter, parrot]",
        "team.interpreter.kind=test_own_agent:Interpreter",
        "team.parrot.kind=test_own_agent:Parrot",
        "team.interpreter.careful=1",
        "team.planner.weight=0",
    )
    trajectory = play(world[0], team, Annotator(prompts), Watched(), prompts, bypasses=not measured)
    assert trajectory.output.labels == world[0].labels[:1] and trajectory.scores["full"] == 1
    assert searched == [] and trajectory.support_ids == ()
    assert trajectory.scores.get("interpreter", 0) == 0


def test_one_that_does_not_ask_the_model_takes_no_turn_to_learn_from(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    team = make_team("team.agents=[filter, ruler]", "team.ruler.kind=test_own_agent:Ruler")
    trajectory = play(world[0], team, Annotator(prompts), retriever, prompts)
    assert [turn.agent for turn in trajectory.turns] == ["filter"]
    assert trajectory.output.labels == trajectory.kept["supportive"][0].labels


def test_what_it_reads_it_must_say(world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts) -> None:
    team = make_team("team.agents=[curious, generator]", "team.curious.kind=test_own_agent:Curious")
    with pytest.raises(KeyError, match="the board has no 'weather': name it in the agent's `reads`"):
        play(world[0], team, Annotator(prompts), retriever, prompts)
