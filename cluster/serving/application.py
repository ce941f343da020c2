"""The Serve application of a team: a door, encoders and engines, each a deployment that scales by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from affect_rl.config.actors import engines
from affect_rl.config.load import Config
from affect_rl.data.dataset import Manifest
from affect_rl.policy.directory import check_manifest
from cluster.runtime.run import Run, open_run
from cluster.serving.api import build_api
from cluster.serving.replicas import EncoderReplica, EngineReplica
from cluster.serving.service import TeamService

NAME = "affect-rl"
_DOORS_IN_FLIGHT = 1000


@serve.ingress()
class Door(TeamService):
    """The HTTP side."""

    def __init__(
        self, config: Config, manifest: Manifest, engines: DeploymentHandle, encoders: DeploymentHandle, token: str
    ) -> None:
        super().__init__(config, manifest, engines, encoders, token)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self)


@contextmanager
def serving(config: Config, policy: Path, token: str) -> Iterator[str]:
    """A team behind ``serve.host:serve.port`` for as long as the block lasts; gives its address.

    Raises:
        AffectError: `policy` holds no policy, the dataset cannot be read, or there are too few CPUs or GPUs.
    """
    check_manifest(policy)
    with open_run(_for_serving(config), "eval") as run:
        serve.start(http_options={"host": config.serve.host, "port": config.serve.port})
        try:
            serve.run(_application(run, policy.resolve(), token), name=NAME, route_prefix="/")
            yield f"http://{config.serve.host}:{config.serve.port}"
        finally:
            serve.shutdown()


def _for_serving(config: Config) -> Config:
    """Requests share an engine as they come: one that played a call after the other would let most of them wait."""
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"deterministic": False})})


def _application(run: Run, policy: Path, token: str) -> Any:
    config, settings = run.config, run.config.serve
    engine = serve.deployment(EngineReplica).options(
        name="engine",
        ray_actor_options=engines(config.rollout).options,
        max_ongoing_requests=config.rollout.concurrency,
        max_queued_requests=settings.max_queued,
        health_check_timeout_s=config.rollout.deadline_s,
        **_replicas(config.rollout.workers, config.rollout.concurrency),
    )
    encoder = serve.deployment(EncoderReplica).options(
        name="encoder",
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=2,
        max_queued_requests=settings.max_queued,
        **_replicas(settings.encoders, 2),
    )
    door = serve.deployment(Door).options(
        name="door", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=_DOORS_IN_FLIGHT
    )
    return door.bind(
        config,
        run.dataset.manifest,
        engine.bind(config, policy, run.retrieval),
        encoder.bind(config.data.dir),
        token,
    )


def _replicas(count: int | tuple[int, int], in_flight: int) -> dict[str, Any]:
    """A fixed number of replicas, or as many between two as keep each about half full."""
    if isinstance(count, int):
        return {"num_replicas": count}
    least, most = count
    target = max(1, in_flight // 2)
    return {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target}}
