"""Over how many ranks the layers of a language model can be divided."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_VOCABULARY_GRAIN = 64  # vLLM pads a vocabulary to a multiple of it, then divides it


def read_text_config(base: str) -> Mapping[str, Any] | None:
    """Fields of the language model's configuration in a directory of it or of a policy; None: there is no such file."""
    try:
        fields = json.loads((Path(base) / "config.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    return fields.get("text_config") or fields


def check_divides(ranks: int, text_config: Mapping[str, Any], model: str) -> None:
    """Raise `ValueError` unless `ranks` divides all that an engine divides of a language model.

    Fewer key-value heads than ranks are held several times.

    Args:
        ranks: ``rollout.tensor_parallel``.
        text_config: fields of its ``config.json``; one that is absent is not checked.
        model: its name in the message.
    """
    heads = text_config.get("num_attention_heads") or 0
    pairs = text_config.get("num_key_value_heads") or heads
    vocabulary = -(-(text_config.get("vocab_size") or 0) // _VOCABULARY_GRAIN) * _VOCABULARY_GRAIN
    divided = {
        "attention heads": heads,
        "key-value heads": 0 if pairs and ranks % pairs == 0 else pairs,
        "columns of the MLP": text_config.get("intermediate_size") or 0,
        "rows of the padded vocabulary": vocabulary,
    }
    for what, count in divided.items():
        if count % ranks:
            raise ValueError(
                f"rollout.tensor_parallel={ranks} does not divide the {count} {what} of {model}; choose a divisor"
            )
