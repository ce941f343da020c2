"""Tensors of a directory: in one file, or in shards with an index, as the Hugging Face libraries lay them out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import save_torch_state_dict, split_torch_state_dict_into_shards
from safetensors import safe_open
from torch import Tensor

from affect_rl.errors import AffectError
from affect_rl.policy.directory import WEIGHTS

INDEX = f"{WEIGHTS}.index.json"
"""Names the file of each tensor, where there are shards."""


def tensor_files(directory: Path) -> list[Path]:
    """The files of a directory's tensors; one that is not sharded has `WEIGHTS` alone."""
    index = directory / INDEX
    if not index.is_file():
        return [directory / WEIGHTS]
    return [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def read_tensors(directory: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, as windows on their files."""
    found: dict[str, Tensor] = {}
    for file in tensor_files(directory):
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            found |= {name: tensors.get_tensor(name) for name in names}
    return found


def check_shard_size(size: str) -> None:
    """Raise `AffectError` unless `size` is empty or one such as ``5GB``."""
    try:
        if size:
            split_torch_state_dict_into_shards({}, max_shard_size=size)
    except (ValueError, OverflowError) as error:
        raise AffectError(f"shard size {size!r}: is none; give a number and its unit, such as 5GB") from error


def write_shards(tensors: Mapping[str, Tensor], directory: Path, size: str) -> None:
    """Write tensors in files of at most `size`; one that is larger has a file of its own."""
    save_torch_state_dict(dict(tensors), directory, max_shard_size=size)
