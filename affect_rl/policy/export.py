"""Policies for others: directories that name nothing of this machine, as they are or with an adapter merged."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affect_rl.errors import AffectError
from affect_rl.files import sha256
from affect_rl.policy.adapters import ADAPTER_CONFIG, ADAPTERS, read_adapters
from affect_rl.policy.directory import CARRIED, MANIFEST, Base, check_manifest, write_manifest
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tensors import INDEX, check_shard_size, read_tensors, tensor_files, write_shards

_PATHS = ("_name_or_path", "name_or_path", "base_model_name_or_path")
"""Where configurations of transformers and PEFT say what a model was loaded from."""


@dataclass(frozen=True, slots=True)
class Form:
    """What an export is to hold.

    Attributes:
        merged: one adapter is merged into the weights, in float32, and rounded once to their type; others are left
            out.
        adapter: which one; empty: the only one there is.
        with_base: adapters carry their base along.
        shard_size: largest file of tensors, such as ``5GB``; empty: as the policy has them.
    """

    merged: bool = False
    adapter: str = ""
    with_base: bool = False
    shard_size: str = ""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds.

    Attributes:
        adapters: names of its adapters.
        merged: the adapter that was merged; empty: none.
        needs: name of the directory with the base of its adapters, which has to lie beside it; empty: it is whole.
    """

    adapters: tuple[str, ...] = ()
    merged: str = ""
    needs: str = ""


def export_policy(source: Path, directory: Path, form: Form) -> Exported:
    """Fill an empty directory with a policy that `AffectPolicy.load` and the engines read.

    Raises:
        AffectError: `source` is no whole policy, or has not what `form` asks for.
    """
    check_manifest(source)
    check_shard_size(form.shard_size)
    adapters = tuple(adapter.name for adapter in read_adapters(source))
    if merged := _chosen(source, adapters, form):
        AffectPolicy.load(source, verify=False).save(directory, merge=merged)
        _finish(directory, form.shard_size)
        return Exported(merged=merged)
    _copy(source, directory)
    needs = ""
    if base := Base.read(source):
        base, needs = _bring(base, directory, form)
        base.write(directory)
    _finish(directory, form.shard_size)
    return Exported(adapters, needs=needs)


def _chosen(source: Path, adapters: tuple[str, ...], form: Form) -> str:
    """The adapter to merge; empty: none is.

    Raises:
        AffectError: the policy has no such adapter, or none at all, or options contradict each other.
    """
    if not adapters and (form.merged or form.adapter or form.with_base):
        raise AffectError(f"{source}: has no adapters, so it is whole; leave out --merged, --adapter and --with-base")
    if not form.merged:
        if form.adapter:
            raise AffectError(f"--adapter {form.adapter}: says which one is merged; add --merged, or leave it out")
        return ""
    if form.with_base:
        raise AffectError("--with-base: a merged policy needs no base; leave out one of --merged and --with-base")
    if form.adapter and form.adapter not in adapters:
        raise AffectError(f"--adapter {form.adapter}: {source} has no such adapter (it has: {', '.join(adapters)})")
    if not form.adapter and len(adapters) > 1:
        raise AffectError(
            f"{source}: has the adapters {', '.join(adapters)}, and a merged directory holds what one of them makes; "
            "choose with --adapter, and export once for each"
        )
    return form.adapter or adapters[0]


def _bring(base: Base, directory: Path, form: Form) -> tuple[Base, str]:
    """The base as an export names it, and the directory that has to lie beside the export for that; empty: none."""
    if not form.with_base:
        name = Path(base.path).name
        return Base(name, base.manifest), name
    carried = directory / CARRIED
    _copy(Path(base.path), carried)
    _finish(carried, form.shard_size)
    return Base(CARRIED, sha256(carried / MANIFEST)), ""


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a policy, and nothing else that lies there."""
    for name in json.loads((source / MANIFEST).read_text())["sha256"]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _finish(directory: Path, shard_size: str) -> None:
    """Take paths out of a policy directory, cut its tensors into shards if asked to, and write its manifest."""
    for file in (
        directory / "config.json",
        directory / "tokenizer_config.json",
        *directory.glob(f"{ADAPTERS}/*/{ADAPTER_CONFIG}"),
    ):
        file.write_text(json.dumps(_without_paths(json.loads(file.read_text())), indent=2) + "\n")
    if shard_size:
        _shard(directory, shard_size)
    write_manifest(directory)


def _without_paths(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_paths(value) for key, value in tree.items() if key not in _PATHS}
    return [_without_paths(value) for value in tree] if isinstance(tree, list) else tree


def _shard(directory: Path, size: str) -> None:
    """Put the tensors of a directory into files of at most `size`."""
    old = directory / "unsharded"
    old.mkdir()
    for file in [*tensor_files(directory), directory / INDEX]:
        if file.exists():
            file.rename(old / file.name)
    write_shards(read_tensors(old), directory, size)
    shutil.rmtree(old)
