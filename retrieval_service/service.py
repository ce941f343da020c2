"""Starts the retrieval service: shard actors, and a front actor that encodes, scatters and merges."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from affect_rl.errors import AffectError
from affect_rl.settings import RetrievalConfig
from retrieval_service.client import RetrievalClient, front_name, shard_name
from retrieval_service.errors import RetrievalError
from retrieval_service.front import RetrievalFront
from retrieval_service.index import IndexDirectory
from retrieval_service.shard import IndexShard

_EPISODES_IN_FLIGHT = 10_000


def launch_retrieval(
    index_dir: Path | str, config: RetrievalConfig, *, name: str = "", placement_group: PlacementGroup | None = None
) -> RetrievalClient:
    """Start the actors and wait until they can answer.

    It takes ``config.shards + 1`` actors of ``config.threads`` CPUs each. Ray restarts any that dies; until a
    shard is back, answers are marked degraded.

    Args:
        index_dir: a directory by `retrieval_service.index.build_index`, on a path that all nodes see.
        config: the settings it was built with.
        name: actors are called ``<name>-front`` and ``<name>-shard-<i>``; empty: a name is made up.
        placement_group: where the actors go; None: wherever Ray has room.

    Raises:
        AffectError: the directory or the encoder is not usable.
        RetrievalError: the actors did not start within `config.deadline_s`.
    """
    path = str(IndexDirectory.open(Path(index_dir).resolve(), config).path)
    name = name or f"retrieval-{uuid.uuid4().hex[:8]}"
    options = _options(config, placement_group)
    shard, front = ray.remote(IndexShard), ray.remote(RetrievalFront)
    shards = [shard.options(**options, name=shard_name(name, i)).remote(path, config, i) for i in range(config.shards)]
    handle = front.options(
        **options,
        name=front_name(name),
        num_gpus=config.encoder_gpus,
        max_task_retries=-1,
        max_concurrency=_EPISODES_IN_FLIGHT,
    ).remote(path, config, name)
    # The front itself gives up after deadline_s; the client waits a little longer, to hear why.
    client = RetrievalClient(name, handle, shards, config.deadline_s + 2 * config.shard_timeout_s)
    try:
        ray.get([actor.ready.remote() for actor in (*shards, handle)], timeout=config.deadline_s)
    except GetTimeoutError as error:
        client.close()
        raise RetrievalError(
            f"retrieval: {config.shards} shards and the front did not start within retrieval.deadline_s="
            f"{config.deadline_s:g}; they need {(config.shards + 1) * config.threads} free CPUs"
        ) from error
    except (RayActorError, RayTaskError) as error:
        client.close()
        raise AffectError(f"retrieval: an actor could not start: {_last_line(error)}") from error
    return client


def _options(config: RetrievalConfig, placement_group: PlacementGroup | None) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": config.threads, "max_restarts": -1}
    if placement_group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placement_group)
    return options


def _last_line(error: Exception) -> str:
    """What the actor itself said, below the traceback that Ray puts before it."""
    return str(error).strip().splitlines()[-1]
