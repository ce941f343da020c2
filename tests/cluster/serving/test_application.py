"""What is checked before a team is served."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from affect_rl.config.actors import actors_of, logical_cpus, placed_actors
from affect_rl.config.load import load_config
from affect_rl.errors import AffectError
from cluster.serving.application import serving
from cluster.serving.team import find_team


def test_a_port_that_somebody_has_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = load_config(tmp_path / "config.yaml", [f"serve.port={taken.getsockname()[1]}"])
        with pytest.raises(AffectError, match=r"choose another serve\.port"), serving(config, tmp_path, ""):
            pass


def test_replicas_that_serve_places_are_counted_and_not_reserved_twice(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    config = load_config(tmp_path / "config.yaml", ["rollout.workers=4", "serve.encoders=2"])
    there = {actors.role: actors.count for actors in actors_of(config, "serve")}
    assert there == {"engine": 4, "encoder": 2, "frontend": 1, "shard": config.retrieval.shards}
    assert {actors.role for actors in placed_actors(config, "serve")} == {"frontend", "shard"}
    assert logical_cpus(config) > sum(actors.count * actors.cpus for actors in actors_of(config, "serve"))


def test_a_team_is_found_by_its_run_or_its_policy(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    with pytest.raises(AffectError, match="is missing"):
        find_team(run)
    (run / "policies" / "step-00010").mkdir(parents=True)
    (run / "config.yaml").write_text("name: a\n")
    with pytest.raises(AffectError, match="has not been trained to its end"):
        find_team(run)
    with pytest.raises(AffectError, match="no policy directory"):
        find_team(run / "policies" / "step-00010")
    (run / "policies" / "step-00010" / "manifest.json").write_text('{"sha256": {}}')
    config, policy = find_team(run / "policies" / "step-00010", ["serve.port=1"])
    assert (config.name, config.serve.port, policy) == ("a", 1, run / "policies" / "step-00010")
    assert config.run_dir == run


def test_a_copy_of_a_run_is_not_the_run_that_it_was_copied_from(tmp_path: Path) -> None:
    run, copy = tmp_path / "runs" / "a", tmp_path / "deployed" / "b"
    (run / "policy").mkdir(parents=True)
    (run / "config.yaml").write_text(f"name: a\nruns_dir: {tmp_path / 'runs'}\n")
    shutil.copytree(run, copy)
    config, policy = find_team(copy)
    assert (config.run_dir, policy) == (copy, copy / "policy")
