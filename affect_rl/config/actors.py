"""What each actor of a job asks Ray for, and which actors live at the same time.

The one place that knows: whoever starts an actor takes its options from here, and so does ``affect-rl plan``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from affect_rl.config.learning import LearnerConfig, SftConfig
from affect_rl.config.load import Config
from affect_rl.config.services import RetrievalConfig, RolloutConfig, ServeConfig

Stage = Literal["sft", "bridge", "train", "eval", "serve"]
"""A part of a job whose actors live at the same time."""


@dataclass(frozen=True, slots=True)
class Actors:
    """Actors of one kind.

    Attributes:
        role: what they are called in tables and messages.
        count: how many.
        cpus: logical CPUs of each.
        gpus: GPUs of each, all on one node.
        settings: what changes their number or size.
    """

    role: str
    count: int
    cpus: float
    gpus: float
    settings: tuple[str, ...]

    @property
    def options(self) -> dict[str, float]:
        """Arguments of Ray's ``.options(...)``."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    @property
    def resources(self) -> dict[str, float]:
        """The same by the names of Ray's resources; without GPUs if there are none."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


Place = Callable[[Actors], Sequence[Mapping[str, Any]]]
"""Says where actors of one kind go: arguments of Ray's ``.options(...)`` for each of them."""


def anywhere(actors: Actors) -> list[dict[str, float]]:
    """A `Place` that leaves it to Ray."""
    return [actors.options] * actors.count


def engines(rollout: RolloutConfig) -> Actors:
    """The rollout actors, the fewest that there may be; all ranks of an engine lie in its actor."""
    return Actors(
        "engine",
        rollout.bounds[0],
        rollout.tensor_parallel,
        rollout.gpus_per_worker,
        ("rollout.workers", "rollout.tensor_parallel", "rollout.gpus_per_worker"),
    )


def learners(learner: LearnerConfig) -> Actors:
    """The ranks of the learner."""
    return Actors(
        "learner", learner.workers, 1, learner.gpus_per_worker, ("learner.workers", "learner.gpus_per_worker")
    )


def sft_workers(sft: SftConfig) -> Actors:
    """The workers of the warm start's Ray Train job."""
    return Actors("sft worker", sft.workers, 1, sft.gpus_per_worker, ("sft.workers", "sft.gpus_per_worker"))


def shards(retrieval: RetrievalConfig) -> Actors:
    """The shards of the evidence index."""
    return Actors(
        "shard",
        retrieval.shards,
        retrieval.threads,
        retrieval.gpus_per_shard,
        ("retrieval.shards", "retrieval.threads", "retrieval.gpus_per_shard"),
    )


def frontend(retrieval: RetrievalConfig) -> Actors:
    """The actor that encodes queries and asks the shards."""
    return Actors(
        "frontend", 1, retrieval.threads, retrieval.encoder_gpus, ("retrieval.threads", "retrieval.encoder_gpus")
    )


def encoders(serve: ServeConfig) -> Actors:
    """What makes features of clips for a team in use, the fewest that there may be."""
    return Actors("encoder", serve.bounds[0], 1, 0, ("serve.encoders",))


def actors_of(config: Config, stage: Stage) -> list[Actors]:
    """The actors of a job that live in `stage`; those that ask for most first."""
    play, learn, warm = engines(config.rollout), learners(config.learner), sft_workers(config.sft)
    own = {
        "sft": [warm],
        "bridge": [play, warm],
        "train": [play, learn],
        "eval": [play],
        "serve": [play, encoders(config.serve)],
    }[stage]
    evidence = [frontend(config.retrieval), shards(config.retrieval)] if config.team.retrieval else []
    return sorted([*own, *evidence], key=lambda actors: (-actors.gpus, -actors.cpus))


def placed_actors(config: Config, stage: Stage) -> list[Actors]:
    """Those of `actors_of` that a job places itself; Ray Train places its workers, Ray Serve its replicas."""
    others = [sft_workers(config.sft)]
    if stage == "serve":
        others += [engines(config.rollout), encoders(config.serve)]
    return [actors for actors in actors_of(config, stage) if actors not in others]


def largest(needs: Iterable[Sequence[Actors]]) -> list[Actors]:
    """What is enough for each of several jobs: of every kind of actor as many, and as large, as any of them has."""
    found: dict[str, Actors] = {}
    for actors in (actors for need in needs for actors in need):
        other = found.get(actors.role, actors)
        found[actors.role] = replace(
            actors,
            count=max(actors.count, other.count),
            cpus=max(actors.cpus, other.cpus),
            gpus=max(actors.gpus, other.gpus),
        )
    return list(found.values())


def logical_cpus(*configs: Config) -> int:
    """Logical CPUs that a local Ray needs to run all actors of a job at once; of several jobs, those of the largest.

    Actors of one job take turns, so a laptop with two cores runs them all; on a cluster Ray places them where there
    is room.
    """
    every = largest(
        [
            engines(config.rollout), learners(config.learner), sft_workers(config.sft), encoders(config.serve),
            frontend(config.retrieval), shards(config.retrieval),
        ]
        for config in configs
    )  # fmt: skip
    return 1 + sum(actors.count * int(actors.cpus) for actors in every)
