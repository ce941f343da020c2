"""A causal language model as it comes, to be asked on vLLM: its checkpoint, and its chat template if it has one."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from affect_rl.config.services import RolloutConfig
from affect_rl.data.extraction import Checkpoint
from affect_rl.errors import AffectError


class ChatModel:
    """Any causal language model that vLLM serves.

    Args:
        model: path or hub name, with safetensors weights.

    Attributes:
        name: directory or hub name.
        content: hash of its files, or the commit of a hub name.
        template: its chat template; None: it has none.

    Raises:
        AffectError: there is no such model.
    """

    def __init__(self, model: str) -> None:
        try:
            checkpoint = Checkpoint.find(model)
        except AffectError as error:  # its words are for encoders
            raise unusable(model, error) from None
        self.name, self.content, self._revision = checkpoint.name, checkpoint.content, checkpoint.revision
        try:
            self._config = AutoConfig.from_pretrained(self.name, revision=self._revision)
            self._tokenizer = AutoTokenizer.from_pretrained(self.name, revision=self._revision)
        except (OSError, ValueError, KeyError) as error:
            raise unusable(self.name, error) from error
        self.template: str | None = self._tokenizer.chat_template

    @property
    def dtype(self) -> str:
        """The checkpoint's own; vLLM would serve float32 weights in half precision."""
        return str(getattr(self._config, "dtype", None) or "auto").removeprefix("torch.")

    @property
    def longest(self) -> int | None:
        """Most tokens of prompt and answer together; None: the model does not say."""
        return getattr(self._config.get_text_config(), "max_position_embeddings", None)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a message to it."""
        if not self.template:
            return self._tokenizer(text)["input_ids"]
        chat = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # templates that know no such switch pass over it
        )
        return self._tokenizer(chat, add_special_tokens=False)["input_ids"]

    def engine_arguments(self, config: RolloutConfig, context: int, seed: int) -> dict[str, Any]:
        """Arguments of a vLLM engine for prompts and answers of at most `context` tokens."""
        from vllm.platforms import current_platform

        from rollout_workers.vllm.arguments import engine_sizes

        return {
            "model": self.name,
            "revision": self._revision,
            "tokenizer_revision": self._revision,
            "dtype": self.dtype,
            "seed": seed,
            **engine_sizes(config, context, on_gpu=not current_platform.is_cpu()),
        }


def unusable(model: str, error: Exception) -> AffectError:
    """What to say of a model that cannot be asked."""
    reason = shorten(str(error), 160, placeholder=" ...")
    return AffectError(f"{model}: cannot be asked ({reason}); name a causal language model that vLLM serves here")
