"""What every part of the configuration is made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


POLICY, SFT, TRAINING, EVALUATION, SCORES = "policy", "sft", "training", "evaluation", "scores"
"""What a setting can change: the policy before any training, the warm start, training, what is played in an evaluation,
and what that is scored by and compared on."""


class Affects:
    """Marks a field with what it changes, where that differs from its section's ``affects``: nothing, or stages.

    Args:
        stages: of `POLICY`, `SFT`, `TRAINING`, `EVALUATION`, `SCORES`. None of them: it only says where something runs,
            how long it may take or what is written down.
        on_resume: whether it may change when a run is resumed.
    """

    def __init__(self, *stages: str, on_resume: bool = False) -> None:
        self.stages, self.on_resume = frozenset(stages), on_resume or not stages


EVERYTHING = Affects(POLICY, SFT, TRAINING, EVALUATION)

NOTHING = Affects()
"""Where something runs, how long it may take, what is written down: nothing that comes out."""
Seconds = Annotated[PositiveFloat, NOTHING]
"""How long something may take."""


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors; values are final once read.

    ``class Name(Section, affects=(SFT, TRAINING))`` says what its fields change; see `Affects` for exceptions.
    A section that does not say changes what the field changes that holds it, and the whole configuration everything.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
    affects: ClassVar[Affects | None] = None

    def __init_subclass__(cls, affects: tuple[str, ...] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if affects is not None:
            cls.affects = Affects(*affects)

    @classmethod
    def affected_by(cls, field: str, holder: Affects = EVERYTHING) -> Affects:
        """What a field changes; `holder` is what the field changes that holds this section."""
        info = cls.model_fields.get(field)
        marks = [mark for mark in info.metadata if isinstance(mark, Affects)] if info else []
        return marks[0] if marks else cls.affects or holder


def settings_of(section: Section, stage: str, holder: Affects = EVERYTHING) -> dict[str, Any]:
    """The full values of all settings that can change a stage, as plain data; empty sections are left out."""
    found: dict[str, Any] = {}
    for name, value in section:
        affects = section.affected_by(name, holder)
        if isinstance(value, Section):
            if inner := settings_of(value, stage, affects):
                found[name] = inner
        elif stage in affects.stages:
            found[name] = _plain(value)
    return found


def flat_settings(
    section: Section, prefix: str = "", holder: Affects = EVERYTHING
) -> Iterator[tuple[str, Any, Affects]]:
    """Every setting under its dotted key, with its value as plain data and what it changes."""
    for name, value in section:
        affects = section.affected_by(name, holder)
        if isinstance(value, Section):
            yield from flat_settings(value, f"{prefix}{name}.", affects)
        else:
            yield f"{prefix}{name}", _plain(value), affects


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    return list(map(_plain, value)) if isinstance(value, tuple | list) else value


def explain(error: Any, root: type[Section], inside: str = "") -> str:
    """One line for one of pydantic's validation errors: the key, what is wrong, and the nearest known key.

    Args:
        error: one of ``ValidationError.errors()``.
        root: the section that was read.
        inside: key of that section, if it is a part of another.
    """
    section: Any = root
    path = [inside] if inside else []
    for part in map(str, error["loc"]):
        if get_origin(section) in (tuple, list, dict):
            section = get_args(section)[get_origin(section) is dict]
            path.append(part)
        elif get_args(section):  # a union: pydantic puts the name of the section that was chosen into the location
            section = next((m for m in get_args(section) if m.model_fields["name"].default == part), None)
        else:
            field = getattr(section, "model_fields", {}).get(part)
            section = field.annotation if field else section
            path.append(part)
    key = ".".join(path) or "configuration"
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        given = error.get("input")
        return f"{key}: {message}" + (f" (given: {given!r})" if isinstance(given, str | int | float | bool) else "")
    near = difflib.get_close_matches(path[-1], section.model_fields, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(section.model_fields)}"
    return f"unknown key `{key}`; {hint}"


def read_section(section: type[Section], tree: Any, key: str) -> Any:
    """Read a section whose class depends on its content.

    Raises:
        ValueError: it does not fit; the message names its keys.
    """
    if isinstance(tree, section):
        return tree
    if not isinstance(tree, dict):
        raise ValueError(f"{key}: expected a section (given: {tree!r})")
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise ValueError("; ".join(explain(e, section, key) for e in error.errors())) from None
