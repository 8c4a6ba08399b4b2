"""The two pieces that every tab is made of: a surface that ui/static draws on, and words in the reader's language."""

import json
from pathlib import Path
from typing import Any, Literal

import gradio as gr

STATIC = Path(__file__).parent / "static"
NATIVE = ("generate", "create", "models", "train", "extensions")
"""Words on Gradio's own components; all others are looked up by ui/static/js/words.js."""


def languages() -> dict[str, dict[str, str]]:
    """Every language's words, by its code."""
    files = sorted((STATIC / "languages").glob("*.json"))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


WORDS = gr.I18n(**{code: {key: words[key] for key in NATIVE} for code, words in languages().items()})


def surface(
    name: str, *, elem_id: str | None = None, visible: bool | Literal["hidden"] = True, **props: Any
) -> gr.HTML:
    """An empty element that the script registered for `name` in ui/static fills.

    The template is constant and stays so: Gradio runs templates as code, so no text of a user may ever get into one.
    """
    if not name.isalpha():
        raise ValueError(f"{name!r} becomes part of a script; use letters only")
    return gr.HTML(
        value={},
        html_template=f'<div class="surface" data-surface="{name}"></div>',
        js_on_load=f"(window.atelierSurfaces ||= []).push({{name: '{name}', element, props, watch}})",
        apply_default_css=False,
        elem_id=elem_id or name,
        visible=visible,
        **props,
    )
