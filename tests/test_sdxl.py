"""SDXL on tiny weights: as diffusers draws it, with A1111's way of reading prompts."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from backend.catalog import Catalog
from backend.catalog.folders import PIPELINES
from backend.diffusion import encode, latents, models
from backend.diffusion.encode import Embedded
from backend.diffusion.engine import Engine
from backend.diffusion.families import FAMILIES, STABLE_DIFFUSION_XL
from backend.errors import ModelBroken
from backend.extension import Contribution, Extension, Task
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.registry import Registry
from backend.request import ResizeMode
from backend.testing import Studio
from tests.pixels import difference, left_half, photo, put
from tests.tiny import SIZE, Drawing, draw, tiny_model, tiny_model_xl

pytest_plugins = ["tests.tiny"]
EXTENSIONS = Path(__file__).parents[1] / "extensions"
LONG = "a red circle on a blue background, " * 40


@pytest.fixture(scope="module")
def engine(tiny_xl_models: Path) -> Iterator[Engine]:
    engine = Engine(Catalog(tiny_xl_models, "tiny-xl"), Registry(), "cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def raw(tiny_xl_models: Path) -> Any:
    """diffusers alone; A1111's Euler is its own where timesteps are whole, as four steps have them."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_xl_models / "checkpoints" / "tiny-xl")
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def xl(engine: Engine, images: ImageStore, **values: Any) -> Drawing:
    return draw(engine, images, **{"model": "tiny-xl"} | values)


def pipeline_of(engine: Engine) -> Any:
    return engine.store.load(engine.catalog.find("tiny-xl")).pipeline


class Shown:
    """What a UNet is told while it lasts: sample, added conditions."""

    def __init__(self, unet: Any) -> None:
        self.samples: list[torch.Tensor] = []
        self.added: list[dict[str, torch.Tensor]] = []
        self._handle = unet.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _: Any, arguments: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        self.samples.append(arguments[0])
        self.added.append(named["added_cond_kwargs"])

    def __enter__(self) -> "Shown":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


# --- as diffusers draws it


@pytest.mark.parametrize("negative", ["", "a blue square"])
def test_the_latents_are_those_of_diffusers(engine: Engine, images: ImageStore, raw: Any, negative: str) -> None:
    kept: list[torch.Tensor] = []

    class Keeper(Extension):
        id, title = "keeper", "Keeper"

        def finish(self, run: Any, params: Any, pictures: list[Image.Image]) -> list[Image.Image]:
            kept.append(run.latents)
            return pictures

    keeping = Engine(engine.catalog, Registry((Keeper(),)), "cpu")
    keeping.store = engine.store
    asked = {"prompt": "a red circle", "negative_prompt": negative, "sampler_name": "Euler", "scheduler": "Uniform"}
    xl(keeping, images, **asked, cfg_scale=5, height=96, extensions={"keeper": {}})
    theirs = raw(
        prompt="a red circle",
        negative_prompt=negative or None,
        guidance_scale=5,
        num_inference_steps=4,
        width=SIZE,
        height=96,
        latents=torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(7)),
        output_type="latent",
    ).images
    torch.testing.assert_close(kept[0], theirs, rtol=1e-4, atol=1e-4)


def test_a_picture_does_not_depend_on_its_batch(engine: Engine, images: ImageStore) -> None:
    together = xl(engine, images, batch_size=2, sampler_name="Euler a").pictures
    alone = xl(engine, images, seed=8, sampler_name="Euler a").pictures[0]
    assert difference(together[1], alone) <= 1
    assert difference(together[0], together[1]) > 20


def test_models_of_two_families_take_turns(engine: Engine, images: ImageStore) -> None:
    first = [draw(engine, images, model=name).pictures[0].data for name in ("tiny-xl", "tiny")]
    again = [draw(engine, images, model=name).pictures[0].data for name in ("tiny-xl", "tiny")]
    assert first == again
    assert first[0] != first[1]


@pytest.mark.parametrize(
    "values", [{"prompt": "a blue square"}, {"negative_prompt": "red"}, {"cfg_scale": 1}, {"width": 72}], ids=str
)
def test_every_parameter_changes_the_picture(engine: Engine, images: ImageStore, values: dict[str, Any]) -> None:
    assert xl(engine, images).pictures[0].data != xl(engine, images, **values).pictures[0].data


def test_a_model_that_predicts_velocity_is_drawn_otherwise(tmp_path: Path, images: ImageStore) -> None:
    for name, predicts in (("noise", "epsilon"), ("velocity", "v_prediction")):
        tiny_model_xl(tmp_path / "checkpoints" / name, predicts)
    engine = Engine(Catalog(tmp_path), Registry(), "cpu")
    noise, velocity = (draw(engine, images, model=name).pictures[0] for name in ("noise", "velocity"))
    assert difference(noise, velocity) > 20


# --- prompts


def test_a_prompt_is_encoded_as_the_pipeline_would(engine: Engine, raw: Any) -> None:
    ours = encode.encode(pipeline_of(engine), STABLE_DIFFUSION_XL.reading, "a red circle")
    states, _, pooled, _ = raw.encode_prompt("a red circle", device="cpu", do_classifier_free_guidance=False)
    assert torch.equal(ours.prompt_embeds, states)
    assert ours.pooled_prompt_embeds is not None
    assert torch.equal(ours.pooled_prompt_embeds, pooled)


def test_the_summary_of_a_long_prompt_is_that_of_its_first_chunk(engine: Engine) -> None:
    def of(text: str) -> Embedded:
        return encode.encode(pipeline_of(engine), STABLE_DIFFUSION_XL.reading, text)

    long, short = of("red " * 200), of("red " * 75)
    assert long.prompt_embeds.shape == (1, 3 * 77, 40)
    assert torch.equal(long.prompt_embeds[:, :77], short.prompt_embeds)
    torch.testing.assert_close(long.pooled_prompt_embeds, short.pooled_prompt_embeds, rtol=1e-6, atol=1e-6)


def test_a_long_prompt_and_a_short_negative_one_are_made_equal(engine: Engine, images: ImageStore) -> None:
    assert xl(engine, images, prompt=LONG, negative_prompt="red").pictures
    assert xl(engine, images, negative_prompt=LONG).pictures


def test_an_exclamation_mark_is_a_word_like_any_other(engine: Engine) -> None:
    """diffusers takes it for padding: huggingface/diffusers#4153."""
    pipeline = pipeline_of(engine)
    first, second = (encode.chunks(t, "red!! " * 40) for t in (pipeline.tokenizer, pipeline.tokenizer_2))
    words = [[[i for i in row if i < pipeline.tokenizer.bos_token_id] for row in rows] for rows in (first, second)]
    assert words[0][0] == words[1][0]
    assert len(first) == len(second) == 2
    assert second[1][-1] == pipeline.tokenizer_2.pad_token_id == 0


def test_an_empty_negative_prompt_is_zero(engine: Engine, images: ImageStore) -> None:
    with Shown(pipeline_of(engine).unet) as shown:
        xl(engine, images, prompt=LONG, steps=1)
        xl(engine, images, negative_prompt="a", steps=1)
    summaries = [added["text_embeds"] for added in shown.added]
    assert not summaries[0][0].any()
    assert summaries[0][1].any()
    assert summaries[1][0].any()


def test_the_layer_is_sdxls_own_whatever_the_clip_skip(engine: Engine, images: ImageStore) -> None:
    a, b = (xl(engine, images, clip_skip=skip).pictures[0] for skip in (1, 12))
    assert difference(a, b) == 0


def test_the_model_is_told_the_size_of_each_pass(tiny_xl_models: Path) -> None:
    with Studio(EXTENSIONS / "hires", models=tiny_xl_models, model="tiny-xl") as studio:
        unet = studio.engine.store.load(studio.catalog.find("tiny-xl")).pipeline.unet
        with Shown(unet) as shown:
            studio.draw(width=64, height=96, steps=1, extensions={"hires": {"scale": 2}})
    told = [added["time_ids"].tolist() for added in shown.added]
    assert told == [[[96, 64, 0, 0, 96, 64]] * 2, [[192, 128, 0, 0, 192, 128]] * 2]


# --- from pictures


def test_from_an_image(engine: Engine, images: ImageStore) -> None:
    ref, pipeline = put(images, photo()), pipeline_of(engine)
    with Shown(pipeline.unet) as shown:
        xl(engine, images, init_image=ref, sampler_name="Euler", steps=8, denoising_strength=0.5)
    assert len(shown.samples) == 5
    sigma = pipeline.scheduler.sigmas[0]
    with torch.inference_mode():
        encoded = latents.encode(pipeline.vae, photo(), SIZE, SIZE, ResizeMode.JUST_RESIZE)
    noise = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(shown.samples[0][:1], (encoded + noise * sigma) / (sigma**2 + 1) ** 0.5)


def test_the_vaes_own_scale_is_heeded(engine: Engine) -> None:
    vae = pipeline_of(engine).vae
    pixels = torch.from_numpy(np.array(photo())).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        ours = latents.encode(vae, photo(), SIZE, SIZE, ResizeMode.JUST_RESIZE)
        theirs = vae.encode(pixels).latent_dist.mode() * 0.13025
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("channels", [4, 9])
def test_beside_the_mask_every_pixel_is_the_originals(tmp_path: Path, channels: int) -> None:
    tiny_model_xl(tmp_path / "checkpoints" / "xl", in_channels=channels)
    with Studio(EXTENSIONS / "inpaint", models=tmp_path, model="xl") as studio:
        over = studio.image(left_half())
        given = {"inpaint": {"mask": over, "blur": 0}}
        with Shown(studio.engine.store.load(studio.catalog.find()).pipeline.unet) as shown:
            drawn = studio.draw(init_image=studio.image(photo()), extensions=given).picture
    assert {sample.shape[1] for sample in shown.samples} == {channels}
    before, after = np.asarray(photo()), np.asarray(drawn)
    assert np.array_equal(before[:, SIZE // 2 :], after[:, SIZE // 2 :])
    assert (before[:, : SIZE // 2] != after[:, : SIZE // 2]).any(axis=2).mean() > 0.9


def test_an_inpainting_checkpoint_draws_from_nothing_too(tmp_path: Path, images: ImageStore) -> None:
    tiny_model_xl(tmp_path / "checkpoints" / "nine", in_channels=9)
    engine = Engine(Catalog(tmp_path), Registry(), "cpu")
    assert draw(engine, images, model="nine").pictures


def test_an_extension_may_ask_for_diffusers_inpainting(engine: Engine, images: ImageStore) -> None:
    class Inpaint(Extension):
        id, title, task = "inpaint", "Inpaint", Task.INPAINT

        def contribute(self, run: Any, params: Any) -> Contribution:
            return Contribution(arguments={"image": photo(), "mask_image": left_half()})

    asking = Engine(engine.catalog, Registry((Inpaint(),)), "cpu")
    asking.store = engine.store
    loaded = engine.store.load(engine.catalog.find("tiny-xl"))
    assert isinstance(loaded.pipeline_for(Task.INPAINT, {}), StableDiffusionXLInpaintPipeline)
    asked = {"init_image": put(images, photo()), "extensions": {"inpaint": {}}}
    assert len(xl(asking, images, **asked).pictures) == 1


# --- on a graphics card, where weights are float16


def test_a_vae_that_does_not_fit_into_float16_stays_float32(tiny_xl_models: Path, images: ImageStore) -> None:
    engine = Engine(Catalog(tiny_xl_models, "tiny-xl"), Registry(), "cpu", Hardware(precision="fp16"))
    asked: dict[str, Any] = {"init_image": put(images, photo())}
    halves = [draw(engine, images, model=name, **asked).pictures[0] for name in ("tiny-xl", "tiny")]
    pipelines = [engine.store.load(engine.catalog.find(name)).pipeline for name in ("tiny-xl", "tiny")]
    assert [(p.unet.dtype, p.vae.dtype) for p in pipelines] == [
        (torch.float16, torch.float32),
        (torch.float16, torch.float16),
    ]
    wholes = Engine(Catalog(tiny_xl_models, "tiny-xl"), Registry(), "cpu")
    for half, name in zip(halves, ("tiny-xl", "tiny"), strict=True):
        assert difference(half, draw(wholes, images, model=name, **asked).pictures[0]) <= 8


def test_a_picture_that_overflows_float16_is_encoded_in_float32(tiny_xl_models: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_xl_models / "checkpoints" / "tiny-xl" / "vae").half()
    handle = vae.encoder.conv_out.register_forward_hook(
        lambda module, _, out: out * (torch.nan if module.weight.dtype == torch.float16 else 1)
    )
    with torch.inference_mode():
        assert torch.isfinite(latents.encode(vae, photo(), SIZE, SIZE, ResizeMode.JUST_RESIZE)).all()
    handle.remove()
    assert vae.dtype == torch.float32  # and so is the next one, at once


# --- families, and folders that are broken


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_the_catalogue_names_the_family(tmp_path: Path) -> None:
    tiny_model_xl(tmp_path / "checkpoints" / "xl")
    tiny_model_xl(tmp_path / "checkpoints" / "xl-nine", in_channels=9)
    for name in ("narrow", "usual", "wide", "lost"):
        tiny_model(tmp_path / "checkpoints" / name)
    for name, width in (("usual", 768), ("wide", 1024)):
        edit(tmp_path / "checkpoints" / name / "unet" / "config.json", cross_attention_dim=width)
    (tmp_path / "checkpoints" / "lost" / "unet" / "config.json").unlink()
    families = {m.name: m.family for m in Catalog(tmp_path).models()}
    sd = {"narrow": "sd1", "usual": "sd1", "wide": "sd2", "lost": ""}
    assert families == {"xl": "sdxl", "xl-nine": "sdxl", **sd}


def test_what_the_catalogue_knows_can_be_run() -> None:
    assert all(any(re.match(names, pipeline) for names, _ in PIPELINES) for pipeline in FAMILIES)


def test_an_extension_sees_the_family(engine: Engine, images: ImageStore) -> None:
    seen: list[str] = []

    class Asking(Extension):
        id, title = "asking", "Asking"

        def contribute(self, run: Any, params: Any) -> Contribution:
            seen.append(run.family)
            return Contribution()

    asking = Engine(engine.catalog, Registry((Asking(),)), "cpu")
    asking.store = engine.store
    for name in ("tiny-xl", "tiny"):
        draw(asking, images, model=name, steps=1, extensions={"asking": {}})
    assert seen == ["sdxl", "sd1"]


def with_tokens(folder: Path) -> None:
    """More of them than the second text encoder knows."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["ab", "cd"])
    tokenizer.save_pretrained(folder)


BREAKAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no second text encoder": (
        lambda f: shutil.rmtree(f / "text_encoder_2"),
        "text_encoder_2/model.safetensors is missing",
    ),
    "no second tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), "tokenizer_2 is missing"),
    "another pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="StableDiffusionUpscalePipeline"),
        "model_index.json asks for 'StableDiffusionUpscalePipeline', which is recognised, but not run: it enlarges",
    ),
    "one text encoder only": (
        lambda f: edit(f / "model_index.json", text_encoder=[None, None]),
        r"model_index.json asks for \[None, None\] as text_encoder, not CLIPTextModel",
    ),
    "text too narrow": (
        lambda f: shutil.copytree(f / "text_encoder_2", f / "text_encoder", dirs_exist_ok=True),
        "unet wants text of width 40, the text encoders give 48",
    ),
    "a summary of another width": (
        lambda f: edit(f / "unet/config.json", addition_time_embed_dim=6),
        "unet wants 60 numbers of text and size, it is given 48",
    ),
    "no size conditioning": (
        lambda f: edit(f / "unet/config.json", addition_embed_type=None),
        "unet has addition_embed_type None, not 'text_time'",
    ),
    "tokens that nobody knows": (
        lambda f: with_tokens(f / "tokenizer_2"),
        r"tokenizer_2 knows \d+ tokens, the text encoder 2 \d+",
    ),
    "a VAE's config cut short": (
        lambda f: (f / "vae/config.json").write_text("{", "utf-8"),
        "vae/config.json cannot be read",
    ),
    "a schedule of another kind": (
        lambda f: edit(f / "scheduler/scheduler_config.json", _class_name="EDMEulerScheduler"),
        "scheduler/scheduler_config.json asks for EDMEulerScheduler: models trained with it cannot be run",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_model_says_what_is_wrong_with_it(tiny_xl_models: Path, tmp_path: Path, breakage: str) -> None:
    mine = tmp_path / "checkpoints" / "mine"
    shutil.copytree(tiny_xl_models / "checkpoints" / "tiny-xl", mine)
    break_it, words = BREAKAGES[breakage]
    break_it(mine)
    with pytest.raises(ModelBroken, match=words) as raised:
        models.ModelStore(torch.device("cpu")).load(Catalog(tmp_path).find("mine"))
    message = str(raised.value)
    assert "the model mine" in message
    assert "\n" not in message
    assert str(tmp_path) not in message
