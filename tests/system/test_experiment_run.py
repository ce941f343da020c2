"""An experiment on real engines: stages are shared and found again, frozen agents and DPO train, tables add up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import NoReturn

import openpyxl
import pyarrow.parquet as pq
import pytest
import yaml

from affect_rl.data.dataset import write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.experiments.results import CURVES_FILE, EPISODES_FILE, PREDICTIONS_FILE, TABLES, Results
from affect_rl.experiments.spec import load_experiment
from affect_rl.scoring.metrics import METRICS, evaluate
from affect_rl.scoring.wheels import LEVELS, RUNS, WHEELS
from cluster.experiments.run import run_experiment
from cluster.experiments.stages import EPISODES
from cluster.runtime.services import Services

pytestmark = pytest.mark.slow

ARMS = {
    "untrained": {"policy": "none"},  # no answer of its can be read
    "sft": {"policy": "sft"},
    "no filter": {"policy": "sft", "evaluate": {"team.agents": ["planner", "generator"]}},
    "no audio": {"policy": "sft", "evaluate": {"episode.absent": ["audio"], "team.generator.support": "direct"}},
    "bridge": {
        "bridge_steps": 2,
        "train": {
            f"team.{agent}.{key}": value
            for agent in ("planner", "generator")
            for key, value in (("policy", "start"), ("trains", False))
        },
    },
    "preferences": {"train": {"algorithm.name": "dpo", "train.copies": 2, "train.in_turn": True}},
}
AGENTS = ("planner", "filter", "generator")


@pytest.fixture(scope="module")
def folder(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment's file, run once; its results are in ``results``."""
    folder = tmp_path_factory.mktemp("experiment")
    world = synthesise(SynthSettings(train=24, dev=4, test=16, expressions=20))
    data = write_dataset(folder / "synth", world, name="synth")
    (folder / "base.yaml").write_text("")
    overrides = {
        "data.dir": str(data), "runs_dir": str(folder / "runs"), "model.context": 320, "model.tiny.layers": 2,
        "model.tiny.dim": 64, "model.tiny.heads": 2, "model.tiny.vocabulary": 600, "model.fusion.dim": 32,
        "episode.k": 2, "sft.steps": 40, "sft.batch_samples": 8, "sft.lr": 4e-3, "sft.threads": 1,
        "learner.threads": 1, "rollout.threads": 1, "rollout.kv_cache_gib": 0.1, "train.steps": 3,
        "train.samples_per_step": 8, "train.eval_every": 0, "train.checkpoint_every": 0, "evaluate.resamples": 50,
    }  # fmt: skip
    spec = {
        "name": "small", "title": "Does it run?", "config": str(folder / "base.yaml"), "overrides": overrides,
        "seeds": 1, "reference": "sft", "arms": ARMS, "baseline": True, "fusion_details": True, "notes": ["Tiny."],
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    _run(folder)
    return folder


def _run(folder: Path) -> Results:
    return run_experiment(load_experiment(folder / "experiment.yaml"), folder / "results", (), "the command")


def _turns(folder: Path, arm: str) -> list[list[dict[str, object]]]:
    rows = pq.read_table(folder / "results" / EPISODES_FILE).to_pylist()
    return [row["turns"] for row in rows if row["arm"] == arm]


def test_arms_share_stages(folder: Path) -> None:
    stages = sorted(path.name.split("-")[0] for path in (folder / "runs").glob("[!.]*"))
    assert stages == ["base", "bridge", *["eval"] * 6, "sft", *["train"] * 2]


def test_tables_say_what_the_predictions_say(folder: Path) -> None:
    results = Results.read(folder / "results")
    rows = pq.read_table(folder / "results" / PREDICTIONS_FILE).to_pylist()
    assert list(results.arms) == list(ARMS)
    for name, arm in results.arms.items():
        mine = [row for row in rows if row["arm"] == name]
        assert len(mine) == results.samples == 16
        scores = evaluate([r["predicted"] for r in mine], [r["labels"] for r in mine], results.labels, resamples=1)
        for metric in METRICS:
            assert arm.metrics[metric].value == pytest.approx(getattr(scores, metric).value)
        assert arm.seconds_per_sample > 0 and arm.tokens_per_sample > 0
    assert {(c.other, c.metric) for c in results.comparisons} == {(a, m) for a in ARMS if a != "sft" for m in METRICS}
    assert results.arms["untrained"].metrics["invalid_rate"].value == 1
    assert results.baselines["logistic regression"]["accuracy"].value > 0
    assert "| preferences |" in (folder / "results" / TABLES).read_text()
    assert {m.name.split("/")[0] for m in results.measures} == {"gain", "routing", "load_entropy"}
    assert "- Tiny.\n- 1 of at least 3 seeds" in (folder / "results" / TABLES).read_text()


def test_who_plays_and_who_learns(folder: Path) -> None:
    assert len(_turns(folder, "sft")) == EPISODES
    assert {tuple(t["agent"] for t in turns) for turns in _turns(folder, "sft")} == {AGENTS}
    assert {tuple(t["agent"] for t in turns) for turns in _turns(folder, "no filter")} == {("planner", "generator")}
    for turns in _turns(folder, "bridge"):
        assert set(turns[0]["weight_versions"]) == set(turns[2]["weight_versions"]) == {0}, "frozen"
        assert set(turns[1]["weight_versions"]) != {0}
    curves = pq.read_table(folder / "results" / CURVES_FILE).to_pylist()
    learned = {
        arm: {c["metric"] for c in curves if c["arm"] == arm and c["value"]} for arm in ("bridge", "preferences")
    }
    assert "filter/entropy" in learned["bridge"] and "generator/entropy" not in learned["bridge"]
    assert {f"{agent}/entropy" for agent in AGENTS} <= learned["preferences"], "each in its turn"


def test_second_runs_at_once_compute_nothing_and_write_the_same_results(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stages() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("[!.]*/**/*")}

    def unwanted(*_: object) -> NoReturn:
        raise AssertionError("finished stages need no evidence")

    monkeypatch.setattr(Services, "retrieval", unwanted)
    before = stages()
    first = json.loads((folder / "results" / "results.json").read_text())
    with ThreadPoolExecutor() as pool:
        list(pool.map(_run, [folder] * 3))
    assert stages() == before
    assert json.loads((folder / "results" / "results.json").read_text()) == first


def test_wheels_that_are_named_later_only_score_the_answers_again(folder: Path) -> None:
    before, stages = Results.read(folder / "results"), set((folder / "runs").iterdir())
    labels = before.labels[1:]  # what the wheels do not know is left out
    wheels = _write_wheels(folder / "wheels", labels)
    spec, out = load_experiment(folder / "experiment.yaml"), folder / "results-with-hit"
    results = run_experiment(spec, out, (f"evaluate.wheels={wheels}",), "the command")
    assert set((folder / "runs").iterdir()) == stages
    rows = pq.read_table(out / PREDICTIONS_FILE).to_pylist()
    for name, arm in results.arms.items():
        assert {metric: arm.metrics[metric] for metric in METRICS} == before.arms[name].metrics
        mine = [row for row in rows if row["arm"] == name and row["labels"][0] in labels]
        right = fmean(row["labels"] == row["predicted"] for row in mine)
        assert [arm.metrics[name].value for name in ("hit", "f_s")] == pytest.approx([right, right])
        assert arm.metrics["labels_per_answer"].value == pytest.approx(fmean(len(row["predicted"]) for row in mine))
    assert results.main == before.main and "hit" in results.baselines["logistic regression"]
    assert f"of 16 samples used, without {before.labels[0]}." in results.notes[0]


def _write_wheels(directory: Path, labels: Sequence[str]) -> Path:
    """The published layout, with each label a cluster of its own in all wheels."""
    tables = {name: [LEVELS, *([label] * 3 for label in labels)] for name in WHEELS}
    tables["synonym.xlsx"] = [[column for run in RUNS for column in run], *([x] * 2 * len(RUNS) for x in labels)]
    directory.mkdir()
    for name, rows in tables.items():
        workbook = openpyxl.Workbook()
        for row in rows:
            workbook.worksheets[0].append(list(row))
        workbook.save(directory / name)
    (directory / "format.csv").write_text("name,format\n" + "".join(f"{label},{label}\n" for label in labels))
    return directory
