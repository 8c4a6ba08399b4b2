"""The Models tab: what there is, getting more, merging."""

from ui.parts import surface


def build() -> None:
    """The tab's content; call inside its `gr.Tab`."""
    surface("models")
