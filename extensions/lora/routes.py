"""The cards over HTTP. A LoRA is called by its id; no path comes in."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi import Path as Part
from fastapi.responses import FileResponse

from backend.extension import ImageRef, ImageStore, Params

from .cards import Cards, Edit, Sort
from .header import FAMILIES
from .shelf import Shelf

MAX_REQUEST = 256 * 1024
Id = Annotated[str, Part(pattern="^[0-9a-f]{16}$")]
AS_IT_IS = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Favour(Params):
    favourite: bool


class Show(Params):
    image: ImageRef


def add(router: APIRouter, shelf: Shelf, kept: Path, images: ImageStore) -> None:
    cards = Cards(shelf, kept)

    @router.get("/cards")
    def search(
        q: Annotated[str, Query(max_length=200)] = "",
        family: Annotated[str, Query(max_length=20)] = "",
        favourites: bool = False,
        sort: Sort = "name",
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = 60,
    ) -> dict[str, Any]:
        """A page of what is found; with `family`, those of that family and those of which nobody knows."""
        found = cards.search(q, family, favourites, sort)
        page = [card.summary() for card in found[offset : offset + limit]]
        return {"cards": page, "total": len(found), "families": FAMILIES}

    @router.get("/cards/{id}")
    def details(id: Id) -> dict[str, Any]:
        return cards.get(id).details()

    @router.post("/cards/{id}", max_body_size=MAX_REQUEST)
    def edit(id: Id, edit: Edit) -> dict[str, Any]:
        return cards.edit(id, edit).details()

    @router.post("/cards/{id}/favourite", max_body_size=MAX_REQUEST)
    def favour(id: Id, wish: Favour) -> dict[str, Any]:
        return cards.favour(id, wish.favourite).details()

    @router.get("/cards/{id}/preview")
    def preview(id: Id) -> FileResponse:
        return FileResponse(cards.thumb(id), media_type="image/webp", headers=AS_IT_IS)

    @router.post("/cards/{id}/preview", max_body_size=MAX_REQUEST)
    def show(id: Id, picture: Show) -> dict[str, Any]:
        return cards.show(id, images.get(picture.image)).details()
