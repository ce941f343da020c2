"""Demonstrations on disk: they come back as they were, fit their dataset and settings, and are replayed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from team_cases import WORLD, Recorder, make_team

from affect_rl.config.load import Config, load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.errors import AffectError
from affect_rl.evidence import GROUPS
from affect_rl.sample import AffectSample
from affect_rl.team.demonstrations import annotated, demonstrate
from affect_rl.team.prompts import Prompts
from affect_rl.team.taught import MANIFEST, ROWS, Demonstration, Taught, settings_of_prompts, write_demonstrations
from affect_rl.team.teacher import Teaching
from retrieval_service.retriever import LocalRetriever

K = "episode.k=2"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.load(write_dataset(tmp_path_factory.mktemp("world") / "synth", WORLD, name="synth"))


def config(*overrides: str) -> Config:
    return load_config(None, [K, *overrides])


def write(directory: Path, dataset: Dataset, *demonstrations: Demonstration, **changes: Any) -> Path:
    said: dict[str, Any] = {
        "teacher": {"model": "m", "content": "c"},
        "teaching": Teaching(structured=True),
        "dataset": dataset.name,
        "train": dataset.manifest.splits["train"].sha256,
        "seed": 1,
        "settings": settings_of_prompts(config()),
        "retrieval": {"encoder": "minilm"},
        "samples": 2,
        "answered": {"planner": {1: 1}},
        "left_out": {"planner": {"format": 1}},
    }
    write_demonstrations(directory, demonstrations, **said | changes)
    return directory


def played(sample: AffectSample, retriever: LocalRetriever, prompts: Prompts, shuffle: bool = False) -> Demonstration:
    episode = annotated(sample, make_team(), Recorder.of(prompts), retriever, prompts, 1, shuffle=shuffle)
    return Demonstration.of(asyncio.run(episode))


TURNS = st.dictionaries(st.tuples(st.text(), st.integers(0, 9)), st.text(), max_size=4)
FOUND = st.lists(st.tuples(st.sampled_from(GROUPS), st.text()), max_size=4).map(tuple)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), st.tuples(TURNS, FOUND), max_size=3))
def test_any_answers_come_back(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, rows: dict[str, tuple[Any, Any]]
) -> None:
    demonstrations = [Demonstration(name, turns, found) for name, (turns, found) in rows.items()]
    directory = write(tmp_path_factory.mktemp("taught") / "out", dataset, *demonstrations)
    taught = Taught.read(directory)
    assert taught.rows == {demonstration.sample_id: demonstration for demonstration in demonstrations}
    assert taught.manifest.answered == {"planner": {1: 1}} and taught.manifest.teaching == Teaching(structured=True)


def test_a_replay_is_the_same_episode_in_the_students_tokens(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts, dataset: Dataset, tmp_path: Path
) -> None:
    for shuffle in (False, True):
        demonstration = played(world[0], retriever, prompts, shuffle)
        taught = Taught.read(write(tmp_path / f"{shuffle}", dataset, demonstration))
        turns = asyncio.run(taught.replay(world[0], make_team(), retriever, prompts, 1, shuffle=shuffle)).turns
        assert {(t.agent, t.number): t.generation.text for t in turns} == demonstration.turns
        assert all(turn.generation.token_ids == prompts.answer(turn.generation.text) for turn in turns)
        with pytest.raises(AffectError, match="its queries find other candidates than when they were written"):
            asyncio.run(taught.replay(world[0], make_team(), retriever, prompts, 1, shuffle=not shuffle))


def test_other_candidates_are_told(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts, dataset: Dataset, tmp_path: Path
) -> None:
    demonstration = played(world[0], retriever, prompts)
    (group, name), *others = demonstration.candidates
    changed = replace(demonstration, candidates=((group, "another"), *others))
    taught = Taught.read(write(tmp_path / "out", dataset, changed))
    message = (
        rf"^sample {world[0].id}: .*\(now: {group} {name},.*; then: {group} another,.*\); set retrieval\.\* as their"
    )
    with pytest.raises(AffectError, match=message):
        asyncio.run(taught.replay(world[0], make_team(), retriever, prompts, 1))


def test_a_lost_shard_is_named_as_the_cause_of_other_candidates(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts
) -> None:
    episode = replace(asyncio.run(demonstrate(world[0], make_team(), retriever, prompts, 1)), degraded=True)
    Demonstration.of(episode).check_evidence(episode)
    with pytest.raises(AffectError, match=r"for a shard was down or over retrieval\.shard_timeout_s; run it again"):
        Demonstration.of(replace(episode, candidates={})).check_evidence(episode)


def test_answers_that_a_student_may_not_give(
    world: list[AffectSample], retriever: LocalRetriever, prompts: Prompts, dataset: Dataset, tmp_path: Path
) -> None:
    demonstration = played(world[0], retriever, prompts)
    taught = Taught.read(write(tmp_path / "out", dataset, demonstration))
    message = r"the demonstrated answer of planner takes \d+ tokens; raise team\.planner\.tokens=5, or leave the sample"
    with pytest.raises(AffectError, match=message):
        asyncio.run(taught.replay(world[0], make_team("team.planner.tokens=5"), retriever, prompts, 1))
    with pytest.raises(AffectError, match="turn 1 of planner was not demonstrated"):
        asyncio.run(taught.replay(world[0], make_team("team.rounds=2"), retriever, prompts, 1))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["episode.k=3"], "were written with episode.k=2, now it is 3; set episode.k as it was, or write"),
        (["episode.absent=[audio]"], 'were written with episode.absent=[], now it is ["audio"]'),
        (["team.agents=[planner, generator]"], 'team.agents=["planner", "filter", "generator"], now it is'),
        (["team.planner.kind=labelling_planner"], 'team.planner.kind="planner", now it is "labelling_planner"'),
        (["team.rounds=2"], "team.rounds=1, now it is 2"),
        (["sft.shuffle_candidates=true"], "sft.shuffle_candidates=false, now it is true"),
    ],
)
def test_other_settings_are_refused(dataset: Dataset, tmp_path: Path, overrides: list[str], message: str) -> None:
    taught = Taught.read(write(tmp_path / "out", dataset))
    taught.check(dataset, settings_of_prompts(config("episode.wording=full", "episode.evidence_tokens=9", "seed=5")))
    with pytest.raises(AffectError, match=re.escape(message)) as caught:
        taught.check(dataset, settings_of_prompts(config(*overrides)))
    assert str(caught.value).startswith(f"sft.demonstrations={tmp_path / 'out'}: ")


def test_another_dataset_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    taught = Taught.read(write(tmp_path / "out", dataset, train="0" * 64))
    message = r"were written for another train split \(synth\) than that of data\.dir=.*; set data\.dir to theirs, or"
    with pytest.raises(AffectError, match=message):
        taught.check(dataset, settings_of_prompts(config()))


def unknown_key(directory: Path) -> None:
    said = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps(said | {"sead": 1}))


BAD: list[tuple[Callable[[Path], Any], str]] = [
    (lambda d: (d / MANIFEST).unlink(), "out: no demonstrations.json, so it holds no demonstrations; see `affect-rl"),
    (lambda d: (d / MANIFEST).write_text("{"), "demonstrations.json: "),
    (unknown_key, "demonstrations.json: sead: Extra inputs are not permitted; write the demonstrations anew"),
    (lambda d: (d / ROWS).unlink(), "demonstrations.parquet: is not the file that demonstrations.json lists; copy"),
    (lambda d: (d / ROWS).write_bytes(b"x"), "demonstrations.parquet: is not the file that demonstrations.json lists"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_damaged_directories_are_refused(
    dataset: Dataset, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(write(tmp_path / "out", dataset))
    with pytest.raises(AffectError, match=re.escape(message)):
        Taught.read(tmp_path / "out")


def test_nothing_is_overwritten_unasked(dataset: Dataset, tmp_path: Path) -> None:
    write(tmp_path / "out", dataset)
    with pytest.raises(AffectError, match="out: exists; choose another directory, or allow overwriting"):
        write(tmp_path / "out", dataset)
    write(tmp_path / "out", dataset, seed=2, replace=True)
    assert Taught.read(tmp_path / "out").manifest.seed == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(AffectError, match="other: exists and holds no demonstrations, so it is not overwritten"):
        write(tmp_path / "other", dataset, replace=True)
