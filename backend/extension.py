"""The whole public API of extensions: a check, five stages and four doors.

An extension is a folder `extensions/<id>/` with an `extension.toml`, which is read without running code, and an
`__init__.py` that holds one subclass of `Extension`. A stage runs only if the request carries the extension's
parameters or the prompt holds its tag: off means absent. What raises in a stage fails the job, with the
extension's name in front; the log has where. This module and the declaration of an extension import without torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from PIL import Image

from backend.catalog.roots import Roots
from backend.errors import InvalidRequest, NotFound, Problem, Refused
from backend.files import write_atomically
from backend.images import ImageRef, ImageStore
from backend.params import Choice, Facet, Param, Params, declared
from backend.request import MAX_PROMPT, GenerationRequest, Task

if TYPE_CHECKING:
    from fastapi import APIRouter

    from backend.diffusion.run import Keep, Run, Step

API_VERSION = 1

__all__ = [
    "API_VERSION",
    "MAX_PROMPT",
    "Choice",
    "Contribution",
    "Extension",
    "Facet",
    "GenerationRequest",
    "ImageRef",
    "ImageStore",
    "InvalidRequest",
    "NotFound",
    "PanelForm",
    "Param",
    "Params",
    "Problem",
    "Refused",
    "Task",
    "declared",
    "write_atomically",
]


@dataclass(frozen=True)
class Contribution:
    """What one extension adds to the pipeline call; two givers of one name are a conflict."""

    components: dict[str, Any] = field(default_factory=dict)
    """Components of the pipeline: {"controlnet": model}."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline's call: {"controlnet_conditioning_scale": 1.3}."""
    notes: dict[str, str] = field(default_factory=dict)
    """Further keys of the picture's text, for what is only known now: {"Lora hashes": "cat: 0123456789ab"}."""
    start: Any = None
    """Latents to start from in place of the request's image, (1 or B, C, H/8, W/8), as `run.encode` gives them."""
    shown: Any = None
    """Latents that a model which edits is shown in place of the request's image, as `start`."""
    models: dict[str, Path] = field(default_factory=dict)
    """Files or folders of models that take part beside the checkpoint, by name: the picture keeps their hashes."""
    maps: tuple[Image.Image, ...] = ()
    """Pictures to keep with those of the job, behind them; the same ones for each batch: the maps that guided it."""
    further_steps: int = 0
    """Of the passes that `finish` will make; for the progress that people see."""


class Button(NamedTuple):
    """A button in an extension's panel."""

    label: str
    route: str
    help: str


class PanelForm:
    """What `Extension.panel` adds to."""

    def __init__(self) -> None:
        self.buttons: list[Button] = []

    def button(self, label: str, route: str, help: str = "") -> None:
        """A button that sends the panel's values to the extension's own `route` (POST) and shows the answer."""
        if not re.fullmatch(r"[\w-]+(/[\w-]+)*", route):
            raise ValueError(f"{route!r} is not a route of the extension: name it as in routes, without the first /")
        self.buttons.append(Button(label, route, help))


class Ask(Protocol):
    async def __call__(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Raises Busy if the engine has no time for it, and whatever the errand raises."""
        ...


class Extension:
    """Base of every extension; override the stages that you need."""

    id: ClassVar[str]
    """The name of the folder."""
    title: ClassVar[str]
    Params: ClassVar[type[Params]] = Params
    """What a request may say to it."""
    prompt_tag: ClassVar[str | None] = None
    """`lora` if `<lora:...>` in a prompt calls it."""
    task: ClassVar[Task] = Task.TEXT_TO_IMAGE
    """The least that it needs of the pipeline."""
    order: ClassVar[int] = 100
    """Lower runs earlier; equals run by id."""
    models: Path
    """The models folder."""
    roots: Roots
    """Where models lie beside it: `self.roots.places("lora")` are all folders of LoRAs."""
    data: Path
    """A folder for what it keeps, in the data folder; it makes it when there is something to keep."""
    images: ImageStore
    """The input images, for its routes and errands: `images.get(ref)` and `images.put(data)`."""
    allow_downloads: bool = False
    """Whether this instance may fetch models (setting `allow_downloads`); for its routes."""
    keep: Keep
    """In the engine's process, for `prepare` and `errand`: as `run.keep`; give a `dtype`."""
    ask: Ask
    """For its routes: `await self.ask(name, values)` is what its `errand` gives in the engine's process."""

    def check(self, request: GenerationRequest, params: Any, images: ImageStore) -> None:
        """Raise InvalidRequest for what cannot be drawn: before the request is queued, and again before `prepare`."""
        if self.task > Task.TEXT_TO_IMAGE and not request.init_image:
            raise InvalidRequest(Problem("init_image", f"{self.title} needs an image to start from"))

    def prepare(self, request: GenerationRequest, params: Any, images: ImageStore) -> GenerationRequest:
        """Rewrite the request before anything is loaded: wildcards, a larger canvas."""
        return request

    def patch(self, run: Run, params: Any) -> AbstractContextManager[object]:
        """Change the pipeline for this run; leaving the context undoes it, also after a cancel."""
        return nullcontext()

    def contribute(self, run: Run, params: Any) -> Contribution:
        """Add components and arguments to the one pipeline call."""
        return Contribution()

    def step(self, run: Run, params: Any, step: Step) -> None:
        """After each model step; assign `step.latents` to change them."""

    def finish(self, run: Run, params: Any, pictures: list[Image.Image]) -> list[Image.Image]:
        """Work on the decoded pictures; `run.generate(request)` makes a further pass."""
        return pictures

    def panel(self, form: PanelForm) -> None:
        """Add to the extension's accordion, beside the widgets that come from `Params`."""

    def choices(self) -> Mapping[str, Sequence[Choice]]:
        """The lists that its parameters name in `choices=`, as they are now: files of a folder, rows of a table."""
        return {}

    def routes(self, router: APIRouter) -> None:
        """Add HTTP routes under /extensions/<id>/."""

    def errand(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Work for a route that needs torch, done in the engine's process between two jobs; JSON in, JSON out."""
        raise NotFound(f"{self.title} has no errand {name}")
