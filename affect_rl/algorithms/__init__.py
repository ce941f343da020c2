"""Algorithms by name, and how the configuration reads them."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from affect_rl import registry
from affect_rl.algorithms.algorithm import Algorithm, AlgorithmSettings
from affect_rl.algorithms.dpo import Dpo
from affect_rl.algorithms.grpo import Grpo
from affect_rl.algorithms.mapo import Mapo
from affect_rl.algorithms.mappo import Ippo, Mappo
from affect_rl.algorithms.reinforce import Reinforce
from affect_rl.algorithms.rloo import Rloo

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


def make_algorithm(settings: AlgorithmSettings) -> Algorithm:
    """The algorithm that settings describe."""
    return resolve(settings.name)(settings)


def read_algorithm(tree: Any) -> AlgorithmSettings:
    """Settings of the algorithm that `tree` names; without a name: MAPPO.

    Args:
        tree: the section `algorithm` of a configuration; settings are returned as they are.

    Raises:
        ValueError: there is no such algorithm, it has no such key, or a value does not fit; a line for each key.
    """
    if isinstance(tree, AlgorithmSettings):
        return tree
    if not isinstance(tree, dict):
        raise ValueError(f"expected settings such as `name: mappo`, not {tree!r}")
    name = tree.get("name", "mappo")
    algorithm = resolve(str(name))
    try:
        return algorithm.Settings.model_validate({**_with_defaults(tree, algorithm.Settings), "name": name})
    except ValidationError as error:
        lines = [_explain(dict(e), algorithm.Settings, str(name)) for e in error.errors()]
        raise ValueError("\n".join(lines)) from None


def _with_defaults(tree: dict[str, Any], settings: type[BaseModel]) -> dict[str, Any]:
    """The tree with what it leaves out of nested sections: it may give one key of the default's, or name another."""
    merged = dict(tree)
    for key, field in settings.model_fields.items():
        value, default = tree.get(key), field.default
        if isinstance(value, dict) and isinstance(default, BaseModel):
            same = value.get("name") in (None, getattr(default, "name", None))
            merged[key] = {**default.model_dump(), **value} if same else value
    return merged


def _explain(error: dict[str, Any], settings: type[BaseModel], name: str) -> str:
    """One line for one of pydantic's errors: the key, what is wrong, and the nearest known key."""
    section: Any = settings
    path = ["algorithm"]
    for part in map(str, error["loc"]):
        members = [m for m in get_args(section) if hasattr(m, "model_fields")]
        if members:  # a union of sections: pydantic puts the name of the one that was chosen into the location
            section = next((m for m in members if m.model_fields["name"].default == part), None)
        else:
            path.append(part)
            field = getattr(section, "model_fields", {}).get(part)
            section = field.annotation if field else section
    key = ".".join(path)
    if error["type"] != "extra_forbidden":
        given = error.get("input")
        shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
        return f"{key}: {error['msg'].removeprefix('Value error, ')}{shown}"
    known = list(section.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)} (with name={name})"
    return f"unknown key `{key}`; {hint}"
