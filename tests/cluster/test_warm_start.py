"""What the warm start trains on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_server import Script, chat_server

from affect_rl.config.load import Config, load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.errors import AffectError
from affect_rl.evidence import Retrieve
from affect_rl.team.taught import Taught
from affect_rl.team.teacher import Teaching
from affect_rl.trajectory import Generation, Prompt, Turn
from cluster.demonstrate import demonstrate
from cluster.warm_start import create_policy, learned_turns, training_samples, warm_start
from retrieval_service.index import build_index
from retrieval_service.retriever import LocalRetriever
from rollout_workers.served_model import ServedModel

AGENTS = ("planner", "filter", "generator")
TINY = ("model.tiny.layers=1", "model.tiny.dim=32", "model.tiny.heads=1", "model.tiny.vocabulary=600")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    world = synthesise(SynthSettings(train=40, dev=1, test=1, expressions=10))
    return Dataset.load(write_dataset(tmp_path_factory.mktemp("world") / "synth", world, name="synth"))


def test_a_base_that_is_not_there_is_named(dataset: Dataset, tmp_path: Path) -> None:
    config = load_config(None, [f"model.base={tmp_path / 'absent'}"])
    with pytest.raises(
        AffectError, match=r"^model\.base=.*absent: cannot be loaded .*; give the directory of a policy"
    ):
        create_policy(config, dataset)


def test_no_more_samples_are_demonstrated_than_the_steps_take(dataset: Dataset) -> None:

    def ids(*settings: str) -> list[str]:
        config = load_config(None, ["sft.steps=3", "sft.batch_samples=4", *settings])
        return [s.id for s in training_samples(config, dataset)]

    assert len(set(ids())) == 12
    assert ids() == ids() != ids("seed=1")
    everything = [s.id for s in dataset.samples("train")]
    assert ids("sft.steps=10") == ids("sft.steps=99") == everything
    assert ids("data.max_train=5") == [s.id for s in dataset.samples("train", limit=5)]


def test_of_an_agent_as_many_turns_are_learned_as_it_says() -> None:
    episodes = [
        [Turn(a, Prompt((1,), ()), Generation((2,), (0.0,), (0,), "", True), None) for a in AGENTS] for _ in range(500)
    ]
    config = load_config(None, ["team.planner.demonstrated=0.2", "team.filter.demonstrated=0"])
    learned = learned_turns(config, episodes)
    counts = Counter(turn.agent for turns in learned for turn in turns)
    assert counts["generator"] == 500 and counts["filter"] == 0 and 70 < counts["planner"] < 130
    assert [list(map(id, turns)) for turns in learned] == [list(map(id, t)) for t in learned_turns(config, episodes)]
    assert learned_turns(load_config(None, []), episodes) == episodes
    nobody = load_config(None, [f"team.{agent}.demonstrated=0" for agent in AGENTS])
    assert all([turn.agent for turn in turns] == ["generator"] for turns in learned_turns(nobody, episodes))


# -- demonstrations by a teacher -----------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of twelve samples."""
    out = tmp_path_factory.mktemp("taught") / "out"
    with chat_server(Script()) as server:
        model = ServedModel("teacher", server.address, key_variable="KEY", timeout_s=60)
        demonstrate(configured(dataset, "data.max_train=12"), out, model, Teaching())
    return out


def configured(dataset: Dataset, *settings: str) -> Config:
    return load_config(None, [f"data.dir={dataset.directory}", "data.max_dropped=0", "episode.k=2", *TINY, *settings])


def test_only_what_was_taught_is_trained_on(dataset: Dataset, taught: Path) -> None:
    found = Taught.read(taught)
    ids = {s.id for s in training_samples(configured(dataset), dataset, found)}
    assert ids == {s.id for s in dataset.samples("train", limit=12)}
    assert len(training_samples(configured(dataset, "sft.steps=1", "sft.batch_samples=4"), dataset, found)) == 4
    none = Taught(taught, found.manifest, {})
    with pytest.raises(
        AffectError, match=r"^sft\.demonstrations=.*out: has none of the samples that data\.max_train=0"
    ):
        training_samples(configured(dataset), dataset, none)


def test_demonstrations_that_do_not_fit_end_a_warm_start_before_it_begins(
    dataset: Dataset, taught: Path, tmp_path: Path
) -> None:
    def fails(message: str, *settings: str, retrieve: Callable[[Config], Retrieve | None] = lambda _: None) -> None:
        config = configured(dataset, f"sft.demonstrations={taught}", *settings)
        with pytest.raises(AffectError, match=message):
            warm_start(config, dataset, retrieve(config), tmp_path / "sft")
        assert not (tmp_path / "sft").exists()

    fails(r"absent: no demonstrations\.json", f"sft.demonstrations={taught.parent / 'absent'}")
    fails(r"were written with episode\.keep=1, now it is 2; set episode\.keep as it was", "episode.keep=2")
    assert not list(tmp_path.iterdir()), "no policy was made"

    def other_library(config: Config) -> Retrieve:
        index = build_index(dataset.samples("library")[:8], tmp_path / "index", config.retrieval)
        return LocalRetriever(index, config.retrieval)

    message = r"^12 of 12 samples cannot be demonstrated.*its queries find other candidates than when they were written"
    fails(message, retrieve=other_library)
