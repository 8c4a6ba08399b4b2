"""Pictures over HTTP: uploads, finished pictures, their thumbnails, and the parameters in their text."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import UploadFile

from backend import infotext
from backend.api.auth import Caller
from backend.api.gate import SANDBOX
from backend.api.jobs import MAX_LISTED, Before, Id
from backend.catalog import Catalog, Model
from backend.errors import ImageRefused, InvalidRequest, NotFound, Problem
from backend.images import ImageStore, decode
from backend.jobs.view import picture_view
from backend.request import parse_request
from backend.services import Services

T = TypeVar("T")
AT_ONCE = 2
"""Uploads decoded at the same time; each may take 160 MB of memory."""
FOR_EVER = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Content-Security-Policy": SANDBOX,
    "X-Content-Type-Options": "nosniff",
}
TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


def router(services: Services) -> APIRouter:
    routes = APIRouter()
    decoding: list[anyio.CapacityLimiter] = []  # made on the event loop that it belongs to

    async def apart(function: Callable[[], T]) -> T:
        if not decoding:
            decoding.append(anyio.CapacityLimiter(AT_ONCE))
        return await anyio.to_thread.run_sync(function, limiter=decoding[0])

    @routes.post("/api/images", status_code=201)
    async def upload(caller: Caller, request: Request) -> Response:
        data = await _file(request)
        return JSONResponse(await apart(partial(keep, services.images, data)), 201)

    @routes.get("/api/images/{image_id}")
    def image(caller: Caller, image_id: str) -> Response:
        return _served(services.images.file(image_id))

    @routes.post("/api/infotext")
    async def recall(caller: Caller, request: Request) -> Response:
        """The request that a picture's text, or a text, describes."""
        if request.headers.get("content-type", "").startswith("text/plain"):
            text = (await request.body()).decode("utf-8", "replace")
            return JSONResponse(await apart(partial(read_text, services, text)))
        data = await _file(request)
        return JSONResponse(await apart(lambda: read_text(services, text_in(data))))

    @routes.get("/img/{picture_id}")
    def picture(caller: Caller, picture_id: Id, download: bool = False) -> Response:
        path = services.gallery.path(services.gallery.get(picture_id))
        return _served(path, path.name if download else None)

    @routes.get("/thumbs/{picture_id}")
    def thumb(caller: Caller, picture_id: Id, s: int = 256) -> Response:
        data = services.gallery.thumb(services.gallery.get(picture_id), s)
        return Response(data, media_type="image/webp", headers=FOR_EVER)

    @routes.get("/api/pictures")
    def pictures(
        caller: Caller, before: Before = None, limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 60
    ) -> Response:
        """Newest first."""
        found = services.gallery.recent(before=before, limit=limit)
        return JSONResponse({"pictures": [picture_view(saved) for saved in found]})

    @routes.post("/api/pictures/{picture_id}/use")
    async def use(caller: Caller, picture_id: Id) -> Response:
        """A finished picture becomes an input image."""

        def take() -> dict[str, Any]:
            return keep(services.images, services.gallery.path(services.gallery.get(picture_id)).read_bytes())

        return JSONResponse(await apart(take))

    return routes


def keep(images: ImageStore, data: bytes) -> dict[str, Any]:
    """Put an upload into the store. Raises ImageRefused."""
    ref = images.put(data)
    width, height = images.get(ref).size
    return {"id": ref, "width": width, "height": height}


def text_in(data: bytes) -> str:
    """The parameters in a picture file. Raises ImageRefused if there are none."""
    text = infotext.of_picture(decode(data))
    if not text:
        raise ImageRefused("this picture carries no parameters")
    return text


def read_text(services: Services, text: str) -> dict[str, Any]:
    """What a picture's text says, as values of a request; those that cannot be used here are named, not kept."""
    recall = infotext.read(text, services.registry.params)
    values, problems = usable(services, recall.values | _as_called_here(services.catalog, recall))
    given = parse_request(values, services.registry.params).extensions.values()
    return {
        "values": values,
        "fields": recall.fields,
        "read": sorted({key for params in given for key in params.to_infotext()} & recall.fields.keys()),
        "text": text,
        "problems": [problem._asdict() for problem in problems],
    }


def _as_called_here(catalog: Catalog, recall: infotext.Recall) -> dict[str, str]:
    """The model and the VAE by their names here; one that has another name is known by its hash."""
    ways: list[tuple[str, str, Callable[[str], Model]]] = [
        ("model", "Model hash", catalog.find),
        ("vae", "VAE hash", partial(catalog.find_file, "vae")),
    ]
    found: dict[str, str] = {}
    for field, key, find in ways:
        name = recall.values.get(field)
        for wanted in filter(None, (name, name and recall.fields.get(key))):
            with suppress(NotFound):
                found.setdefault(field, find(wanted).name)
    return found


def usable(services: Services, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The values that a request takes, in their right types, and why the others were left out."""
    left, problems = dict(values), []
    image = left.get("init_image")
    if isinstance(image, str) and image not in services.images:
        problems.append(Problem("init_image", "the image that it started from is not here"))
        del left["init_image"]
    while True:
        try:
            request = parse_request(left, services.registry.params)
        except InvalidRequest as error:
            problems += error.problems
            kept = left
            for problem in error.problems:
                kept = _without(kept, problem.field.split("."))
            if kept == left:
                return {}, problems
            left = kept
        else:
            named = left.keys() | ({"scheduler"} if "sampler_name" in left else set())  # "DPM++ 2M Karras" is both
            dumped = request.model_dump(mode="json")
            return {name: value for name, value in dumped.items() if name in named}, problems


def _without(values: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The same without the value at `path`; without what it is missing from, if it is missing."""
    name, *rest = path
    inner = values.get(name)
    if isinstance(inner, Mapping) and rest and rest[0] in inner:
        return {**values, name: _without(inner, rest)}
    if isinstance(inner, list) and len(rest) > 1:
        number, *rest = rest
        if isinstance(one := inner[int(number)], Mapping):
            return {**values, name: [*inner[: int(number)], _without(one, rest), *inner[int(number) + 1 :]]}
    return {each: value for each, value in values.items() if each != name}


async def _file(request: Request) -> bytes:
    """The upload: the body as it is, or the field `file` of a form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=4) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidRequest(Problem("file", "the form holds no file of this name"))
        return await file.read()


def _served(path: Path, download_as: str | None = None) -> Response:
    """A file under its true type, whatever it was called; it never changes."""
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        raise NotFound("there is no such image here; upload it again") from None
    media_type = next((kind for magic, kind in TYPES.items() if head.startswith(magic)), "application/octet-stream")
    return FileResponse(path, media_type=media_type, filename=download_as, headers=FOR_EVER)
