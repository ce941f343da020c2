"""Starts the retrieval service: shard actors, and a frontend that encodes, scatters and merges."""

from __future__ import annotations

import uuid
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from affect_rl.config import actors
from affect_rl.config.services import RetrievalConfig
from affect_rl.errors import AffectError
from retrieval_service.client import RetrievalClient, frontend_name, shard_name
from retrieval_service.errors import RetrievalError
from retrieval_service.frontend import RetrievalFrontend
from retrieval_service.index import IndexDirectory
from retrieval_service.shard import IndexShard

_EPISODES_IN_FLIGHT = 10_000


def launch_retrieval(
    index_dir: Path | str, config: RetrievalConfig, *, name: str = "", place: actors.Place = actors.anywhere
) -> RetrievalClient:
    """Start the actors and wait until they can answer.

    It takes ``config.shards + 1`` actors of ``config.threads`` CPUs each. Ray restarts any that dies; until a
    shard is back, answers are marked degraded.

    Args:
        index_dir: a directory by `retrieval_service.index.build_index`, on a path that all nodes see.
        config: the settings it was built with.
        name: actors are called ``<name>-frontend`` and ``<name>-shard-<i>``; empty: a name is made up.
        place: says where they go.

    Raises:
        AffectError: the directory or the encoder is not usable.
        RetrievalError: the actors did not start within `config.deadline_s`.
    """
    path = str(IndexDirectory.open(Path(index_dir).resolve(), config).path)
    name = name or f"retrieval-{uuid.uuid4().hex[:8]}"
    shard, frontend = ray.remote(IndexShard), ray.remote(RetrievalFrontend)
    shards = [
        shard.options(**{**options, "name": shard_name(name, i)}, max_restarts=-1).remote(path, config, i)
        for i, options in enumerate(place(actors.shards(config)))
    ]
    (options,) = place(actors.frontend(config))
    handle = frontend.options(
        **{**options, "name": frontend_name(name)},
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=_EPISODES_IN_FLIGHT,
    ).remote(path, config, name)
    client = RetrievalClient(name, handle, shards, config.answer_s)
    try:
        ray.get([actor.ready.remote() for actor in (*shards, handle)], timeout=config.deadline_s)
    except GetTimeoutError as error:
        client.close()
        raise RetrievalError(
            f"retrieval: {config.shards} shards and the frontend did not start within retrieval.deadline_s="
            f"{config.deadline_s:g}; they need {(config.shards + 1) * config.threads} free CPUs"
        ) from error
    except (RayActorError, RayTaskError) as error:
        client.close()
        raise AffectError(f"retrieval: an actor could not start: {_last_line(error)}") from error
    return client


def _last_line(error: Exception) -> str:
    """What the actor itself said, below the traceback that Ray puts before it."""
    return str(error).strip().splitlines()[-1]
