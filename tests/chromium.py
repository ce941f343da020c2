"""Headless Chromium, driven through chromedriver's own protocol (W3C WebDriver), which is plain HTTP."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

needs_chromium = pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="no Chromium here: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-ui-for-media-stream --use-fake-device-for-media-stream"
).split()
"""The last two: a microphone and a camera that a page may use without asking anybody."""
DEADLINE_S = 60.0
ARROW_RIGHT = "\ue014"


class Browser:
    """One window; `session` is its address at chromedriver."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._http = httpx.Client(timeout=DEADLINE_S, trust_env=False)

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        answer = self._http.request(method, self._session + path, json=body if method == "POST" else None)
        assert answer.is_success, answer.text
        return answer.json()["value"]

    def open(self, url: str) -> None:
        self._ask("POST", "/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a JavaScript function body returns."""
        return self._ask("POST", "/execute/sync", script=script, args=arguments)

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", actions=[{"type": "key", "id": "keys", "actions": strokes}])

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in the input that a selector finds, as a person does in the browser's dialogue."""
        (element,) = self._ask("POST", "/element", using="css selector", value=selector).values()
        self._ask("POST", f"/element/{element}/value", text=str(file))

    def complaints(self) -> list[str]:
        """What the browser has logged as errors since this was asked last."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", type="browser")]

    def close(self) -> None:
        self._ask("DELETE", "")  # ends Chromium; to end chromedriver alone would leave it behind
        self._http.close()


@contextmanager
def browser(profile: Path, width: int, height: int, phone: bool = False) -> Iterator[Browser]:
    """A window of so many CSS pixels with an empty profile; a phone has a touch screen and no scroll bars."""
    options: dict[str, Any] = {"args": [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]}
    if phone:
        options["mobileEmulation"] = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 2.0}}
    wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "SEVERE"}}}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(lambda: _ready(address))
        answer = httpx.post(f"{address}/session", json={"capabilities": wanted}, timeout=DEADLINE_S, trust_env=False)
        assert answer.is_success, answer.text
        window = Browser(f"{address}/session/{answer.json()['value']['sessionId']}")
        try:
            yield window
        finally:
            window.close()
    finally:
        driver.terminate()
        driver.wait(DEADLINE_S)


def wait(until: Callable[[], Any]) -> Any:
    """The first answer that is true.

    Raises:
        TimeoutError: none within `DEADLINE_S`.
    """
    ends = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends:
        if answer := until():
            return answer
        time.sleep(0.1)
    raise TimeoutError(f"not within {DEADLINE_S:g} s")


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/status", trust_env=False).json()["value"]["ready"]
    except httpx.TransportError:
        return False
