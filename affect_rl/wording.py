"""What an agent is told: in a line for a policy that learns its task, in full for one that has to understand it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Wording:
    """The same instruction in several forms, each ending with a new line.

    Attributes:
        short: for a policy that is trained from nothing: every word costs it tokens, and it learns the format anyway.
        en: task, format and an example, for a model that knows English.
        zh: the same in Chinese, for samples whose words are Chinese; what is to be answered stays as it is in English,
            because it is read by rule.
    """

    short: str
    en: str
    zh: str = ""

    def in_full(self, language: str) -> str:
        """For a sample's language, an ISO 639-1 code; in English where there is no other."""
        return self.zh if language == "zh" and self.zh else self.en

    def filled(self, **values: object) -> Self:
        """With the values that its texts name in braces."""
        return type(self)(*(text.format(**values) for text in (self.short, self.en, self.zh)))


def short(wording: Wording | str) -> str:
    """The short form; what has only one is that."""
    return wording if isinstance(wording, str) else wording.short
