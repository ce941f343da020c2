"""The actors that jobs share: the evidence service and the rollout engines, and the room for all actors.

Starting them takes a minute. So a process keeps them from job to job, as long as their settings stay the
same, and replaces them when a job has others. A stage takes all the room that it lacks at once; what stays
keeps its own. But nothing is held for long while more is waited for: two jobs could wait for each other.
"""

from __future__ import annotations

import logging
from pathlib import Path

from affect_rl.config.actors import Actors, Stage, actors_of, placed_actors
from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.data.library import evidence_library
from affect_rl.policy.directory import tokenizer_files
from cluster.runtime.capacity import connected_cluster, fits
from cluster.runtime.placement import NoRoomError, Placement
from cluster.runtime.pool import RolloutPool
from retrieval_service.client import RetrievalClient
from retrieval_service.index import ensure_index
from retrieval_service.service import launch_retrieval

logger = logging.getLogger(__name__)

PATIENCE_S = 20.0
"""How long a job waits for more room before it gives back what it holds."""


class Services:
    """At most one evidence service and one pool of engines; `close` ends both."""

    def __init__(self) -> None:
        self._retrieval: RetrievalClient | None = None
        self._retrieval_settings: object = None
        self._pool: RolloutPool | None = None
        self._pool_settings: object = None
        self._pool_retrieval: RetrievalClient | None = None
        self._placement: Placement | None = None

    def place(self, config: Config, stage: Stage) -> Placement:
        """Room for all actors of a stage; waits until the cluster has it. Ask before its `retrieval` and `pool`.

        What stays from the stage before keeps its room. All is ended and given back first if the evidence service must
        be another (engines hold a client of it), if actors have another size, if what stays is in the way of the warm
        start's workers, which Ray Train places, or if what is lacking is not free at once.

        Raises:
            AffectError: there was no room within ``cluster.deadline_s``.
        """
        wanted = placed_actors(config, stage)
        beside = [actors for actors in self._held if actors not in wanted]
        crowded = beside and not fits([*actors_of(config, stage), *beside], connected_cluster())
        if self._outdated(config) or crowded:
            self.close()
        if self._placement is not None:
            try:
                self._placement.reserve(wanted, within_s=PATIENCE_S)
                return self._placement
            except NoRoomError:
                logger.info("no room within %g s beside what is held: gives it back and waits for all", PATIENCE_S)
                self.close()
        placement = Placement(config.name, config.cluster.deadline_s)
        placement.reserve(wanted)
        self._placement = placement
        return placement

    @property
    def _held(self) -> list[Actors]:
        return self._placement.reserved if self._placement else []

    def _outdated(self, config: Config) -> bool:
        """Whether a job cannot go on with what there is: another evidence service, or actors of another size.

        Actors of all stages: an evidence service that this one begins must not be ended again by the next.
        """
        sizes = {actors.role: actors for actors in self._held}
        resized = any(sizes.get(actors.role, actors) != actors for actors in placed_actors(config, "train"))
        other = config.team.retrieval and self._retrieval and self._retrieval_settings != _evidence(config)
        return bool(resized or other)

    def retrieval(self, config: Config, dataset: Dataset) -> RetrievalClient | None:
        """The evidence service for a job; None if its episodes have none."""
        if not config.team.retrieval:
            return None
        place = self._placement
        if place is None or self._outdated(config) or not set(placed_actors(config, "sft")) <= set(self._held):
            place = self.place(config, "sft")  # not if a stage has room: the others' actors would be in its way
        if self._retrieval is None:
            library = evidence_library(dataset, config.retrieval)
            indexes = Path(config.retrieval.index_dir or f"{config.retrieval.library or config.data.dir}-index")
            self._retrieval = launch_retrieval(
                ensure_index(library, indexes, config.retrieval), config.retrieval, name=place.name, place=place
            )
            self._retrieval_settings = _evidence(config)
        return self._retrieval

    def pool(self, config: Config, policy: Path, retrieval: RetrievalClient | None) -> RolloutPool:
        """Engines for a job, started with `policy` if there are none that fit; their weights may be any."""
        adapters = len(set(config.team.adapters.values()))
        rollout = config.rollout.model_copy(update={"transfer": "file", "weights_dir": ""})  # a matter of the learner
        episode = config.episode
        prompts = (episode.evidence_tokens, episode.wording, episode.described)
        tokenizer = tokenizer_files(policy)  # a tiny model's is trained on the words of its team
        settings = (config.model, rollout, config.data, prompts, adapters, tokenizer, config.deterministic)
        serves = retrieval in (None, self._pool_retrieval)  # episodes without retrieval leave a service alone
        if self._pool is None or settings != self._pool_settings or not serves:
            self._close_pool()
            self._pool = RolloutPool(config, policy, retrieval, self.place(config, "eval"))
            self._pool_settings, self._pool_retrieval = settings, retrieval
        return self._pool

    def close(self) -> None:
        """End all actors and give their room back."""
        self._close_pool()
        if self._retrieval is not None:
            self._retrieval.close()
        if self._placement is not None:
            self._placement.release()
        self._retrieval = self._placement = None

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None


def _evidence(config: Config) -> object:
    """What makes an evidence service another one."""
    return config.data.dir, config.data.per_speaker, config.retrieval
