"""Trainings over HTTP: look before, begin, watch, stop and go on, and what has come out."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from backend.api.auth import Caller
from backend.api.gate import HERE
from backend.errors import InvalidRequest, NotFound, Problem, Refused
from backend.gallery.thumbs import SIZES, shrunk
from backend.jobs.host import has_accelerator
from backend.params import declared, validate
from backend.services import Services
from backend.training import grids, presets, records
from backend.training.grids import GridParams
from backend.training.params import TrainParams, check_name
from backend.training.view import full

MAX_REQUEST = 256 * 1024
RESERVED = ("presets", "schema", "preflight")
"""Addresses that a training's name would hide."""
DATASETS = "datasets"
"""Below the data folder."""
CELL = r"\d\d-\d\d\.png"
SAMPLE = r"\d{6,}-\d{1,2}\.png"
Text = Annotated[str, Field(max_length=400)]


class Wish(BaseModel):
    """A training that somebody wants, or wants to know about."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=200)]
    dataset: Text = ""
    """A name below the data folder's datasets."""
    folder: Text = ""
    """A folder of this machine, instead."""
    preset: Text = ""
    """What to learn: character, style, object or concept; empty: what suits the model."""
    memory: Literal["", "cpu", "8 GB", "12 GB", "24 GB"] = ""
    """Of the graphics card; empty: what is there."""
    params: dict[str, Any] = {}
    """Over those of the preset."""
    overwrite: bool = False


class Changes(BaseModel):
    model_config = ConfigDict(extra="forbid")

    changes: dict[str, Any] = {}
    """Parameters that may change when a training goes on."""


class Chosen(BaseModel):
    """The checkpoint that becomes a LoRA."""

    model_config = ConfigDict(extra="forbid")

    step: Annotated[int, Field(ge=1)]
    name: Text = ""
    """Empty: the training's."""
    overwrite: bool = False


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/api/trainings")
    trainings = services.trainings
    wishes = _Wishes(services)

    @routes.get("")
    def all_of_them(caller: Caller) -> Response:
        return JSONResponse({"trainings": trainings.views()})

    @routes.post("", status_code=201, max_body_size=MAX_REQUEST)
    def begin(caller: Caller, wish: Wish, request: Request) -> Response:
        data, params = wishes.read(wish, request.scope[HERE])
        wishes.refuse_a_taken_name(wish)
        return JSONResponse(trainings.begin(wish.name, data, params, caller, wish.overwrite), 201)

    @routes.post("/preflight", max_body_size=MAX_REQUEST)
    def preflight(caller: Caller, wish: Wish, request: Request) -> Response:
        data, params = wishes.read(wish, request.scope[HERE])
        return JSONResponse(trainings.rehearse(wish.name, data, params))

    @routes.get("/presets")
    def all_presets(caller: Caller) -> Response:
        goals = [{"goal": name, "title": goal.title} for name, goal in presets.GOALS.items()]
        families = {model.name: presets.family_of(model) for model in services.catalog.models() if not model.problem}
        all_of_them = [asdict(preset) for preset in presets.PRESETS]
        machine = "" if has_accelerator() else "cpu"
        return JSONResponse({"goals": goals, "presets": all_of_them, "families": families, "machine": machine})

    @routes.get("/schema")
    def schema(caller: Caller) -> Response:
        basic = [name for name, _, hints in declared(TrainParams) if not hints.group]
        return JSONResponse({"schema": TrainParams.model_json_schema(), "basic": basic})

    @routes.get("/{name}")
    def one(caller: Caller, name: str) -> Response:
        seen = trainings.view(name)
        shown = full(records.read(trainings.root, name), seen)
        return JSONResponse({**shown, "grids": trainings.compared(name)})

    @routes.delete("/{name}", status_code=204)
    def delete(caller: Caller, name: str) -> Response:
        trainings.delete(name)
        return Response(status_code=204)

    @routes.post("/{name}/pause")
    def pause(caller: Caller, name: str) -> Response:
        return JSONResponse(trainings.pause(name))

    @routes.post("/{name}/resume", max_body_size=MAX_REQUEST)
    def resume(caller: Caller, name: str, changes: Changes | None = None) -> Response:
        return JSONResponse(trainings.resume(name, changes.changes if changes else {}, caller))

    @routes.post("/{name}/stop")
    def stop(caller: Caller, name: str) -> Response:
        return JSONResponse(trainings.stop_training(name))

    @routes.post("/{name}/save")
    def save(caller: Caller, name: str) -> Response:
        return JSONResponse(trainings.ask(name, "save"))

    @routes.post("/{name}/sample")
    def sample(caller: Caller, name: str) -> Response:
        return JSONResponse(trainings.ask(name, "sample"))

    @routes.post("/{name}/grid", status_code=201, max_body_size=MAX_REQUEST)
    def grid(caller: Caller, name: str, wanted: Annotated[dict[str, Any], Body()]) -> Response:
        return JSONResponse(trainings.compare(name, validate(GridParams, wanted), caller), 201)

    @routes.get("/{name}/grids/{id}/{file}")
    def grid_picture(caller: Caller, name: str, id: str, file: str, s: int = 0) -> Response:
        folder = grids.read(records.read(trainings.root, name), id).folder
        return _picture(folder, file, CELL, s)

    @routes.post("/{name}/promote", status_code=201, max_body_size=MAX_REQUEST)
    def promote(caller: Caller, name: str, chosen: Chosen) -> Response:
        return JSONResponse(trainings.promote(name, chosen.step, chosen.name or name, chosen.overwrite), 201)

    @routes.get("/{name}/samples/{file}")
    def sample_picture(caller: Caller, name: str, file: str, s: int = 0) -> Response:
        folder = records.read(trainings.root, name).folder / "samples"
        return _picture(folder, file, SAMPLE, s)

    @routes.get("/{name}/plots/{file}")
    def plot(caller: Caller, name: str, file: str) -> Response:
        return _picture(records.read(trainings.root, name).folder, file, r"(loss|samples)\.png")

    @routes.get("/{name}/export/{layout}")
    def export(
        caller: Caller, name: str, layout: Literal["kohya", "diffusers"], step: Annotated[int, Query(ge=0)] = 0
    ) -> Response:
        """The weights as a file; step 0: the latest that were kept. Only the finished ones are kept for diffusers."""
        training = records.read(trainings.root, name)
        step = step or next(iter(training.kept_weights[-1:]), 0)
        path = training.weights(step) if layout == "kohya" else training.diffusers
        is_kept = layout == "kohya" or (training.is_done and step == training.done)
        if not is_kept or not path.is_file():
            raise NotFound(f"the training {name} has kept no weights for {layout} at step {step}")
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    return routes


class _Wishes:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings
        self._gigabytes: float | None = None

    def read(self, wish: Wish, is_here: bool) -> tuple[Path, TrainParams]:
        """Where the pictures are, and the parameters. Raises InvalidRequest, NotFound, Refused."""
        if wish.name in RESERVED:
            raise InvalidRequest(Problem("name", f"{wish.name} cannot be the name of a training"))
        data = self._folder(wish, is_here)
        model = self._services.catalog.find(str(wish.params.get("model", "")))
        family = presets.family_of(model)
        preset = presets.FAMILIES[family]
        if wish.preset:
            preset = presets.find(wish.preset, family, self._memory(wish)).values
        params = validate(TrainParams, {**preset, **wish.params, "model": model.name})
        if params.regularisation:
            self._refuse_from_afar(is_here)
        return data, params

    def refuse_a_taken_name(self, wish: Wish) -> None:
        """A LoRA that no training here has made is not replaced by accident."""
        file = self._settings.models_dir / "loras" / f"{wish.name}.safetensors"
        if file.exists() and not (self._services.trainings.root / wish.name).exists() and not wish.overwrite:
            raise InvalidRequest(Problem("name", "there is a LoRA of that name already; overwrite it, or rename"))

    def _folder(self, wish: Wish, is_here: bool) -> Path:
        if wish.folder:
            self._refuse_from_afar(is_here)
            return Path(wish.folder)
        try:
            folder = self._settings.data_dir / DATASETS / check_name(wish.dataset)
        except ValueError:
            folder = None
        if folder is None or not folder.is_dir():
            raise InvalidRequest(Problem("dataset", f"there is no dataset {wish.dataset[:40]!r}"))
        return folder

    def _refuse_from_afar(self, is_here: bool) -> None:
        if not (self._settings.is_local and is_here):
            raise Refused("folders of this machine are read only for who sits at it; make a dataset instead")

    def _memory(self, wish: Wish) -> float:
        """GB of the graphics card."""
        if wish.memory:
            return 0.0 if wish.memory == "cpu" else float(wish.memory.partition(" ")[0])
        if self._gigabytes is None:
            self._gigabytes = self._services.trainings.graphics_memory()
        return self._gigabytes


def _picture(folder: Path, file: str, pattern: str, side: int = 0) -> Response:
    """Raises NotFound for all but the pictures that a training makes."""
    path = folder / file
    if not re.fullmatch(pattern, file) or not path.is_file():
        raise NotFound("there is no such picture")
    if side:
        if side not in SIZES:
            raise InvalidRequest(Problem("s", f"must be one of {', '.join(map(str, SIZES))}, not {side}"))
        return Response(
            shrunk(path.read_bytes(), side), media_type="image/webp", headers={"Cache-Control": "no-cache"}
        )
    return FileResponse(path, media_type="image/png", headers={"Cache-Control": "no-cache"})
