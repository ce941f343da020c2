"""A run as a directory for others: whole or not there, and without a word of where it was made."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from affect_rl.config.load import dump_config, load_config
from affect_rl.data.dataset import write_dataset
from affect_rl.data.synth import SynthSettings, synthesise
from affect_rl.errors import AffectError
from affect_rl.files import sha256
from affect_rl.model_card.card import Licences
from affect_rl.policy.adapters import Lora
from affect_rl.policy.export import Exported, Form
from affect_rl.policy.model import AffectPolicy
from benchmarks.workload import tiny_policy
from cluster.export import export
from cluster.runtime.rundir import Progress, RunDirectory

ESTIMATE = {"value": 0.5, "low": 0.4, "high": 0.6}


def write_run(home: Path) -> Path:
    """What a finished run leaves: its configuration, adapters on the warm start, a checkpoint and an evaluation."""
    data, run = home / "data" / "synth", RunDirectory(home / "runs" / "mine")
    samples = synthesise(SynthSettings(train=8, dev=2, test=2, expressions=20))
    write_dataset(data, samples, name="synth", note="Invented.")
    paths = (f"data.dir={data}", f"runs_dir={home / 'runs'}", f"evaluate.wheels={home}", f"rollout.weights_dir={home}")
    config = load_config(None, ["name=mine", "model.lora.rank=4", f"retrieval.index_dir={home}", *paths])
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(dump_config(config))
    policy = AffectPolicy.load(tiny_policy().save(run.sft))
    policy.add_adapters(Lora(4, 10))
    policy.save(run.policy)
    run.begin_training()
    run.seal(run.checkpoint(Progress(step=12)), Progress(step=12), keep=1)
    report = {
        "split": "test", "samples": 2, "notes": [], "confidence": 0.9,
        "policies": {
            name: {"manifest": sha256(policy / "manifest.json"), "scores": {"weighted_f1": ESTIMATE}}
            for name, policy in run.compared(config).items()
        },
        "differences": {"weighted_f1": {**ESTIMATE, "p": 0.5}},
    }  # fmt: skip
    run.evaluation.mkdir()
    (run.evaluation / "evaluation.json").write_text(json.dumps(report))
    return run.path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "here")


def test_a_run_becomes_a_directory_for_others(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = export(run, tmp_path / "given" / "team", Form(with_base=True), Licences(data="cc0-1.0"))
    assert found == Exported(adapters=("team",))
    assert not caplog.records
    page = ModelCard.load(tmp_path / "given" / "team" / "README.md")
    assert page.data.model_name == "team"
    assert page.data.eval_results[0].metric_value == 0.5
    assert "bootstrap intervals of 90 %" in page.text, "those of the evaluation, not of the settings"
    assert "MAPPO, 12 steps" in page.text and "> Invented." in page.text and "- Dataset: cc0-1.0" in page.text
    for file in (tmp_path / "given" / "team").rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file
    before, after = (AffectPolicy.load(place).state_dict() for place in (run / "policy", tmp_path / "given" / "team"))
    assert all(map(torch.equal, before.values(), after.values()))


def test_a_card_may_be_edited(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", Form(merged=True), Licences())
    (tmp_path / "out" / "README.md").write_text("Mine.")
    AffectPolicy.load(tmp_path / "out")


def test_what_the_run_does_not_tell_is_named(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(run.parents[1] / "data")
    shutil.rmtree(run / "evaluation")
    with caplog.at_level(logging.WARNING):
        export(run, tmp_path / "out", Form(merged=True), Licences())
    assert "no dataset is there, so the card says nothing of the data" in caplog.text
    assert "evaluation.json: is not there, so the card has no scores; make it with `affect-rl eval`" in caplog.text
    assert "Unknown: the dataset was not there any more" in (tmp_path / "out" / "README.md").read_text()


def test_scores_of_the_policy_before_it_was_trained_further_are_left_out(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = AffectPolicy.load(run / "policy")
    policy.value_head.weight.data += 1
    policy.save(run / "policy", replace=True)
    with caplog.at_level(logging.WARNING):
        export(run, tmp_path / "out", Form(merged=True), Licences())
    assert "is of other policies than the run has now, so the card has no scores; make it again" in caplog.text
    page = ModelCard.load(tmp_path / "out" / "README.md")
    assert page.data.eval_results is None and "Unknown: there was no evaluation of it" in page.text


def test_a_policy_is_exported_without_its_run(run: Path, tmp_path: Path) -> None:
    assert export(run / "sft", tmp_path / "out", Form(), Licences()) == Exported()
    assert "the policy was exported without its run" in (tmp_path / "out" / "README.md").read_text()


def test_the_licence_of_the_model_that_comes_with_a_package_is_known(run: Path, tmp_path: Path) -> None:
    config = load_config(run / "config.yaml", ["model.base=smollm2"])
    (run / "config.yaml").write_text(dump_config(config))
    export(run, tmp_path / "out", Form(merged=True), Licences())
    card = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (card.license, card.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")


def occupied(run: Path, out: Path) -> None:
    out.mkdir()


def untrained(run: Path, out: Path) -> None:
    shutil.rmtree(run / "policy")


def no_run(run: Path, out: Path) -> None:
    (run / "config.yaml").unlink()


def damaged(run: Path, out: Path) -> None:
    (run / "evaluation" / "evaluation.json").write_text("{")


def lost_base(run: Path, out: Path) -> None:
    shutil.rmtree(run / "sft")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (occupied, "out: exists; choose another --out, or remove it"),
        (untrained, r"policy: is not there, .*; train it, or export its warm start, .*/sft"),
        (no_run, "mine: is neither a run, with a config.yaml, nor a policy, with a manifest.json"),
        (damaged, "evaluation.json: cannot be read"),
        (lost_base, "its adapters stand on the policy .*/sft, which is not there"),
    ],
)
def test_a_fault_leaves_nothing_behind(harm: object, message: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    harm(run, out)  # type: ignore[operator]
    before = set(tmp_path.rglob("*"))
    with pytest.raises(AffectError, match=message):
        export(run, out, Form(with_base=True), Licences())
    assert set(tmp_path.rglob("*")) == before
