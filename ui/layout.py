"""The whole page as Gradio blocks, and what `gr.mount_gradio_app` has to be told about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from ui import create, extensions, models, train
from ui.parts import STATIC, WORDS, surface
from ui.theme import theme

if TYPE_CHECKING:
    from backend.services import Services

__all__ = ["HEAD", "STATIC", "build", "page_options"]

HEAD = """
<title>Atelier</title>
<meta name="color-scheme" content="dark light">
<link rel="icon" href="icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="ui/ui.css">
<link rel="stylesheet" href="ui/canvas.css">
<link rel="stylesheet" href="ui/extensions.css">
<link rel="stylesheet" href="ui/models.css">
<link rel="stylesheet" href="ui/train.css">
<script src="ui/head.js"></script>
<script type="module" src="ui/js/ui.js"></script>
"""
"""Belongs at the top of the page's <head>, so that the theme is known before the first paint."""


def build(services: Services) -> gr.Blocks:
    """The page; its events call `services`."""
    with gr.Blocks(title="Atelier", fill_width=True, analytics_enabled=False) as page:
        surface("top")
        # "menu", the default, would move tabs that do not fit the narrow rail into a menu
        with gr.Tabs(elem_id="rail", overflow_behavior="wrap"):
            with gr.Tab(WORDS("create"), elem_id="tab-create"):
                create.build(services)
            with gr.Tab(WORDS("models"), elem_id="tab-models"):
                models.build()
            with gr.Tab(WORDS("train"), elem_id="tab-train"):
                train.build()
            with gr.Tab(WORDS("extensions"), elem_id="tab-extensions"):
                extensions.build()
        extensions.load_scripts(services)
        surface("foot")
    return page


def page_options() -> dict[str, Any]:
    """Arguments of `mount_gradio_app` that make the page look and speak as it should."""
    return {"theme": theme(), "i18n": WORDS}
