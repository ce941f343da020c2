"""Run directories for the pages, made by the project's own writers; everything that a model or a dataset wrote in them
tries to become markup."""

from __future__ import annotations

from pathlib import Path

from affect_rl.config.load import load_config
from affect_rl.evidence import GROUPS, Evidence
from affect_rl.policy.tokens import train_tokenizer
from affect_rl.team.store import write_trajectories
from affect_rl.trajectory import Generation, Output, Prompt, Trajectory, Turn
from cluster.runtime.rundir import RunDirectory
from cluster.watching.trackers import JsonlTracker

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=1</script>\u202e☃'
AGENTS = ("planner", "filter", "generator")
TOKENIZER = train_tokenizer(["reason: a soft voice", "label: joy", "supportive: tired voice"], 300)
ADVANTAGES = {(0, agent, 0): [-0.5, 1.5] for agent in AGENTS}
"""Of the first episode's first two tokens; the other turns have none."""


def turn(agent: str, text: str, *, problem: str | None = None, version: int = 0) -> Turn:
    prompt, answer = TOKENIZER(f"Text: {HOSTILE}\nTask: {agent}").input_ids, TOKENIZER(text).input_ids
    logprobs = tuple(-0.5 * n for n in range(len(answer)))
    versions = (version,) * (len(answer) - 1) + (version + 1,)
    generation = Generation(tuple(answer), logprobs, versions, text, True)
    return Turn(agent, Prompt(tuple(prompt), ()), generation, problem, reward=0.75)


def episode(sample: str, *, problem: str | None = None, score: float = 1.0, version: int = 0) -> Trajectory:
    """One of three turns with evidence, in which the filter may have broken its format."""
    found = {g: tuple(Evidence(f"{g}-{n}", f"{HOSTILE} {g}", ("joy",), 0.9 - n / 10) for n in range(2)) for g in GROUPS}
    return Trajectory(
        sample_id=sample,
        labels=("joy", HOSTILE),
        turns=tuple(
            turn(agent, f"{agent} says {HOSTILE}", problem=problem if agent == "filter" else None, version=version)
            for agent in AGENTS
        ),
        queries=dict.fromkeys(GROUPS, f"asked {HOSTILE}"),
        candidates=found,
        kept={group: items[:1] for group, items in found.items()},
        support_ids=(HOSTILE,),
        output=Output(HOSTILE, ("joy",), HOSTILE),
        bypassed={"filter": Output("?")},
        scores={"full": score, "filter": 0.0},
    )


class WrittenRun:
    """A run that has had its warm start, and trains a step whenever it is told to."""

    def __init__(self, path: Path, steps: int = 3) -> None:
        self.path = path
        self.directory = RunDirectory(path)
        self.directory.open(load_config(None, ["name=hostile", f"runs_dir={path.parent}", "train.steps=40"]))
        warm_start = JsonlTracker(path, stage="sft")
        for step in (1, 2, 3):
            warm_start.log(step, {"loss": 3.0 / step, "planner/accuracy": step / 3})
        TOKENIZER.save_pretrained(self.directory.sft)
        self.directory.begin_training()
        self._tracker, self.step = JsonlTracker(path), 0
        for _ in range(steps):
            self.train()

    def train(self) -> None:
        """One step of three episodes, in one of which the filter broke its format."""
        self.step += 1
        metrics = {f"{agent}/reward": self.step / 10 for agent in AGENTS}
        own = {f"own/{HOSTILE}": 1.0}
        self._tracker.log(self.step, {"episode/score": self.step / 40, "kl/mean": float("nan"), **metrics, **own})
        played = [
            episode(f"step-{self.step}-{HOSTILE}", version=self.step - 1),
            episode("b", problem=f"`{HOSTILE}` is no line", version=self.step - 1),
            episode("c", score=0.0, version=self.step - 1),
        ]
        advantages = {key: [*own, *[0.0] * (_length(played, key) - 2)] for key, own in ADVANTAGES.items()}
        write_trajectories(played, self.directory.trajectories / f"step-{self.step:05d}.parquet", advantages)


def _length(played: list[Trajectory], key: tuple[int, str, int]) -> int:
    place, agent, _ = key
    return next(len(turn.generation.token_ids) for turn in played[place].turns if turn.agent == agent)
