"""What a training is told: declared once, for page, API, command line and the metadata of the file; no torch."""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from pydantic import field_validator, model_validator

from backend.params import Choice, Param, Params
from backend.request import MAX_SEED

Modules = Literal["attention", "attention_convs"]
Optimizer = Literal["AdamW", "AdamW8bit", "Adafactor", "Prodigy"]
Schedule = Literal["constant", "cosine", "cosine_with_restarts", "linear", "polynomial"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
MAX_SAMPLES = 16
MAX_NAME = 80
RESUMABLE = frozenset(
    {
        *("steps", "epochs", "learning_rate", "text_encoder_lr", "max_grad_norm", "gradient_checkpointing"),
        *("save_every", "keep", "validate_every", "sample_every", "sample_prompts"),
        *("sample_width", "sample_height", "sample_steps", "sample_cfg", "sample_seed"),
        *("author", "licence", "notes"),
    }
)
"""What may change when a training goes on: the rest has shaped the weights already."""
RATES = ("learning_rate", "text_encoder_lr")
"""Of UNet and text encoders: 0 means that these do not learn."""


def _choices(names: object, **labels: str) -> tuple[Choice, ...]:
    return tuple((name, labels.get(name, name)) for name in get_args(names))


class TrainParams(Params):
    """The first twelve matter; the rest has defaults that suit most."""

    model: str = Param("", "Model", choices="models", help="What the LoRA is made for; empty: the default.")
    trigger: str = Param(
        "",
        "Trigger words",
        max_length=200,
        help="Stand first in each caption, or in place of [trigger]. A style needs none.",
    )
    resolution: int = Param(
        512, "Resolution", ge=64, le=2048, multiple_of=8, help="Side of a square picture; others have as many pixels."
    )
    steps: int = Param(1500, "Steps", ge=1, le=1_000_000, step=1, slider=(100, 10_000))
    batch_size: int = Param(1, "Batch size", ge=1, le=64, step=1, help="Pictures in a step; more memory, steadier.")
    rank: int = Param(16, "Rank", ge=1, le=256, step=1, help="How much the LoRA can hold, and how large its file is.")
    alpha: float = Param(16, "Alpha", ge=0.01, le=256, help="Alpha / rank scales what it has learnt.")
    modules: Modules = Param(
        "attention",
        "Trained parts",
        choices=_choices(Modules, attention="Attention", attention_convs="Attention and convolutions"),
        help="Convolutions learn textures and line work better, and take more room.",
    )
    learning_rate: float = Param(
        1e-4, "Learning rate", widget="number", ge=0, le=10, help="Of the UNet; 1 for Prodigy."
    )
    text_encoder_lr: float = Param(
        0, "Text encoder's rate", widget="number", ge=0, le=10, help="0: it stays as it is."
    )
    optimizer: Optimizer = Param("AdamW", "Optimizer", choices=_choices(Optimizer, AdamW8bit="AdamW, 8 bits"))
    sample_prompts: str = Param(
        "",
        "Sample prompts",
        widget="prompt",
        max_length=8000,
        help="One a line, drawn as it learns. --w --h --d --s --l --n set size, seed, steps, guidance and negative "
        "prompt, as in kohya's files. Empty: some captions.",
    )

    epochs: int = Param(0, "Epochs", ge=0, le=10_000, step=1, group="training", help="In place of steps, unless 0.")
    accumulation: int = Param(
        1, "Accumulation", ge=1, le=256, step=1, group="training", help="Batches in a step: a larger batch, slower."
    )
    schedule: Schedule = Param(
        "cosine",
        "Schedule",
        choices=_choices(Schedule, cosine_with_restarts="cosine with restarts"),
        group="training",
        help="How the learning rate falls.",
    )
    restarts: int = Param(1, "Restarts", ge=1, le=100, step=1, group="training", help="Of cosine with restarts.")
    warmup: float = Param(
        0.05, "Warm-up", ge=0, le=1, step=0.01, group="training", help="Share of the steps in which the rate rises."
    )
    weight_decay: float = Param(0.01, "Weight decay", ge=0, le=1, group="training")
    max_grad_norm: float = Param(1.0, "Largest gradient", ge=0, le=100, group="training", help="0: any.")
    dropout: float = Param(0, "Dropout", ge=0, le=0.9, step=0.05, group="training", help="Of the LoRA's own numbers.")
    precision: Precision = Param(
        "auto", "Precision", choices=_choices(Precision), group="training", help="Auto: bf16 or fp16 on a GPU."
    )
    gradient_checkpointing: bool = Param(
        False, "Gradient checkpointing", group="training", help="Far less memory, a quarter slower."
    )
    ema: float = Param(
        0, "Average", ge=0, le=0.9999, group="training", help="EMA decay of the weights that are kept; 0: none."
    )
    seed: int = Param(0, "Seed", widget="seed", ge=0, le=MAX_SEED, group="training")

    min_snr_gamma: float = Param(
        5, "Min-SNR gamma", ge=0, le=100, group="loss", help="Weighs noise levels; 0: evenly."
    )
    noise_offset: float = Param(
        0, "Noise offset", ge=0, le=1, step=0.01, group="loss", help="Helps with very dark and bright pictures."
    )
    prior_weight: float = Param(1.0, "Weight of regularisation images", ge=0, le=10, step=0.1, group="loss")

    repeats: int = Param(
        1, "Repeats", ge=1, le=1000, step=1, group="images", help="In an epoch; a folder 10_name says it by itself."
    )
    flip: bool = Param(False, "Flip at random", group="images", help="Not for what is not symmetric: faces, letters.")
    buckets: bool = Param(True, "Keep the shapes", group="images", help="Else each is cropped to a square.")
    bucket_step: int = Param(0, "Step of the shapes", ge=0, le=256, step=8, group="images", help="0: the model's own.")
    largest_aspect: float = Param(2.0, "Most extreme shape", ge=1, le=4, step=0.1, group="images", help="As 2 : 1.")
    regularisation: str = Param(
        "", "Regularisation images", group="images", help="A folder; or the folder reg beside img."
    )
    validation: float = Param(
        0,
        "Held out",
        ge=0,
        le=0.5,
        step=0.01,
        group="images",
        help="Share of the images kept for the validation loss.",
    )

    caption_dropout: float = Param(
        0.05, "Captions left out", ge=0, le=1, step=0.01, group="captions", help="Share of the steps without one."
    )
    shuffle: bool = Param(False, "Shuffle tags", group="captions", help="Order of what stands between commas.")
    keep_tokens: int = Param(
        0, "Tags kept in front", ge=0, le=50, step=1, group="captions", shown_for="shuffle", help="Not shuffled."
    )
    prefix: str = Param("", "Prefix", max_length=200, group="captions", help="Before each caption.")
    suffix: str = Param("", "Suffix", max_length=200, group="captions", help="After each caption.")
    clip_skip: int = Param(1, "Clip skip", ge=1, le=12, step=1, group="captions")

    save_every: int = Param(250, "Save every", ge=0, le=100_000, step=1, group="samples", help="Steps; 0: at the end.")
    keep: int = Param(2, "Checkpoints kept", ge=1, le=100, step=1, group="samples", help="To go on from.")
    sample_every: int = Param(250, "Sample every", ge=0, le=100_000, step=1, group="samples", help="Steps; 0: never.")
    validate_every: int = Param(50, "Validate every", ge=1, le=100_000, step=1, group="samples", help="Steps.")
    sample_width: int = Param(0, "Width", ge=0, le=2048, multiple_of=8, group="samples", help="0: the resolution.")
    sample_height: int = Param(0, "Height", ge=0, le=2048, multiple_of=8, group="samples", help="0: the resolution.")
    sample_steps: int = Param(20, "Sampling steps", ge=1, le=150, step=1, group="samples")
    sample_cfg: float = Param(7, "Guidance", ge=0, le=30, step=0.5, group="samples")
    sample_seed: int = Param(1, "Seed of samples", widget="seed", ge=0, le=MAX_SEED, group="samples")

    author: str = Param("", "Author", max_length=200, group="card")
    licence: str = Param("", "Licence", max_length=200, group="card")
    notes: str = Param("", "Notes", max_length=2000, group="card")

    @field_validator("sample_prompts")
    @classmethod
    def _readable(cls, given: str) -> str:
        read_samples(given, Sample(""))
        return given

    @model_validator(mode="after")
    def _learns(self) -> "TrainParams":
        if not self.learning_rate and not self.text_encoder_lr:
            raise ValueError("with both learning rates 0 nothing is learnt")
        if self.optimizer == "Prodigy" and self.text_encoder_lr not in (0, self.learning_rate or self.text_encoder_lr):
            raise ValueError("Prodigy has one learning rate: the text encoder's should be the same, or 0")
        return self

    def samples(self) -> list["Sample"]:
        """The pictures to draw as it learns, by `sample_prompts`."""
        usual = Sample(
            "",
            width=self.sample_width or self.resolution,
            height=self.sample_height or self.resolution,
            seed=self.sample_seed,
            steps=self.sample_steps,
            cfg=self.sample_cfg,
        )
        return read_samples(self.sample_prompts, usual)


def relief(params: TrainParams) -> dict[str, Any]:
    """What to change when the memory does not suffice: what costs the least comes first. Empty: nothing is left."""
    if not params.gradient_checkpointing:
        return {"gradient_checkpointing": True}
    if params.batch_size > 1:
        half = params.batch_size // 2
        return {"batch_size": half, "accumulation": params.accumulation * -(-params.batch_size // half)}
    if params.text_encoder_lr:
        return {"text_encoder_lr": 0.0}
    if params.optimizer == "AdamW":
        return {"optimizer": "Adafactor"}
    if params.optimizer == "Prodigy":  # its rate of 1 is none for others
        return {"optimizer": "Adafactor", "learning_rate": TrainParams().learning_rate}
    if params.rank > 8:
        return {"rank": params.rank // 2, "alpha": params.alpha / 2}
    if params.resolution > 256:
        return {"resolution": max(params.resolution * 3 // 4 // 64 * 64, 256)}
    return {}


@dataclass(frozen=True)
class Sample:
    """A picture to draw while it learns."""

    prompt: str
    negative: str = ""
    width: int = 512
    height: int = 512
    seed: int = 1
    steps: int = 20
    cfg: float = 7.0


_FLAGS = {"w": "width", "h": "height", "d": "seed", "s": "steps", "l": "cfg", "n": "negative"}
_LIMITS = {"width": 2048, "height": 2048, "seed": MAX_SEED, "steps": 150, "cfg": 30}


def read_samples(text: str, usual: Sample) -> list[Sample]:
    """Lines of kohya's prompt files; empty ones and those that begin with # are passed over. Raises ValueError."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) > MAX_SAMPLES:
        raise ValueError(f"there are {len(lines)} sample prompts; at most {MAX_SAMPLES} are drawn")
    return [_sample(line, usual) for line in lines]


def _sample(line: str, usual: Sample) -> Sample:
    prompt, *flags = re.split(r"\s--(?=[a-z]+\b)", line)
    values: dict[str, object] = {}
    for flag in flags:
        name, _, value = flag.partition(" ")
        if name not in _FLAGS:
            raise ValueError(
                f"--{name} is not known in a sample prompt; there are {', '.join(f'--{f}' for f in _FLAGS)}"
            )
        values[_FLAGS[name]] = _value(_FLAGS[name], value.strip())
    return replace(usual, prompt=prompt, **values)  # type: ignore[arg-type]


def _value(field: str, text: str) -> object:
    if field == "negative":
        return text
    try:
        value = float(text) if field == "cfg" else int(text)
    except ValueError:
        raise ValueError(f"the {field} of a sample prompt should be a number, not {text[:20]!r}") from None
    least = 64 if field in ("width", "height") else 1 if field == "steps" else 0
    if not least <= value <= _LIMITS[field] or (least == 64 and value % 8):
        raise ValueError(f"the {field} of a sample prompt cannot be {text[:20]}")
    return value


_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def check_name(name: str, what: str = "a LoRA") -> str:
    """`name` if it can become that of files. Raises ValueError."""
    if not re.fullmatch(r"[^\W_][\w .+()-]*", name) or len(name) > MAX_NAME or name[-1] in " .":
        raise ValueError(
            f"{name[:40]!r} cannot be the name of {what}; up to {MAX_NAME} letters, digits, spaces and . _ - + ( ) can"
        )
    if ".." in name or _RESERVED.fullmatch(name):
        raise ValueError(f"{name[:40]!r} cannot be the name of a file")
    return name
