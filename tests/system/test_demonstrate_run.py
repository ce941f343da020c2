"""A teacher's demonstrations are what the warm start learns, on the evidence that they were given on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from chat_server import KEEP, PLAN, Script, chat_server

from affect_rl.config.load import load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.team.teacher import Teaching
from cluster.demonstrate import demonstrate
from cluster.runtime.run import make_run, run_warm_start
from cluster.runtime.services import Services
from rollout_workers.served_model import ServedModel


@pytest.fixture(scope="module")
def services(cluster: None) -> Iterator[Services]:
    with closing(Services()) as services:
        yield services


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    base = tmp_path_factory.mktemp("taught")
    world = synthesise(SynthSettings(train=32, dev=2, test=2, expressions=30))
    return [
        f"data.dir={write_dataset(base / 'synth', world, name='synth')}", "data.max_dropped=0", "model.context=320",
        "model.tiny.layers=2", "model.tiny.dim=64", "model.tiny.heads=2", "model.tiny.vocabulary=600",
        "model.fusion.dim=32", "episode.k=2", "retrieval.shards=2", "sft.steps=40", "sft.batch_samples=16",
        "sft.lr=4e-3", "sft.threads=1", "sft.shuffle_candidates=true", f"sft.demonstrations={base / 'out'}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def asked(settings: list[str]) -> int:
    """How many questions the demonstrations of 24 samples took."""
    config = load_config(None, [*settings, "data.max_train=24"])
    with chat_server(Script()) as server:
        model = ServedModel("teacher", server.address, key_variable="KEY", timeout_s=60)
        written = demonstrate(config, Path(config.sft.demonstrations), model, Teaching())
        assert written.rows == 24
        return len(server.asked)


@pytest.mark.slow
def test_a_student_learns_what_the_teacher_wrote(
    settings: list[str], asked: int, services: Services, tmp_path: Path
) -> None:
    """Plan and selection are the same for all samples, so they are learned to the letter; by rule they differ."""
    config = load_config(None, [*settings, f"runs_dir={tmp_path}", "seed=3"])
    run_warm_start(make_run(config, Dataset.load(config.data.dir), services))
    *_, last = (json.loads(line) for line in (config.run_dir / "sft-metrics.jsonl").read_text().splitlines())
    assert asked == 3 * 24 and (config.run_dir / "sft").is_dir()
    assert last["planner/accuracy"] == last["filter/accuracy"] == 1, (PLAN, KEEP)
