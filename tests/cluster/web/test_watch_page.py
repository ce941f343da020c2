"""The page of a run in a browser, on a desk and on a phone, of a run whose every word tries to become markup."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from chromium import ARROW_RIGHT, Browser, browser, needs_chromium, wait
from run_cases import AGENTS, HOSTILE, WrittenRun

from cluster.web.site import listen
from cluster.web.watch.server import make_server

pytestmark = needs_chromium

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740, "phone": True}


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return WrittenRun(tmp_path / "runs" / "hostile")


@pytest.fixture
def address(run: WrittenRun) -> Iterator[str]:
    """Where a server shows the run."""
    with listen("127.0.0.1", 0) as socket:
        server = uvicorn.Server(uvicorn.Config(make_server(run.path), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


def _texts(window: Browser, selector: str) -> list[str]:
    return window.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)


def _fits(window: Browser) -> bool:
    """Nothing makes the page wider than the window."""
    return window.run("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["desk", "phone"])
def test_a_person_follows_a_run_that_trains(
    run: WrittenRun, address: str, tmp_path: Path, size: dict[str, int]
) -> None:
    with browser(tmp_path / "profile", **size) as window:
        window.open(address)
        wait(lambda: window.run("return document.querySelectorAll('#curves-view path.line').length >= 4"))
        assert _texts(window, "#status") == ["training · step 3 of 40 · mappo"]
        assert "<agent>/reward" in _texts(window, "figcaption") and _fits(window)
        window.run("[...document.querySelectorAll('figure')].at(-1).querySelector('svg').focus()")
        window.press(ARROW_RIGHT)
        assert "step 3" in _texts(window, "figure:last-child .legend")[0]

        run.train()
        wait(lambda: "step 4 of 40" in _texts(window, "#status")[0])
        newest = "return document.querySelector('svg[aria-label^=\"<agent>/reward\"]').ariaLabel"
        wait(lambda: "planner 0.4" in window.run(newest))
        assert "step 3" in _texts(window, "figure:last-child .legend")[0], "what somebody points at stays"

        window.run("document.querySelector('nav a[href=\"#episodes\"]').click()")
        wait(lambda: len(_texts(window, ".tokens")) == len(AGENTS))
        assert _texts(window, ".detail h2") == [f"step-4-{HOSTILE}"] and _fits(window)
        said = "".join(_texts(window, ".turn:nth-of-type(1) .token"))
        assert said.replace("·", "") == f"planner says {HOSTILE}", "a dot is a part of a character"
        assert f"Text: {HOSTILE}\nTask: planner" in _texts(window, ".turn pre")
        assert any("✓ kept" in row and HOSTILE in row for row in _texts(window, ".evidence tr"))
        _colours_tokens(window)

        run.train()
        wait(lambda: f"step-5-{HOSTILE}" in _texts(window, ".episodes .sample"))
        assert _texts(window, ".detail h2") == [f"step-4-{HOSTILE}"], "what somebody reads stays"

        window.run("document.querySelector('nav a[href=\"#problems\"]').click()")
        wait(lambda: any("5 of 15 answers" in text for text in _texts(window, "#problems-view p")))
        assert any(HOSTILE in text for text in _texts(window, ".reasons li")) and _fits(window)
        window.run("document.querySelector('.reasons a').click()")
        wait(lambda: _texts(window, ".detail h2") == ["b"])
        assert any(HOSTILE in text for text in _texts(window, ".detail .problem"))

        assert window.run("return document.querySelectorAll('img, main script').length") == 0
        assert window.run("return document.title").startswith("hostile: training")
        assert window.complaints() == []


def _colours_tokens(window: Browser) -> None:
    """Switch what the strips are coloured by, with keys as well, and read a token's figures."""
    classes = "return [...document.querySelectorAll('.token')].slice(0, 2).map((e) => e.className)"
    assert window.run(classes) == ["token unlikely", "token unlikely"]
    window.run("document.querySelector('input[value=logprob]').focus()")
    window.press(ARROW_RIGHT)
    wait(lambda: window.run(classes) == ["token less", "token more"])
    window.run("document.querySelector('.tokens').focus()")
    window.press(ARROW_RIGHT)
    window.press(ARROW_RIGHT)
    assert "log-prob −0.5 (60.7 %) · advantage +1.5 · weights 3" in _texts(window, ".figures")[0]
    window.run("document.querySelector('input[value=version]').click()")
    wait(lambda: window.run(classes) == ["token series-0", "token series-0"])
    window.run("document.querySelector('.token').click()")
    assert "token 1 of" in _texts(window, ".figures")[0]


def test_a_server_that_is_gone_is_said_and_the_page_goes_on_when_it_is_back(address: str, tmp_path: Path) -> None:
    with browser(tmp_path / "profile", **WIDE) as window:
        window.open(address)
        wait(lambda: _texts(window, "figcaption"))
        window.run("window.kept = window.fetch; window.fetch = () => Promise.reject(new Error('gone'))")
        wait(lambda: "Is affect-rl watch still running?" in _texts(window, "#trouble")[0])
        window.run("window.fetch = window.kept")
        wait(lambda: _texts(window, "#trouble") == [""])
