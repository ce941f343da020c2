"""The actors that jobs share: the evidence service and the rollout engines.

Starting them takes a minute. So a process keeps them from job to job, as long as their settings stay the
same, and replaces them when a job has others.
"""

from __future__ import annotations

from pathlib import Path

from affect_rl.config.actors import Actors, engines
from affect_rl.config.load import Config
from affect_rl.data.dataset import Dataset
from affect_rl.data.library import evidence_library
from cluster.runtime.pool import RolloutPool
from retrieval_service.client import RetrievalClient
from retrieval_service.index import ensure_index
from retrieval_service.service import launch_retrieval


class Services:
    """At most one evidence service and one pool of engines; `close` ends both.

    Attributes:
        engines: those that are there; they stay while a stage without engines runs.
    """

    def __init__(self) -> None:
        self._retrieval: RetrievalClient | None = None
        self._retrieval_settings: object = None
        self._pool: RolloutPool | None = None
        self._pool_settings: object = None
        self._pool_retrieval: RetrievalClient | None = None
        self.engines: list[Actors] = []

    def retrieval(self, config: Config, dataset: Dataset) -> RetrievalClient | None:
        """The evidence service for a job; None if its episodes have none."""
        if not config.team.retrieval:
            return None
        settings = (config.data.dir, config.retrieval)
        if self._retrieval is None or settings != self._retrieval_settings:
            self.close()  # engines hold a client of the service
            library = evidence_library(dataset, config.retrieval)
            indexes = Path(config.retrieval.index_dir or f"{config.retrieval.library or config.data.dir}-index")
            self._retrieval = launch_retrieval(ensure_index(library, indexes, config.retrieval), config.retrieval)
            self._retrieval_settings = settings
        return self._retrieval

    def pool(self, config: Config, policy: Path, retrieval: RetrievalClient | None) -> RolloutPool:
        """Engines for a job, started with `policy` if there are none that fit; their weights may be any."""
        adapters = len(set(config.team.adapters.values()))
        rollout = config.rollout.model_copy(update={"transfer": "file", "weights_dir": ""})  # a matter of the learner
        shape = (config.model, rollout, config.data, config.episode.evidence_tokens, adapters)
        settings = (*shape, config.deterministic)
        serves = retrieval in (None, self._pool_retrieval)  # episodes without retrieval leave a service alone
        if self._pool is None or settings != self._pool_settings or not serves:
            self._close_pool()
            self._pool = RolloutPool(config, policy, retrieval)
            self._pool_settings, self._pool_retrieval = settings, retrieval
            self.engines = [engines(config.rollout)]
        return self._pool

    def close(self) -> None:
        """End all actors."""
        self._close_pool()
        if self._retrieval is not None:
            self._retrieval.close()
        self._retrieval = None

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool, self.engines = None, []
