"""The whole loop on real engines: it repeats itself, survives the loss of actors, and goes on after its driver died."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.actor import ActorHandle

from affect_rl.config.load import Config, load_config
from affect_rl.data.dataset import Dataset, write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.errors import AffectError
from affect_rl.policy.directory import write_manifest
from affect_rl.policy.model import AffectPolicy
from affect_rl.sample import AffectSample
from affect_rl.scoring.scoring import Scoring
from affect_rl.scoring.wheels import Wheels
from affect_rl.tasks.task import Task
from affect_rl.team.agent import Agent, Reading, Writes
from affect_rl.team.board import Board, Found
from affect_rl.team.prompts import Prompts
from affect_rl.team.store import read_trajectories
from affect_rl.trajectory import Output, Prompt, Trajectory
from cluster.check import check_model
from cluster.runtime.run import Run, make_run, open_run, run_evaluation, run_stages, run_training, run_warm_start
from cluster.runtime.services import Services
from cluster.sampler import StepSampler
from learners.group import LearnerGroup
from rollout_workers.worker import EpisodeSpec

AGENTS = ("planner", "filter", "generator")


class Listener(Agent):
    """An agent of this file: tells the generator in a word how the speaker sounds."""

    reads = ("notes",)
    writes = ("notes",)
    bypass_reads = ("notes",)
    task_text = "Task: say how it sounds.\n"

    def prompt(self, board: Board, prompts: Prompts) -> Prompt:
        return prompts.build(board.sample, self.settings.tokens, self.task_text)

    def read(self, text: str, board: Board) -> Reading:
        return Reading({"notes": (*board.notes, f"It sounds {text}")})

    def demonstrate(self, board: Board, *, careful: bool) -> str:
        return board.sample.labels[0]

    def bypass(self, board: Board) -> Writes:
        return {"notes": board.notes}

    def texts(self) -> list[str]:
        return [self.task_text, "It sounds"]


class Initial(Task):
    """A task of this file: answer with the first letter of the emotion."""

    instruction = "Task: write the first letter of the emotion.\n"

    def read(self, text: str, sample: AffectSample) -> Output:
        return Output(text, (text,)) if len(text) == 1 else Output(text, problem=f"`{text[:40]}` is not one letter")

    async def score(self, output: Output, sample: AffectSample) -> float:
        return float(output.labels == (sample.labels[0][0],))

    def scoring(self, samples: Sequence[AffectSample], wheels: Wheels | None = None) -> Scoring:
        def measure(answers: Sequence[Sequence[str]], draws: np.ndarray) -> dict[str, np.ndarray]:
            right = [list(a) == [s.labels[0][0]] for a, s in zip(answers, samples, strict=True)]
            return {"initials": draws @ np.array(right, float) / draws.sum(axis=1)}

        return Scoring(("initials",), "initials", len(samples), measure)

    def demonstrate(self, sample: AffectSample, kept: Found) -> str:
        return sample.labels[0][0]

    def texts(self) -> list[str]:
        return [self.instruction]


DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
TIMES = re.compile(r"time|.*_s$")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset."""
    settings = SynthSettings(train=48, dev=8, test=16, expressions=30)
    return write_dataset(tmp_path_factory.mktemp("world") / "synth", synthesise(settings), name="synth")


@pytest.fixture(scope="module")
def settings(world: Path) -> list[str]:
    """Overrides of all jobs here."""
    return [
        f"data.dir={world}", "model.context=320", "model.tiny.layers=2", "model.tiny.dim=64", "model.tiny.heads=2",
        "model.tiny.vocabulary=600", "model.fusion.dim=32", "episode.k=2", "retrieval.shards=2",
        "sft.steps=60", "sft.batch_samples=16", "sft.lr=4e-3", "sft.prompt_weight=1", "sft.threads=1",
        "learner.lr=1e-3", "learner.threads=1", "rollout.threads=1", "rollout.kv_cache_gib=0.1",
        "train.steps=3", "train.samples_per_step=16", "train.eval_every=2", "train.checkpoint_every=1",
        "train.verify_sync=true", "evaluate.resamples=100",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def services(cluster: None) -> Iterator[Services]:
    """Actors that jobs with the same settings share; the jobs that need others come last."""
    with closing(Services()) as services:
        yield services


@pytest.fixture(scope="module")
def sft(services: Services, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy after a short warm start."""
    config = load_config(None, [*settings, f"runs_dir={tmp_path_factory.mktemp('sft')}"])
    return run_warm_start(_run(config, services))


def _config(settings: list[str], sft: Path, runs: Path, name: str, *more: str) -> Config:
    return load_config(None, [*settings, f"policy={sft}", f"runs_dir={runs}", f"name={name}", *more])


def _run(config: Config, services: Services) -> Run:
    return make_run(config, Dataset.load(config.data.dir), services)


def _train(config: Config, services: Services) -> list[dict[str, Any]]:
    run_training(_run(config, services))
    return _metrics(config.run_dir)


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _numbers(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics that do not depend on the clock, nor on what was lost."""
    skip = {"learner/tokens_per_s", "counts/learners_lost"}
    return [{k: v for k, v in line.items() if not TIMES.match(k) and k not in skip} for line in metrics]


def _process(actor: ActorHandle) -> int:
    """The process of one of our own actors; others on this machine may run actors of the same name."""
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60)


@pytest.fixture(scope="module")
def reference(sft: Path, settings: list[str], services: Services, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that nothing disturbed."""
    config = _config(settings, sft, tmp_path_factory.mktemp("runs"), "reference")
    _train(config, services)
    return config


def test_engine_and_learner_agree_before_and_after_every_sync(reference: Config) -> None:
    metrics = _metrics(reference.run_dir)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert all(line["logprob_gap/max"] < 1e-4 for line in metrics)
    assert all(abs(line["ratio/first"] - 1) < 1e-4 for line in metrics)
    assert metrics[0]["kl/planner"] == pytest.approx(0, abs=1e-6)
    assert any(abs(metrics[2][f"kl/{agent}"]) > 1e-6 for agent in AGENTS)


def test_every_logged_metric_is_explained_and_every_explained_one_is_logged(reference: Config) -> None:
    page = DOCS.read_text().split("\n## While a step runs\n")[0]
    explained = set(re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE))
    explained = {name.replace("<agent>", agent) for name in explained for agent in AGENTS}
    logged = {name for line in _metrics(reference.run_dir) for name in line} - {"step", "time"}
    assert logged == explained


def test_the_run_directory_holds_what_a_user_needs(reference: Config, sft: Path) -> None:
    run = reference.run_dir
    assert load_config(run / "config.yaml") == reference
    assert AffectPolicy.load(run / "policy").config.fusion == AffectPolicy.load(sft).config.fusion
    dataset = Dataset.load(reference.data.dir)
    sampler = StepSampler(dataset.samples("train"), reference.train.samples_per_step, reference.seed)
    for step in range(3):
        rows = read_trajectories(run / "trajectories" / f"step-{step + 1:05d}.parquet")
        assert [row["sample_id"] for row in rows] == [s.id for s in sampler.batch(step)]
        assert all([turn["agent"] for turn in row["turns"]] == list(AGENTS) for row in rows)
        assert all({"full", "planner", "filter"} == set(row["scores"]) for row in rows)
        for row in rows:
            assert list(map(len, row["advantages"])) == [len(turn["response_ids"]) for turn in row["turns"]]


def test_the_same_seed_gives_the_same_numbers(
    reference: Config, sft: Path, settings: list[str], services: Services, tmp_path: Path
) -> None:
    again = _train(_config(settings, sft, tmp_path, "again"), services)
    assert _numbers(again) == _numbers(_metrics(reference.run_dir))
    weights = [(c / "policy" / "model.safetensors").read_bytes() for c in (reference.run_dir, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_weights_by_broadcast_give_the_numbers_of_weights_by_file(
    reference: Config, sft: Path, settings: list[str], services: Services, tmp_path: Path
) -> None:
    """Checksums included, which `train.verify_sync` compares after every sync. No file is written."""
    before = set(Path("/dev/shm").glob("affect-rl-weights-*"))
    config = _config(settings, sft, tmp_path, "broadcast", "rollout.transfer=collective")
    broadcast = _train(config, services)
    assert _numbers(broadcast) == _numbers(_metrics(reference.run_dir))
    assert set(Path("/dev/shm").glob("affect-rl-weights-*")) <= before


def test_a_learning_rate_of_zero_moves_nothing(
    sft: Path, settings: list[str], services: Services, tmp_path: Path
) -> None:
    metrics = _train(_config(settings, sft, tmp_path, "still", "learner.lr=0", "train.steps=2"), services)
    for line in metrics:
        assert abs(line["ratio/first"] - 1) < 1e-4
        assert all(line[f"kl/{agent}"] == pytest.approx(0, abs=1e-6) for agent in AGENTS)


@pytest.mark.slow
def test_a_run_whose_driver_was_killed_goes_on_to_the_same_numbers(
    reference: Config, sft: Path, settings: list[str], services: Services, tmp_path: Path
) -> None:
    file, run = tmp_path / "job.yaml", tmp_path / "runs" / "killed"
    file.write_text("")
    config = _config(settings, sft, tmp_path / "runs", "killed", "cluster.dashboard=false")
    shutil.copytree(sft, run / "sft")
    overrides = [*settings, f"policy={sft}", f"runs_dir={tmp_path / 'runs'}", "name=killed", "cluster.dashboard=false"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli.main", "run", "--resume", str(file), *overrides], env=environment
    )
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / "step-00002" / "progress.json").exists():
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    whole = _run(config, services)
    assert whole.directory.unfinished(whole.config) == ["train", "eval"]
    run_stages(whole, whole.directory.unfinished(whole.config))
    assert whole.directory.unfinished(whole.config) == []
    resumed = _metrics(run)
    assert [line["step"] for line in resumed] == [1, 2, 3]
    assert _numbers(resumed) == _numbers(_metrics(reference.run_dir))
    weights = [(c / "policy" / "model.safetensors").read_bytes() for c in (reference.run_dir, run)]
    assert weights[0] == weights[1]


def test_evaluation_writes_tables_and_compares_paired(
    reference: Config, sft: Path, services: Services, tmp_path: Path
) -> None:
    run = _run(reference, services)
    result = run_evaluation(run, {"SFT": sft, "again": sft, "MAPPO": run.directory.policy}, tmp_path)
    assert result.results[0].predicted == result.results[1].predicted
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["samples"] == 16 and set(report["policies"]) == {"SFT", "again", "MAPPO"}
    assert "weighted_f1" in report["differences"]
    assert (tmp_path / "evaluation.md").read_text().startswith("| test, n = 16 | SFT | again | MAPPO | MAPPO - SFT |")


def test_mistakes_are_named_before_anything_starts(
    sft: Path, settings: list[str], reference: Config, services: Services, tmp_path: Path
) -> None:
    trained = _run(reference, services)
    with pytest.raises(AffectError, match="has been trained already; pass --resume"):
        run_training(trained)
    with pytest.raises(AffectError, match=r"no manifest\.json, so this is no policy directory"):
        run_evaluation(trained, {"nothing": tmp_path}, tmp_path / "out")
    missing = _run(_config(settings, tmp_path / "absent", tmp_path, "lost"), services)
    with pytest.raises(AffectError, match="no policy to start from; run `affect-rl sft` first"):
        run_training(missing)
    for wrong in ("data.dir=absent", "evaluate.wheels=absent"):
        with pytest.raises(AffectError, match="absent"), open_run(_config(settings, sft, tmp_path, "x", wrong)):
            pass


def test_engines_that_know_another_model_than_the_learner_end_the_run_before_it_begins(
    sft: Path, settings: list[str], services: Services, tmp_path: Path
) -> None:
    """A scale of the logits that transformers' side heeds and vLLM's Qwen2 does not."""
    policy = shutil.copytree(sft, tmp_path / "policy")
    fields = json.loads((policy / "config.json").read_text())
    fields["text_config"]["logit_scale"] = 0.8
    (policy / "config.json").write_text(json.dumps(fields))
    (policy / "manifest.json").unlink()
    write_manifest(policy)
    config = _config(settings, policy, tmp_path, "misread")
    with pytest.raises(AffectError, match=r"disagree about this model \(qwen2\): .* nothing was trained"):
        run_training(_run(config, services))
    assert not (config.run_dir / "metrics.jsonl").exists() or not _metrics(config.run_dir)
    assert not (config.run_dir / "policy").exists()
    fresh = load_config(None, [*settings, f"runs_dir={tmp_path}", "name=unchecked", f"model.base={policy}"])
    with pytest.raises(AffectError, match=r"disagree about this model \(qwen2\)"):
        check_model(_run(fresh, services))


@pytest.mark.slow
def test_an_agent_and_a_task_of_one_s_own_are_warmed_up_trained_and_measured(
    settings: list[str], services: Services, tmp_path: Path
) -> None:
    own = [
        "team.agents=[planner, filter, listener, generator]", f"team.listener.kind={__name__}:Listener",
        f"task.name={__name__}:Initial", "train.steps=2", f"runs_dir={tmp_path}", "name=own",
    ]  # fmt: skip
    run = _run(load_config(None, [*settings, *own]), services)
    run_warm_start(run)
    warm = [json.loads(line) for line in (run.directory.path / "sft-metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in warm] == [*range(1, 61)]
    assert warm[-1]["listener/loss"] < 0.5 * warm[0]["listener/loss"]
    run_training(run)
    metrics = _metrics(run.directory.path)
    assert all(line["listener/tokens"] and "dev/initials" in metrics[1] for line in metrics)
    assert metrics[1]["kl/listener"] != 0 and metrics[1]["logprob_gap/max"] < 1e-4
    assert metrics[0]["episode/score"] > 0.1  # no answer of another task is one letter
    turns = [
        turn for row in read_trajectories(run.directory.trajectories / "step-00001.parquet") for turn in row["turns"]
    ]
    assert sum(turn["agent"] == "listener" for turn in turns) == 16
    table = run_evaluation(run, run.policies, tmp_path / "tables").markdown()
    assert "initials" in table.lower()


def test_overlapped_training_bounds_staleness(
    sft: Path, settings: list[str], services: Services, tmp_path: Path
) -> None:
    more = ["train.max_staleness=1", "rollout.deterministic=false", "train.steps=4"]
    metrics = _train(_config(settings, sft, tmp_path, "overlapped", *more), services)
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert metrics[-1]["counts/episodes"] == 4 * 16
    assert all(0 <= line["episode/staleness"] <= 1 for line in metrics)
    assert any(line["episode/staleness"] > 0 for line in metrics)


@pytest.mark.slow
def test_a_run_that_loses_its_learner_goes_on_to_the_same_numbers(
    reference: Config,
    sft: Path,
    settings: list[str],
    services: Services,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once before there is a checkpoint, and once in the middle of a later update."""
    config = _config(settings, sft, tmp_path, "bereft", "train.checkpoint_every=2")
    update, losses = LearnerGroup.update, [0, 2]
    started: list[int] = []

    def disturbed_update(group: LearnerGroup, episodes: Sequence[Trajectory], version: int) -> dict[str, float]:
        started.append(version)
        if losses and version == losses[0]:
            losses.pop(0)
            victim = psutil.Process(_process(group._workers[0]))
            group.meanwhile = lambda: victim.kill() if victim.is_running() else None  # called while the ranks work
        return update(group, episodes, version)

    monkeypatch.setattr(LearnerGroup, "update", disturbed_update)
    metrics = _train(config, services)
    assert started == [0, 0, 1, 2, 2]
    assert [line["counts/learners_lost"] for line in metrics] == [1, 1, 2]
    assert _numbers(metrics) == _numbers(_metrics(reference.run_dir))
    weights = [(c / "policy" / "model.safetensors").read_bytes() for c in (reference.run_dir, config.run_dir)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_killed_actors_cost_no_sample_and_come_back(
    sft: Path,
    settings: list[str],
    services: Services,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    more = ["train.steps=4", "rollout.workers=2", "train.samples_per_step=32"]
    config = _config(settings, sft, tmp_path, "wounded", *more)
    run = _run(config, services)
    assert run.retrieval is not None
    pool = run.pool(sft)  # the one that the training will play on
    victims = [_process(actor) for actor in (pool._actors[1], run.retrieval.shards[0])]
    submit = pool.submit

    def disturbed_submit(asked: Iterable[EpisodeSpec]) -> list[object]:
        specs = list(asked)
        step = specs[0].key[0]  # type: ignore[index]
        if step == 3:
            give_up = time.monotonic() + 240
            while len(pool._fleet.healthy()) < 2:
                assert time.monotonic() < give_up, "the killed engine did not come back"
                pool.look_after()
        keys = submit(specs)
        while step == 1 and victims:  # the episodes are with the actors, and no answer has been fetched
            os.kill(victims.pop(), signal.SIGKILL)
        return keys

    monkeypatch.setattr(pool, "submit", disturbed_submit)
    run_training(run)
    assert victims == []
    lines = _metrics(config.run_dir)
    counts = [(line["counts/episodes"], line["counts/replayed"]) for line in lines]
    assert counts == [(32, 0), (64, 16), (96, 16), (128, 16)]
    assert any(line["episode/degraded"] for line in lines) == ("of 32 episodes lack evidence" in caplog.text)
    sampler = StepSampler(run.dataset.samples("train"), 32, config.seed)
    for step in range(4):
        rows = read_trajectories(config.run_dir / "trajectories" / f"step-{step + 1:05d}.parquet")
        assert Counter(row["sample_id"] for row in rows) == Counter(s.id for s in sampler.batch(step))
        assert {v for row in rows for turn in row["turns"] for v in turn["weight_versions"]} == {step}
