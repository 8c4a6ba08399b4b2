"""The Train tab: from pictures to a LoRA; ui/static/js/train.js draws it."""

from backend.training.params import TrainParams
from ui import form
from ui.parts import surface

ORDER = (
    ("model",),
    ("trigger",),
    ("resolution", "steps", "batch_size"),
    ("rank", "alpha", "modules"),
    ("learning_rate", "text_encoder_lr", "optimizer"),
    ("sample_prompts",),
)
ELSEWHERE = ("regularisation",)
"""A path of the server; on the page such pictures lie in a folder of the set."""


def build() -> None:
    """The tab's content; call inside its `gr.Tab`."""
    panel = form.panel("train", "", TrainParams, ORDER)
    rows = [[field for field in row if field["name"] not in ELSEWHERE] for row in panel["rows"]]
    surface("train", schema={**panel, "rows": [row for row in rows if row]})
