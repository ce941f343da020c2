"""What a job may lack beside CPUs and GPUs, and that it is not begun then."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from cluster.plan import disk
from cluster.prospect import Prospect, check_memory_and_disk
from cluster.runtime.capacity import Capacity, Node, this_machine
from cluster.runtime.run import open_run

ENDLESS = "train.keep_checkpoints=1000000000"


def tiny(runs: Path, *overrides: str) -> Config:
    return load_config(
        None, ["model.tiny={layers: 2, dim: 32, heads: 2, vocabulary: 300}", f"runs_dir={runs}", *overrides]
    )


def test_a_job_whose_cache_is_too_small_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = tiny(tmp_path, "rollout.kv_cache_gib=0.000001")
    message = r"the KV cache of an engine holds \d+ tokens, .*; raise rollout\.kv_cache_gib"
    with pytest.raises(AffectError, match=message), open_run(config, "train"):
        pass
    check_memory_and_disk(config, ["sft"], here=True)


@pytest.mark.parametrize("here", [True, False])
def test_a_job_whose_files_find_no_room_is_not_begun(tmp_path: Path, here: bool) -> None:
    config = tiny(tmp_path / "not" / "there", ENDLESS)
    with pytest.raises(AffectError, match=r"runs_dir=.* may need \d+\.\d\d GiB, .* lower train\.keep_checkpoints"):
        check_memory_and_disk(config, ["train"], here=here)
    check_memory_and_disk(config, ["sft", "eval"], here=here)


def test_files_that_are_there_already_need_no_room(tmp_path: Path) -> None:
    config = tiny(tmp_path, ENDLESS)
    files = disk(config, Prospect.of(config, this_machine(config)).model)["runs_dir"]
    file = config.run_dir / "checkpoints" / "weights"
    file.parent.mkdir(parents=True)
    file.touch()
    most = 2**43  # bytes that a file may claim to have
    os.truncate(file, most)
    fewer = most // (files["checkpoints"] // 10**9 + files["best policies"] // 10**9)
    check_memory_and_disk(tiny(tmp_path, f"train.keep_checkpoints={fewer - 9}"), ["train"], here=True)
    file.unlink()
    with pytest.raises(AffectError, match="runs_dir="):
        check_memory_and_disk(tiny(tmp_path, f"train.keep_checkpoints={fewer - 9}"), ["train"], here=True)


def test_trajectories_are_planned_for_but_refuse_nothing(tmp_path: Path) -> None:
    config = tiny(tmp_path, "train.steps=1000000000")
    prospect = Prospect.of(config, this_machine(config))
    assert [line for line in prospect.problems() if line.startswith("runs_dir=")]
    check_memory_and_disk(config, ["train"], here=True)


def test_published_weights_need_room_where_they_go(tmp_path: Path) -> None:
    config = tiny(tmp_path, f"rollout.weights_dir={tmp_path}")
    prospect = Prospect.of(config, this_machine(config))
    assert not [*prospect.disk_problems(["train"])]
    large = replace(prospect, runs=None, model=replace(prospect.model, language=10**14))
    (line,) = large.disk_problems(["train"])
    assert line.startswith("published weights need") and str(tmp_path) in line
    assert not [*large.disk_problems(["eval"])]
    broadcast = replace(large, config=tiny(tmp_path, "rollout.transfer=collective"))
    assert not [*broadcast.disk_problems(["train"])]


def test_what_is_not_known_is_said_and_let_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    check_memory_and_disk(load_config("configs/gpu.yaml"), ["train"], here=True)
    assert "not checked: model.base=Qwen/Qwen2.5-7B-Instruct: no configuration of it" in caplog.text
    check_memory_and_disk(tiny(tmp_path, "learner.gpus_per_worker=1"), ["train"], here=False)
    assert "memory of GPUs is not checked" in caplog.text


def test_a_cluster_that_is_asked_from_outside_may_grow(tmp_path: Path) -> None:
    prospect = Prospect.of(tiny(tmp_path), Capacity("the cluster as it is now", (Node(0),)))
    assert any("has 0 on 1 node" in line and "as it is now" in line for line in prospect.problems())
    assert any("an autoscaler may add" in note for note in prospect.notes)
    grows = Prospect.of(tiny(tmp_path), Capacity("the cluster", (Node(0),), largest=Node(64)))
    assert not any("an autoscaler may add" in note for note in grows.notes)
