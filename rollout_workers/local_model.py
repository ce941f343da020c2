"""A language model on vLLM, on this machine, that answers questions as they come; an `affect_rl.team.teacher.Ask`.

The engine runs in a process of its own and starts with the first question.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from joblib import cpu_count

from affect_rl.config.services import RolloutConfig
from affect_rl.errors import FailureError
from affect_rl.policy.smollm2 import NAME, smollm2
from affect_rl.team.teacher import Answer, Question, RefusedError
from rollout_workers.chat_model import ChatModel, unusable

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

CONTEXT = 4096
"""Most tokens of a question and its answer, if the model takes so many."""


class LocalModel:
    """Any causal language model that vLLM serves; close it.

    Args:
        model: path or hub name, or `affect_rl.policy.smollm2.NAME`.
        config: sizes and threads of the engine.

    Raises:
        AffectError: there is no such model.
    """

    def __init__(self, model: str, config: RolloutConfig) -> None:
        self._model = ChatModel(str(smollm2()) if model == NAME else model)
        self._name, self._config = model, config
        self._engine: AsyncLLM | None = None
        self._ids = itertools.count()

    @property
    def settings(self) -> dict[str, str | int | float]:
        """All that an answer depends on beside the question."""
        return {"model": self._name, "content": self._model.content, "dtype": self._model.dtype}

    async def __call__(self, question: Question) -> Answer:
        """Answer a question, beside the others that are being answered.

        Raises:
            RefusedError: it is too long.
            AffectError: vLLM cannot run the model.
            FailureError: the engine died, or gave no answer within ``rollout.deadline_s``.
        """
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt = self._model.prompt(question.text)
        if len(prompt) + question.tokens > self._context:
            raise RefusedError(f"the question takes {len(prompt)} tokens, and it takes {self._context} with the answer")
        sampling = SamplingParams(
            max_tokens=question.tokens,
            temperature=question.temperature,
            seed=question.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=question.pattern) if question.pattern else None,
        )
        self._engine = self._engine or self._start()
        try:
            async with asyncio.timeout(self._config.deadline_s):
                asked = self._engine.generate(TokensPrompt(prompt_token_ids=prompt), sampling, str(next(self._ids)))
                (output,) = [output async for output in asked]
        except TimeoutError:
            raise FailureError(
                f"{self._name}: no answer within rollout.deadline_s={self._config.deadline_s:g}; raise it, or lower "
                "--concurrency"
            ) from None
        except EngineDeadError as error:
            raise FailureError(f"{self._name}: its engine died ({error})") from error
        (answer,) = output.outputs
        return Answer(answer.text, answer.finish_reason == "stop")

    async def close(self) -> None:
        """End the engine."""
        if self._engine:
            self._engine.shutdown()
            self._engine = None  # at the interpreter's end vLLM could no longer take it down

    @property
    def _context(self) -> int:
        return min(CONTEXT, self._model.longest or CONTEXT)

    def _start(self) -> AsyncLLM:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from rollout_workers.vllm.arguments import prepare_process

        prepare_process(self._config.threads or cpu_count())
        arguments = self._model.engine_arguments(self._config, self._context, seed=0)
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments, disable_log_stats=True))
        except (ValueError, RuntimeError) as error:
            raise unusable(self._name, error) from error
