"""Rectified flows, Stable Diffusion 3 and Flux, on tiny weights: as diffusers draws them."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file

from backend import sampling
from backend.catalog import Catalog
from backend.diffusion import encode, latents, packing
from backend.diffusion.engine import Engine
from backend.diffusion.families import FLUX, STABLE_DIFFUSION_3
from backend.diffusion.samplers import SAMPLERS, Flow, from_config
from backend.errors import InvalidRequest, ModelBroken
from backend.extension import Extension
from backend.images import ImageStore
from backend.registry import Registry
from backend.request import ResizeMode
from backend.settings import Settings
from backend.testing import Studio
from backend.training import base
from tests.pixels import difference, left_half, photo, pixels, put
from tests.tiny import SIZE, Keeper, draw
from tests.tiny_families import tiny_flux, tiny_sd3

pytest_plugins = ["tests.tiny"]
EXTENSIONS = Path(__file__).parents[1] / "extensions"
MODELS = {
    "sd3": tiny_sd3,
    "sd3-medium": lambda folder: tiny_sd3(folder, t5=False, dual=True),
    "flux": tiny_flux,
    "schnell": lambda folder: tiny_flux(folder, guided=False),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("flows")
    for name, make in MODELS.items():
        make(folder / "checkpoints" / name)
    return folder


@pytest.fixture(scope="module")
def engine(models: Path, keeper: Keeper) -> Iterator[Engine]:
    engine = Engine(Catalog(models, "sd3"), Registry((keeper,)), "cpu")
    yield engine
    engine.close()


def pipeline_of(engine: Engine, name: str) -> Any:
    return engine.store.load(engine.catalog.find(name)).pipeline


def raw(models: Path, name: str) -> Any:
    without = {"text_encoder_3": None, "tokenizer_3": None} if name == "sd3-medium" else {}
    pipeline = DiffusionPipeline.from_pretrained(models / "checkpoints" / name, **without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("values", [{"cfg_scale": 1}, {"cfg_scale": 4, "negative_prompt": "a blue square"}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_latents_are_those_of_diffusers(
    models: Path, engine: Engine, keeper: Keeper, images: ImageStore, name: str, values: dict[str, Any]
) -> None:
    asked = {"prompt": "a red circle", "sampler_name": "Euler", "width": 96, **values}
    draw(engine, images, model=name, **asked, extensions={"keeper": {}})
    theirs = raw(models, name)
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(7))
    scales: dict[str, Any] = {"guidance_scale": values["cfg_scale"]}
    if name in ("flux", "schnell"):
        latents = theirs._pack_latents(latents, 1, 16, 8, 12)
        scales = {"guidance_scale": 3.5, "true_cfg_scale": values["cfg_scale"]}
    expected = theirs(
        prompt="a red circle",
        negative_prompt=values.get("negative_prompt"),
        num_inference_steps=4,
        width=96,
        height=SIZE,
        latents=latents,
        output_type="latent",
        **scales,
    ).images
    if expected.dim() == 3:
        expected = theirs._unpack_latents(expected, SIZE, 96, 8)
    torch.testing.assert_close(keeper.kept[-1], expected, rtol=1e-4, atol=1e-4)


# --- schedules


@pytest.mark.parametrize("steps", [2, 4, 28])
@pytest.mark.parametrize(
    ("config", "flow"),
    [
        ({"shift": 3.0}, Flow()),
        ({"shift": 1.0}, Flow(ends_with_steps=True)),
        ({"use_dynamic_shifting": True}, Flow(ends_with_steps=True)),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, Flow(ends_with_steps=True)),
        ({"use_dynamic_shifting": True, "shift_terminal": 0.02}, Flow(ends_with_steps=True)),
        ({"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192}, Flow()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,  # a Flow's is another in each process
)
def test_the_timesteps_are_those_of_diffusers(config: dict[str, Any], flow: Flow, steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    told: dict[str, Any] = {"sigmas": np.linspace(1, 1 / steps, steps)} if flow.ends_with_steps else {}
    known, tokens = theirs.config, 1024
    each = (known.max_shift - known.base_shift) / (known.max_image_seq_len - known.base_image_seq_len)
    theirs.set_timesteps(steps, mu=known.base_shift + each * (tokens - known.base_image_seq_len), **told)
    ours = from_config(theirs.config)
    ours.flow = flow
    ours.plan("Euler", "Uniform", tokens=tokens)
    ours.set_timesteps(steps)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-3)
    shares = torch.tensor([sigma / (1 + sigma) for sigma in ours.sigmas])
    torch.testing.assert_close(shares, theirs.sigmas, rtol=1e-5, atol=2e-6)
    noised = ours.add_noise(torch.zeros(1, 1), torch.ones(1, 1), ours.timesteps[-1:])
    assert float(noised) == pytest.approx(ours.sigmas[-2], rel=1e-4)


@pytest.mark.parametrize("schedule", [sampling.AUTOMATIC, "Karras"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_and_schedule_draws_a_flow(
    engine: Engine, images: ImageStore, sampler: str, schedule: str
) -> None:
    drawn = draw(engine, images, model="flux", sampler_name=sampler, scheduler=schedule, steps=3, cfg_scale=1)
    assert pixels(drawn.pictures[0]).std() > 5


def test_the_more_steps_the_nearer_the_samplers_come_to_each_other(
    engine: Engine, keeper: Keeper, images: ImageStore
) -> None:
    def apart(steps: int) -> float:
        for sampler in ("Euler", "DPM++ 2M"):
            asked = {"sampler_name": sampler, "steps": steps, "cfg_scale": 1, "extensions": {"keeper": {}}}
            draw(engine, images, model="sd3", **asked)
        return float((keeper.kept[-1] - keeper.kept[-2]).norm())

    assert apart(32) < apart(4) / 4


# --- one picture


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_picture_does_not_depend_on_its_batch(engine: Engine, images: ImageStore, name: str) -> None:
    asked = {"model": name, "sampler_name": "Euler a"}
    together = draw(engine, images, **asked, batch_size=2).pictures
    alone = draw(engine, images, **asked, seed=8).pictures[0]
    assert difference(together[1], alone) <= 1
    assert difference(together[0], together[1]) > 20


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("sd3", {"prompt": "a blue square"}),
        ("sd3", {"negative_prompt": "red"}),
        ("sd3", {"cfg_scale": 1}),
        ("sd3", {"cfg_scale": 0.5}),
        ("flux", {"prompt": "a blue square"}),
        ("flux", {"negative_prompt": "red"}),
        ("flux", {"cfg_scale": 1}),
        ("flux", {"distilled_cfg_scale": 10.0}),
    ],
    ids=str,
)
def test_every_parameter_changes_the_picture(
    engine: Engine, images: ImageStore, name: str, changed: dict[str, Any]
) -> None:
    plain, other = (draw(engine, images, model=name, **values).pictures[0] for values in ({}, changed))
    assert plain.data != other.data
    assert pixels(plain).shape == pixels(other).shape
    assert (pixels(plain) != pixels(other)).any()


def test_a_model_that_is_not_told_the_guidance_does_not_heed_it(engine: Engine, images: ImageStore) -> None:
    a, b = (draw(engine, images, model="schnell", distilled_cfg_scale=scale).pictures[0] for scale in (1.0, 10.0))
    assert difference(a, b) == 0
    assert "Distilled CFG Scale: 10" in b.infotext
    assert "Distilled" not in draw(engine, images, model="schnell").pictures[0].infotext


def test_flows_and_others_take_turns(models: Path, tmp_path: Path, images: ImageStore) -> None:
    from tests.tiny import tiny_model

    tiny_model(tmp_path / "checkpoints" / "tiny")
    for name in ("sd3", "flux"):
        shutil.copytree(models / "checkpoints" / name, tmp_path / "checkpoints" / name)
    engine = Engine(Catalog(tmp_path), Registry(), "cpu")
    first = [draw(engine, images, model=name).pictures[0].data for name in ("flux", "tiny", "sd3")]
    again = [draw(engine, images, model=name).pictures[0].data for name in ("flux", "tiny", "sd3")]
    assert first == again


# --- what extensions see


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_an_extension_sees_latents_that_are_not_packed(models: Path, images: ImageStore, name: str) -> None:
    steps: list[Any] = []

    class Watching(Extension):
        id, title = "watching", "Watching"

        def step(self, run: Any, params: Any, step: Any) -> None:
            steps.append(step)
            assert run.denoiser is run.pipeline.transformer
            assert step.latents.dtype == torch.float32

    engine = Engine(Catalog(models), Registry((Watching(),)), "cpu")
    told = draw(engine, images, model=name, width=96, batch_size=2, extensions={"watching": {}}).told
    assert {tuple(step.latents.shape) for step in steps} == {(2, 16, 8, 12)}
    assert {tuple(step.denoised.shape) for step in steps} == {(2, 16, 8, 12)}
    assert [step.sigma for step in steps] == sorted((step.sigma for step in steps), reverse=True)
    assert steps[-1].sigma == 0
    previews = [Image.open(io.BytesIO(progress.preview)) for progress in told if progress.preview]
    assert previews
    assert previews[-1].size == (256, 171)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_latents_that_an_extension_changes_are_gone_on_with(models: Path, images: ImageStore, name: str) -> None:
    class Erasing(Extension):
        id, title = "erasing", "Erasing"

        def step(self, run: Any, params: Any, step: Any) -> None:
            step.latents = torch.zeros_like(step.latents)

        def finish(self, run: Any, params: Any, pictures: list[Any]) -> list[Any]:
            assert not run.latents.any()
            return pictures

    engine = Engine(Catalog(models), Registry((Erasing(),)), "cpu")
    erased, plain = (draw(engine, images, model=name, extensions=e).pictures[0] for e in ({"erasing": {}}, {}))
    assert difference(erased, plain) > 20


# --- from pictures


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_from_an_image(engine: Engine, images: ImageStore, name: str) -> None:
    shown: list[torch.Tensor] = []
    pipeline = pipeline_of(engine, name)
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda _, __, named: shown.append(named["hidden_states"]), with_kwargs=True
    )
    asked = {"init_image": put(images, photo()), "steps": 8, "denoising_strength": 0.5, "cfg_scale": 1}
    draw(engine, images, model=name, sampler_name="Euler", **asked)
    handle.remove()
    assert len(shown) == 5
    share = pipeline.scheduler.sigmas[0] / (1 + pipeline.scheduler.sigmas[0])
    assert 0.4 < share < 1
    with torch.inference_mode():
        encoded = latents.encode(pipeline.vae, photo(), SIZE, SIZE, ResizeMode.JUST_RESIZE)
    noise = torch.randn(1, 16, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(7))
    mixed = (1 - share) * encoded + share * noise
    expected = packing.pack(mixed) if name == "flux" else mixed
    torch.testing.assert_close(shown[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_the_vaes_own_scale_and_shift_are_heeded(models: Path, engine: Engine, name: str) -> None:
    vae, theirs = pipeline_of(engine, name).vae, raw(models, name)
    with torch.inference_mode():
        ours = latents.encode(vae, photo(), SIZE, SIZE, ResizeMode.JUST_RESIZE)
        given = theirs.vae.encode(theirs.image_processor.preprocess(photo())).latent_dist.mode()
        expected = (given - theirs.vae.config.shift_factor) * theirs.vae.config.scaling_factor
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        picture = latents.decode(vae, ours[0])
        back = theirs.vae.decode(ours / theirs.vae.config.scaling_factor + theirs.vae.config.shift_factor).sample
    expected_picture = theirs.image_processor.postprocess(back, "pil")[0]
    assert np.abs(np.asarray(picture, np.int16) - np.asarray(expected_picture, np.int16)).max() <= 1


@pytest.mark.parametrize(
    ("name", "values"),
    [("sd3", {}), ("flux", {"content": "latent_noise"}), ("flux", {"soft": {}, "blur": 8})],
    ids=str,
)
def test_beside_the_mask_every_pixel_is_the_originals(models: Path, name: str, values: dict[str, Any]) -> None:
    with Studio(EXTENSIONS / "inpaint", models=models, model=name) as studio:
        given = {"inpaint": {"mask": studio.image(left_half()), "blur": 0, **values}}
        drawn = studio.draw(init_image=studio.image(photo()), extensions=given, cfg_scale=1).picture
    before, after = np.asarray(photo()), np.asarray(drawn)
    assert np.array_equal(before[:, SIZE // 2 + 32 :], after[:, SIZE // 2 + 32 :])
    if not values.get("blur"):
        assert np.array_equal(before[:, SIZE // 2 :], after[:, SIZE // 2 :])
    assert (before[:, : SIZE // 4] != after[:, : SIZE // 4]).any(axis=2).mean() > 0.9


def test_a_part_of_a_picture_of_any_size_is_drawn_in_steps_of_sixteen(models: Path) -> None:
    with Studio(EXTENSIONS / "inpaint", models=models, model="flux") as studio:
        picture, mask = photo(101, 75), Image.new("L", (101, 75))
        mask.paste(255, (20, 20, 60, 60))
        given = {"inpaint": {"mask": studio.image(mask), "blur": 0}}
        drawn = studio.draw(init_image=studio.image(picture), extensions=given, cfg_scale=1)
    assert drawn.picture.size == (101, 75)
    assert (drawn.request.width % 16, drawn.request.height % 16) == (0, 0)
    assert np.array_equal(np.asarray(picture)[:, 60:], np.asarray(drawn.picture)[:, 60:])


@pytest.mark.parametrize(("name", "upscaler"), [("sd3", "Latent"), ("flux", "Lanczos")])
def test_a_picture_is_drawn_again_larger(models: Path, name: str, upscaler: str) -> None:
    with Studio(EXTENSIONS / "hires", models=models, model=name) as studio:
        given = {"hires": {"scale": 1.6, "upscaler": upscaler}}
        drawn = studio.draw(width=64, height=96, steps=2, cfg_scale=1, extensions=given)
    assert drawn.picture.size == (96, 144)  # 102 x 153 is not in steps of 16


# --- prompts


def test_prompts_are_encoded_as_the_pipeline_would(models: Path, engine: Engine) -> None:
    ours = encode.encode(pipeline_of(engine, "sd3"), STABLE_DIFFUSION_3.reading, "a red circle")
    states, _, pooled, _ = raw(models, "sd3").encode_prompt("a red circle", None, None, "cpu", 1, False)
    torch.testing.assert_close(ours.prompt_embeds, states, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours.pooled_prompt_embeds, pooled, rtol=1e-4, atol=1e-4)
    ours = encode.encode(pipeline_of(engine, "flux"), FLUX.reading, "a red circle")
    states, pooled, _ = raw(models, "flux").encode_prompt("a red circle", device="cpu")
    torch.testing.assert_close(ours.prompt_embeds, states, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours.pooled_prompt_embeds, pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd3", "sd3-medium", "flux"])
def test_no_word_of_a_long_prompt_is_lost(engine: Engine, images: ImageStore, name: str) -> None:
    loaded = engine.store.load(engine.catalog.find(name))
    long = "red circle on a blue background and " * 96
    words = {"sd3": 16 * 77 + 4 * 256, "sd3-medium": 16 * 77 + 256, "flux": 2 * 512}
    for prompt, negative in ((long, "red"), ("red", long)):
        shown = loaded.embeddings.of(loaded.pipeline, prompt, negative)
        assert {each.prompt_embeds.shape for each in shown} == {(1, words[name], 48)}
    assert draw(engine, images, model=name, prompt=long, negative_prompt="red", steps=1).pictures


# --- sizes and defaults


def test_a_size_that_the_model_cannot_draw_is_refused_before_it_is_queued(models: Path, tmp_path: Path) -> None:
    from backend import services

    built = services.build(Settings(models_dir=models, data_dir=tmp_path, outputs_dir=tmp_path / "out"))
    with pytest.raises(InvalidRequest) as raised:
        built.complete({"model": "flux", "width": 520, "height": 1000})
    assert [problem.field for problem in raised.value.problems] == ["width", "height"]
    assert "steps of 16 pixels: 512 or 528, not 520" in str(raised.value)
    assert built.complete({"model": "flux", "width": 528}).width == 528


def test_a_folder_without_a_card_has_its_familys_defaults(models: Path, tmp_path: Path) -> None:
    for name in ("flux", "schnell", "sd3"):
        shutil.copytree(models / "checkpoints" / name, tmp_path / "checkpoints" / name)
        (tmp_path / "checkpoints" / name / "atelier.json").unlink()
    defaults = {model.name: model.usual for model in Catalog(tmp_path).models()}
    assert [defaults[name]["steps"] for name in ("flux", "schnell", "sd3")] == [28, 4, 28]
    assert {each["width"] for each in defaults.values()} == {1024}
    assert Catalog(models).find("flux").usual["steps"] == 4  # the card's


# --- what needs a UNet


@pytest.fixture
def with_lora(models: Path, tmp_path: Path) -> Path:
    shutil.copytree(models, tmp_path / "models")
    weights = {"lora_unet_x.lora_down.weight": torch.zeros(1, 1), "lora_unet_x.lora_up.weight": torch.zeros(1, 1)}
    (tmp_path / "models" / "loras").mkdir()
    save_file(weights, tmp_path / "models" / "loras" / "cat.safetensors")
    return tmp_path / "models"


def test_a_lora_of_something_else_is_refused_in_words(with_lora: Path) -> None:
    with (
        Studio(EXTENSIONS / "lora", models=with_lora, model="flux") as studio,
        pytest.raises(
            InvalidRequest,
            match=r"cat\.safetensors has parts that this model has no place for: unet_x",
        ),
    ):
        studio.draw("a red circle <lora:cat:1>")


def test_a_controlnet_is_refused_in_words(models: Path, tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    shutil.copytree(models, tmp_path / "models")
    net = ControlNetModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(4, 8),
    )
    net.save_pretrained(tmp_path / "models" / "controlnet" / "net")
    with Studio(EXTENSIONS / "controlnet", models=tmp_path / "models", model="sd3") as studio:
        unit = {"image": studio.image(photo()), "module": "none", "model": "net"}
        with pytest.raises(
            InvalidRequest, match=r"net is for Stable Diffusion .*, the model sd3 is Stable Diffusion 3"
        ):
            studio.draw(extensions={"controlnet": {"units": [unit]}})


def test_training_is_refused_in_words(models: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"flux is a Flux\.1 model; LoRAs can be trained for"):
        base.load(Catalog(models).find("flux"), torch.device("cpu"), torch.float32)


# --- folders that are broken


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


BREAKAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no T5": ("flux", lambda f: shutil.rmtree(f / "text_encoder_2"), "text_encoder_2/model.safetensors is missing"),
    "no T5 where one is named": ("sd3", lambda f: shutil.rmtree(f / "text_encoder_3"), "text_encoder_3"),
    "a T5 of none": (
        "flux",
        lambda f: edit(f / "model_index.json", text_encoder_2=[None, None]),
        r"asks for \[None, None\] as text_encoder_2, not T5EncoderModel",
    ),
    "another's VAE": (
        "flux",
        lambda f: edit(f / "transformer/config.json", in_channels=16),
        "transformer (lacks weights or has wrong ones|wants 16 channels|cannot be read)",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_model_says_what_is_wrong_with_it(
    models: Path, tmp_path: Path, images: ImageStore, breakage: str
) -> None:
    name, break_it, words = BREAKAGES[breakage]
    shutil.copytree(models / "checkpoints" / name, tmp_path / "checkpoints" / "mine")
    break_it(tmp_path / "checkpoints" / "mine")
    with pytest.raises(ModelBroken, match=words) as raised:
        draw(Engine(Catalog(tmp_path), Registry(), "cpu"), images, model="mine")
    assert "\n" not in str(raised.value)
