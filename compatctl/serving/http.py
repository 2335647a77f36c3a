"""The HTTP interface: FastAPI over ``SearchService``."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Request
from fastapi import Query as Parameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from compatctl._version import __version__
from compatctl.deployment.searching import Hit
from compatctl.errors import CompatError, InputError
from compatctl.notices import DataWarning
from compatctl.serving.access import Access, RefusedError, check_access
from compatctl.serving.batching import QueueFullError
from compatctl.serving.service import (
    Compared,
    Query,
    RequestItem,
    SearchService,
    Served,
    content_id,
)

LOG = logging.getLogger("compatctl.serve")

HISTORY = 20
"""Generations that the status shows."""

MAX_ID = 256
"""Characters of a query's id or a tenant."""

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""What the page may load: itself."""


Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Found(BaseModel):
    """A gallery item. ``model`` is the digest of the model that embedded it."""

    id: str
    label: str
    score: float = Field(description="What a threshold applies to; higher is nearer.")
    cosine: float
    model: str
    rescored: bool


class SearchAnswer(BaseModel):
    """The answer of a query."""

    query: str = Field(description="The caller's id, or the sha256 of the query's content.")
    generation: int
    query_model: str = Field(description="The digest of the model that embedded the query.")
    side: str = Field(description="current, or candidate: a model that is tried on some traffic.")
    cut: bool = Field(description="The text is longer than the model reads.")
    hits: list[Found]


class ComparedAnswers(BaseModel):
    """The answers of the query model and of the candidate; null: there is none."""

    query: str
    generation: int
    current_model: str
    candidate_model: str | None
    current: list[Found]
    candidate: list[Found] | None
    candidate_error: str | None = Field(description="Why the candidate has no answer.")


class Problem(BaseModel):
    """Why there is no answer."""

    error: str
    message: str


def make_app(service: SearchService, access: Access) -> FastAPI:
    """The application."""

    async def check(request: Request) -> None:
        check_access(request, access)

    app = FastAPI(
        title="compatctl",
        version=__version__,
        summary="Search of an embedding store that changes its model without a break.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(check)],
        responses={code: {"model": Problem} for code in _STATUSES},
    )
    _add_errors(app, service)
    _add_search(app, service)
    _add_state(app, service)
    return app


_STATUSES = (400, 401, 403, 408, 413, 422, 500, 503, 504)


def _add_errors(app: FastAPI, service: SearchService) -> None:
    """Errors that show neither a path nor a traceback; the log has both."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RefusedError)
        return _refused(service, request, error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = str(first["loc"][-1])
        message = f"{name}: {first['msg']}"
        return _refused(service, request, RefusedError(status=422, error=name, message=message))

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        word = {404: "path", 405: "method"}.get(error.status_code, "request")
        refusal = RefusedError(status=error.status_code, error=word, message=str(error.detail))
        answer = _refused(service, request, refusal)
        answer.headers.update(error.headers or {})
        return answer

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return _refused(service, request, _internal())

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(Exception, failed)


def _refused(service: SearchService, request: Request, refusal: RefusedError) -> JSONResponse:
    if request.url.path == "/v1/search":
        service.metrics.refused(refusal.status)
    headers = {"Retry-After": "1"} if refusal.status == 503 else {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    message = refusal.message.encode(
        "utf-8", "backslashreplace"
    ).decode()  # a query's half character
    content = {"error": refusal.error, "message": message}
    return JSONResponse(content, refusal.status, headers=headers)


def _internal() -> RefusedError:
    return RefusedError(
        status=500, error="internal", message="the query could not be answered; the log says why"
    )


def _add_search(app: FastAPI, service: SearchService) -> None:
    bodies = {
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": {"type": "string", "format": "binary"}},
                "text/plain": {"schema": {"type": "string"}},
                "application/json": {"schema": _JSON_QUERY},
            },
        }
    }
    k_of = Annotated[int, Parameter(ge=1, le=service.limits.k, description="Answers.")]

    async def search(request: Request, k: int = 10) -> SearchAnswer:
        query = await _query(request, service, k)
        served = await _answered(service.search(query))
        return _described(query, served)

    async def compare(request: Request, k: int = 10) -> ComparedAnswers:
        query = await _query(request, service, k)
        return _described_both(query, await _answered(service.compare(query)))

    search.__annotations__["k"] = compare.__annotations__["k"] = k_of
    app.post(
        "/v1/search",
        openapi_extra=bodies,
        summary="Find the nearest gallery items of an image, a text or a vector.",
    )(search)
    app.post(
        "/v1/compare",
        openapi_extra=bodies,
        summary="The same query, answered by the query model and by the candidate.",
    )(compare)


_JSON_QUERY: dict[str, Any] = {
    "type": "object",
    "description": "One of text, image, vector or vectors.",
    "properties": {
        "text": {"type": "string"},
        "image": {"type": "string", "contentEncoding": "base64"},
        "vector": {"type": "array", "items": {"type": "number"}},
        "vectors": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "number"}},
        },
        "k": {"type": "integer", "minimum": 1},
        "query": {"type": "string", "maxLength": MAX_ID},
        "tenant": {"type": "string", "maxLength": MAX_ID},
    },
    "additionalProperties": False,
}


async def _answered(answer: Awaitable[Any]) -> Any:
    """The answer, or the refusal that its error means."""
    try:
        return await answer
    except QueueFullError:
        raise RefusedError(
            status=503, error="busy", message="too many requests run; try again"
        ) from None
    except TimeoutError:
        raise RefusedError(
            status=504, error="timeout", message="the answer took too long"
        ) from None
    except InputError as error:
        if error.__cause__ is not None and "ONNX Runtime" in error.message:
            LOG.error("%s", error.message)
            raise _internal() from None
        raise RefusedError(status=422, error="query", message=error.message) from None
    except DataWarning as warning:  # with --strict
        raise RefusedError(status=422, error="query", message=str(warning)) from None
    except CompatError as error:
        LOG.error("%s", error.message)
        raise _internal() from None


async def _query(request: Request, service: SearchService, k: int) -> Query:
    """The query in a request's body, by its type."""
    limits = service.limits
    try:
        async with asyncio.timeout(limits.seconds):
            body = await _body(request, limits.body_bytes)
    except TimeoutError:
        raise RefusedError(status=408, error="slow", message="the body took too long") from None
    except ClientDisconnect:  # who is gone gets no answer; metrics count it as the caller's
        raise RefusedError(status=400, error="body", message="the body ended early") from None
    if not body:
        raise RefusedError(status=400, error="body", message="the body is empty: send a query")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields: Mapping[str, Any] = {}
    item: RequestItem
    if kind == "application/json":
        fields = _json(body)
        item = _json_item(fields)
    elif kind == "text/plain":
        item = _utf8(body)
    else:
        item = body
    if isinstance(item, str) and len(item) > limits.text:
        raise RefusedError(
            status=413,
            error="size",
            message=f"the text has {len(item)} characters; at most {limits.text} are taken",
        )
    given = {name: fields.get(name, request.query_params.get(name)) for name in _NAMES}
    k = fields.get("k", k)
    if type(k) is not int or not 1 <= k <= limits.k:
        raise RefusedError(status=422, error="k", message=f"k is 1 .. {limits.k}")
    query, tenant = (_name(given[name], name) for name in _NAMES)
    return Query(item=item, k=k, id=query or content_id(item), tenant=tenant)


_NAMES = ("query", "tenant")


async def _body(request: Request, limit: int) -> bytes:
    """The whole body; what is too large is not read to its end."""
    too_large = RefusedError(
        status=413, error="size", message=f"the body is larger than the {limit} bytes it may have"
    )
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > limit:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def _utf8(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(status=400, error="body", message="the text is no UTF-8") from None


def _json(body: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(_utf8(body))
    except (ValueError, RecursionError):
        raise RefusedError(status=400, error="body", message="the body is no JSON") from None
    if not isinstance(fields, dict):
        raise RefusedError(status=400, error="body", message="the body is no JSON object")
    if unknown := sorted(fields.keys() - _JSON_QUERY["properties"].keys()):
        raise RefusedError(status=422, error="body", message=f"unknown entry {unknown[0]!r:.80}")
    return fields


def _json_item(fields: Mapping[str, Any]) -> RequestItem:
    kinds = [name for name in ("text", "image", "vector", "vectors") if name in fields]
    if len(kinds) != 1:
        raise RefusedError(
            status=422, error="body", message="give one of text, image, vector or vectors"
        )
    value = fields[kinds[0]]
    wrong = RefusedError(status=422, error="body", message=f"{kinds[0]} is not {_KINDS[kinds[0]]}")
    if kinds[0] == "text" and isinstance(value, str) and value.strip():
        return value
    if kinds[0] == "image" and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise wrong from None
    if kinds[0] == "vector":
        return _vector(value, wrong)
    if kinds[0] == "vectors" and isinstance(value, dict) and value:
        return {space: _vector(row, wrong) for space, row in value.items()}
    raise wrong


_KINDS = {
    "text": "a text",
    "image": "an image's bytes in base64",
    "vector": "a list of finite numbers",
    "vectors": "an object of such lists by space",
}


def _vector(value: object, wrong: RefusedError) -> np.ndarray[Any, Any]:
    numbers = isinstance(value, list) and all(type(x) in (int, float) for x in value)
    if not numbers or not value:
        raise wrong
    try:
        with np.errstate(over="ignore"):
            vector = np.array(value, np.float32)
    except OverflowError:
        raise wrong from None
    if not np.isfinite(vector).all():
        raise wrong
    return vector


def _name(value: object, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID or not value.isprintable():
        raise RefusedError(
            status=422,
            error=name,
            message=f"{name} is a text of 1 to {MAX_ID} printable characters",
        )
    return value


def _found(hits: tuple[Hit, ...]) -> list[Found]:
    return [
        Found(
            id=hit.id,
            label=hit.label,
            score=hit.score,
            cosine=hit.cosine,
            model=hit.model,
            rescored=hit.rescored,
        )
        for hit in hits
    ]


def _described(query: Query, served: Served) -> SearchAnswer:
    answer = served.answer
    return SearchAnswer(
        query=query.id,
        generation=answer.generation,
        query_model=answer.query_model,
        side=served.side,
        cut=served.cut,
        hits=_found(answer.hits),
    )


def _described_both(query: Query, compared: Compared) -> ComparedAnswers:
    current, candidate = compared.current, compared.candidate
    return ComparedAnswers(
        query=query.id,
        generation=current.generation,
        current_model=current.query_model,
        candidate_model=None if candidate is None else candidate.query_model,
        current=_found(current.hits),
        candidate=None if candidate is None else _found(candidate.hits),
        candidate_error=compared.candidate_error,
    )


def _reads(app: FastAPI, path: str, **described: Any) -> Callable[[Endpoint], Endpoint]:
    """A path that GET reads, and HEAD without the body."""

    def add(endpoint: Endpoint) -> Endpoint:
        app.head(path, include_in_schema=False)(endpoint)
        return app.get(path, **described)(endpoint)

    return add


def _add_state(app: FastAPI, service: SearchService) -> None:
    page = files("compatctl.serving").joinpath("page.html").read_text("utf-8")

    @_reads(app, "/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @_reads(app, "/healthz", summary="Whether the process runs.")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @_reads(app, "/readyz", summary="Whether queries are answered: 200, or 503.")
    async def readyz() -> JSONResponse:
        state = service.state()
        return JSONResponse(state, 200 if state["ready"] else 503)

    @_reads(app, "/metrics", summary="Metrics in the text format of Prometheus.")
    async def metrics() -> Response:
        text = await asyncio.to_thread(service.metrics_text)
        return Response(text, media_type="text/plain; version=0.0.4")

    @_reads(app, "/v1/status", summary="Generation, models, history, shadow and traffic.")
    async def status() -> dict[str, Any]:
        return await asyncio.to_thread(service.status, HISTORY)

    @_reads(app, "/v1/items/{item_id:path}", summary="A gallery item's picture, or its text.")
    async def item(item_id: str) -> Response:
        shown = await asyncio.to_thread(service.item, item_id)
        if shown is None:
            raise RefusedError(status=404, error="item", message="the data has no such item here")
        content, kind = shown
        return Response(
            content,
            media_type=kind,
            headers={"Cache-Control": "private", "X-Content-Type-Options": "nosniff"},
        )
