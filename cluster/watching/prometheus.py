"""Publishes metrics through `ray.util.metrics`: Prometheus finds them on the metrics port of the driver's node.

All series are gauges, the counters among them (``..._total``) too: a counter of Ray cannot be 0, so its series would
begin with its first event, and `rate` and `increase` would miss that one. An actor that is restarted counts from 0
again, which Prometheus takes for what it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.util.metrics import Gauge

from cluster.runtime.pool import RolloutPool
from cluster.runtime.rundir import Progress
from cluster.watching.names import LIVE, prometheus_name
from cluster.watching.trackers import finite
from retrieval_service.client import RetrievalClient

logger = logging.getLogger(__name__)

ASKED_S = 10.0
"""An engine that has not answered by then is left out; the pool, not the watcher, judges its health."""


class Publisher:
    """The series of one run; each is made when its first value comes."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, name: str, value: float, **tags: str) -> None:
        """Publish a value under a name of `cluster.watching.names`."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=name, tag_keys=("run", *tags))
        self._gauges[name].set(float(value), tags={"run": self._run, **tags})


class PrometheusTracker:
    """The metrics of each step; one for all attempts of a training, for its counts must not fall.

    A series that falls is taken to have begun anew, and all that it counted before would be counted twice. So counts
    begin with those of the run, and steps that are done again after a loss change nothing until they are made up for.

    Args:
        publish: `Publisher.set`.
        start: how far the training is; None: it is the warm start that is tracked.
    """

    def __init__(self, publish: Callable[..., None], start: Progress | None) -> None:
        self._publish, self._warm_start = publish, start is None
        self._counts: dict[str, float] = {}
        if start:
            self.log(start.step, start.counts())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for metric, value in finite(metrics).items():
            name, tags = prometheus_name(metric, warm_start=self._warm_start)
            if metric.startswith("counts/"):
                value = self._counts[metric] = max(value, self._counts.get(metric, 0.0))
            self._publish(name, value, **tags)
        if not self._warm_start:
            self._publish("affect_step", step)  # last: who sees the step sees its metrics

    def close(self) -> None:
        """Nothing is left to write; the last values stay until the driver ends."""


class Watcher:
    """Asks pool, engines and evidence service every few seconds, in a thread of the driver, and publishes the answers.

    So a step that takes minutes, or hangs, is seen from inside. What cannot be asked is left out.
    """

    def __init__(self, run: str, pool: RolloutPool, retrieval: RetrievalClient | None, interval_s: float) -> None:
        self._publisher, self._pool, self._retrieval = Publisher(run), pool, retrieval
        self._interval_s, self._ended = interval_s, threading.Event()
        self._seen: set[int] = set()
        for name, tags in LIVE.items():
            if name.endswith("_total") and not tags and (retrieval or not name.startswith("affect_retrieval")):
                self._publisher.set(name, 0)
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publish a last time and stop."""
        self._ended.set()
        self._thread.join(2 * ASKED_S)

    def _watch(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(self._interval_s)
            try:
                self._publish()
            except Exception as error:  # whoever is watched goes on; what it died of, the pool says
                logger.debug("watching: %s: %s", type(error).__name__, error)

    def _publish(self) -> None:
        state = self._pool.state()
        self._publisher.set("affect_pool_waiting_episodes", state.waiting)
        self._publisher.set("affect_pool_replayed_total", state.replayed)
        self._publisher.set("affect_weight_version", state.version)
        self._seen |= state.engines.keys()
        retired = self._seen - state.engines.keys()
        self._publisher.set("affect_pool_retired_total", len(retired))
        for actor in retired:
            self._of_engine(actor, {"healthy": False, "playing_episodes": 0})
        for actor, engine in state.engines.items():
            self._of_engine(actor, {
                "playing_episodes": engine.playing, "healthy": engine.healthy, "faults_total": engine.faults,
            })  # fmt: skip
        if self._retrieval:
            self._publish_retrieval(self._retrieval.stats(ASKED_S))
        for actor, stats in self._pool.engine_stats(ASKED_S).items():
            self._of_engine(actor, {
                "weight_version": stats["version"], "kv_cache_use": stats["kv_cache_use"],
                "running_requests": stats["running"], "waiting_requests": stats["waiting"],
                "steps_total": stats["steps"], "generated_tokens_total": stats["generated_tokens"],
                "prompt_tokens_total": stats["prompt_tokens"], "cached_tokens_total": stats["cached_tokens"],
                "busy_seconds_total": stats["busy_s"], "elsewhere_seconds_total": stats["retrieval_s"],
            })  # fmt: skip

        for actor, samples in self._pool.vllm_statistics(ASKED_S).items():
            for name, tags, value in samples:
                self._publisher.set(name, value, **tags, actor=f"rollout-{actor}")

    def _of_engine(self, actor: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._publisher.set(f"affect_engine_{name}", value, actor=f"rollout-{actor}")

    def _publish_retrieval(self, stats: Mapping[str, Any]) -> None:
        shards: Sequence[Mapping[str, float]] = stats["shards"]
        for name, value in stats.items():
            if name != "shards":
                self._publisher.set(f"affect_retrieval_{name}", value)
        for number, shard in enumerate(shards):
            for name, value in shard.items():
                self._publisher.set(f"affect_shard_{name}", value, shard=str(number))
