"""`affect-rl policy export` on the command line."""

from __future__ import annotations

from pathlib import Path

import torch
from typer.testing import CliRunner

from affect_rl.policy.adapters import Lora
from affect_rl.policy.model import AffectPolicy
from benchmarks.workload import tiny_policy
from cluster.cli.policy import policy_app


def run(*words: object) -> str:
    return CliRunner().invoke(policy_app, ["export", *map(str, words)], catch_exceptions=False).output


def test_export_says_what_it_wrote_and_what_it_needs(tmp_path: Path) -> None:
    policy = AffectPolicy.load(tiny_policy().save(tmp_path / "sft"))
    policy.add_adapters(Lora(4, 10), ("planner", "filter"))
    source = policy.save(tmp_path / "policy")
    output = " ".join(run(source, "--out", tmp_path / "bare").split())
    assert "bare: adapters filter, planner; read its README.md before you pass it on" in output
    assert "warning: the adapters stand on sft, which is not in it; copy that directory beside it, or" in output
    assert "warning" not in run(source, "--out", tmp_path / "whole", "--with-base")
    options = (
        "--merged",
        "--adapter",
        "filter",
        "--shard-size",
        "100KB",
        "--license",
        "mit",
        "--data-license",
        "cc0-1.0",
    )
    assert "merged: all weights" in run(source, "--out", tmp_path / "merged", *options)
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "license: mit" in card and "- Dataset: cc0-1.0" in card
    policy.merge("filter")
    merged = AffectPolicy.load(tmp_path / "merged").state_dict()
    assert all(map(torch.equal, policy.state_dict().values(), merged.values()))
