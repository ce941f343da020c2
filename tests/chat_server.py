"""A server on loopback that speaks OpenAI's chat API and gives answers that a test has recorded."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Asked = Mapping[str, Any]
PLAN = "supportive: one thing\nconfusing: another\ncountering: a third"
KEEP = "supportive: 1\nconfusing: none\ncountering: none"
TASKS = {"write three search queries": "planner", "choose the evidence": "filter", "decide what": "generator"}


@dataclass(frozen=True)
class Reply:
    """What the server sends: an answer, or another status or body, after some seconds."""

    text: str | None = ""
    finish: str = "stop"
    status: int = 200
    body: str = ""
    delay_s: float = 0.0

    def content(self, asked: Asked) -> bytes:
        if self.body:
            return self.body.encode()
        if self.status != 200:
            return json.dumps({"error": {"message": self.text, "type": "error"}}).encode()
        message = {"role": "assistant", "content": self.text}
        choices = [{"index": 0, "message": message, "finish_reason": self.finish}]
        whole = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": choices}
        return json.dumps(whole).encode()


@dataclass
class ChatServer:
    """What a running server was asked, and where it is.

    Attributes:
        address: up to ``/v1``.
        answer: from a question and how often the same one was asked before to a reply.
        asked: the bodies of all requests.
        keys: their ``Authorization`` headers.
    """

    answer: Callable[[Asked, int], Reply]
    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    _times: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def questions(self) -> list[str]:
        return [asked["messages"][0]["content"] for asked in self.asked]

    def reply(self, path: str, key: str, asked: Asked) -> Reply:
        if path != "/v1/chat/completions":
            return Reply("no such path", status=404)
        with self._lock:
            self.asked.append(asked)
            self.keys.append(key)
            before = self._times[json.dumps(asked)]
            self._times[json.dumps(asked)] += 1
        return self.answer(asked, before)


@contextmanager
def chat_server(answer: Callable[[Asked, int], Reply]) -> Iterator[ChatServer]:
    """A server that runs as long as the block."""
    state = ChatServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = state.reply(self.path, self.headers["Authorization"], asked)
            time.sleep(reply.delay_s)
            content = reply.content(asked)
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After-Ms", "10")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client has gone away
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Script:
    """A teacher that answers well, but for the replies that are written down.

    Args:
        faults: by words of a sample's text and by agent, the replies to the first questions.
    """

    def __init__(self, faults: Mapping[tuple[str, str], list[Reply]] | None = None) -> None:
        self._faults = {key: list(replies) for key, replies in (faults or {}).items()}

    def __call__(self, asked: Asked, before: int) -> Reply:
        text = asked["messages"][0]["content"]
        agent = next(name for task, name in TASKS.items() if f"Task: {task}" in text)
        for (words, name), replies in self._faults.items():
            if name == agent and f"Text: {words}\n" in text and replies:
                return replies.pop(0)
        told = re.search(r"this person: (.*?)\. Use it", text)
        assert told
        return Reply({"planner": PLAN, "filter": KEEP}.get(agent, f"reason: it sounds so\nlabel: {told[1]}"))
