"""Where a trained team is: its policy, and the configuration that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from affect_rl.config.load import Config, load_config
from affect_rl.errors import AffectError
from affect_rl.policy.directory import check_manifest
from cluster.runtime.rundir import RunDirectory

_CONFIG = "config.yaml"
_ABOVE = 2
"""A policy lies at most so deep in its run's directory."""


def find_team(path: Path, overrides: Sequence[str] = ()) -> tuple[Config, Path]:
    """The configuration and the policy of a run's directory, or of a policy directory in one.

    Raises:
        AffectError: there is no policy, or no configuration above it.
    """
    if (path / _CONFIG).is_file():
        policy = RunDirectory(path).policy
        if not policy.is_dir():
            raise AffectError(f"{policy}: is missing, so the run has not been trained to its end; give a policy in it")
        return _config_of(path, overrides), policy
    if not path.is_dir():
        raise AffectError(f"{path}: is missing; give a run's directory, or a policy in it")
    check_manifest(path, content=False)
    for folder in path.resolve().parents[:_ABOVE]:
        if (folder / _CONFIG).is_file():
            return _config_of(folder, overrides), path
    raise AffectError(f"{path}: no {_CONFIG} above it says what it was trained with; keep the policy in its run")


def _config_of(run: Path, overrides: Sequence[str]) -> Config:
    """The run's configuration; its files are where it is now, for it may be a copy or have moved."""
    there = run.resolve()
    config = load_config(run / _CONFIG, overrides)
    return config.model_copy(update={"runs_dir": str(there.parent), "name": there.name})
