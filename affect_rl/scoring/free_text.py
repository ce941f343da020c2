"""Emotion labels in free text, such as "The man sounds irritated, though not angry", read without a model.

`WordReader` knows a list of written forms and looks for them from left to right. The rules, all of them:

1. Case, width of letters (NFKC) and white space do not matter. A word is a run of letters, digits and inner
   apostrophes, without a final ``'s``. The marks ``. ! ? ; :`` end a clause, a comma ends a phrase, and any other mark
   is a space: "matter-of-fact" is three words.
2. A form is found where its words follow each other within a phrase. The longest form that starts at a word is taken
   and the search goes on behind it. Only whole words count: "unhappy" holds no "happy".
3. Labels come in the order of their first mention, each once. A word has the one meaning that the list gives it.
4. A negation (`NEGATIONS`: not, isn't, no, without, rather than, lack of ...) denies the next label of its clause if at
   most `REACH` words and none of these lie between: a comma, another negation (which then counts itself), or a word
   that starts a new thought (`TURNS`: and, but, though ...). Another mention of the label still counts.
5. A denied label that further labels follow at once, as in "no anger, fear or joy", takes them with it if "or" or
   "nor" closes their row; and that word negates anew. Without one, only the first is denied: "not angry, sad" is sad.
6. `AFFIRMATIONS` (not only, no doubt, nothing but ...) are no negations. A form of the list that begins with one, such
   as "no emotion", is that form. A negation that is itself on the list ("none", "lack") is only a negation.

So a negation behind its label ("anger is absent"), irony, and doubt ("might be sad" is sad) are not understood. Text of
another language than the list's has no label. That a negation reaches five words, or up to a word that ends it, follows
NegEx (Chapman et al., 2001, "A simple algorithm for identifying negated findings and diseases in discharge summaries").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from affect_rl.scoring.wheels import Wheels

REACH = 5
"""Words that may lie between a negation and the label that it denies."""

_AUXILIARIES = "is are was were do does did has have had ca could wo would should need must might ai".split()
_NOT = {"not", "cannot", *(f"{verb}n't" for verb in _AUXILIARIES), *(f"{verb}nt" for verb in _AUXILIARIES)}

NEGATIONS = frozenset(_NOT) | {
    *("no", "non", "none", "nor", "neither", "never", "nobody", "nothing", "without", "hardly", "barely", "scarcely"),
    *("lack", "lacks", "lacked", "lacking", "lack of", "absence of", "devoid of", "free of", "free from", "far from"),
    *("rather than", "instead of", "as opposed to", "anything but"),
}
"""Words and phrases that deny the label behind them."""

AFFIRMATIONS = frozenset(
    {f"{word} {limit}" for word in _NOT for limit in ("only", "just", "merely", "simply", "solely", "without")}
    | {"no doubt", "no wonder", "nothing but", "without doubt", "without a doubt", "without question"}
)
"""Phrases that begin like a negation and deny nothing."""

TURNS = frozenset("and but yet though although however instead while whereas because except".split())
"""Words behind which an earlier negation no longer holds."""

_COMMAS, _ENDS = frozenset(",、"), frozenset(".!?;:。")
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[,、.!?;:。]")


class TextReader(Protocol):
    """Reads labels out of free text."""

    @property
    def name(self) -> str:
        """What the reader is called in tables."""

    @property
    def settings(self) -> Mapping[str, str | int | float]:
        """Everything that the labels depend on, beside the text."""

    def read(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """The labels of each text, which may be none."""


class _Kind(Enum):
    LABEL = auto()
    NEGATION = auto()
    OR = auto()
    COMMA = auto()
    END = auto()
    WORD = auto()


_Symbol = tuple[_Kind, str]

_FIXED: Mapping[str, _Kind] = {
    **dict.fromkeys(NEGATIONS, _Kind.NEGATION),
    **dict.fromkeys(AFFIRMATIONS, _Kind.WORD),
    **dict.fromkeys(TURNS | _ENDS, _Kind.END),
    **dict.fromkeys(_COMMAS, _Kind.COMMA),
    "or": _Kind.OR,
}
"""What has a meaning of its own, whatever the list."""


@dataclass(frozen=True, slots=True)
class WordReader:
    """Finds the forms of a list in free text; the module says by which rules.

    Attributes:
        list_name: what the list is called in tables.
        labels: by a form's words, joined by spaces: the label that it is read as.
        form: makes a run of words the form that `labels` knows.
        name: ``words``.
    """

    list_name: str
    labels: Mapping[str, str]
    form: Callable[[str], str]
    name: str = "words"

    @classmethod
    def of_words(cls, list_name: str, words: Iterable[str]) -> WordReader:
        """A reader of these words and phrases, each of which is its own label."""
        return cls(list_name, _by_form(words), str)

    @classmethod
    def of_wheels(cls, wheels: Wheels) -> WordReader:
        """A reader of the written forms that wheels know; their labels are those that the wheels group."""
        return cls(wheels.name, _by_form(wheels.words), wheels.form)

    @property
    def settings(self) -> Mapping[str, str | int | float]:
        return {"list": self.list_name, "reach": REACH}

    def read(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """The labels of each text."""
        longest = max(len(phrase.split()) for phrase in (*self.labels, *_FIXED))
        return [_asserted(self._symbols(_tokens(text), longest)) for text in texts]

    def _symbols(self, tokens: Sequence[str], longest: int) -> list[_Symbol]:
        """The text as labels, negations and what stands between them; the longest match at each place."""
        symbols, at = [], 0
        while at < len(tokens):
            for length in range(min(longest, len(tokens) - at), 0, -1):
                if symbol := self._symbol(" ".join(tokens[at : at + length])):
                    break
            else:
                symbol, length = (_Kind.WORD, tokens[at]), 1
            symbols.append(symbol)
            at += length
        return symbols

    def _symbol(self, phrase: str) -> _Symbol | None:
        """What a phrase means, if it means anything as a whole."""
        if phrase in _FIXED:
            return (_FIXED[phrase], phrase)
        within = _COMMAS.isdisjoint(phrase) and _ENDS.isdisjoint(phrase)
        label = self.labels.get(self.form(phrase)) if within else None
        return (_Kind.LABEL, label) if label else None


def _by_form(labels: Iterable[str]) -> dict[str, str]:
    """Labels by their words; of two that differ in marks alone, the first in alphabetic order."""
    by_form = {" ".join(_tokens(label)): label for label in sorted(labels, reverse=True)}
    return {form: label for form, label in by_form.items() if form and form not in _FIXED}


def _tokens(text: str) -> list[str]:
    """Words and the marks that matter, in one written form."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return [token.removesuffix("'s") for token in _TOKEN.findall(plain)]


def _asserted(symbols: Sequence[_Symbol]) -> tuple[str, ...]:
    """The labels that no negation denies."""
    found: dict[str, None] = {}
    gap: int | None = None  # words since the negation that still holds
    at = 0
    while at < len(symbols):
        kind, text = symbols[at]
        at += 1
        if kind is _Kind.NEGATION:
            gap = 0
        elif kind in (_Kind.COMMA, _Kind.END):
            gap = None
        elif kind is _Kind.LABEL:
            denied, gap = gap is not None and gap <= REACH, None
            if not denied:
                found[text] = None
            elif (behind := _closing_or(symbols, at)) is not None:
                gap, at = 0, behind
        elif gap is not None:
            gap += 1
    return tuple(found)


def _closing_or(symbols: Sequence[_Symbol], at: int) -> int | None:
    """The place behind the "or" or "nor" that closes a row of labels, if one does."""
    while at < len(symbols) and symbols[at][0] in (_Kind.LABEL, _Kind.COMMA):
        at += 1
    closes = at < len(symbols) and (symbols[at][0] is _Kind.OR or symbols[at][1] == "nor")
    return at + 1 if closes else None
