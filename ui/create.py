"""The Create tab: parameters on the left, the stage in the middle, finished pictures on the right."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import gradio as gr

from backend.errors import AtelierError, InvalidRequest
from backend.extension import Extension, PanelForm
from backend.request import GenerationRequest
from ui import form
from ui.parts import WORDS, surface

if TYPE_CHECKING:
    from backend.services import Services

log = logging.getLogger(__name__)

ORDER = (
    ("init_image",),
    ("prompt",),
    ("negative_prompt",),
    ("denoising_strength",),
    ("resize_mode",),
    ("width", "height"),
    ("sampler_name", "scheduler"),
    ("steps",),
    ("cfg_scale",),
    ("seed",),
    ("batch_size", "n_iter"),
)
IN_HEADER = ("model",)
READ_ELSEWHERE = ("Size", "Init image hash", "Model hash", "VAE hash", "Version")
"""Keys of a picture's text that belong to no single parameter, and are nothing to warn of."""


def build(services: Services) -> None:
    """The tab's content; call inside its `gr.Tab`."""
    with gr.Row(elem_id="create"):
        with gr.Column(elem_id="params"):
            with gr.Column(elem_id="panels"):
                painted = any(form.is_painted(extension.Params) for extension in services.registry.extensions)
                core = surface("core", schema=core_panel(services.settings.default_model, painted=painted))
                panels = [extension_panel(extension) for extension in services.registry.extensions]
                surface("added", schemas=[panel for panel in panels if panel["rows"] or panel["buttons"]])
            with gr.Row(elem_id="bar"):
                go = gr.Button(WORDS("generate"), variant="primary", elem_id="go")
                surface("running", elem_id="running")
        surface("stage")
        surface("strip")
    answer = surface("answer", elem_id="answer", visible="hidden")

    def submit(values: dict[str, Any], request: gr.Request) -> dict[str, Any]:
        return enqueue(services, values, request.username or "local")

    # the job runs in our own queue: this event only says yes or no, so it never waits and a reload loses nothing
    event = go.click(
        submit,
        inputs=core,
        outputs=answer,
        queue=False,
        show_progress="hidden",
        trigger_mode="multiple",
        api_visibility="private",
        js="() => window.atelier.request()",
    )
    event.success(None, answer, None, js="(answer) => window.atelier.answered(answer)", api_visibility="private")
    event.failure(None, None, None, js="() => window.atelier.answered(null)", api_visibility="private")


def core_panel(default_model: str = "", *, painted: bool = False) -> dict[str, Any]:
    """What the browser draws the core parameters from; `painted`: there is an extension that takes a mask."""
    return form.panel(
        "core",
        "",
        GenerationRequest,
        ORDER,
        header=list(IN_HEADER),
        readElsewhere=list(READ_ELSEWHERE),
        defaultModel=default_model,
        modes=["text", "image", "inpaint"] if painted else ["text", "image"],
    )


def extension_panel(extension: Extension) -> dict[str, Any]:
    """What the browser draws an extension's panel from."""
    added = PanelForm()
    try:
        extension.panel(added)
    except Exception:  # whatever a stranger's method raises
        log.exception("extension %s cannot add to its panel", extension.id)
    buttons = [button._asdict() for button in added.buttons]
    return form.panel(extension.id, extension.title, extension.Params, buttons=buttons)


def enqueue(services: Services, values: Any, owner: str) -> dict[str, Any]:
    """The answer to Generate: `{"job": id}`, or what is wrong, for the page to show at the fields."""
    try:
        return {"job": services.submit(form.collect(values), owner).id}
    except InvalidRequest as error:
        return {"problems": [problem._asdict() for problem in error.problems]}
    except AtelierError as error:
        log.warning("a request was not taken: %s", error)
        return {"error": str(error)}
