"""The page of a served team: who may see what, and what it says when something goes wrong.

The team here is a written one, behind the real API; `tests/system/test_serving.py` asks a real one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from chromium import Browser, browser, needs_chromium, wait
from fastapi import HTTPException
from fastapi.testclient import TestClient
from run_cases import HOSTILE

from affect_rl.config.services import ServeConfig
from cluster.serving.api import Answer, Clip, Utterance, build_api
from cluster.serving.prediction import Prediction
from cluster.web.site import listen

TOKEN = "a+b/c="
FOUND = [
    {"group": "supportive", "id": f"a{HOSTILE}", "text": HOSTILE, "labels": ["joy"], "score": 0.5},
    {"group": "countering", "id": "b", "text": "a soft voice: joy", "labels": ["joy"], "score": 0.25},
]


class WrittenTeam:
    """Answers as it is told by the words: with a status, an error on the way, late, or with hostile text."""

    settings = ServeConfig(max_upload_mib=0.25)

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        self.given_up = threading.Event()

    async def policy(self) -> str:
        return "abc"

    async def answer(self, utterance: Utterance, clip: Clip | None = None) -> Answer:
        if utterance.without == ("retrieval",):
            raise HTTPException(503, "too many requests wait")
        return Answer(prediction=_prediction(utterance, clip), policy="abc")

    async def answer_all(self, utterances: list[Utterance]) -> list[Answer]:
        return [await self.answer(utterance) for utterance in utterances]

    async def watch(self, utterance: Utterance, clip: Clip | None = None) -> AsyncIterator[dict[str, Any]]:
        if utterance.text.isdigit():
            raise HTTPException(int(utterance.text), f"the detail of {utterance.text}")
        return self._events(utterance, clip)

    async def _events(self, utterance: Utterance, clip: Clip | None) -> AsyncIterator[dict[str, Any]]:
        yield {"event": "input", "text": utterance.text, "description": "", "modalities": ["text"]}
        yield {"event": "step", "step": "planner", "writes": {"queries": {"supportive": HOSTILE}}}
        if utterance.text == "error":
            raise HTTPException(504, "no answer within 1 s")
        if utterance.text == "end":
            return
        if utterance.text == "wait":
            try:
                await asyncio.sleep(60)
            finally:
                self.given_up.set()
        if utterance.text == "again":
            yield {"event": "again"}
            yield {"event": "step", "step": "planner", "writes": {"queries": {"supportive": "again"}}}
        yield {"event": "step", "step": "search", "writes": {"candidates": FOUND}}
        yield {"event": "step", "step": "filter", "writes": {"kept": FOUND[:1]}}
        yield {"event": "step", "step": f"own {HOSTILE}", "writes": {"mood": HOSTILE, "notes": [HOSTILE]}}
        answer = Answer(prediction=_prediction(utterance, clip), policy="abc")
        yield {"event": "answer", **answer.model_dump(mode="json")}


def _prediction(utterance: Utterance, clip: Clip | None) -> Prediction:
    there = ("text", "audio", "video") if clip else ("text",)
    return Prediction(
        "x", (HOSTILE,), 0.6, {HOSTILE: 0.6, "calm": 0.4}, f"because {HOSTILE}", utterance.text, HOSTILE,
        tuple(part for part in there if part not in utterance.without), {"supportive": HOSTILE},
    )  # fmt: skip


@pytest.fixture
def client() -> TestClient:
    return TestClient(build_api(WrittenTeam()), base_url="http://any.name.example")


@pytest.fixture(scope="module")
def team() -> WrittenTeam:
    return WrittenTeam()


@contextmanager
def _serving(team: WrittenTeam) -> Iterator[str]:
    """A team behind a real server; gives its address."""
    with listen("127.0.0.1", 0) as socket:
        server = uvicorn.Server(uvicorn.Config(build_api(team), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def address(team: WrittenTeam) -> Iterator[str]:
    with _serving(team) as address:
        yield address


def test_the_page_needs_no_token_and_what_it_asks_does(client: TestClient) -> None:
    for path in ("/", "/palette.css", "/page/main.js", "/shared/dom.js"):
        assert client.get(path).status_code == 200
    assert client.get("/v1/limits").status_code == 401
    limits = client.get("/v1/limits", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert limits == {"samples": 5, "max_samples": 20, "max_batch": 256, "max_upload_mib": 0.25}


def test_the_page_may_play_what_was_recorded_and_the_description_of_the_api_has_its_own_policy(
    client: TestClient,
) -> None:
    strict, docs = (client.get(path).headers["content-security-policy"] for path in ("/", "/docs"))
    assert "script-src 'self';" in strict and strict.endswith("media-src blob:")
    assert "script-src 'self' 'unsafe-inline';" in docs and "frame-ancestors 'none'" in docs
    refused = client.post("/v1/predict", json={"text": "a"})
    assert refused.status_code == 401 and refused.headers["content-security-policy"] == strict


def test_without_a_token_only_local_names_lead_to_a_team_on_this_machine() -> None:
    """A foreign web site may give its own name this machine's address, and would then be asked for no token."""
    for name, status in (("rebound.example", 400), ("127.0.0.1", 200)):
        stranger = TestClient(build_api(WrittenTeam(token="")), base_url=f"http://{name}")
        assert stranger.post("/v1/predict", json={"text": "a"}).status_code == status


def test_paths_and_methods_of_the_api_stay_what_they_were(client: TestClient) -> None:
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    assert client.get("/v1/predict").status_code == 405 and client.get("/v1/nothing").status_code == 404
    assert "/" not in client.get("/openapi.json").json()["paths"]


def _texts(window: Browser, selector: str) -> list[str]:
    return window.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)


def _ask(window: Browser, words: str) -> None:
    """Write words and press the button."""
    window.run("document.querySelector('#words').value = arguments[0]; document.querySelector('#ask').click()", words)


def _trouble(window: Browser) -> str:
    return wait(lambda: _texts(window, "#trouble")[0])


@pytest.fixture
def window(address: str, tmp_path: Path) -> Iterator[Browser]:
    """A phone that came in by the address that `affect-rl serve` prints."""
    with browser(tmp_path / "profile", 360, 740, phone=True) as window:
        window.open(f"{address}#token=a%2Bb%2Fc%3D")
        wait(lambda: window.run("return !document.querySelector('#room').hidden"))
        assert window.run("return location.href") == address, "the token is not in the address any more"
        yield window


@needs_chromium
def test_what_goes_wrong_is_said_and_the_page_stays_usable(window: Browser, team: WrittenTeam) -> None:
    for words, said in {
        " ": "nothing to ask about",
        "422": "cannot take this input: the detail of 422",
        "413": "too large: the detail of 413",
        "503": "no time: the detail of 503",
        "504": "too slow: the detail of 504",
        "error": "gave up: no answer within 1 s",
        "end": "broke off before there was an answer",
    }.items():
        _ask(window, words)
        assert said in _trouble(window)

    _ask(window, "wait")
    wait(lambda: _texts(window, ".steps h3") == ["Planner"] and _texts(window, "#trouble") == [""])
    window.run("document.querySelector('#cancel').click()")
    wait(lambda: _texts(window, "#status") == ["Cancelled."])
    assert team.given_up.wait(30), "the server stops as well"

    window.run('window.kept = window.fetch; window.fetch = async () => new Response(\'{"event": "inp\\n\')')
    _ask(window, "well")
    assert "a line that cannot be read" in _trouble(window)
    window.run("window.fetch = () => Promise.reject(new TypeError('gone'))")
    _ask(window, "good")
    wait(lambda: "Is affect-rl serve still running?" in _texts(window, "#trouble")[0])
    window.run("window.fetch = window.kept")

    _ask(window, "again")
    wait(lambda: _texts(window, ".answer"))
    assert "has begun again" in _texts(window, "#told > .note")[0] and _texts(window, ".steps dd") == ["again"]
    assert _texts(window, "#trouble") == [""]


@needs_chromium
def test_words_of_the_team_never_become_markup(window: Browser, tmp_path: Path) -> None:
    clip = tmp_path / f"{'<b>' * 9}.wav"
    clip.write_bytes(b"RIFF")
    window.choose("#file", clip)
    _ask(window, HOSTILE)
    wait(lambda: _texts(window, ".answer"))
    assert _texts(window, ".answer h2") == [HOSTILE] and _texts(window, ".votes li > :last-child") == ["60 %", "40 %"]
    assert [text.split(" ")[0] for text in _texts(window, ".evidence li")] == ["✓", "dropped"]
    assert HOSTILE in _texts(window, ".steps h3:last-of-type")[-1] and HOSTILE in _texts(window, ".answer dd")

    window.run("document.querySelector('.compare').click()")
    wait(lambda: len(_texts(window, ".comparison td")) == 10)
    assert [row.split("with")[1][:13] for row in _texts(window, ".comparison tbody tr")] == [
        f" everything{HOSTILE}"[:13], "out retrieval", f"out voice{HOSTILE}"[:13], f"out face{HOSTILE}"[:13],
    ]  # fmt: skip
    assert "too many requests wait" in _texts(window, ".comparison tr:nth-child(2)")[0], "one row, the others stay"
    assert window.run("return document.querySelectorAll('img, main script, main b b').length") == 0
    assert window.run("return document.title") == "AffectRL: ask the team"
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")
    assert [line for line in window.complaints() if "503" not in line] == []


@needs_chromium
def test_the_words_of_evidence_are_said_aloud(window: Browser) -> None:
    _ask(window, "well")
    wait(lambda: _texts(window, ".answer"))
    window.run(
        "const speak = speechSynthesis.speak.bind(speechSynthesis); window.said = [];"
        "speechSynthesis.speak = (words) => { window.said.push(words.text); speak(words); }"
    )
    labels = window.run("return [...document.querySelectorAll('.evidence .say')].map((e) => e.ariaLabel)")
    assert labels == [f"Say aloud: {item['text']}" for item in FOUND]
    for place in (1, 0):
        window.run("document.querySelectorAll('.evidence .say')[arguments[0]].click()", place)
    assert window.run("return window.said") == [FOUND[1]["text"], FOUND[0]["text"]]
    assert window.complaints() == []


@needs_chromium
def test_a_clip_is_recorded_played_and_sent_and_one_that_is_too_large_is_not(window: Browser, tmp_path: Path) -> None:
    toggle = "document.querySelector('#clip .controls button').click()"
    window.run(toggle)
    wait(lambda: "Stop (1 s)" in _texts(window, "#clip button"))
    _ask(window, "")
    assert "stop it first" in _trouble(window)
    window.run(toggle)
    wait(lambda: _texts(window, ".clip bdi") == ["recording.weba"])
    wait(lambda: window.run("return document.querySelector('.clip audio').readyState > 0"))
    _ask(window, "")
    wait(lambda: _texts(window, ".answer"))
    large = tmp_path / "large.mp4"
    large.write_bytes(b"x" * 300_000)
    window.choose("#file", large)
    _ask(window, "")
    assert "0.3 MiB, and the server takes 0.25" in _trouble(window)


@needs_chromium
def test_without_the_token_nothing_of_the_team_is_shown(address: str, tmp_path: Path) -> None:
    seen = "return ['#gate', '#room'].map((name) => !document.querySelector(name).hidden)"
    come_in = "document.querySelector('#token').value = arguments[0]; document.querySelector('#gate button').click()"
    with browser(tmp_path / "profile", 1280, 800) as window:
        window.open(address)
        wait(lambda: window.run(seen) == [True, False])
        assert _texts(window, "#trouble") == [""], "who comes for the first time has done nothing wrong"
        for wrong in ("wrong", "ключ"):
            window.run(come_in, wrong)
            wait(lambda: "The token was not accepted" in _texts(window, "#trouble")[0])
            assert window.run(seen) == [True, False]
        window.run(come_in, TOKEN)
        wait(lambda: window.run(seen) == [False, True])
        window.run("sessionStorage.setItem('token', 'old')")
        _ask(window, "kept words")
        wait(lambda: window.run(seen) == [True, False])
        window.run(come_in, TOKEN)
        wait(lambda: window.run(seen) == [False, True])
        assert window.run("return document.querySelector('#words').value") == "kept words"


@needs_chromium
def test_a_team_that_lets_everybody_in_asks_for_no_token(tmp_path: Path) -> None:
    with _serving(WrittenTeam(token="")) as address, browser(tmp_path / "profile", 1280, 800) as window:
        window.open(address)
        wait(lambda: window.run("return !document.querySelector('#room').hidden"))
        _ask(window, "well")
        wait(lambda: _texts(window, ".answer"))
