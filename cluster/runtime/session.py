"""The job's meeting with Ray: join the cluster it was submitted to, or start a local one."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from joblib import cpu_count

from affect_rl.config.actors import logical_cpus
from affect_rl.config.load import Config

_STATE_API = "RAY_API_SERVER_ADDRESS"


@contextmanager
def deaf_to_other_rays() -> Iterator[None]:
    """A local Ray that is started inside asks no Ray whether its trainings are alive.

    Ray Train's PlacementGroupCleaner asks the state API, which finds any Ray of the machine. One that does not know the
    training says so, and the cleaner takes the workers of a training that is well. A refused connection is no answer;
    and a local Ray ends with its job, which leaves nothing to clean.
    """
    before = os.environ.get(_STATE_API)
    os.environ[_STATE_API] = "http://127.0.0.1:9"  # the port `discard`, where nobody listens
    try:
        yield
    finally:
        del os.environ[_STATE_API]
        if before is not None:
            os.environ[_STATE_API] = before


def cluster_address(config: Config) -> str:
    """The cluster that a job joins; empty: none, so it starts a Ray of its own."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS", "")


def joins_cluster(config: Config) -> bool:
    """Whether a job runs on a Ray that is there already."""
    return ray.is_initialized() or bool(cluster_address(config))


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Ray puts a handler of its own in place of the job's, and prints the stack of its core when a job is stopped."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Connect to Ray for the duration of a job.

    ``cluster.address`` wins, then the cluster a submitted job runs on (``RAY_ADDRESS``), else a local
    Ray is started and shut down again. A Ray that the process already has is used and left alone.
    Nothing is put into the job's environment here: Ray refuses a variable that is set both by the
    submission and by ``ray.init``.
    """
    if ray.is_initialized():
        yield
        return
    with _sigterm_handler_kept():
        if address := cluster_address(config):
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        else:
            _start_ray(config)
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(config: Config) -> None:
    """A Ray of this job alone."""
    with deaf_to_other_rays():
        ray.init(
            address="local",
            num_cpus=config.cluster.num_cpus or max(logical_cpus(config), cpu_count()),
            object_store_memory=config.cluster.object_store_mib << 20,
            include_dashboard=config.cluster.dashboard,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level="warning",
            _temp_dir=os.path.join(tempfile.gettempdir(), "ray"),
        )
