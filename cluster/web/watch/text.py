"""Token ids as text, by the tokenizer of the run's own policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TokenText:
    """Decodes with the tokenizer of the first policy of a run that is found.

    Args:
        run_dir: of the run.
        start: policy that the run began with, where it has no warm start of its own; empty: it has.
    """

    def __init__(self, run_dir: Path, start: str) -> None:
        self._run_dir, self._start = run_dir, start
        self._tokenizer: Tokenizer | None = None

    def text(self, ids: Sequence[int]) -> str | None:
        """The text of token ids, special tokens included; None: there is no tokenizer (yet)."""
        tokenizer = self._find()
        return tokenizer.decode(ids, skip_special_tokens=False) if tokenizer else None

    def pieces(self, ids: Sequence[int]) -> list[str] | None:
        """The text that each token adds ``[T]``: nothing, where a character takes more tokens. None: as for `text`."""
        tokenizer = self._find()
        if tokenizer is None:
            return None
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(tokenizer, token) or "" for token in ids]

    def _find(self) -> Tokenizer | None:
        if self._tokenizer is None:
            for directory in self._policies():
                try:
                    self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
                    break
                except Exception:  # the library raises this very type for a file that is absent or cut off
                    continue
        return self._tokenizer

    def _policies(self) -> Iterator[Path]:
        yield from (self._run_dir / "sft", self._run_dir / "policy")
        yield from sorted((self._run_dir / "policies").glob("step-*"))
        if self._start:
            yield Path(self._start)
