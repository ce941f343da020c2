"""The Serve application of a team: a door, encoders and engines, each a deployment that scales by itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from affect_rl.config.actors import engines
from affect_rl.config.load import Config
from affect_rl.config.services import ServeConfig
from affect_rl.data.dataset import Manifest
from affect_rl.errors import AffectError
from affect_rl.policy.directory import check_manifest
from cluster.runtime.run import Run, open_run
from cluster.runtime.session import cluster_address
from cluster.serving.api import build_api
from cluster.serving.replicas import CLIPS_AT_ONCE, EncoderReplica, EngineReplica
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
    if not cluster_address(config):  # there the door is on other machines
        _check_port(config.serve)
    check_manifest(policy)
    # Or a second service on the port would get a part of the requests of the first.
    os.environ.setdefault("SERVE_SOCKET_REUSE_PORT_ENABLED", "0")
    with open_run(_for_serving(config), "serve") as run:
        there = bool(serve.status().proxies)  # a Serve of others goes on after us, on its own address
        try:
            serve.start(http_options={"host": config.serve.host, "port": config.serve.port})
            serve.run(_application(run, policy.resolve(), token), name=NAME, route_prefix="/")
            yield f"http://{config.serve.host}:{config.serve.port}"
        finally:
            if there:
                serve.delete(NAME)
            else:
                serve.shutdown()


def _check_port(settings: ServeConfig) -> None:
    try:
        socket.create_server((settings.host, settings.port)).close()
    except OSError as error:
        raise AffectError(
            f"{settings.host}:{settings.port}: cannot listen there ({error.strerror}); choose another serve.port"
        ) from error


def _for_serving(config: Config) -> Config:
    """Requests share an engine as they come: one that played a call after the other would let most of them wait. Who
    waits for evidence that does not come is told so before the request itself is late."""
    rollout = config.rollout.model_copy(update={"deterministic": False})
    wait_s = min(config.retrieval.deadline_s, config.serve.deadline_s / 4)
    retrieval = config.retrieval.model_copy(update={"deadline_s": wait_s})
    data = config.data.model_copy(update={"dir": str(Path(config.data.dir).resolve())})  # for other working directories
    return config.model_copy(update={"rollout": rollout, "retrieval": retrieval, "data": data})


def _application(run: Run, policy: Path, token: str) -> Any:
    config, settings = run.config, run.config.serve
    engine = serve.deployment(EngineReplica).options(
        name="engine",
        ray_actor_options=engines(config.rollout).options,
        max_ongoing_requests=config.rollout.concurrency,
        max_queued_requests=settings.max_queued,
        health_check_period_s=2,
        health_check_timeout_s=60,
        **_replicas(config.rollout.workers, config.rollout.concurrency),
    )
    encoder = serve.deployment(EncoderReplica).options(
        name="encoder",
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=CLIPS_AT_ONCE,
        max_queued_requests=settings.max_queued,
        **_replicas(settings.encoders, CLIPS_AT_ONCE),
    )
    door = serve.deployment(Door).options(
        name="door", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=_DOORS_IN_FLIGHT
    )
    return door.bind(
        config,
        run.dataset.manifest,
        engine.bind(config, policy, run.retrieval),
        encoder.bind(config.data),
        token,
    )


def _replicas(count: int | tuple[int, int], in_flight: int) -> dict[str, Any]:
    """A fixed number of replicas, or as many between two as keep each about half full."""
    if isinstance(count, int):
        return {"num_replicas": count}
    least, most = count
    target = max(1, in_flight // 2)
    return {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target}}
