"""Sets of pictures to learn from, over HTTP: bring pictures, write captions, see what the trainer sees."""

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from backend import prompt
from backend.api.auth import Caller
from backend.api.jobs import MAX_ID
from backend.api.pictures import FOR_EVER
from backend.errors import Conflict, NotFound
from backend.files import storing
from backend.gallery.thumbs import Thumbs
from backend.params import validate
from backend.result import JobCancelled
from backend.services import Services
from backend.training import captioners, dataset, workbench
from backend.training.captions import MAX_CAPTION, Edit
from backend.training.dataset import USUAL_STEP, Item
from backend.training.params import TrainParams
from backend.training.workbench import Set, Taken, Workbench, folder_of, id_of

T = TypeVar("T")
MAX_UPLOAD = 2**30
"""Bytes of a zip; pictures in it have the limits of any image."""
AT_ONCE = 2
"""Uploads decoded at the same time."""
COVER = 4
"""Pictures of a set that stand for it."""
ZIP = b"PK"
Ids = Annotated[list[str], Field(max_length=workbench.MAX_IMAGES)]
Name = Annotated[str, Field(max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Named(_Body):
    name: Name


class Note(_Body):
    source: Annotated[str, Field(max_length=2000)] = ""
    licence: Annotated[str, Field(max_length=200)] = ""
    consent: Annotated[str, Field(max_length=2000)] = ""


class Chosen(_Body):
    ids: Ids


class Moved(Chosen):
    folder: Name = ""
    """`10_cat`, `reg/1_animal`, or empty."""


class Picked(_Body):
    pictures: Annotated[list[Annotated[int, Field(ge=0, le=MAX_ID)]], Field(max_length=500)]
    folder: Name = ""


class Said(_Body):
    caption: str


class Edited(_Body):
    edit: Edit
    ids: Ids | None = None
    """None: all that are learnt from."""
    dry: bool = False
    """Only say what would change."""


class Written(Chosen):
    captioner: Name = ""
    """One of models/captioners; empty: the first."""


class Seen(BaseModel):
    """How a trainer would look at the set: what decides buckets and crops."""

    resolution: Annotated[int, Query(ge=64, le=2048)] = 512
    model: str = ""
    buckets: bool = True
    bucket_step: Annotated[int, Query(ge=0, le=256)] = 0
    largest_aspect: Annotated[float, Query(ge=1, le=4)] = 2.0


Shown = Annotated[Seen, Query()]


@dataclass
class _Writing:
    """Captions that a model writes just now."""

    of: int
    done: int = 0
    is_stopped: bool = False

    def go_on(self) -> None:
        if self.is_stopped:
            raise JobCancelled


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/api/datasets")
    bench = Workbench(services.settings.data_dir / "datasets")
    bench.clear()
    thumbs = Thumbs(services.settings.data_dir / "thumbs")
    decoding: list[anyio.CapacityLimiter] = []  # made on the event loop that it belongs to
    written: dict[str, _Writing] = {}
    """By the name of the set."""

    async def apart(function: Callable[[], T]) -> T:
        if not decoding:
            decoding.append(anyio.CapacityLimiter(AT_ONCE))
        return await anyio.to_thread.run_sync(function, limiter=decoding[0])

    def step_of(model: str) -> int:
        try:
            return workbench.bucket_step(services.catalog.find(model))
        except NotFound:  # pictures can be looked at before there is a model
            return USUAL_STEP

    def as_seen(seen: Seen) -> TrainParams:
        values = seen.model_dump(exclude={"model"})
        values["bucket_step"] = seen.bucket_step or step_of(seen.model)
        return validate(TrainParams, values)

    def answer(name: str, params: TrainParams | None = None) -> Response:
        found, writing = view(bench.read(name, params), params), written.get(name)
        return JSONResponse({**found, "writing": writing and {"done": writing.done, "of": writing.of}})

    def refuse_while_used(name: str) -> None:
        bench.read(name)
        if name in written:
            raise Conflict(f"captions of the set {name} are being written; stop that first")
        if training := services.trainings.learning_from(bench.root / name):
            raise Conflict(f"the training {training} learns from the set {name}; stop it first")

    @contextmanager
    def writing_of(name: str, of: int) -> Iterator[_Writing]:
        mine = _Writing(of)
        if written.setdefault(name, mine) is not mine:
            raise Conflict(f"captions of the set {name} are being written already")
        try:
            yield mine
        finally:
            del written[name]

    @routes.get("")
    def listing(caller: Caller) -> Response:
        sets = []
        for name in bench.names():
            with suppress(NotFound):  # it has just gone
                sets.append(summary(bench.read(name)))
        there = [captioner.name for captioner in captioners.captioners(services.settings.models_dir)]
        return JSONResponse({"datasets": sets, "captioners": there})

    @routes.post("", status_code=201)
    def create(caller: Caller, given: Named) -> Response:
        return JSONResponse(view(bench.read(bench.create(given.name))), 201)

    @routes.get("/{name}")
    def one(caller: Caller, name: str, seen: Shown) -> Response:
        return answer(name, as_seen(seen))

    @routes.post("/{name}/rename")
    def rename(caller: Caller, name: str, given: Named) -> Response:
        refuse_while_used(name)
        return answer(bench.rename(name, given.name))

    @routes.post("/{name}/delete")
    def delete(caller: Caller, name: str) -> Response:
        refuse_while_used(name)
        bench.delete(name)
        return JSONResponse({})

    @routes.post("/{name}/note")
    def note(caller: Caller, name: str, given: Note) -> Response:
        bench.note(name, given.model_dump())
        return answer(name)

    # --- pictures

    @routes.post("/{name}/files", status_code=201, max_body_size=MAX_UPLOAD)
    async def upload(
        caller: Caller, request: Request, name: str, called: Annotated[str, Query(alias="name")], folder: str = ""
    ) -> Response:
        """The body is a picture or a zip of them."""
        bench.read(name)
        with tempfile.NamedTemporaryFile(dir=bench.root, prefix=workbench.UPLOADED, delete=False) as file:
            path = Path(file.name)
            try:
                with storing():
                    async for block in request.stream():
                        await anyio.to_thread.run_sync(file.write, block)
                    file.flush()
                    add = bench.add_zip if _is_zip(path) else partial(bench.add, called=called)
                    taken = await apart(lambda: add(name, path, folder=folder))
            finally:
                path.unlink(missing_ok=True)
        return JSONResponse(taken_view(taken), 201)

    @routes.post("/{name}/pictures", status_code=201)
    async def pick(caller: Caller, name: str, given: Picked) -> Response:
        """Pictures of the gallery, with their prompts as captions."""
        names: list[str] = []
        for picture_id in given.pictures:
            names += (await apart(partial(_picked, services, bench, name, picture_id, given.folder))).names
        return JSONResponse(taken_view(Taken(tuple(names))), 201)

    @routes.post("/{name}/exclude")
    def exclude(caller: Caller, name: str, given: Chosen, seen: Shown) -> Response:
        bench.exclude(name, given.ids)
        return answer(name, as_seen(seen))

    @routes.post("/{name}/restore")
    def restore(caller: Caller, name: str, given: Chosen, seen: Shown) -> Response:
        bench.restore(name, given.ids)
        return answer(name, as_seen(seen))

    @routes.post("/{name}/remove")
    def remove(caller: Caller, name: str, given: Chosen, seen: Shown) -> Response:
        bench.remove(name, given.ids)
        return answer(name, as_seen(seen))

    @routes.post("/{name}/move")
    def move(caller: Caller, name: str, given: Moved, seen: Shown) -> Response:
        bench.move(name, given.ids, given.folder)
        return answer(name, as_seen(seen))

    @routes.get("/{name}/images/{id}")
    def image(caller: Caller, name: str, id: str) -> Response:
        """The file as it was brought."""
        return FileResponse(bench.item(name, id).path, headers=FOR_EVER)

    @routes.get("/{name}/images/{id}/thumb")
    def thumb(caller: Caller, name: str, id: str, s: int = 256) -> Response:
        item = bench.item(name, id)
        return Response(thumbs.of(item.path, item.sha256, s), media_type="image/webp", headers=FOR_EVER)

    @routes.get("/{name}/images/{id}/crop")
    def crop(caller: Caller, name: str, id: str, seen: Shown) -> Response:
        """Just what the trainer is shown."""
        return Response(cropped(bench.item(name, id), as_seen(seen)), media_type="image/webp", headers=FOR_EVER)

    # --- captions

    @routes.post("/{name}/images/{id}/caption")
    def caption(caller: Caller, name: str, id: str, given: Said) -> Response:
        return JSONResponse({"caption": bench.caption(name, id, given.caption)})

    @routes.post("/{name}/captions")
    def captions(caller: Caller, name: str, given: Edited) -> Response:
        return JSONResponse({"changed": bench.edit(name, given.edit, given.ids, given.dry)})

    @routes.post("/{name}/captions/auto")
    def write(caller: Caller, name: str, given: Written) -> Response:
        """Each caption is kept as soon as it is written; `stop` ends it, `undo` takes all of them back."""
        found = captioners.find(services.settings.models_dir, given.captioner)
        with writing_of(name, len(given.ids)) as writing:
            items = bench.remember(name, given.ids, "auto")

            def tell(number: int, text: str) -> None:
                bench.caption(name, id_of(items[number].name), text[:MAX_CAPTION])
                writing.done = number + 1

            if items:
                with suppress(JobCancelled):
                    services.trainings.caption([item.path for item in items], found.name, tell, writing.go_on)
        return JSONResponse({"changed": writing.done})

    @routes.post("/{name}/captions/auto/stop")
    def stop_writing(caller: Caller, name: str) -> Response:
        """What has been written stays."""
        bench.read(name)
        if not (writing := written.get(name)):
            raise Conflict(f"no captions of the set {name} are being written")
        writing.is_stopped = True
        return JSONResponse({})

    @routes.post("/{name}/captions/undo")
    def undo(caller: Caller, name: str) -> Response:
        return JSONResponse({"changed": bench.undo(name)})

    @routes.get("/{name}/zip")
    def download(caller: Caller, name: str) -> Response:
        bench.read(name)
        with tempfile.NamedTemporaryFile(dir=bench.root, prefix=workbench.DOWNLOADED, delete=False) as file:
            path = Path(file.name)
        try:
            bench.pack(name, path)
        except BaseException:
            path.unlink()
            raise
        after = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(path, media_type="application/zip", filename=f"{name}.zip", background=after)

    return routes


def summary(found: Set) -> dict[str, Any]:
    """A set among others."""
    learnt = found.found.training
    return {
        "name": found.name,
        "images": len(learnt),
        "regular": len(found.found.items) - len(learnt),
        "excluded": len(found.left_out),
        "captioned": sum(bool(item.caption) for item in learnt),
        "flags": len(found.found.flags),
        "cover": [_address(found.name, item, "thumb") for item in learnt[:COVER]],
        "note": dict(found.found.note),
    }


def view(found: Set, params: TrainParams | None = None) -> dict[str, Any]:
    """All of a set; crops are as `params` ask for them."""
    flags = found.flags()
    items = [(item, False) for item in found.found.items] + [(item, True) for item in found.left_out]
    shown = params or validate(TrainParams, {})
    images = [
        {
            "id": id_of(item.name),
            "name": item.name,
            "folder": folder_of(item.name),
            "caption": item.caption,
            "width": item.width,
            "height": item.height,
            "repeats": item.repeats,
            "regular": item.regular,
            "excluded": excluded,
            "flags": [] if excluded else [flag.__dict__ for flag in flags.get(item.name, ())],
            "crop": dataset.crop_of(item.width, item.height, shown, shown.bucket_step or USUAL_STEP).__dict__,
            "thumb": _address(found.name, item, "thumb"),
            "image": _address(found.name, item),
        }
        for item, excluded in items
    ]
    known = {item.name for item, _ in items}
    others = [flag for flag in found.found.flags if flag.file not in known]
    return {
        **summary(found),
        "pictures": sorted(images, key=lambda image: (image["excluded"], image["regular"], image["name"].casefold())),
        "broken": [{"id": id_of(flag.file), **flag.__dict__} for flag in others],
        "undo": found.undo,
    }


def taken_view(taken: Taken) -> dict[str, Any]:
    return {"ids": [id_of(name) for name in taken.names], "left_out": [flag.__dict__ for flag in taken.refused]}


def cropped(item: Item, params: TrainParams) -> bytes:
    """What the trainer is shown, as a WebP without loss."""
    crop = dataset.crop_of(item.width, item.height, params, params.bucket_step or USUAL_STEP)
    out = io.BytesIO()
    dataset.cropped(dataset.picture_of(item), crop).save(out, "WEBP", lossless=True)
    return out.getvalue()


def _address(name: str, item: Item, more: str = "") -> str:
    """Below the server's root; another picture has another one, so that browsers may keep it."""
    way = f"api/datasets/{quote(name)}/images/{id_of(item.name)}"
    return f"{way}{more and '/' + more}?v={item.sha256[:12]}"


def _picked(services: Services, bench: Workbench, name: str, picture_id: int, folder: str) -> Taken:
    saved = services.gallery.get(picture_id)
    data = services.gallery.path(saved).read_bytes()
    with tempfile.NamedTemporaryFile(dir=bench.root, prefix=workbench.UPLOADED, delete=False) as file:
        path = Path(file.name)
        try:
            file.write(data)
            file.flush()
            caption = prompt.parse(str(saved.request.get("prompt", ""))).text
            return bench.add(name, path, f"picture {saved.id}", folder, " ".join(caption.split()))
        finally:
            path.unlink(missing_ok=True)


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == ZIP
