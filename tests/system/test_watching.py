"""A real Prometheus watches a run: it knows every metric, and every panel of every dashboard has something to show."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
import yaml

from affect_rl.config.load import Config, load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.timeline import read_timeline
from cluster.runtime.run import make_run, run_training, run_warm_start
from cluster.runtime.services import Services
from cluster.watching.dashboards import DASHBOARDS, install
from cluster.watching.names import EXPORTED, LIVE, STEP, WARM_START

DEADLINE_S = 90
"""Ray brings a process's metrics to the port every 10 s."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="no Prometheus here: apt-get install --no-install-recommends prometheus",
    ),
]


@dataclass
class Prometheus:
    """A server, and which of the `queries` have had an answer with a number in it."""

    address: str
    queries: dict[str, str]
    answered: dict[str, float] = field(default_factory=dict)

    def ask(self, query: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.address}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as found:
            return json.load(found)["data"]["result"]

    def ask_all(self) -> None:
        for name, query in self.queries.items():
            if name not in self.answered:
                values = [float(series["value"][1]) for series in self.ask(query)]
                if numbers := [value for value in values if not math.isnan(value)]:
                    self.answered[name] = numbers[0]


def _queries() -> dict[str, str]:
    """What is asked, in words of Grafana's variables as Grafana would put them in."""
    asked = {
        f"{page.name}: {panel.title}: {legend}": query.replace("$run", ".*").replace("$__rate_interval", "1m")
        for page in DASHBOARDS
        for panel in page.panels
        for legend, query in panel.queries.items()
    }
    names = {*STEP.values(), *WARM_START.values(), *LIVE}
    return asked | {name: f'{EXPORTED}{name}{{run=~".+"}}' for name in names}


def _wait(until: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not until() and time.monotonic() < ends:
        time.sleep(0.5)


@pytest.fixture(scope="module")
def prometheus(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus under the configuration that is shipped, asked again and again while the tests run."""
    folder = tmp_path_factory.mktemp("prometheus")
    found = folder / "session_latest" / "prom_metrics_service_discovery.json"  # Ray writes it with its dashboard
    found.parent.mkdir()
    ports = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    found.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": ports}]))
    file = install(folder, str(folder))[-1]
    settings = yaml.safe_load(file.read_text())
    settings["global"] = {"scrape_interval": "2s"}
    file.write_text(yaml.safe_dump(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen(
        [
            "prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}", "--log.level=warn",
        ]
    )  # fmt: skip
    watched, ended = Prometheus(f"http://{address}", _queries()), threading.Event()

    def ready() -> bool:
        try:
            watched.ask("vector(1)")
        except OSError:
            return False
        return True

    def keep_asking() -> None:
        while not ended.wait(1):
            watched.ask_all()

    _wait(ready, 30)
    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        yield watched
    finally:
        ended.set()
        asking.join()
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def watched_run(prometheus: Prometheus, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A short run with an engine whose KV cache is too small, so that it preempts."""
    folder = tmp_path_factory.mktemp("watched")
    world = SynthSettings(train=24, dev=4, test=4, expressions=20)
    data = write_dataset(folder / "synth", synthesise(world), name="synth")
    config = load_config(None, [
        f"data.dir={data}", f"runs_dir={folder / 'runs'}", "name=watched", "model.context=320", "model.tiny.layers=2",
        "model.tiny.dim=64", "model.tiny.heads=2", "model.tiny.vocabulary=600", "model.fusion.dim=32",
        "sft.steps=2", "sft.batch_samples=4", "sft.threads=1", "learner.threads=1", "rollout.threads=1",
        "rollout.kv_cache_gib=0.002", "rollout.vllm_statistics=true", "train.steps=4", "train.samples_per_step=16",
        "train.eval_every=2", "train.save_trajectories=false", "tracking.interval_s=1",
    ])  # fmt: skip
    with closing(Services()) as services:
        run_warm_start(make_run(config, Dataset.load(config.data.dir), services))
        run_training(make_run(config, Dataset.load(config.data.dir), services))
    return config


def test_every_panel_has_data_and_every_metric_is_seen(prometheus: Prometheus, watched_run: Config) -> None:
    elsewhere = {"affect_test_score"}  # the run selects on dev
    wanted = set(prometheus.queries) - elsewhere
    _wait(lambda: wanted <= prometheus.answered.keys(), DEADLINE_S)
    assert wanted - prometheus.answered.keys() == set()
    last_step = f"ray_affect_step{{run='watched'}} == {watched_run.train.steps}"
    _wait(lambda: bool(prometheus.ask(last_step)), DEADLINE_S)
    assert prometheus.ask(last_step)
    last = json.loads((watched_run.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    rewards = prometheus.ask("ray_affect_agent_reward{run='watched'}")
    assert {series["metric"]["agent"] for series in rewards} == {"planner", "filter", "generator"}
    for series in rewards:
        assert float(series["value"][1]) == pytest.approx(last[f"{series['metric']['agent']}/reward"])
    timeline = read_timeline(watched_run.run_dir / "timeline.json")
    assert {who: {span.what for span in spans} for who, spans in timeline.items()} == {
        "loop": {"rollout", "learning", "sync", "evaluation"},
        "rollout-0": {"play", "wait for retrieval", "load weights"},
        "frontend": {"encode"},
        "shard-0": {"search"},
        "shard-1": {"search"},
        "learner-0": {"prepare", "optimise", "publish"},
    }
    assert sum(span.what == "rollout" for span in timeline["loop"]) == watched_run.train.steps
