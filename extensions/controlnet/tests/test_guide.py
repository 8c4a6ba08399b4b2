"""What control models do to a picture, on models of random weights; against diffusers' own pipelines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MultiControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel
from PIL import Image

from backend.errors import InvalidRequest
from backend.result import JobCancelled, Progress
from backend.testing import Drawn, Studio
from extensions.controlnet.tests import made
from tests.tiny import tiny_model

FOLDER = Path(__file__).parents[1]
SIZE = 64


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    base = made.sd15(folder / "checkpoints" / "sd15")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    for name, seed in (("one", 1), ("two", 2), ("shuffle", 3)):
        made.save(made.lllyasviel(made.control(unet, seed)), folder / "controlnet" / f"{name}.safetensors")
    made.adapter((8, 8, 16, 16)).save_pretrained(folder / "controlnet" / "sketch")
    return folder


@pytest.fixture(scope="module")
def studio(models: Path) -> Iterator[Studio]:
    with Studio(FOLDER, models=models, model="sd15", also=["hires", "inpaint", "outpaint"]) as studio:
        yield studio


@pytest.fixture(scope="module")
def map_ref(studio: Studio) -> str:
    return studio.image(made.edges())


def draw(studio: Studio, *units: dict[str, Any], **values: Any) -> Drawn:
    others = values.pop("extensions", {})
    return studio.draw(extensions={**others, "controlnet": {"units": list(units)}}, **values)


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.tobytes() == b.tobytes()


def away(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def test_a_unit_guides_and_leaves_no_trace(studio: Studio, map_ref: str) -> None:
    before, during, after = studio.around({"units": [{"model": "one", "image": map_ref}]})
    assert before == after != during


def test_a_map_is_kept_with_the_pictures_if_asked(studio: Studio) -> None:
    """Once for all batches, at the size that is drawn; it changes no picture."""
    unit = {"model": "one", "image": studio.image(made.photo(96, 96)), "module": "canny"}
    plain = draw(studio, unit, {**unit, "model": "two"}, n_iter=2)
    kept = draw(studio, {**unit, "save_detected_map": True}, {**unit, "model": "two"}, n_iter=2)
    assert not plain.maps
    assert [one.size for one in kept.maps] == [(SIZE, SIZE)]
    assert len(np.unique(np.asarray(kept.maps[0]))) == 2  # edges
    assert [a.tobytes() for a in plain.pictures] == [b.tobytes() for b in kept.pictures]
    assert kept.texts[0] == plain.texts[0]


def test_a_second_pass_keeps_no_further_map(studio: Studio, map_ref: str) -> None:
    unit = {"model": "one", "image": map_ref, "save_detected_map": True, "hr_option": "High res only"}
    drawn = draw(studio, unit, extensions={"hires": {"scale": 2}})
    assert len(drawn.maps) == len(drawn.pictures) == 1


# --- the same as diffusers' own pipeline


def loaded(studio: Studio) -> Any:
    return studio.engine.store.load(studio.engine.catalog.find("sd15"))


def net_of(studio: Studio, name: str) -> Any:
    return studio.engine.store._beside[str(studio.catalog.folder / "controlnet" / f"{name}.safetensors")].module


def final_latents(studio: Studio, *units: dict[str, Any], **values: Any) -> torch.Tensor:
    """Of Euler, whose last step ends where the model has pointed."""
    scheduler = loaded(studio).pipeline.scheduler
    seen: list[torch.Tensor] = []

    def report(progress: Progress) -> None:
        if progress.step and progress.stage == "sampling":
            seen.append(scheduler.denoised)

    draw(studio, *units, report=report, sampler_name="Euler", scheduler="Uniform", **values)
    return seen[-1]


def raw_latents(studio: Studio, *names: str, size: int = SIZE, steps: int = 3, **values: Any) -> torch.Tensor:
    """Those of StableDiffusionControlNetPipeline, from the same noise and embeddings."""
    from backend.diffusion import noise
    from backend.testing import PROMPT

    base = loaded(studio)
    nets = [net_of(studio, name) for name in names]
    pipeline = StableDiffusionControlNetPipeline(
        **{name: getattr(base.pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")},
        controlnet=nets[0] if len(nets) == 1 else MultiControlNetModel(nets),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.plan("Euler", "Uniform")
    pixels = torch.from_numpy(np.array(made.edges(size, size))).permute(2, 0, 1)[None] / 255
    prompt, negative = base.embeddings.of(base.pipeline, PROMPT, "")
    with torch.inference_mode():
        latents: torch.Tensor = pipeline(
            image=pixels if len(nets) == 1 else [pixels] * len(nets),
            prompt_embeds=prompt.prompt_embeds,
            negative_prompt_embeds=negative.prompt_embeds,
            latents=noise.draw(noise.generators([1]), (1, 4, size // 8, size // 8), torch.device("cpu")),
            num_inference_steps=steps,
            guidance_scale=7.0,
            width=size,
            height=size,
            output_type="latent",
            return_dict=False,
            **values,
        )[0]
    return latents


@pytest.mark.parametrize("weight", [1.0, 0.4, 2.0])
def test_one_unit_is_diffusers_pipeline(studio: Studio, map_ref: str, weight: float) -> None:
    ours = final_latents(studio, {"model": "one", "image": map_ref, "weight": weight})
    raw = raw_latents(studio, "one", controlnet_conditioning_scale=weight)
    torch.testing.assert_close(ours, raw, atol=1e-5, rtol=0)
    assert (ours - final_latents(studio)).abs().max() > 0.01


def test_two_units_are_added_up(studio: Studio, map_ref: str) -> None:
    units = [{"model": "one", "image": map_ref, "weight": 0.7}, {"model": "two", "image": map_ref, "weight": 0.5}]
    ours = final_latents(studio, *units)
    raw = raw_latents(studio, "one", "two", controlnet_conditioning_scale=[0.7, 0.5])
    torch.testing.assert_close(ours, raw, atol=1e-5, rtol=0)


def test_control_is_more_important_is_guess_mode(studio: Studio, map_ref: str) -> None:
    """Both weaken the outer layers, the outermost to a tenth within 0.6 %, and leave the unconditional half alone."""
    ours = final_latents(
        studio, {"model": "one", "image": map_ref, "control_mode": "ControlNet is more important"}, steps=8
    )
    raw = raw_latents(studio, "one", guess_mode=True, steps=8)
    without = final_latents(studio, steps=8)
    assert (ours - raw).norm() < 0.01 * (raw - without).norm()
    balanced = raw_latents(studio, "one", steps=8)
    assert (ours - raw).norm() < 0.05 * (balanced - raw).norm()


def test_a_net_for_shuffle_is_diffusers_pipeline(studio: Studio, map_ref: str) -> None:
    """Its residuals are means over the picture, for the prompt's part of the guidance only."""
    ours = final_latents(studio, {"model": "shuffle", "image": map_ref})
    torch.testing.assert_close(ours, raw_latents(studio, "shuffle"), atol=1e-5, rtol=0)


# --- layers and halves


@pytest.fixture
def residuals(studio: Studio) -> Iterator[list[list[torch.Tensor]]]:
    """What the UNet is given at each call: the residuals of the skips, then that of the middle."""
    seen: list[list[torch.Tensor]] = []

    def listen(unet: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        down = keywords.get("down_block_additional_residuals")
        seen.append([] if down is None else [*down, keywords["mid_block_additional_residual"]])

    unet = loaded(studio).pipeline.unet
    inner = unet.forward  # hooks run in the order in which they are added: ours would come too early

    def forward(*arguments: Any, **keywords: Any) -> Any:
        listen(unet, arguments, keywords)
        return inner(*arguments, **keywords)

    unet.forward = forward
    yield seen
    del unet.forward


def factors(given: list[torch.Tensor], plain: list[torch.Tensor], half: int) -> list[float]:
    return [float((a[half] * b[half]).sum() / (b[half] * b[half]).sum()) for a, b in zip(given, plain, strict=True)]


def test_soft_modes_weaken_the_outer_layers(studio: Studio, map_ref: str, residuals: Any) -> None:
    unit = {"model": "one", "image": map_ref, "weight": 0.5}
    modes = ("Balanced", "My prompt is more important", "ControlNet is more important")
    for mode in modes:
        draw(studio, {**unit, "control_mode": mode}, steps=1)
    plain, prompt, control = residuals
    expected = [0.825 ** (12 - i) for i in range(13)]
    assert factors(prompt, plain, 0) == pytest.approx(expected, rel=1e-4)
    assert factors(prompt, plain, 1) == pytest.approx(expected, rel=1e-4)
    assert factors(control, plain, 1) == pytest.approx(expected, rel=1e-4)
    assert all(not one[0].any() for one in control)


def test_without_guidance_all_of_the_batch_is_conditional(studio: Studio, map_ref: str, residuals: Any) -> None:
    unit = {"model": "one", "image": map_ref, "control_mode": "ControlNet is more important"}
    draw(studio, unit, steps=1, cfg_scale=1, batch_size=2)
    assert [one.shape[0] for one in residuals[0]] == [2] * 13
    assert all(one[0].any() and one[1].any() for one in residuals[0])


def test_own_weights_replace_those_of_the_mode(studio: Studio, map_ref: str, residuals: Any) -> None:
    own = [round(0.1 * i, 1) for i in range(13)]
    unit = {"model": "one", "image": map_ref}
    draw(studio, unit, steps=1)
    draw(studio, {**unit, "control_mode": "My prompt is more important", "advanced_weighting": own}, steps=1)
    assert factors(residuals[1], residuals[0], 0) == pytest.approx(own, rel=1e-4, abs=1e-6)


def test_a_unit_guides_where_its_region_is_white(studio: Studio, map_ref: str, residuals: Any) -> None:
    region = Image.new("L", (SIZE, SIZE))
    region.paste(255, (0, 0, 32, 64))
    unit = {"model": "one", "image": map_ref}
    draw(studio, unit, steps=1)
    draw(studio, {**unit, "effective_region_mask": studio.image(region)}, steps=1)
    plain, part = residuals
    for whole, left in zip(plain, part, strict=True):
        half = whole.shape[-1] // 2
        if half:
            assert torch.equal(left[..., :half], whole[..., :half])
            assert not left[..., half:].any()
        else:  # the deepest layer is one place: half of it is white
            torch.testing.assert_close(left, whole / 2)


def test_a_region_of_all_is_no_region(studio: Studio, map_ref: str) -> None:
    unit = {"model": "one", "image": map_ref}
    white = studio.image(Image.new("L", (32, 32), 255))
    assert same(draw(studio, unit).picture, draw(studio, {**unit, "effective_region_mask": white}).picture)


# --- when


@pytest.mark.parametrize(
    ("start", "end", "active"),
    [
        (0, 1, "1111111111"),
        (0, 0.5, "1111110000"),
        (0.5, 1, "0000011111"),
        (0.25, 0.45, "0001100000"),
        (0, 0, "1000000000"),
        (1, 1, "0000000000"),
    ],
)
def test_nothing_is_computed_outside_of_its_part_of_the_steps(
    studio: Studio, map_ref: str, residuals: Any, start: float, end: float, active: str
) -> None:
    calls: list[int] = []
    draw(studio, {"model": "one", "image": map_ref}, steps=1)
    handle = net_of(studio, "one").register_forward_hook(lambda *_: calls.append(1))
    residuals.clear()
    try:
        draw(studio, {"model": "one", "image": map_ref, "guidance_start": start, "guidance_end": end}, steps=10)
    finally:
        handle.remove()
    assert "".join("1" if given else "0" for given in residuals) == active
    assert len(calls) == active.count("1")


def test_an_end_in_the_middle_is_another_picture(studio: Studio, map_ref: str) -> None:
    whole, half, none = (
        draw(studio, {"model": "one", "image": map_ref, "guidance_end": end}, steps=6).picture for end in (1, 0.5, 0)
    )
    assert away(whole, half) > 0
    assert away(half, none) > 0


def test_weight_0_is_no_unit_to_the_bit(studio: Studio, map_ref: str) -> None:
    plain = studio.draw().picture
    assert same(draw(studio, {"model": "one", "image": map_ref, "weight": 0}).picture, plain)
    assert same(draw(studio).picture, plain)
    with_one = draw(studio, {"model": "one", "image": map_ref}).picture
    silent = {"model": "no such model", "weight": 0}
    assert same(draw(studio, {"model": "one", "image": map_ref}, silent).picture, with_one)


def test_each_batch_begins_anew(studio: Studio, map_ref: str) -> None:
    unit = {"model": "one", "image": map_ref, "guidance_end": 0.3}
    both = draw(studio, unit, n_iter=2, steps=5).pictures
    assert same(both[1], draw(studio, unit, seed=2, steps=5).picture)


def test_a_picture_does_not_depend_on_its_batch(studio: Studio, map_ref: str) -> None:
    unit = {"model": "one", "image": map_ref, "control_mode": "ControlNet is more important"}
    together = draw(studio, unit, batch_size=3).pictures
    alone = draw(studio, unit, seed=3).picture
    assert np.abs(np.asarray(together[2], int) - np.asarray(alone, int)).max() <= 1


def test_units_share_a_control_model(studio: Studio, map_ref: str) -> None:
    from extensions.controlnet import nets

    studio.engine.store.free()
    seen: list[Path] = []
    inner = nets._from_file
    nets._from_file = lambda file, base: seen.append(file) or inner(file, base)  # type: ignore[func-returns-value]
    try:
        units = [{"model": "one", "image": map_ref}, {"model": "one", "image": studio.image(made.photo())}]
        draw(studio, *units)
        draw(studio, *units)
    finally:
        nets._from_file = inner
    assert [file.stem for file in seen] == ["one"]


# --- adapters


def test_an_adapter_guides_beside_a_control_model(studio: Studio, map_ref: str) -> None:
    plain = studio.draw().picture
    sketch, one = {"model": "sketch", "image": map_ref}, {"model": "one", "image": map_ref}
    drawn = [draw(studio, *units).picture for units in ([sketch], [one], [sketch, one])]
    assert len({picture.tobytes() for picture in (plain, *drawn)}) == 4
    assert same(draw(studio, {**sketch, "weight": 0}).picture, plain)


def test_an_adapter_is_diffusers_adapter(studio: Studio, map_ref: str) -> None:
    from diffusers import StableDiffusionAdapterPipeline

    from backend.diffusion import noise
    from backend.testing import PROMPT

    ours = final_latents(studio, {"model": "sketch", "image": map_ref, "weight": 0.8})
    base = loaded(studio)
    folder = studio.catalog.folder / "controlnet" / "sketch"
    pipeline = StableDiffusionAdapterPipeline(
        **{name: getattr(base.pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")},
        adapter=studio.engine.store._beside[str(folder)].module,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.plan("Euler", "Uniform")
    prompt, negative = base.embeddings.of(base.pipeline, PROMPT, "")
    with torch.inference_mode():
        raw = pipeline(
            image=made.edges(),
            prompt_embeds=prompt.prompt_embeds,
            negative_prompt_embeds=negative.prompt_embeds,
            latents=noise.draw(noise.generators([1]), (1, 4, 8, 8), torch.device("cpu")),
            num_inference_steps=3,
            guidance_scale=7.0,
            width=SIZE,
            height=SIZE,
            adapter_conditioning_scale=0.8,
            output_type="latent",
            return_dict=False,
        )[0]
    torch.testing.assert_close(ours, raw, atol=1e-5, rtol=1e-4)


# --- with the others


def test_with_hires_a_unit_guides_the_passes_that_it_should(studio: Studio, map_ref: str) -> None:
    """Each pass is drawn with the unit and without it: four pictures in all, of which the option names three."""

    def enlarged(**unit: Any) -> Image.Image:
        units = [{"model": "one", "image": map_ref, **unit}]
        hires = {"scale": 1.5, "denoising_strength": 0.7}
        return draw(studio, *units, extensions={"hires": hires}, steps=2).picture

    both, low, high = (enlarged(hr_option=option) for option in ("Both", "Low res only", "High res only"))
    none = enlarged(weight=0)
    assert both.size == (96, 96)
    assert len({picture.tobytes() for picture in (both, low, high, none)}) == 4
    alone = draw(studio, {"model": "one", "image": map_ref, "hr_option": "High res only"}).picture
    assert same(alone, draw(studio, {"model": "one", "image": map_ref}).picture)


def test_thin_lines_are_soft_in_the_second_pass(studio: Studio, residuals: Any) -> None:
    source = studio.image(made.photo())
    for module in ("canny", "invert"):
        for mode in ("Balanced", "My prompt is more important"):
            unit = {"model": "one", "image": source, "module": module, "control_mode": mode}
            hires = {"scale": 1, "denoising_strength": 0.5}
            draw(studio, {**unit, "hr_option": "High res only"}, extensions={"hires": hires}, steps=1)
    canny, soft_canny, invert, soft_invert = (given for given in residuals if given)
    assert factors(canny, soft_canny, 0) == pytest.approx([1.0] * 13)
    assert factors(soft_invert, invert, 0) == pytest.approx([0.825 ** (12 - i) for i in range(13)], rel=1e-4)


def test_hires_fits_the_first_passs_map_to_the_larger_size(studio: Studio) -> None:
    source = studio.image(made.photo(200, 200))
    unit = {"model": "one", "image": source, "module": "canny", "pixel_perfect": True}
    drawn = draw(studio, unit, extensions={"hires": {"scale": 2}}, steps=2)
    made_once: Any = drawn.request.extensions["controlnet"]
    assert studio.images.get(made_once.units[0].map).size == (64, 64)
    assert drawn.picture.size == (128, 128)
    assert studio.read(drawn.text) == drawn.request


def test_with_inpainting_what_lies_beside_the_mask_stays(studio: Studio, map_ref: str) -> None:
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(255, (16, 16, 48, 48))
    inpaint = {"mask": studio.image(mask), "blur": 0}
    values: dict[str, Any] = {"init_image": studio.image(made.photo()), "extensions": {"inpaint": inpaint}}
    plain = studio.draw(**values).picture
    guided = draw(studio, {"model": "one", "image": map_ref}, **values).picture
    beside = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(guided)[beside], np.asarray(made.photo())[beside])
    assert away(guided, plain) > 0


def test_with_outpainting_and_two_units(studio: Studio, map_ref: str) -> None:
    values: dict[str, Any] = {"init_image": studio.image(made.photo()), "extensions": {"outpaint": {"right": 32}}}
    first, second = {"model": "one", "module": "canny"}, {"model": "two", "image": map_ref, "guidance_end": 0.5}
    drawn = draw(studio, first, second, **values)
    assert drawn.picture.size == (96, 64)
    assert not same(drawn.picture, studio.draw(**values).picture)
    assert studio.read(drawn.text) == drawn.request


def test_image_to_image_shows_the_unit_what_it_starts_from(studio: Studio) -> None:
    start = studio.image(made.photo())
    guided = draw(studio, {"model": "one", "module": "canny"}, init_image=start, denoising_strength=0.6, steps=6)
    named = draw(
        studio, {"model": "one", "module": "canny", "image": start}, init_image=start, denoising_strength=0.6, steps=6
    )
    assert same(guided.picture, named.picture)
    assert not same(guided.picture, studio.draw(init_image=start, denoising_strength=0.6, steps=6).picture)


def test_an_inpainting_checkpoint_shows_the_unit_its_picture_channels(tmp_path: Path) -> None:
    four = tiny_model(tmp_path / "checkpoints" / "tiny")
    tiny_model(tmp_path / "checkpoints" / "nine", in_channels=9)
    net = made.control(UNet2DConditionModel.from_pretrained(four / "unet"))
    made.save(made.lllyasviel(net), tmp_path / "controlnet" / "net.safetensors")
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(255, (16, 16, 48, 48))
    with Studio(FOLDER, models=tmp_path, model="nine", also=["inpaint"]) as nine:
        unit = {"model": "net", "image": nine.image(made.edges())}
        inpaint = {"mask": nine.image(mask), "blur": 0}
        start = nine.image(made.photo())
        plain = nine.draw(init_image=start, extensions={"inpaint": inpaint}).picture
        guided = draw(nine, unit, init_image=start, extensions={"inpaint": inpaint}).picture
        assert away(plain, guided) > 0
        beside = np.asarray(mask) == 0
        assert np.array_equal(np.asarray(guided)[beside], np.asarray(made.photo())[beside])
        assert away(draw(nine, unit).picture, nine.draw().picture) > 0


# --- what goes wrong


def test_cancelling_leaves_nothing_behind(studio: Studio, map_ref: str) -> None:
    unet = loaded(studio).pipeline.unet
    before, hooks = studio.draw().picture, len(unet._forward_pre_hooks)

    def report(progress: Progress) -> None:
        if progress.step == 2:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        draw(studio, {"model": "one", "image": map_ref}, report=report)
    assert len(unet._forward_pre_hooks) == hooks
    assert same(studio.draw().picture, before)


def test_as_many_factors_as_the_model_has_residuals(studio: Studio, map_ref: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        draw(studio, {"model": "one", "image": map_ref}, {"model": "one", "image": map_ref, "advanced_weighting": [1]})
    words = "there should be 13 factors for this model, there are 1"
    assert error.value.problems == (("extensions.controlnet.units.1.advanced_weighting", words),)


def test_the_files_that_took_part_are_kept_by_hash(studio: Studio, map_ref: str) -> None:
    import hashlib

    from backend.result import Picture

    pictures: list[Picture] = []
    request = studio.request(prompt="a", extensions={"controlnet": {"units": [{"model": "one", "image": map_ref}]}})
    studio.engine.generate(request, studio.images, lambda p: pictures.append(p.picture) if p.picture else None)
    file = studio.catalog.folder / "controlnet" / "one.safetensors"
    name = next(name for name in pictures[0].models if name.startswith("one ["))
    assert pictures[0].models[name] == hashlib.sha256(file.read_bytes()).hexdigest()
