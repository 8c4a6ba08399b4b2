"""A Stable Diffusion of some ten thousand random weights: the real classes, made in under a second.

Use it by `pytest_plugins = ["tests.tiny"]`, or call `tiny_model` with a folder of your own.
PYTEST_DONT_REWRITE: test modules import it before pytest could.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from backend.catalog import Catalog
from backend.extension import Extension
from backend.images import ImageStore
from backend.registry import Registry
from backend.request import GenerationRequest
from backend.result import Picture, Progress, Result

if TYPE_CHECKING:
    from backend.diffusion.engine import Engine

SIZE = 64
"""Width and height that its pictures have unless a request says otherwise."""
WORDS = ("a", "the", "red", "green", "blue", "circle", "square", "on", "background", "of", "and", "picture")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that holds `tiny` (predicts noise) and `tiny-v` (predicts velocity); leave it as it is."""
    torch.set_num_threads(1)  # the same bits on every machine, and no contest for the cores
    folder = tmp_path_factory.mktemp("models")
    tiny_model(folder / "checkpoints" / "tiny")
    tiny_model(folder / "checkpoints" / "tiny-v", "v_prediction")
    return folder


@pytest.fixture(scope="session")
def tiny_xl_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that holds `tiny` and `tiny-xl`, an SDXL; leave it as it is."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("xl")
    tiny_model(folder / "checkpoints" / "tiny")
    tiny_model_xl(folder / "checkpoints" / "tiny-xl")
    return folder


@pytest.fixture(scope="session")
def tiny_catalog(tiny_models: Path) -> Catalog:
    return Catalog(tiny_models, "tiny")


@pytest.fixture(scope="module")
def keeper() -> "Keeper":
    return Keeper()


@pytest.fixture(scope="module")
def engine(models: Path, keeper: "Keeper") -> "Iterator[Engine]":
    """Of the models that a module has in its fixture `models`; their latents are kept."""
    from backend.diffusion.engine import Engine

    made = Engine(Catalog(models), Registry((keeper,)), "cpu")
    yield made
    made.close()


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


def tiny_request(**values: Any) -> GenerationRequest:
    """A request that takes a fraction of a second."""
    quick = {"prompt": "a red circle", "model": "tiny", "width": SIZE, "height": SIZE, "steps": 4, "seed": 7}
    return GenerationRequest.model_validate(quick | values)


class Drawing:
    """A Report that keeps all it is told."""

    def __init__(self) -> None:
        self.told: list[Progress] = []
        self.result: Result | None = None

    def __call__(self, progress: Progress) -> None:
        self.told.append(progress)

    @property
    def pictures(self) -> list[Picture]:
        return [p.picture for p in self.told if p.picture]


def draw(engine: "Engine", images: ImageStore, done: Collection[int] = frozenset(), **values: Any) -> Drawing:
    """What the engine makes of `tiny_request(**values)`."""
    drawing = Drawing()
    drawing.result = engine.generate(tiny_request(**values), images, drawing, done)
    return drawing


class Keeper(Extension):
    """Keeps the latents of what is drawn."""

    id, title = "keeper", "Keeper"

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def finish(self, run: Any, params: Any, pictures: list[Any]) -> list[Any]:
        self.kept.append(run.latents)
        return pictures


def tiny_model(folder: Path, prediction_type: str = "epsilon", in_channels: int = 4) -> Path:
    """Write a tiny Stable Diffusion 1.x into `folder`, as diffusers saves one; the same weights each time.

    With nine channels it is an inpainting checkpoint, with eight one that edits by instruction.
    """
    from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
    from transformers import CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = tokenizer()
        kind = StableDiffusionInstructPix2PixPipeline if in_channels == 8 else StableDiffusionPipeline
        pipeline = kind(
            unet=_unet(in_channels, cross_attention_dim=16),
            vae=vae(),
            text_encoder=CLIPTextModel(text_config(len(words))),
            tokenizer=words,
            scheduler=_scheduler(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return with_card(folder, f"Tiny ({prediction_type})")


def tiny_model_xl(folder: Path, prediction_type: str = "epsilon", in_channels: int = 4) -> Path:
    """Write a tiny SDXL into `folder`: two text encoders, of which the second has a summary, and size conditioning."""
    from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        words, second = tokenizer(), tokenizer(pad_token="!")
        told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        told |= {"projection_class_embeddings_input_dim": 12 + 6 * 8}
        kind = StableDiffusionXLPipeline if in_channels == 4 else StableDiffusionXLInpaintPipeline
        pipeline = kind(
            unet=_unet(in_channels, cross_attention_dim=16 + 24, use_linear_projection=True, **told),
            vae=vae(scaling_factor=0.13025, force_upcast=True),
            text_encoder=CLIPTextModel(text_config(len(words))),
            text_encoder_2=CLIPTextModelWithProjection(
                text_config(len(second), hidden_size=24, projection_dim=12, hidden_act="gelu", pad_token_id=0)
            ),
            tokenizer=words,
            tokenizer_2=second,
            scheduler=_scheduler(prediction_type),
            add_watermarker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return with_card(folder, f"Tiny XL ({prediction_type})")


def tiny_refiner(folder: Path) -> Path:
    """Write a tiny SDXL refiner into `folder`: one text encoder, and aesthetic scores in the size conditioning."""
    from diffusers import StableDiffusionXLImg2ImgPipeline
    from transformers import CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        words = tokenizer(pad_token="!")
        told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        told |= {"projection_class_embeddings_input_dim": 12 + 5 * 8}
        pipeline = StableDiffusionXLImg2ImgPipeline(
            unet=_unet(4, cross_attention_dim=24, use_linear_projection=True, **told),
            vae=vae(scaling_factor=0.13025, force_upcast=True),
            text_encoder=None,
            text_encoder_2=CLIPTextModelWithProjection(
                text_config(len(words), hidden_size=24, projection_dim=12, hidden_act="gelu", pad_token_id=0)
            ),
            tokenizer=None,
            tokenizer_2=words,
            scheduler=_scheduler("epsilon"),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return with_card(folder, "Tiny refiner")


def with_card(folder: Path, title: str) -> Path:
    card = {"title": title, "defaults": {"width": SIZE, "height": SIZE, "steps": 4}}
    (folder / "atelier.json").write_text(json.dumps(card), "utf-8")
    return folder


def _unet(in_channels: int, **config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **config,
    )


def vae(**config: Any) -> Any:
    """Random decoders paint everything grey; a stronger last layer makes differences show."""
    from diffusers import AutoencoderKL

    usual: dict[str, Any] = {"latent_channels": 4, "block_out_channels": (4, 4, 4, 8), "norm_num_groups": 1}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    made: Any = AutoencoderKL(**(usual | blocks | config))
    made.decoder.conv_out.weight.data *= 3
    return made


def _scheduler(prediction_type: str) -> Any:
    from diffusers.schedulers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=prediction_type,
    )


def tokenizer(**special: str) -> Any:
    """CLIP's own class, with a vocabulary of single letters and a few whole words."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
            vocabulary.append(parts[0])
    vocabulary = list(dict.fromkeys([*vocabulary, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=list(dict.fromkeys(merges)),
        model_max_length=77,
        **special,
    )


def text_config(vocabulary: int, **config: Any) -> Any:
    from transformers import CLIPTextConfig

    usual = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    special = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return CLIPTextConfig(vocab_size=vocabulary, **(usual | special | config))
