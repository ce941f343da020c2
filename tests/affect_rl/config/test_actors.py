"""What actors ask for, and which of them live at the same time."""

from __future__ import annotations

import pytest

from affect_rl.config.actors import Actors, Stage, actors_of, frontend, largest, learners, logical_cpus, shards
from affect_rl.config.learning import LearnerConfig
from affect_rl.config.load import Config, load_config
from affect_rl.config.services import RetrievalConfig


def counts(config: Config, stage: Stage) -> dict[str, int]:
    return {actors.role: actors.count for actors in actors_of(config, stage)}


def test_options_are_those_of_the_settings() -> None:
    assert learners(LearnerConfig(workers=3, gpus_per_worker=1)).options == {"num_cpus": 1, "num_gpus": 1}
    retrieval = RetrievalConfig(threads=4, encoder_gpus=0.5, gpus_per_shard=0.25)
    assert frontend(retrieval).options == {"num_cpus": 4, "num_gpus": 0.5}
    assert shards(retrieval).options == {"num_cpus": 4, "num_gpus": 0.25}


def test_resources_name_gpus_only_where_there_are_some() -> None:
    assert Actors("one", 1, 2, 0, ()).resources == {"CPU": 2}
    assert Actors("one", 1, 2, 1, ()).resources == {"CPU": 2, "GPU": 1}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("sft", {"sft worker": 4, "frontend": 1, "shard": 4}),
        ("bridge", {"engine": 2, "sft worker": 4, "frontend": 1, "shard": 4}),
        ("train", {"engine": 2, "learner": 4, "frontend": 1, "shard": 4}),
        ("eval", {"engine": 2, "frontend": 1, "shard": 4}),
    ],
)
def test_stages_have_their_actors(stage: Stage, expected: dict[str, int]) -> None:
    assert counts(load_config("configs/gpu.yaml"), stage) == expected


def test_without_retrieval_there_is_no_evidence_service() -> None:
    assert counts(load_config(None, ["team.retrieval=false"]), "train") == {"engine": 1, "learner": 1}


def test_a_local_ray_has_room_for_all_actors_and_the_driver() -> None:
    config = load_config("configs/gpu.yaml")
    assert logical_cpus(config) == 1 + 2 + 4 + 4 + 1 + 5 * 4


def test_the_largest_need_is_that_of_each_kind_of_actor() -> None:
    wide, many = load_config(None, ["learner.workers=8"]), load_config(None, ["rollout.workers=4"])
    need = {actors.role: actors.count for actors in largest(actors_of(config, "train") for config in (wide, many))}
    assert (need["learner"], need["engine"]) == (8, 4)
    assert logical_cpus(wide, many) == logical_cpus(load_config(None, ["learner.workers=8", "rollout.workers=4"]))
