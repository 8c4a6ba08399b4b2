"""Jobs over HTTP: submit, look, cancel; and what happens to them, live, over a WebSocket or server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.websockets import WebSocketDisconnect

from backend.api.auth import Caller
from backend.catalog import companions
from backend.gallery.index import Saved
from backend.jobs.events import Event, Subscription
from backend.jobs.store import Job, JobState
from backend.jobs.view import view
from backend.request import GenerationRequest
from backend.services import Services

MAX_REQUEST = 2**20
"""Bytes of a request; images are uploaded, not sent in it."""
MAX_LISTED = 200
MAX_ID = 2**63 - 1  # the largest that a database keeps
Id = Annotated[int, Path(ge=0, le=MAX_ID)]
Before = Annotated[int | None, Query(ge=0, le=MAX_ID)]
SILENCE = 15.0
"""Seconds after which a quiet event stream says that it lives."""


def router(services: Services, closing: asyncio.Event) -> APIRouter:
    """The routes; streams end when `closing` is set, else they would hold up the end of the server."""
    routes = APIRouter()

    @routes.post("/api/jobs", status_code=201, max_body_size=MAX_REQUEST)
    def submit(caller: Caller, values: Annotated[dict[str, Any], Body()]) -> Response:
        return JSONResponse(view_of(services, services.submit(values, caller)), 201)

    @routes.get("/api/jobs")
    def jobs(
        caller: Caller,
        state: JobState | None = None,
        before: Before = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 50,
    ) -> Response:
        found = services.jobs.recent(states=[state] if state else None, before=before, limit=limit)
        pictures = services.gallery.of_all(job.id for job in found)
        return JSONResponse({"jobs": [view_of(services, job, pictures[job.id]) for job in found]})

    @routes.get("/api/jobs/{job_id}")
    def job(caller: Caller, job_id: Id) -> Response:
        return JSONResponse(view_of(services, services.jobs.get(job_id)))

    @routes.post("/api/jobs/{job_id}/cancel")
    def cancel(caller: Caller, job_id: Id) -> Response:
        return JSONResponse(view_of(services, services.runner.cancel(job_id)))

    @routes.post("/api/jobs/{job_id}/skip")
    def skip(caller: Caller, job_id: Id) -> Response:
        job = services.jobs.get(job_id)
        services.runner.skip(job.id)
        return JSONResponse(view_of(services, job))

    @routes.get("/api/schema")
    def schema(caller: Caller) -> Response:
        extensions = {
            extension.id: {"title": extension.title, "schema": extension.Params.model_json_schema()}
            for extension in services.registry.extensions
        }
        return JSONResponse({"request": GenerationRequest.model_json_schema(), "extensions": extensions})

    @routes.get("/api/models")
    def models(caller: Caller) -> Response:
        default = services.catalog.default
        return JSONResponse(
            [
                {**m.summary(), "defaults": m.usual, "examples": m.examples, "default": m.name == default}
                for m in services.catalog.models()
            ]
        )

    @routes.get("/api/choices")
    def choices(caller: Caller) -> Response:
        models = [(m.name, m.title) for m in services.catalog.models() if not m.problem]
        vaes = [("", "Automatic"), (companions.OWN, "The model's own")]
        vaes += [(vae.name, vae.name) for vae in services.catalog.files("vae") if not vae.problem]
        return JSONResponse({"request": {"models": models, "vaes": vaes}, "extensions": services.registry.choices()})

    @routes.get("/api/health")
    def health() -> Response:
        return JSONResponse({"status": "ok"})

    @routes.websocket("/ws")
    async def events_by_websocket(websocket: WebSocket, caller: Caller) -> None:
        await websocket.accept()
        sending = asyncio.create_task(_send(stream(services, closing), websocket))
        try:
            while True:
                await websocket.receive()  # pages only listen; this ends when they go
                if websocket.client_state.name == "DISCONNECTED":
                    break
        except WebSocketDisconnect:
            pass
        finally:
            sending.cancel()

    @routes.get("/events")
    async def events_by_http(caller: Caller) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter: nginx, do not hold them back
        return StreamingResponse(_lines(stream(services, closing)), media_type="text/event-stream", headers=headers)

    return routes


def view_of(services: Services, job: Job, pictures: list[Saved] | None = None) -> dict[str, Any]:
    """The job as JSON, with its progress if it runs; `pictures` are its own, looked up if not given."""
    if not job.state.is_final and (live := services.hub.get(job.id)):
        return live
    position = services.jobs.position(job.id) if job.state is JobState.QUEUED else None
    return view(job, None, services.gallery.of(job.id) if pictures is None else pictures, position)


async def stream(services: Services, closing: asyncio.Event) -> AsyncIterator[str | None]:
    """The snapshot, then each event, as JSON; None after a while in which nothing happened."""
    closed: asyncio.Future[Any] = asyncio.ensure_future(closing.wait())
    try:
        with services.hub.subscribe() as subscription:  # before the snapshot, so that nothing falls between
            hub, engine = services.hub, services.runner.state()
            now = {"type": "snapshot", "jobs": hub.snapshot(), "trainings": hub.trainings(), "engine": engine}
            yield Event(now).text
            while not closed.done():
                event = await _next(subscription, closed)
                yield event.text if event else None
    finally:
        closed.cancel()


async def _next(subscription: Subscription, closed: "asyncio.Future[Any]") -> Event | None:
    following = asyncio.ensure_future(subscription.next())
    try:
        either: list[asyncio.Future[Any]] = [following, closed]
        await asyncio.wait(either, timeout=SILENCE, return_when=asyncio.FIRST_COMPLETED)
        return following.result() if following.done() else None
    finally:
        following.cancel()


async def _send(texts: AsyncIterator[str | None], websocket: WebSocket) -> None:
    with suppress(WebSocketDisconnect):  # the tab was closed while a text was on its way
        async for text in texts:
            if text is not None:
                await websocket.send_text(text)


async def _lines(texts: AsyncIterator[str | None]) -> AsyncIterator[str]:
    async for text in texts:
        yield ": quiet\n\n" if text is None else f"data: {text}\n\n"
