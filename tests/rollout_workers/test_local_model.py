"""A language model on vLLM that answers questions as they come."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from affect_rl.config.services import RolloutConfig
from affect_rl.errors import AffectError
from affect_rl.policy.tokens import tiny_language_model, train_tokenizer
from affect_rl.team.teacher import Answer, Question, RefusedError
from rollout_workers.local_model import LocalModel

CONFIG = RolloutConfig(max_num_seqs=8, max_batched_tokens=512, kv_cache_gib=0.1, threads=1)
FREE = Question("How does it sound?", tokens=12, temperature=1.0, seed=1)
HELD = Question("How does it sound?", tokens=40, temperature=1.0, seed=1, pattern="label: (warm|cold)")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one with random weights."""
    tokenizer = train_tokenizer(["How does it sound? label: warm, cold"] * 20, 400)
    directory = tmp_path_factory.mktemp("models") / "model"
    tiny_language_model(tokenizer, layers=2, dim=64, heads=2, context=128, seed=0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_questions_are_answered_side_by_side(model: Path) -> None:
    """By seed, held to a pattern, and cut off at their tokens; one that is too long is refused."""
    other, long = Question(FREE.text, 12, 1.0, seed=2), Question("sound? " * 200, 12, 1.0, seed=1)

    async def ask() -> list[Answer | BaseException]:
        asked = LocalModel(str(model), CONFIG)
        assert asked.settings == {"model": str(model), "content": asked.settings["content"], "dtype": "float32"}
        try:
            questions = [FREE, other, HELD, FREE, long]
            return await asyncio.gather(*map(asked, questions), return_exceptions=True)
        finally:
            await asked.close()

    free, drawn, held, again, refused = asyncio.run(ask())
    assert isinstance(free, Answer) and isinstance(held, Answer) and isinstance(drawn, Answer)
    assert free == again and free.text != drawn.text
    assert re.fullmatch(HELD.pattern, held.text) and held.finished
    assert not free.finished
    assert isinstance(refused, RefusedError) and re.search(r"takes \d+ tokens, and it takes 128 with", str(refused))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AffectError, match=r"absent: cannot be asked \(.*\); name a causal language model that vLLM"):
        LocalModel(str(tmp_path / "absent"), CONFIG)


@pytest.mark.slow
def test_the_engine_ends_with_a_process_that_is_killed(model: Path) -> None:
    """Else it keeps the memory that the next one needs to go on."""
    script = f"""
import asyncio, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_local_model import CONFIG, FREE, LocalModel
async def ask():
    asked = LocalModel({str(model)!r}, CONFIG)
    await asked(FREE)
    print("answered", flush=True)
    await asyncio.sleep(600)
asyncio.run(ask())
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert any(line == "answered\n" for line in process.stdout)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("EngineCore" in " ".join(child.cmdline()) for child in children)
    process.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    for child in alive:
        child.kill()
    assert not alive
