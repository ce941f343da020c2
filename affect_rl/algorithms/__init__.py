"""Algorithms by name, and how the configuration reads them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from affect_rl import registry
from affect_rl.algorithms.algorithm import Algorithm, CommonSettings
from affect_rl.algorithms.dpo import Dpo
from affect_rl.algorithms.grpo import Grpo
from affect_rl.algorithms.mapo import Mapo
from affect_rl.algorithms.mappo import Ippo, Mappo
from affect_rl.algorithms.reinforce import Reinforce
from affect_rl.algorithms.rloo import Rloo
from affect_rl.section import read_section

ALGORITHMS: dict[str, type[Algorithm]] = {
    "mappo": Mappo,
    "ippo": Ippo,
    "grpo": Grpo,
    "rloo": Rloo,
    "reinforce++": Reinforce,
    "mapo": Mapo,
    "dpo": Dpo,
}


def resolve(name: str) -> type[Algorithm]:
    """The class that a name of `ALGORITHMS`, or ``module:Class``, stands for.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    return registry.resolve(name, ALGORITHMS, Algorithm, "algorithm")  # type: ignore[type-abstract]


def make_algorithm(settings: CommonSettings) -> Algorithm:
    """The algorithm that settings describe."""
    return resolve(settings.name)(settings)


def read_algorithm(tree: Any) -> CommonSettings:
    """Settings of the algorithm that `tree` names; without a name: MAPPO.

    Args:
        tree: the section `algorithm` of a configuration; settings are returned as they are.

    Raises:
        ValueError: there is no such algorithm, it has no such key, or a value does not fit; a line for each key.
    """
    if isinstance(tree, CommonSettings):
        return tree
    if not isinstance(tree, dict):
        raise ValueError(f"expected settings such as `name: mappo`, not {tree!r}")
    name = tree.get("name", "mappo")
    settings = resolve(str(name)).Settings
    return read_section(settings, {**_with_defaults(tree, settings), "name": name}, "algorithm")


def _with_defaults(tree: dict[str, Any], settings: type[BaseModel]) -> dict[str, Any]:
    """The tree with what it leaves out of nested sections: it may give one key of the default's, or name another."""
    merged = dict(tree)
    for key, field in settings.model_fields.items():
        value, default = tree.get(key), field.default
        if isinstance(value, dict) and isinstance(default, BaseModel):
            same = value.get("name") in (None, getattr(default, "name", None))
            merged[key] = {**default.model_dump(), **value} if same else value
    return merged
