"""Emotion labels of free text, as a language model on vLLM names them.

Any causal language model that vLLM serves can be asked, by local path or hub name; its own chat template is used if it
has one. It answers one prompt (`PROMPT`) greedily, and its answers are kept in a file (`AnswerCache`), so that a table
can be made again without asking: vLLM is imported only where an answer is missing. The reader that needs no model
is `affect_rl.scoring.free_text.WordReader`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from joblib import cpu_count

from affect_rl.config.services import RolloutConfig
from affect_rl.errors import AffectError
from affect_rl.scoring.wheels import parse_labels
from rollout_workers.answer_cache import AnswerCache
from rollout_workers.chat_model import ChatModel, unusable

if TYPE_CHECKING:
    from vllm import LLM

PROMPT = """\
Which emotions does this description say that the person feels? Leave out those that it denies. Write short English \
words in square brackets, with commas between them, and nothing else, for example [worried, sad]. Write [] if there is \
none.

Description: {text}
Emotions:"""

_LIST = re.compile(r"\[[^\[\]]*\]")
_LABEL = re.compile(r"[^\W\d_]+(?:[ -][^\W\d_]+){0,3}")
_SEED = 0
_BATCH = 256
"""Texts whose answers are written at once; a kill loses no more."""


def parse_answer(answer: str) -> tuple[str, ...] | None:
    """The labels of an answer, in lower case and each once; None if it is malformed.

    It must be one list in square brackets and nothing else, of labels of up to four words; an empty list has no labels.
    """
    if not _LIST.fullmatch(answer.strip()):
        return None
    labels = parse_labels(answer)
    return tuple(dict.fromkeys(labels)) if all(map(_LABEL.fullmatch, labels)) else None


class LabelExtractor:
    """Asks a language model for the emotions in free text; a `affect_rl.scoring.free_text.TextReader`.

    Args:
        model: path or hub name of a causal language model with safetensors weights.
        cache: file of its answers.
        max_tokens: most tokens of an answer; a list that is longer is malformed.
        config: sizes and threads of the engine.

    Attributes:
        name: ``llm``.
        malformed: how many texts of the last `read` had a malformed answer. They have no labels.

    Raises:
        AffectError: there is no such model.
    """

    name = "llm"

    def __init__(self, model: str, cache: Path, *, max_tokens: int = 64, config: RolloutConfig | None = None) -> None:
        self._model = ChatModel(model)
        self._cache, self._max_tokens, self._config = cache, max_tokens, config or RolloutConfig()
        self.malformed = 0

    @property
    def settings(self) -> Mapping[str, str | int | float]:
        """All that an answer depends on beside the text: the model, its content, prompt and chat template, sampling."""
        template = PROMPT + str(self._model.template)
        return {
            "model": self._model.name,
            "content": self._model.content[:16],
            "dtype": self._model.dtype,
            "prompt": hashlib.sha256(template.encode()).hexdigest()[:16],
            "temperature": 0,
            "seed": _SEED,
            "max_tokens": self._max_tokens,
        }

    def read(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """The labels of each text; none for an empty one, which is not asked about, and for a malformed answer.

        Raises:
            AffectError: the cache cannot be used (see `AnswerCache`), a text is too long for the model, or vLLM cannot
                run the model.
        """
        with AnswerCache(self._cache, self.settings) as cache:
            asked = dict.fromkeys(text for text in texts if text.strip())
            if missing := [text for text in asked if cache.get(text) is None]:
                self._ask(missing, cache)
            answers = {text: parse_answer(cache.get(text) or "") for text in asked}
        self.malformed = sum(text in answers and answers[text] is None for text in texts)
        return [answers.get(text) or () for text in texts]

    def _ask(self, texts: Sequence[str], cache: AnswerCache) -> None:
        """Have all texts answered, a batch at a time."""
        prompts = [self._model.prompt(PROMPT.format(text=text)) for text in texts]
        context = max(map(len, prompts)) + self._max_tokens
        limit = self._model.longest or context
        if context > limit:
            longest = shorten(texts[max(range(len(texts)), key=lambda i: len(prompts[i]))], 60, placeholder=" ...")
            raise AffectError(
                f"{self._model.name}: takes {limit} tokens, and prompt and answer of {longest!r} need {context}; "
                "shorten the text, or choose another model"
            )
        llm = self._start(context)
        try:
            for start in range(0, len(texts), _BATCH):
                batch = slice(start, start + _BATCH)
                answers = self._generate(llm, prompts[batch])
                cache.add(dict(zip(texts[batch], answers, strict=True)))
        finally:
            llm.llm_engine.engine_core.shutdown()

    def _start(self, context: int) -> LLM:
        """An engine for prompts and answers of at most `context` tokens."""
        from vllm import LLM

        from rollout_workers.vllm.arguments import prepare_process

        prepare_process(self._config.threads or cpu_count())
        try:
            return LLM(**self._model.engine_arguments(self._config, context, _SEED))
        except (ValueError, RuntimeError) as error:
            raise unusable(self._model.name, error) from error

    def _generate(self, llm: LLM, prompts: Sequence[list[int]]) -> list[str]:
        """The greedy answer to each prompt, up to the end of its first list."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        sampling = SamplingParams(
            temperature=0, seed=_SEED, max_tokens=self._max_tokens, stop=["]"], include_stop_str_in_output=True
        )
        outputs = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], sampling, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]
