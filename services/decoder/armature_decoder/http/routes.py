"""OpenAI's routes. A key reaches its own tenant's models only; any other is answered as unknown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, closing
from typing import Annotated, cast

import anyio
from fastapi import APIRouter, Depends, Request, Response
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from armature.contracts.answers import ChatCompletion, Completion, ModelView
from armature.contracts.errors import ErrorEnvelope, ErrorObject
from armature.contracts.generation import ChatCompletionRequest, CompletionRequest, GenerationRequest
from armature.contracts.pages import Page
from armature.contracts.serving import ServedModel, ServedTenant
from armature.errors import ArmatureError, Unauthenticated
from armature.http.answer_headers import add_headers
from armature.http.auth import address_of, bearer_token
from armature.http.errors import ENVELOPE_RESPONSES
from armature.http.json import StrictJSONRoute
from armature.http.request_id import request_id
from armature.logging import get_logger
from armature_decoder.bundles.bundle import BundleStatus
from armature_decoder.generation import Piece
from armature_decoder.http.responses import CollectedChoice, ResponseHeading, ResponseShape
from armature_decoder.profiles import model_id
from armature_decoder.service import DecoderService, Running

_CLIENT_CLOSED_REQUEST = 499
_PING_SECONDS = 15


def service_of(request: Request) -> DecoderService:
    """Return the app's service."""
    return cast(DecoderService, request.app.state.service)


async def tenant_of(request: Request) -> ServedTenant:
    """Authenticate the request's key and count the request against its tenant's rate limit."""
    service = service_of(request)
    token, address = bearer_token(request), address_of(request)
    service.wrong_keys.check(address)
    try:
        tenant = service.profiles.authenticate(token)
    except Unauthenticated:
        service.wrong_keys.note(address)
        raise
    rate = service.quotas.count_request(tenant)
    if rate is not None:
        add_headers(request, rate.headers())
        rate.check()
    return tenant


Service = Annotated[DecoderService, Depends(service_of)]
Tenant = Annotated[ServedTenant, Depends(tenant_of)]

router = APIRouter(prefix="/v1", tags=["generation"], route_class=StrictJSONRoute, responses=ENVELOPE_RESPONSES)


@router.get("/models")
async def list_models(service: Service, tenant: Tenant) -> Page[ModelView]:
    """List the tenant's profile aliases."""
    return Page(data=[_view(tenant, model, status) for model, status in service.profiles.models(tenant)])


@router.get("/models/{model}")
async def get_model(model: str, service: Service, tenant: Tenant) -> ModelView:
    """Get one profile alias of the tenant, named ``profile`` or ``profile@alias``."""
    return _view(tenant, *service.profiles.model(tenant, model))


@router.post("/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(
    request: Request, body: ChatCompletionRequest, service: Service, tenant: Tenant
) -> Response:
    """Answer a dialogue, guided by the profile and the request's own preference."""
    return await _respond(request, body, await service.start_chat(tenant, body), service)


@router.post("/completions", response_model=Completion)
async def create_completion(request: Request, body: CompletionRequest, service: Service, tenant: Tenant) -> Response:
    """Continue a text."""
    return await _respond(request, body, await service.start_completion(tenant, body), service)


def _view(tenant: ServedTenant, model: ServedModel, status: BundleStatus) -> ModelView:
    return ModelView(
        id=model_id(model),
        created=model.created_at,
        owned_by=tenant.name,
        root=model.manifest.digest(),
        parent=model.manifest.base.digest,
        state=status.state,
        reason=status.reason,
        attributes=model.manifest.attributes,
    )


async def _respond(request: Request, body: GenerationRequest, running: Running, service: DecoderService) -> Response:
    with ExitStack() as unfinished:
        unfinished.callback(running.close)
        add_headers(request, running.reservation.headers())
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            stream = _EventStream(running, include_usage, service.settings.drain_seconds)
            unfinished.pop_all()  # the stream closes it
            return stream
        whole = asyncio.create_task(_collect(running))
        gone = asyncio.create_task(_disconnected(request))
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not whole.done():
            whole.cancel()
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        return whole.result()


async def _collect(running: Running) -> Response:
    choices = [CollectedChoice() for _ in running.generation.choices]
    async for piece in running.generation.pieces():
        choices[piece.index].add(piece)
    usage = running.generation.usage
    body = await asyncio.to_thread(lambda: running.shape.whole(running.heading, choices, usage).model_dump_json())
    return Response(body, media_type="application/json")


async def _disconnected(request: Request) -> None:
    """Return when the client has disconnected. The body has been read, so no other message arrives."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(EventSourceResponse):
    """A generation as server-sent events, closed with the response even if the client never reads it."""

    def __init__(self, running: Running, include_usage: bool, drain_seconds: float) -> None:
        super().__init__(
            _events(running, include_usage),
            sep="\n",
            ping=_PING_SECONDS,
            headers={"Cache-Control": "no-cache"},
            shutdown_event=anyio.Event(),  # never set: at shutdown, streams run on for the grace period
            shutdown_grace_period=drain_seconds,
        )
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with closing(self._running):
            await super().__call__(scope, receive, send)


async def _events(running: Running, include_usage: bool) -> AsyncIterator[dict[str, str]]:
    heading, shape, generation = running.heading, running.shape, running.generation
    yield {"data": shape.opening(heading, len(generation.choices)).model_dump_json()}
    try:
        async for piece in generation.pieces():
            if len(piece.reports) > 1:  # a scored prompt may hold 10^5 numbers: encoding them would block the loop
                yield {"data": await asyncio.to_thread(_chunk, shape, heading, piece)}
            elif piece.text or piece.finish_reason or piece.reports:
                yield {"data": _chunk(shape, heading, piece)}
    except Exception as error:
        if not isinstance(error, ArmatureError):
            get_logger(__name__).error("stream failed", exc_info=error)
            error = ArmatureError("the answer could not be finished")
        envelope = ErrorEnvelope(error=ErrorObject.of(error, request_id.get()))
        yield {"data": envelope.model_dump_json()}
        return
    if include_usage:
        yield {"data": shape.closing(heading, generation.usage).model_dump_json()}
    yield {"data": "[DONE]"}


def _chunk(shape: ResponseShape, heading: ResponseHeading, piece: Piece) -> str:
    return shape.chunk(heading, piece).model_dump_json()
