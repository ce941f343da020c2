"""A model behind an address, asked over HTTP: what it sends, refuses, sends late or not at all."""

from __future__ import annotations

import asyncio
import socket

import pytest
from chat_server import Reply, chat_server

from affect_rl.errors import AffectError, FailureError
from affect_rl.team.teacher import Answer, Question, RefusedError
from rollout_workers.served_model import RETRIES, ServedModel

QUESTION = Question("How does it sound?", tokens=12, temperature=0.5, seed=7)
KEY = "AFFECT_RL_TEST_KEY"


def ask(address: str, *questions: Question, timeout_s: float = 30.0) -> list[Answer]:
    """Answers to questions that are asked at once."""

    async def all_of_them() -> list[Answer]:
        model = ServedModel("teacher", address, key_variable=KEY, timeout_s=timeout_s)
        try:
            return await asyncio.gather(*map(model, questions or [QUESTION]))
        finally:
            await model.close()

    return asyncio.run(all_of_them())


def test_a_question_is_sent_with_all_that_its_answer_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    with chat_server(lambda asked, _: Reply("warm" if asked["seed"] == 7 else "cold")) as server:
        held = Question("And now?", tokens=3, temperature=0.0, seed=8, pattern="(warm|cold)")
        assert ask(server.address, QUESTION, held) == [Answer("warm", True), Answer("cold", True)]
    first, second = sorted(server.asked, key=lambda asked: asked["seed"])
    assert first == {
        "model": "teacher",
        "messages": [{"role": "user", "content": "How does it sound?"}],
        "max_tokens": 12,
        "temperature": 0.5,
        "seed": 7,
    }
    assert second["structured_outputs"] == {"regex": "(warm|cold)"}
    assert server.keys == ["Bearer secret"] * 2


def test_a_server_without_a_key_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "of somebody else")
    with chat_server(lambda *_: Reply("warm")) as server:
        assert ask(server.address) == [Answer("warm", True)]
    assert server.keys == ["Bearer none"]


@pytest.mark.parametrize("reply", [Reply("warm", finish="length"), Reply(None, finish="content_filter")])
def test_an_answer_that_did_not_end_says_so(reply: Reply) -> None:
    with chat_server(lambda *_: reply) as server:
        assert ask(server.address) == [Answer(reply.text or "", False)]


@pytest.mark.parametrize("fault", [Reply("oops", status=500), Reply("busy", status=429), Reply("late", delay_s=4.0)])
def test_after_a_fault_it_is_asked_again(fault: Reply) -> None:
    with chat_server(lambda _, before: Reply("warm") if before else fault) as server:
        assert ask(server.address, timeout_s=2.0) == [Answer("warm", True)]
        assert len(server.asked) == 2


def test_a_server_that_fails_or_is_not_there_is_a_failure() -> None:
    with chat_server(lambda *_: Reply("out of memory", status=500)) as server:
        with pytest.raises(
            FailureError, match=rf"^{server.address}: gave no answer after {RETRIES} retries .*out of mem"
        ):
            ask(server.address)
        assert len(server.asked) == 1 + RETRIES


def test_a_broken_answer_is_a_failure() -> None:
    with (
        chat_server(lambda *_: Reply(body="{")) as server,
        pytest.raises(FailureError, match="/v1: sent an answer that is not JSON"),
    ):
        ask(server.address)


@pytest.mark.slow
def test_nobody_at_the_address_is_a_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(
            FailureError, match=rf"^{address}: gave no answer after {RETRIES} retries \(Connection error"
        ):
            ask(address)


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (Reply("too long", status=400), RefusedError, "too long"),
        (Reply("not that", status=422), RefusedError, "not that"),
        (Reply("who?", status=401), AffectError, rf"refuses the key .*who\?.*; set the environment variable {KEY}"),
        (Reply("not you", status=403), AffectError, f"refuses the key .*; set the environment variable {KEY}"),
        (Reply("no model", status=404), AffectError, "has no chat model 'teacher' .*no model"),
        (Reply(body='{"hello": 1}'), AffectError, r"sends no chat completions .*; give the address up to /v1"),
        (Reply(body='"hello"'), AffectError, r"sends no chat completions .*; give the address up to /v1"),
    ],
)
def test_what_cannot_be_answered_is_not_asked_again(reply: Reply, kind: type[Exception], message: str) -> None:
    with chat_server(lambda *_: reply) as server:
        with pytest.raises(kind, match=f"^{server.address}: .*{message}"):
            ask(server.address)
        assert len(server.asked) == 1


def test_an_address_without_its_path_is_told() -> None:
    with (
        chat_server(lambda *_: Reply("warm")) as server,
        pytest.raises(AffectError, match=r"has no chat model 'teacher' .*; correct the name, or give the address with"),
    ):
        ask(server.address.removesuffix("/v1"))
