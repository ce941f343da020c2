"""What every part of the configuration is made of."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors; values are final once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


def explain(error: Any, root: type[Section]) -> str:
    """One line for one of pydantic's validation errors: the key, what is wrong, and the nearest known key."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location) or "configuration"
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        given = error.get("input")
        return f"{key}: {message}" + (f" (given: {given!r})" if isinstance(given, str | int | float | bool) else "")
    section: Any = root
    for part in location[:-1]:
        if get_origin(section) is tuple:
            section = get_args(section)[0]
        else:
            section = get_args(section)[1] if get_origin(section) is dict else section.model_fields[part].annotation
    near = difflib.get_close_matches(location[-1], section.model_fields, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(section.model_fields)}"
    return f"unknown key `{key}`; {hint}"
