"""My thing: lays a colour over the finished picture."""

from typing import Any

from PIL import Image

from backend.extension import Extension, Param, Params


class MyThingParams(Params):
    amount: float = Param(0.3, "Amount", ge=0, le=1, step=0.05, infotext="My thing amount", help="0 changes nothing.")


class MyThing(Extension):
    Params = MyThingParams

    def finish(self, run: Any, params: MyThingParams, pictures: list[Image.Image]) -> list[Image.Image]:
        return [Image.blend(p, Image.new(p.mode, p.size, "orange"), params.amount) for p in pictures]
