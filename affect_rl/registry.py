"""Names in a configuration that stand for classes: ours by a short name, a user's as ``module:Class``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def resolve(name: str, known: Mapping[str, type[T]], base: type[T], what: str) -> type[T]:
    """The class that `name` stands for.

    Args:
        name: a key of `known`, or ``module:Class`` of a class in any module that can be imported.
        known: our own classes by name.
        base: what the class must derive from.
        what: what it is, for the message.

    Raises:
        ValueError: there is no such class (the message names the nearest one), or methods are missing from it.
    """
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}."
        raise ValueError(f"there is no {what} `{name}`; {hint} One of your own is written as module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} `{name}` cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{what} `{name}` does not derive from {base.__module__}:{base.__qualname__}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise ValueError(f"{what} `{name}` lacks {', '.join(missing)}; define them in the class")
    return found
