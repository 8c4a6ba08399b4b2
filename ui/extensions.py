"""The Extensions tab, and what extensions themselves bring to the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backend.api.extensions import web_files
from ui.parts import surface

if TYPE_CHECKING:
    from backend.services import Services


def build() -> None:
    """The tab's content; call inside its `gr.Tab`."""
    surface("extensions")


def load_scripts(services: Services) -> None:
    """Has the page load the scripts and styles of the extensions; one that fails harms nothing else."""
    surface("web", elem_id="web", visible="hidden", given=web_files(services.settings, services.registry))
