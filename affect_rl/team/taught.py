"""Demonstrations that a teacher wrote: a directory of one Parquet file and a manifest, and how they are played again.

Only answers are stored, and which candidates they were given on. Prompts are made anew, with the student's own
tokenizer and features, so one teacher serves any student; answers are then looked up (`Replay`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from affect_rl.data.dataset import Dataset
from affect_rl.errors import AffectError
from affect_rl.evidence import Group, Retrieve
from affect_rl.files import sha256, whole_directory
from affect_rl.sample import AffectSample
from affect_rl.team.agent import Request
from affect_rl.team.demonstrations import annotated
from affect_rl.team.prompts import Prompts
from affect_rl.team.teacher import Teaching
from affect_rl.team.team import Team
from affect_rl.trajectory import Generation, Prompt, Trajectory

if TYPE_CHECKING:
    from affect_rl.config.load import Config

MANIFEST, ROWS = "demonstrations.json", "demonstrations.parquet"
_TURN = pa.struct([("agent", pa.string()), ("number", pa.int32()), ("text", pa.string())])
_CANDIDATE = pa.struct([("group", pa.string()), ("id", pa.string())])
SCHEMA = pa.schema([("sample_id", pa.string()), ("turns", pa.list_(_TURN)), ("candidates", pa.list_(_CANDIDATE))])
"""Columns of the Parquet file: a row is a sample."""

Found = tuple[tuple[Group, str], ...]
"""Candidates by group and id, in the order in which a filter counts them."""


class Manifest(BaseModel):
    """What ``demonstrations.json`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    teacher: dict[str, str | int | float]
    """All that an answer depends on beside its question: the model and its content or address, the prompt's version."""
    teaching: Teaching
    """How it was asked."""
    dataset: str
    """Name of the dataset."""
    train: str
    """SHA-256 of its train split."""
    seed: int
    settings: dict[str, Any]
    """See `settings_of_prompts`."""
    retrieval: dict[str, Any]
    """Settings of the search that found the candidates."""
    samples: int
    """How many the teacher was given."""
    answered: dict[str, dict[int, int]]
    """By agent, turns by the attempt that brought an answer of use; those of samples that were left out count, too."""
    left_out: dict[str, dict[str, int]]
    """By agent and `affect_rl.team.teacher.Cause`, samples that were left out."""
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One episode as a teacher played it.

    Attributes:
        sample_id: what it was played on.
        turns: what was answered, by agent and number of its turn.
        candidates: what was found.
    """

    sample_id: str
    turns: Mapping[tuple[str, int], str]
    candidates: Found

    @classmethod
    def of(cls, played: Trajectory) -> Demonstration:
        turns = {(turn.agent, turn.number): turn.generation.text for turn in played.turns}
        return cls(played.sample_id, turns, _found(played))

    def check_evidence(self, played: Trajectory) -> None:
        """Raise `AffectError` if other candidates were found than the teacher was shown, or in another order."""
        if (found := _found(played)) != self.candidates:
            if played.degraded:
                raise AffectError(
                    f"sample {self.sample_id}: its queries find other candidates than when they were written, for a "
                    "shard was down or over retrieval.shard_timeout_s; run it again"
                )
            then, now = (", ".join(f"{group} {name}" for group, name in c) or "none" for c in (self.candidates, found))
            raise AffectError(
                f"sample {self.sample_id}: its queries find other candidates than when they were written (now: {now}; "
                f"then: {then}); set retrieval.* as their {MANIFEST} has it, or write demonstrations anew"
            )


@dataclass(frozen=True, slots=True)
class Taught:
    """A directory of demonstrations that has been checked; `rows` are by sample."""

    directory: Path
    manifest: Manifest
    rows: Mapping[str, Demonstration]

    @classmethod
    def read(cls, directory: Path) -> Taught:
        """Open a directory by `write_demonstrations`.

        Raises:
            AffectError: it is none, or is damaged.
        """
        manifest, rows = directory / MANIFEST, directory / ROWS
        if not manifest.is_file():
            raise AffectError(
                f"{directory}: no {MANIFEST}, so it holds no demonstrations; see `affect-rl data demonstrate`"
            )
        try:
            said = Manifest.model_validate_json(manifest.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise AffectError(f"{manifest}: {where}: {first['msg']}; write the demonstrations anew") from None
        if not rows.is_file() or sha256(rows) != said.sha256:
            raise AffectError(f"{rows}: is not the file that {MANIFEST} lists; copy the directory again, whole")
        table = pq.read_table(rows, schema=SCHEMA)
        return cls(directory, said, {row["sample_id"]: _demonstration(row) for row in table.to_pylist()})

    def check(self, dataset: Dataset, settings: Mapping[str, Any]) -> None:
        """Raise `AffectError` unless they are of this dataset and were written with these `settings_of_prompts`."""
        place = f"sft.demonstrations={self.directory}"
        if self.manifest.train != dataset.manifest.splits["train"].sha256:
            raise AffectError(
                f"{place}: were written for another train split ({self.manifest.dataset}) than that of "
                f"data.dir={dataset.directory}; set data.dir to theirs, or write demonstrations anew"
            )
        before = self.manifest.settings
        for key in dict.fromkeys([*before, *settings]):
            if before.get(key) != settings.get(key):
                raise AffectError(
                    f"{place}: were written with {key}={json.dumps(before.get(key))}, now it is "
                    f"{json.dumps(settings.get(key))}; set {key} as it was, or write demonstrations anew"
                )

    async def replay(
        self,
        sample: AffectSample,
        team: Team,
        retrieve: Retrieve | None,
        prompts: Prompts,
        seed: int,
        *,
        shuffle: bool = False,
    ) -> Trajectory:
        """An episode as it was demonstrated, in the student's prompts; arguments as in `demonstrate`.

        Raises:
            AffectError: its queries find other candidates now, or an answer is longer than the student's may be.
        """
        demonstration = self.rows[sample.id]
        replay = Replay(prompts, demonstration)
        played = await annotated(sample, team, replay, retrieve, prompts, seed, shuffle=shuffle)
        demonstration.check_evidence(played)
        return played


@dataclass(frozen=True, slots=True)
class Replay:
    """Plays any agent as it was demonstrated; the prompts are the student's."""

    prompts: Prompts
    demonstration: Demonstration

    async def __call__(self, prompt: Prompt, request: Request) -> Generation:
        """The tokens of what was answered.

        Raises:
            AffectError: the agent has no such turn, or its answer is longer than the agent's may be.
        """
        name, sample, limit = request.agent.name, self.demonstration.sample_id, request.agent.settings.tokens
        text = self.demonstration.turns.get((name, request.number))
        if text is None:
            raise AffectError(f"sample {sample}: turn {request.number} of {name} was not demonstrated; write it anew")
        tokens = self.prompts.answer(text)
        if len(tokens) > limit:
            raise AffectError(
                f"sample {sample}: the demonstrated answer of {name} takes {len(tokens)} tokens; raise "
                f"team.{name}.tokens={limit}, or leave the sample out"
            )
        return Generation(tokens, (0.0,) * len(tokens), (0,) * len(tokens), text, finished=True)


def settings_of_prompts(config: Config) -> dict[str, Any]:
    """The settings that decide what a teacher is shown and asked, by key, as plain data.

    Not among them: what only a student sees, such as ``episode.wording``, ``evidence_tokens`` and ``dropout``.
    """
    team, episode = config.team, config.episode
    return {
        "team.agents": list(team.playing),
        "team.rounds": team.rounds,
        "team.retrieval": team.retrieval,
        **{f"team.{name}.kind": team[name].kind or name for name in team.playing},
        "episode.k": episode.k,
        "episode.keep": episode.keep,
        "episode.groups": list(episode.groups),
        "episode.absent": list(episode.absent),
        "task.name": config.task.name,
        "sft.shuffle_candidates": config.sft.shuffle_candidates,
    }


def write_demonstrations(
    directory: Path, demonstrations: Sequence[Demonstration], *, replace: bool = False, **said: Any
) -> Manifest:
    """Write a directory, whole or not at all; `said` are the manifest's other fields.

    Raises:
        AffectError: there is something at `directory` that is not to be replaced, or holds no demonstrations.
    """
    check_free(directory, replace=replace)
    with whole_directory(directory, replace=True) as partial:
        table = pa.Table.from_pylist([_row(demonstration) for demonstration in demonstrations], schema=SCHEMA)
        pq.write_table(table, partial / ROWS, compression="zstd")
        manifest = Manifest(**said, rows=len(demonstrations), sha256=sha256(partial / ROWS))
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (partial / MANIFEST).write_text(text + "\n", "utf8")
    return manifest


def check_free(directory: Path, *, replace: bool) -> None:
    """Raise `AffectError` unless demonstrations may be written to `directory`."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not replace:
        raise AffectError(f"{directory}: exists; choose another directory, or allow overwriting")
    if not (directory / MANIFEST).is_file():
        raise AffectError(f"{directory}: exists and holds no demonstrations, so it is not overwritten; choose another")


def _row(demonstration: Demonstration) -> dict[str, Any]:
    return {
        "sample_id": demonstration.sample_id,
        "turns": [{"agent": a, "number": n, "text": text} for (a, n), text in demonstration.turns.items()],
        "candidates": [{"group": group, "id": name} for group, name in demonstration.candidates],
    }


def _demonstration(row: Mapping[str, Any]) -> Demonstration:
    turns = {(turn["agent"], turn["number"]): turn["text"] for turn in row["turns"]}
    return Demonstration(row["sample_id"], turns, tuple((c["group"], c["id"]) for c in row["candidates"]))


def _found(played: Trajectory) -> Found:
    return tuple((group, item.id) for group, items in played.candidates.items() for item in items)
