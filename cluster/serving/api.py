"""The HTTP API: requests in, answers of the team out. What it needs of the team is `Service`.

Errors are JSON with a ``detail`` that says what to change: 401 no token, 413 too large, 422 an input that cannot be
understood, 503 too busy or no engine, 504 too slow.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol
from uuid import uuid4

import swagger_ui_bundle
from fastapi import FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from affect_rl.config.services import ServeConfig
from affect_rl.data.unlabelled import MAX_CHARACTERS, SOUNDS, VIDEOS
from cluster.serving.door import SizeLimit, Token
from cluster.serving.prediction import Prediction
from cluster.web.ask.site import add_ask_page
from cluster.web.site import guard_local

_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger's page starts its script in line, and draws with styles in line."""
Part = Literal["retrieval", "text", "audio", "video"]
"""What a team can be asked to do without."""
Name = Annotated[str, Field(max_length=200)]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$", description="ISO 639-1 code.")]
Words = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class Utterance(BaseModel):
    """Words, or a clip with or without words, to be understood."""

    model_config = ConfigDict(extra="forbid")

    text: Words = Field(default="", description="What is said.")
    id: Name = Field(default="", description="Name of the input; empty: one is made up.")
    speaker: Name = Field(default="", description="Who speaks; evidence of this person is left out.")
    language: Language = "en"
    samples: int | None = Field(default=None, ge=0, description="Sampled answers that tell how sure the team is.")
    without: tuple[Part, ...] = Field(default=(), description="What the team is to do without.")

    @property
    def name(self) -> str:
        return self.id or f"input-{uuid4().hex[:12]}"


class ClipForm(Utterance):
    """The same as a form, with a file."""

    file: UploadFile


class Batch(BaseModel):
    """Several utterances."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[Utterance] = Field(min_length=1, max_length=1000)  # before all are read; `serve.max_batch` is less


class Answer(BaseModel):
    """What the team makes of an input."""

    prediction: Prediction
    policy: str = Field(description="Which policy answered: the beginning of a hash of its manifest.")


class Answers(BaseModel):
    """In the order of the inputs."""

    answers: list[Answer]


class Limits(BaseModel):
    """What may be asked for."""

    samples: int = Field(description="Sampled answers, where a request names no other number.")
    max_samples: int
    max_batch: int
    max_upload_mib: float


class Health(BaseModel):
    """The team can be asked."""

    status: Literal["ready"] = "ready"
    policy: str


@dataclass(frozen=True, slots=True)
class Clip:
    """An uploaded file."""

    name: str
    content: bytes


class Service(Protocol):
    """What the API needs of a team. What goes wrong is an `HTTPException`."""

    settings: ServeConfig
    token: str

    async def policy(self) -> str:
        """Which policy answers now."""
        ...

    async def answer(self, utterance: Utterance, clip: Clip | None = None) -> Answer:
        """Understand an input."""
        ...

    async def answer_all(self, utterances: list[Utterance]) -> list[Answer]:
        """Understand several; one that cannot be understood has a problem in its prediction."""
        ...

    async def watch(self, utterance: Utterance, clip: Clip | None = None) -> AsyncIterator[dict[str, Any]]:
        """Understand an input: each step of the team as it comes, then the answer."""
        ...


def build_api(service: Service) -> FastAPI:
    """The API of a team."""
    api = FastAPI(
        title="AffectRL",
        version=version("affect-rl"),
        description="What a trained team of agents makes of words, voice and face.",
        docs_url=None,
        redoc_url=None,
    )
    api.openapi_version = "3.0.2"  # which the page of `_add_documentation` can show
    api.add_middleware(SizeLimit, max_bytes=int(service.settings.max_upload_mib * 2**20))
    api.add_middleware(Token, token=service.token)  # the last one added is asked first
    if not service.token:  # which a foreign web site could not know; without one it may give itself a local name
        guard_local(api, service.settings.host)
    add_ask_page(api)
    _add_documentation(api)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        """What is wrong and where; FastAPI's own answer repeats all that was sent."""
        found = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        return JSONResponse({"detail": "; ".join(found)}, status_code=422)

    @api.get("/health", summary="Whether the team can be asked")
    async def health() -> Health:
        return Health(policy=await service.policy())

    @api.get("/v1/limits", summary="What may be asked for")
    async def limits() -> Limits:
        return Limits.model_validate(service.settings, from_attributes=True)

    @api.post("/v1/predict", summary="Understand words")
    async def predict(utterance: Utterance) -> Answer:
        return await service.answer(_with_words(utterance))

    @api.post("/v1/batch", summary="Understand several utterances")
    async def batch(batch: Batch) -> Answers:
        if len(batch.inputs) > service.settings.max_batch:
            raise HTTPException(422, f"{len(batch.inputs)} inputs, at most {service.settings.max_batch} at once")
        return Answers(answers=await service.answer_all(batch.inputs))

    @api.post("/v1/stream", summary="Understand words; the team's steps as lines of JSON while it works")
    async def stream(utterance: Utterance) -> StreamingResponse:
        return _lines(await service.watch(_with_words(utterance)))

    @api.post("/v1/clip", summary="Understand a sound or video file")
    async def clip(form: Annotated[ClipForm, Form()]) -> Answer:
        return await service.answer(form, await _read(form.file))

    @api.post("/v1/clip/stream", summary="Understand a sound or video file; steps as lines of JSON")
    async def clip_stream(form: Annotated[ClipForm, Form()]) -> StreamingResponse:
        return _lines(await service.watch(form, await _read(form.file)))

    return api


def _with_words(utterance: Utterance) -> Utterance:
    if not utterance.text.strip():
        raise HTTPException(422, "text: is empty; say what is said, or send a clip to /v1/clip")
    return utterance


async def _read(file: UploadFile) -> Clip:
    name = Path(file.filename or "").name
    if Path(name).suffix.lower() not in (*SOUNDS, *VIDEOS):
        raise HTTPException(422, f"file: {name[:200]!r} is of no known kind; known: {', '.join((*SOUNDS, *VIDEOS))}")
    content = await file.read()
    if not content:
        raise HTTPException(422, f"file: {name[:200]!r} is empty; send the clip")
    return Clip(f"clip{Path(name).suffix.lower()}", content)


def _lines(events: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Events as lines of JSON."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for event in events:
                yield f"{json.dumps(event, ensure_ascii=False)}\n"
        except HTTPException as error:  # the status has been sent already
            yield f"{json.dumps({'event': 'error', 'detail': error.detail}, ensure_ascii=False)}\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def _add_documentation(api: FastAPI) -> None:
    """The OpenAPI page, from files of a package: it works without a network."""
    api.mount("/static/swagger", StaticFiles(directory=swagger_ui_bundle.swagger_ui_path))

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="AffectRL",
            swagger_js_url="/static/swagger/swagger-ui-bundle.js",
            swagger_css_url="/static/swagger/swagger-ui.css",
            swagger_favicon_url="/static/swagger/favicon-32x32.png",
        )
        page.headers["Content-Security-Policy"] = _DOCS_POLICY
        return page
