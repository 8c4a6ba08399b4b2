"""Models over HTTP: what there is, what people say of it, downloads, merges and conversions, the trash.

A model is called by its id; no path comes in, and none goes out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as Part
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from backend.api.auth import Caller
from backend.api.gate import HERE
from backend.catalog import Model
from backend.catalog.detect import FAMILIES
from backend.catalog.roots import FOLDERS
from backend.consents import Consents, is_pickle
from backend.downloads import offers, sources, tokens
from backend.downloads.network import Network
from backend.downloads.queue import Downloads
from backend.downloads.sources import HUBS, Found, Hosts, safe_name
from backend.errors import InvalidRequest, Problem, Refused
from backend.images import ImageRef
from backend.library import Edit, Library, Sort, card, id_of, picture_time
from backend.merging import recipe as recipes
from backend.merging.chores import Chores
from backend.merging.recipe import RECIPES, Convert, ExtractLora, is_folder
from backend.services import Services
from backend.settings import Settings

MAX_REQUEST = 256 * 1024
MAX_PAGE = 200
Id = Annotated[str, Part(pattern="^[0-9a-f]{16}$")]
Name = Annotated[str, Field(max_length=200)]
Precision = recipes.Precision
AS_IT_IS = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Where(_Asked):
    """An address that somebody typed."""

    source: Annotated[str, Field(max_length=2000)]
    half: bool = True
    """Weights of half precision, where there are both."""


class Wish(Where):
    """What to download of what lies there."""

    key: Annotated[str, Field(max_length=500)] | None = None
    """Of an option; None: the best."""
    name: Name = ""
    kind: Name = ""
    sha256: Annotated[str, Field(max_length=64)] = ""
    pickle: bool = False


class Renaming(_Asked):
    name: Name


class Show(_Asked):
    image: ImageRef


class Token(_Asked):
    site: Name
    token: SecretStr


class Conversion(_Asked):
    name: Name = ""
    """Of what is made; empty: one that says what was done."""
    precision: Precision = ""
    layout: Literal["", "file", "folder"] = ""
    prune: bool = True


class Merge(BaseModel):
    """A recipe, with the ids of models for `a`, `b`, `c`, `vae` and `lora`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    what: Literal["sum", "difference", "vae", "lora", "extract"]
    name: Name


class Works:
    """What goes on beside drawing: downloads, merges and conversions. `network` is what they go out through."""

    def __init__(self, services: Services, network: Callable[[], Network] | None = None, hosts: Hosts = HUBS) -> None:
        settings = services.settings
        self.network = network or (lambda: Network(tokens.of(settings)))
        self.hosts = hosts
        self.library = Library(services.catalog, settings.data_dir)
        self.library.recall()
        self.downloads = Downloads(settings.models_dir, self.network, lambda path: services.catalog.refresh())
        self.chores = Chores(lambda path: services.catalog.refresh())

    def look(self, where: Where) -> Found:
        return sources.look(where.source, self.network(), self.hosts, half=where.half)

    def close(self) -> None:
        self.downloads.close()
        self.chores.close()


def router(services: Services, works: Works) -> APIRouter:
    routes = APIRouter()
    settings, library = services.settings, works.library
    consents = Consents(settings.data_dir / "consents.json")

    def may_download() -> None:
        # an instance has one account; whoever has signed in to it is its administrator
        if refusal := refusal_of(settings):
            raise Refused(refusal)

    def may_trust(request: Request) -> None:
        if not (settings.is_local and request.scope[HERE]) and not settings.allow_extension_install:
            raise Refused(
                "a pickle can run code when it is opened, and other machines can reach this server: consent to it at"
                " the machine itself, by `python app.py models convert`"
            )

    def is_consented(model: Model) -> bool:
        return is_pickle(model.path) and consents.is_given(model.path, services.catalog.fingerprint)

    # --- what there is

    @routes.get("/api/models/search")
    def search(
        caller: Caller,
        q: Annotated[str, Query(max_length=200)] = "",
        kind: Annotated[str, Query(max_length=40)] = "",
        family: Annotated[str, Query(max_length=40)] = "",
        sort: Sort = "name",
        problems: bool = False,
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 60,
    ) -> Response:
        found = library.search(q, kind, family, sort, broken=problems)
        page = [_summary(model) for model in found[offset : offset + limit]]
        answer = {
            "models": page,
            "total": len(found),
            **library.counts(),
            "names": dict(FAMILIES),
            "kinds_of": [*FOLDERS],
            "refusal": refusal_of(settings),
        }
        return JSONResponse(answer)

    @routes.get("/api/models/trash")
    def trash(caller: Caller) -> Response:
        return JSONResponse({"models": [trashed.view() for trashed in library.trash()]})

    @routes.post("/api/models/trash/{id}/restore")
    def restore(caller: Caller, id: Id) -> Response:
        library.restore(id)
        return trash(caller)

    @routes.delete("/api/models/trash/{id}")
    def destroy(caller: Caller, id: Id) -> Response:
        library.destroy(id)
        return trash(caller)

    # --- getting more

    @routes.get("/api/models/offers")
    def offered(caller: Caller) -> Response:
        best = offers.best(psutil.virtual_memory().total // 2)
        shown = [{**offer._asdict(), "best": offer is best} for offer in offers.OFFERS]
        return JSONResponse({"offers": shown, "refusal": refusal_of(settings)})

    @routes.get("/api/models/tokens")
    def known_tokens(caller: Caller) -> Response:
        """Which there are; never what they are."""
        return JSONResponse(tokens.known(settings))

    @routes.post("/api/models/tokens", max_body_size=MAX_REQUEST)
    def keep_token(caller: Caller, token: Token) -> Response:
        tokens.save(settings, token.site, token.token)
        return known_tokens(caller)

    @routes.post("/api/models/look", max_body_size=MAX_REQUEST)
    def look(caller: Caller, where: Where) -> Response:
        may_download()
        return JSONResponse(_found(works.look(where)))

    @routes.get("/api/models/downloads")
    def downloads(caller: Caller) -> Response:
        return JSONResponse({"downloads": works.downloads.view()})

    @routes.post("/api/models/downloads", status_code=201, max_body_size=MAX_REQUEST)
    def download(caller: Caller, request: Request, wish: Wish) -> Response:
        may_download()
        if wish.pickle:
            may_trust(request)
        option = works.look(wish).option(wish.key)
        id = works.downloads.add(option, name=wish.name, kind=wish.kind, sha256=wish.sha256, pickle=wish.pickle)
        return JSONResponse({"id": id, "downloads": works.downloads.view()}, 201)

    def change(verb: str, run: Callable[[str], None], asks: Callable[[], None] = lambda: None) -> None:
        @routes.post(f"/api/models/downloads/{{id}}/{verb}", name=f"{verb} download")
        def changed(caller: Caller, id: Id) -> Response:
            asks()
            run(id)
            return downloads(caller)

    change("pause", works.downloads.pause)
    change("resume", works.downloads.resume, may_download)
    change("cancel", works.downloads.cancel)

    # --- making more

    @routes.get("/api/models/chores")
    def chores(caller: Caller) -> Response:
        return JSONResponse({"chores": works.chores.view()})

    @routes.post("/api/models/chores/{id}/stop")
    def stop(caller: Caller, id: Id) -> Response:
        works.chores.stop(id)
        return chores(caller)

    @routes.post("/api/models/merge", status_code=201, max_body_size=MAX_REQUEST)
    def merge(caller: Caller, merge: Merge) -> Response:
        given = dict(merge.model_extra or {})
        for field in ("a", "b", "c", "vae", "lora"):
            if field in given:
                given[field] = _named(_usable(library.get(str(given[field])), field))
        recipe = recipe_of({**given, "what": merge.what})
        id = works.chores.add(recipe, target_of(settings.models_dir, recipe, merge.name))
        return JSONResponse({"id": id, "chores": works.chores.view()}, 201)

    # --- one model

    @routes.get("/api/models/{id}")
    def details(caller: Caller, id: Id) -> Response:
        model = library.get(id)
        own = {"consented": is_consented(model), "default": library.is_default(model)}
        return JSONResponse(_details(model) | own)

    @routes.patch("/api/models/{id}", max_body_size=MAX_REQUEST)
    def edit(caller: Caller, id: Id, edit: Edit) -> Response:
        return JSONResponse(_details(library.edit(id, edit)))

    @routes.delete("/api/models/{id}")
    def delete(caller: Caller, id: Id) -> Response:
        return JSONResponse(library.delete(id).view())

    @routes.post("/api/models/{id}/rename", max_body_size=MAX_REQUEST)
    def rename(caller: Caller, id: Id, wish: Renaming) -> Response:
        return JSONResponse(_details(library.rename(id, wish.name)))

    @routes.post("/api/models/{id}/default")
    def prefer(caller: Caller, id: Id) -> Response:
        return JSONResponse(_details(library.prefer(id)))

    @routes.get("/api/models/{id}/preview")
    def preview(caller: Caller, id: Id) -> Response:
        return FileResponse(library.thumb(id), media_type="image/webp", headers=AS_IT_IS)

    @routes.post("/api/models/{id}/preview", max_body_size=MAX_REQUEST)
    def show(caller: Caller, id: Id, picture: Show) -> Response:
        return JSONResponse(_details(library.show(id, services.images.get(picture.image))))

    @routes.post("/api/models/{id}/consent")
    def consent(caller: Caller, request: Request, id: Id) -> Response:
        may_trust(request)
        model = library.get(id)
        if not is_pickle(model.path):
            raise InvalidRequest(Problem("", f"{model.name} is no pickle: it needs no consent"))
        consents.give(model.path, caller)
        services.catalog.refresh()
        return details(caller, id)

    @routes.delete("/api/models/{id}/consent")
    def withdraw(caller: Caller, id: Id) -> Response:
        model = library.get(id)
        consents.withdraw(services.catalog.fingerprint(model.path))
        services.catalog.refresh()
        return details(caller, id)

    @routes.post("/api/models/{id}/convert", status_code=201, max_body_size=MAX_REQUEST)
    def convert(caller: Caller, id: Id, wish: Conversion) -> Response:
        model = library.get(id)
        of_file = _named(model)
        if not is_pickle(model.path):
            _usable(model, "")
        elif is_consented(model):  # the catalogue may not have come to its hash yet
            of_file = of_file.model_copy(update={"sha256": services.catalog.fingerprint(model.path)})
        else:
            raise Refused(
                f"{model.name} is a pickle, which can run code: an administrator has to consent to opening it"
            )
        recipe = Convert(a=of_file, **wish.model_dump(exclude={"name"}))
        id = works.chores.add(
            recipe, target_of(settings.models_dir, recipe, wish.name or _name_for(recipe), model.kind)
        )
        return JSONResponse({"id": id, "chores": works.chores.view()}, 201)

    return routes


def refusal_of(settings: Settings) -> str:
    """Why nothing is downloaded from the page; empty: it may be."""
    if settings.allow_downloads:
        return ""
    return (
        "models are not downloaded from this page: set allow_downloads = true in settings.toml in the data folder, or"
        " use `python app.py models add`"
    )


def recipe_of(values: dict[str, Any]) -> recipes.Recipe:
    """Raises InvalidRequest with every field that is wrong."""
    try:
        return RECIPES.validate_python(values)
    except ValidationError as error:
        said = ((".".join(map(str, e["loc"][1:])), e["msg"].removeprefix("Input ")) for e in error.errors())
        problems = (Problem(field, message) for field, message in said)
        raise InvalidRequest(*problems) from None


def target_of(models: Path, recipe: recipes.Recipe, name: str, kind: str = "checkpoint") -> Path:
    """Where what is made will lie. Raises InvalidRequest."""
    if isinstance(recipe, ExtractLora):
        kind = "lora"
    stem = safe_name(name.strip().removesuffix(".safetensors")) if name.strip() else ""
    if not stem:
        raise InvalidRequest(Problem("name", "give it a name"))
    names = {str(known): folders[0] for known, folders in FOLDERS.items()}
    folder = models / names.get(kind, names["checkpoint"])
    return folder / (stem if is_folder(recipe) else f"{stem}.safetensors")


def _name_for(recipe: Convert) -> str:
    words = (Path(recipe.a.name).name, recipe.precision, {"folder": "diffusers"}.get(recipe.layout, ""))
    name = "-".join(filter(None, words))
    return name if name != recipe.a.name or is_pickle(recipe.a.path) else f"{name}-converted"


def _usable(model: Model, field: str) -> Model:
    if model.problem:
        raise InvalidRequest(Problem(field, f"{model.name} cannot be used: it {model.problem}"))
    return model


def _named(model: Model) -> recipes.Model:
    return recipes.Model(name=model.name, path=model.path, sha256=model.sha256, family=model.family)


def _summary(model: Model) -> dict[str, Any]:
    id = id_of(model)
    return {
        "id": id,
        "name": model.name,
        "title": model.title,
        "kind": model.kind,
        "family": model.family,
        "badge": FAMILIES.get(model.family, ""),
        "variant": model.variant,
        "precision": model.precision,
        "size": model.size,
        "changed": model.changed // 1_000_000,
        "trigger": model.trigger,
        "root": model.root,
        "preview": f"api/models/{id}/preview?v={time:x}" if (time := picture_time(model)) else None,
        "problem": model.problem,
        "pickle": is_pickle(model.path),
    }


def _details(model: Model) -> dict[str, Any]:
    said = card(model)
    texts = {name: said[name] for name in ("licence", "source", "base", "author") if isinstance(said.get(name), str)}
    return {
        **_summary(model),
        "relative": model.relative,
        "edition": model.edition,
        "may_edit": model.may_edit,
        "said": said.get("variant", ""),
        "prediction": model.prediction,
        "parts": model.parts,
        "parameters": model.parameters,
        "sha256": model.sha256,
        "description": model.description,
        "notes": model.notes,
        "defaults": model.defaults,
        "card_problem": model.card_problem,
        "examples": model.examples,
        "metadata": dict(model.metadata),
        "licence": texts.get("licence") or model.metadata.get("modelspec.license", ""),
        "source": texts.get("source", ""),
        "base": texts.get("base", ""),
        "author": texts.get("author") or model.metadata.get("modelspec.author", ""),
        "folder": model.path.is_dir(),
    }


def _found(found: Found) -> dict[str, Any]:
    options = [
        {
            "key": option.key,
            "name": option.name,
            "kind": option.kind,
            "size": option.size,
            "files": len(option.files),
            "folder": option.is_folder,
            "pickle": option.is_pickle,
            "checked": all(file.sha256 for file in option.files if file.suffix == ".safetensors"),
        }
        for option in found.options[:MAX_PAGE]
    ]
    return {"title": found.title, "page": found.page, "licence": found.licence, "options": options}
