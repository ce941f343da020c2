"""Answers in lines of ``name: value``: strict on structure, tolerant of white space and case, never raising."""

from __future__ import annotations


def read_fields(text: str, names: tuple[str, ...]) -> tuple[dict[str, str], str | None]:
    """Read ``name: value`` lines, each of `names` once and nothing else.

    Returns:
        What could be read, by name, and what is wrong with the answer (None: nothing).
    """
    fields: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, value = line.partition(":")
        name, value = name.strip().lower(), " ".join(value.split())
        if not colon or name not in names:
            return fields, f"`{line[:40]}` is not one of the lines {', '.join(f'`{n}:`' for n in names)}"
        if name in fields:
            return fields, f"`{name}:` stands twice"
        if not value:
            return fields, f"`{name}:` is empty"
        fields[name] = value
    for name in names:
        if name not in fields:
            return fields, f"`{name}:` is missing"
    return fields, None
