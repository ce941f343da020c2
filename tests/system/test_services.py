"""The room of a job's actors from stage to stage: kept while it is in nobody's way, and never held in a deadlock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from affect_rl.config.actors import frontend, learners, placed_actors, shards
from affect_rl.config.load import Config, load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from cluster.runtime import services as module
from cluster.runtime.services import Services

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def services() -> Iterator[Services]:
    with closing(Services()) as services:
        yield services


def _config(*overrides: str) -> Config:
    return load_config(None, ["retrieval.shards=3", "cluster.deadline_s=90", *overrides])


def test_the_evidence_service_starts_in_the_room_of_the_stage(services: Services, tmp_path: Path) -> None:
    """The warm start's workers would find no room beside a training, but nobody has asked for them."""
    write_dataset(tmp_path / "synth", synthesise(SynthSettings()), name="synth")
    config = _config(f"data.dir={tmp_path / 'synth'}", "sft.workers=9", "learner.workers=6", "rollout.workers=2")
    place = services.place(config, "train")
    assert services.retrieval(config, Dataset.of(config.data)) is not None
    assert services.place(config, "train") is place
    assert set(place.reserved) == set(placed_actors(config, "train"))


def test_two_jobs_that_each_hold_what_the_other_lacks_both_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 CPUs of 16 are held between them; each needs 9 more, and waits only once it holds nothing."""
    monkeypatch.setattr(module, "PATIENCE_S", 2.0)
    config = _config("learner.workers=8")
    ended: list[bool] = []
    both_hold = threading.Barrier(2)

    def job() -> None:
        with closing(Services()) as services:
            held = services.place(config, "sft").reserved
            assert set(held) == {frontend(config.retrieval), shards(config.retrieval)}
            both_hold.wait(timeout=60)
            ended.append(learners(config.learner) in services.place(config, "train").reserved)

    jobs = [threading.Thread(target=job) for _ in range(2)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert ended == [True, True]


def test_a_stage_that_finds_room_takes_it_beside_what_there_is(services: Services) -> None:
    config = _config()
    place = services.place(config, "sft")
    assert services.place(config, "train") is place
