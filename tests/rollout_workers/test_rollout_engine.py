"""What an engine answers: log-probs, ends, cached prefixes, errors of single requests."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import numpy as np
import pytest
from rollout_cases import CONTEXT, answer_all, logprob_gaps, make_prompts

from affect_rl.errors import AffectError
from affect_rl.policy.model import AffectPolicy
from affect_rl.tasks.fields import choice_pattern, lines_pattern, text_pattern
from affect_rl.trajectory import Generation, Prompt
from rollout_workers.vllm.engine import RolloutEngine


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logprobs_are_those_of_the_learner(engine: RolloutEngine, policy: AffectPolicy, temperature: float) -> None:
    """At the temperature sampled with; greedy answers have those of temperature 1."""
    prompts = make_prompts(policy, 24)
    answers = asyncio.run(answer_all(engine, prompts, temperature=temperature))
    gaps = logprob_gaps(policy, prompts, answers, temperature or 1.0)
    assert max(gap.max() for gap in gaps) < 1e-4
    assert {version for answer in answers for version in answer.weight_versions} == {0}


def test_the_end_token_belongs_to_the_answer(engine: RolloutEngine, policy: AffectPolicy) -> None:
    answers = asyncio.run(answer_all(engine, make_prompts(policy, 40), max_tokens=40, temperature=1.5))
    ended = [answer for answer in answers if answer.finished]
    assert 0 < len(ended) < len(answers)
    assert all(answer.token_ids[-1] == policy.tokenizer.eos_token_id for answer in ended)
    assert all(len(answer.token_ids) == 40 for answer in answers if not answer.finished)
    for answer in answers:
        assert len(answer.token_ids) == len(answer.logprobs) == len(answer.weight_versions)
        assert answer.text == policy.tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_prompts_that_begin_alike_share_the_prefix_cache(engine: RolloutEngine, policy: AffectPolicy) -> None:
    """Percepts included: equal ones are one and the same, others are not."""
    prompt = next(p for p in make_prompts(policy, 50) if p.percepts and len(p.token_ids) > 64)
    twin = Prompt((*prompt.token_ids, 9), tuple(replace(p) for p in prompt.percepts))
    stranger = Prompt(twin.token_ids, tuple(replace(p, fused=not p.fused) for p in prompt.percepts))

    def cached(prompt: Prompt) -> int:
        before = engine.stats()["cached_tokens"]
        (answer,) = asyncio.run(answer_all(engine, [prompt]))
        assert logprob_gaps(policy, [prompt], [answer])[0].max() < 1e-4
        return engine.stats()["cached_tokens"] - before

    engine.forget()
    assert cached(prompt) == 0
    assert cached(twin) >= 64
    assert cached(stranger) < 32
    engine.forget()
    assert cached(twin) == 0


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_answers_can_be_held_to_a_pattern(engine: RolloutEngine, policy: AffectPolicy, temperature: float) -> None:
    """Random weights, which would never write it by themselves; other requests of the same steps are free."""
    choice = choice_pattern(["1", "2", "none", "C++ [a|b]"])
    pattern = lines_pattern(supportive=choice, reason=text_pattern(12))
    prompts = make_prompts(policy, 12)

    async def ask() -> list[Generation]:
        calls = [
            engine.generate(p, max_tokens=60, temperature=temperature, seed=n, pattern=pattern if n % 2 else "")
            for n, p in enumerate(prompts)
        ]
        return await asyncio.gather(*calls)

    answers = asyncio.run(ask())
    for answer in answers[1::2]:
        assert answer.finished and re.fullmatch(pattern, answer.text), answer.text
    assert not any(re.fullmatch(pattern, answer.text) for answer in answers[::2])
    assert max(gap.max() for gap in logprob_gaps(policy, prompts[::2], answers[::2], temperature or 1.0)) < 1e-4
    if temperature:
        assert len({answer.text for answer in answers[1::2]}) > 1


def test_a_pattern_that_is_none_harms_no_other_request(engine: RolloutEngine, policy: AffectPolicy) -> None:
    good = make_prompts(policy, 3)

    async def ask() -> list[Generation | BaseException]:
        calls = [engine.generate(p, max_tokens=5, temperature=1, seed=0) for p in good]
        broken = engine.generate(good[0], max_tokens=5, temperature=1, seed=0, pattern="(")
        return await asyncio.gather(broken, *calls, return_exceptions=True)

    first, *others = asyncio.run(ask())
    assert isinstance(first, AffectError)
    assert max(gap.max() for gap in logprob_gaps(policy, good, others)) < 1e-4


def test_one_bad_request_harms_no_other(engine: RolloutEngine, policy: AffectPolicy) -> None:
    good = make_prompts(policy, 3)
    too_long = Prompt((5,) * (CONTEXT + 1), ())
    unknown_token = Prompt((10**6,), ())

    async def ask() -> list[Generation | BaseException]:
        calls = [engine.generate(p, max_tokens=5, temperature=1, seed=0) for p in (too_long, *good, unknown_token)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *middle, last = asyncio.run(ask())
    assert isinstance(first, AffectError) and "longer than the maximum model length of 256" in str(first)
    assert isinstance(last, AffectError)
    assert max(gap.max() for gap in logprob_gaps(policy, good, middle)) < 1e-4
    assert engine.stats()["running"] == 0


def test_a_caller_may_give_up(engine: RolloutEngine, policy: AffectPolicy) -> None:
    prompts = make_prompts(policy, 6)

    async def ask() -> list[Generation]:
        calls = [asyncio.ensure_future(engine.generate(p, max_tokens=20, temperature=1, seed=0)) for p in prompts]
        while not engine.stats()["running"]:
            await asyncio.sleep(0)
        for call in calls[:3]:
            call.cancel()
        return await asyncio.gather(*calls[3:])

    answers = asyncio.run(ask())
    assert max(gap.max() for gap in logprob_gaps(policy, prompts[3:], answers)) < 1e-4
    assert engine.stats()["running"] == engine.stats()["waiting"] == 0


def test_stats_count_what_was_done(engine: RolloutEngine, policy: AffectPolicy) -> None:
    prompts = make_prompts(policy, 8)
    before = engine.stats()
    answers = asyncio.run(answer_all(engine, prompts))
    grown = {name: count - before[name] for name, count in engine.stats().items()}
    assert grown["generated_tokens"] == sum(len(answer.token_ids) for answer in answers)
    assert grown["prompt_tokens"] == sum(len(prompt.token_ids) for prompt in prompts)
    assert 0 < grown["steps"] <= np.sum([len(answer.token_ids) for answer in answers])
