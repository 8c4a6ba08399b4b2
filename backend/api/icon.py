"""Our mark, a four-pointed star, as the icon of the browser's tab and of the installed page."""

import io
from collections.abc import Iterator
from functools import cache

from fastapi import APIRouter, Response
from PIL import Image, ImageDraw

IRIS = "#5d4de0"
STAR = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">'
    f'<path fill="{IRIS}" d="M32 2Q35 29 62 32Q35 35 32 62Q29 35 2 32Q29 29 32 2Z"/></svg>'
)
_TIPS = ((32, 2), (62, 32), (32, 62), (2, 32))
_WAISTS = ((35, 29), (35, 35), (29, 35), (29, 29))
"""Control point of the quadratic curve from each tip to the next."""
_DAY = {"Cache-Control": "public, max-age=86400"}

router = APIRouter()
"""Open to everybody: browsers fetch a manifest without cookies."""


@router.get("/favicon.ico")
def favicon() -> Response:
    return Response(star_png(64), media_type="image/png", headers=_DAY)


@router.get("/icon.svg")
def icon() -> Response:
    return Response(STAR, media_type="image/svg+xml", headers={**_DAY, "Content-Security-Policy": "sandbox"})


@router.get("/icon-{size}.png")
def large_icon(size: int) -> Response:
    if size not in (192, 512):
        return Response(status_code=404)
    return Response(star_png(size), media_type="image/png", headers=_DAY)


@router.get("/manifest.json")
def manifest() -> Response:
    return Response(_MANIFEST, media_type="application/manifest+json", headers=_DAY)


@cache
def star_png(size: int) -> bytes:
    scale = size * 4 / 64  # drawn four times as large, so that its edges are smooth
    picture = Image.new("RGBA", (size * 4, size * 4))
    outline = [(x * scale, y * scale) for x, y in _outline(24)]
    ImageDraw.Draw(picture).polygon(outline, fill=IRIS)
    file = io.BytesIO()
    picture.resize((size, size), Image.Resampling.BOX).save(file, "PNG")
    return file.getvalue()


def _outline(points: int) -> Iterator[tuple[float, float]]:
    ends = (*_TIPS[1:], _TIPS[0])
    for start, waist, end in zip(_TIPS, _WAISTS, ends, strict=True):
        for t in (i / points for i in range(points)):
            a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
            yield a * start[0] + b * waist[0] + c * end[0], a * start[1] + b * waist[1] + c * end[1]


_MANIFEST = """{
  "name": "Atelier",
  "short_name": "Atelier",
  "start_url": "./",
  "display": "standalone",
  "background_color": "#121216",
  "theme_color": "#121216",
  "icons": [
    {"src": "icon.svg", "sizes": "any", "type": "image/svg+xml"},
    {"src": "icon-192.png", "sizes": "192x192", "type": "image/png"},
    {"src": "icon-512.png", "sizes": "512x512", "type": "image/png"}
  ]
}
"""
