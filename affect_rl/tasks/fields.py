"""Answers in lines of ``name: value``: strict on structure, tolerant of white space and case, never raising.

The patterns are regular expressions of answers that can be read, for engines that can be held to one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_SEEN = ((0x21, 0x7E), (0xA1, 0x167F), (0x1681, 0x1FFF), (0x2030, 0x205E), (0x2060, 0x2FFF), (0x3001, 0xD7FF))
"""Characters that are seen, as ranges: no white space, some of which (U+2028) ends a line."""
_FRAME_TOKENS = 8
"""Tokens that a line's name, its colon and its end take at most."""


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


def room(tokens: int, lines: int) -> int:
    """Characters that each of `lines` values may have, so that an answer of `tokens` tokens holds them all.

    A token is a character at least. Where a character takes several, as rare Chinese ones do, an answer may still be
    cut off.
    """
    return max(1, (tokens - _FRAME_TOKENS * lines) // lines)


def text_pattern(longest: int, *, without: str = "") -> str:
    """Any text of one line, of 1 to `longest` characters, the character `without` not among them."""
    seen = "".join(f"{_escaped(chr(a))}-{_escaped(chr(b))}" for a, b in _ranges(without))
    return f"[{seen}][{seen} ]{{0,{longest - 1}}}"


def _ranges(without: str) -> Iterator[tuple[int, int]]:
    for first, last in _SEEN:
        if without and first < ord(without) < last:
            yield from ((first, ord(without) - 1), (ord(without) + 1, last))
        else:
            yield first, last


def choice_pattern(choices: Sequence[str]) -> str:
    """One of some texts."""
    return f"({'|'.join(map(_escaped, choices))})"


def lines_pattern(**values: str) -> str:
    """Lines ``name: value``, by the patterns of their values."""
    return "\n".join(f"{name}: {value}" for name, value in values.items())


def _escaped(text: str) -> str:
    return re.sub(r"([][\\^$.|?*+(){}/-])", r"\\\1", text)
