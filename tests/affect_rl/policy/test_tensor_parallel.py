"""Which numbers of ranks divide a language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from affect_rl.config.load import load_config
from affect_rl.errors import AffectError
from affect_rl.policy.tensor_parallel import check_divides, read_text_config

SMALL = {"num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151_936}


@pytest.mark.parametrize(
    ("ranks", "changes", "message"),
    [
        (4, {}, "does not divide the 14 attention heads of it"),
        (7, {}, "does not divide the 2 key-value heads of it"),
        (14, {}, "does not divide the 4864 columns of the MLP of it"),
        (14, {"intermediate_size": 14}, "does not divide the 151936 rows of the padded vocabulary of it"),
    ],
)
def test_what_is_left_over_is_named(ranks: int, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"rollout.tensor_parallel={ranks} {message}; choose a divisor"):
        check_divides(ranks, SMALL | changes, "it")


def test_key_value_heads_may_be_held_several_times() -> None:
    check_divides(2, SMALL, "it")
    check_divides(4, SMALL | {"num_attention_heads": 16}, "it")
    check_divides(8, {"num_attention_heads": 8, "vocab_size": 303}, "it")


def test_a_base_on_disk_is_looked_at_before_anything_starts(tmp_path: Path) -> None:
    """A language model's directory, and a policy's; what is not there is left to the engine."""
    for name, fields in {"model": SMALL, "policy": {"text_config": SMALL}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(fields))
        with pytest.raises(AffectError, match=f"=4 does not divide the 14 attention heads of model.base=.*{name}"):
            load_config(None, [f"model.base={tmp_path / name}", "rollout.tensor_parallel=4"])
        assert load_config(None, [f"model.base={tmp_path / name}", "rollout.tensor_parallel=2"])
    assert read_text_config(str(tmp_path / "nothing")) is None
    assert load_config(None, ["model.base=some/hub-name", "rollout.tensor_parallel=64"])
