"""A language model behind an address that speaks OpenAI's chat API; an `affect_rl.team.teacher.Ask`.

The client is OpenAI's own: it asks again, later and later, where a server is busy, fails or is silent.
"""

from __future__ import annotations

import os
from json import JSONDecodeError

from openai import (
    APIConnectionError,
    APIError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    PermissionDeniedError,
    UnprocessableEntityError,
)
from openai.types.chat import ChatCompletion

from affect_rl.errors import AffectError, FailureError
from affect_rl.team.teacher import Answer, Question, RefusedError

RETRIES = 5
"""How often a request is sent again before the run ends."""


class ServedModel:
    """A chat model at an address; close it.

    Args:
        model: its name there.
        address: URL up to and without ``/chat/completions``, for example ``http://127.0.0.1:8000/v1``.
        key_variable: environment variable of the API key; servers that ask for none need none.
        timeout_s: longest wait for one answer.
    """

    def __init__(self, model: str, address: str, *, key_variable: str, timeout_s: float) -> None:
        self._model, self._address, self._key_variable = model, address, key_variable
        self._client = AsyncOpenAI(
            base_url=address, api_key=os.environ.get(key_variable) or "none", timeout=timeout_s, max_retries=RETRIES
        )

    @property
    def settings(self) -> dict[str, str | int | float]:
        """What is known of all that an answer depends on beside the question: what a name stands for may change."""
        return {"model": self._model, "address": self._address}

    async def __call__(self, question: Question) -> Answer:
        """Answer a question.

        A pattern is sent as vLLM's servers understand it.

        Raises:
            RefusedError: the server refuses the question.
            AffectError: the key, the model's name or the address is wrong.
            FailureError: the server is not there, or answers nothing that can be used.
        """
        try:
            completion = await self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": question.text}],
                max_tokens=question.tokens,
                temperature=question.temperature,
                seed=question.seed,
                extra_body={"structured_outputs": {"regex": question.pattern}} if question.pattern else None,
            )
        except (BadRequestError, UnprocessableEntityError) as error:
            raise RefusedError(f"{self._address}: {error.message}") from None
        except (AuthenticationError, PermissionDeniedError) as error:
            raise AffectError(
                f"{self._address}: refuses the key ({error.message}); set the environment variable {self._key_variable}"
            ) from None
        except NotFoundError as error:
            raise AffectError(
                f"{self._address}: has no chat model {self._model!r} ({error.message}); correct the name, or give the "
                "address with its path, such as /v1"
            ) from None
        except APIError as error:
            reason = (
                f"{error.message} {error.__cause__ or ''}".strip() if isinstance(error, APIConnectionError) else error
            )
            raise FailureError(f"{self._address}: gave no answer after {RETRIES} retries ({reason})") from error
        except JSONDecodeError as error:  # which the client lets through
            raise FailureError(f"{self._address}: sent an answer that is not JSON ({error})") from error
        return _answer(completion, self._address)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


def _answer(completion: ChatCompletion, address: str) -> Answer:
    """The answer in what a server sent, which the client does not check."""
    try:
        choice = completion.choices[0]
        return Answer(choice.message.content or "", choice.finish_reason == "stop")
    except (AttributeError, IndexError, TypeError):
        raise AffectError(
            f"{address}: sends no chat completions (`{str(completion)[:80]}`); give the address up to /v1"
        ) from None
