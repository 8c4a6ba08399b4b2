"""ControlNets of Stable Diffusion 3 and Flux, on models of random weights; against diffusers' own pipelines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxMultiControlNetModel,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from backend.errors import InvalidRequest
from backend.result import Progress
from backend.testing import PROMPT, Drawn, Studio
from extensions.controlnet import strength, tokens
from extensions.controlnet.tests import made
from tests.tiny_families import tiny_flux, tiny_sd3

FOLDER = Path(__file__).parents[1]
SIZE = 64
NETS = {
    "flux": ("flux_plain", {"guidance_embeds": True}),
    "schnell": ("flux_union", {"num_mode": 7}),
    "xlabs": ("flux_xlabs", {"conditioning_embedding_channels": 16, "patch_size": 2, "num_single_layers": 0}),
}


def stirred(net: Any) -> Any:
    for name, value in net.named_parameters():
        if name.startswith(("controlnet_", "pos_embed_input", "input_hint_block")) and value.dim() > 1:
            torch.nn.init.normal_(value, std=0.1)
    return net.eval()


def of_flux(transformer: Any, **changes: Any) -> Any:
    own = {**transformer.config, "guidance_embeds": False, **changes}
    taken = {name: value for name, value in own.items() if not name.startswith("_") and name != "out_channels"}
    return stirred(FluxControlNetModel(**taken))


def of_sd3(transformer: Any, **changes: Any) -> Any:
    own = {**transformer.config, "num_layers": 1, **changes}
    return stirred(SD3ControlNetModel(**{name: value for name, value in own.items() if not name.startswith("_")}))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tokens")
    checkpoints, nets = folder / "checkpoints", folder / "controlnet"
    tiny_flux(checkpoints / "flux")
    tiny_flux(checkpoints / "schnell", guided=False)
    tiny_flux(checkpoints / "fill", kind="FluxFillPipeline")
    tiny_sd3(checkpoints / "sd3")
    base = made.sd15(checkpoints / "sd15")
    made.control(DiffusionPipeline.from_pretrained(base).unet).save_pretrained(nets / "one")
    flux = DiffusionPipeline.from_pretrained(checkpoints / "flux").transformer
    for name, changes in NETS.values():
        of_flux(flux, **changes).save_pretrained(nets / name)
    made.save(of_flux(flux, guidance_embeds=True).state_dict(), nets / "flux_file.safetensors")
    made.save(of_flux(flux, **NETS["xlabs"][1]).state_dict(), nets / "flux_xlabs_file.safetensors")
    of_flux(flux, num_attention_heads=1, axes_dims_rope=(4, 6, 6)).save_pretrained(nets / "flux_narrow")
    sd3 = DiffusionPipeline.from_pretrained(checkpoints / "sd3").transformer
    of_sd3(sd3).save_pretrained(nets / "sd3_plain")
    made.save(of_sd3(sd3, num_layers=2).state_dict(), nets / "sd3_file.safetensors")
    blind = {"use_pos_embed": False, "joint_attention_dim": None, "force_zeros_for_pooled_projection": False}
    of_sd3(sd3, **blind).save_pretrained(nets / "sd3_large")
    of_sd3(sd3, extra_conditioning_channels=1).save_pretrained(nets / "sd3_inpaint")
    return folder


@pytest.fixture(scope="module")
def studio(models: Path) -> Iterator[Studio]:
    with Studio(FOLDER, models=models, model="flux", also=["hires", "inpaint"]) as studio:
        yield studio


def draw(studio: Studio, model: str, *units: dict[str, Any], **values: Any) -> Drawn:
    image = studio.image(made.edges())
    given = [{"image": image, "module": "none", **unit} for unit in units]
    others = values.pop("extensions", {})
    return studio.draw(model=model, extensions={**others, "controlnet": {"units": given}}, **values)


def ours(studio: Studio, model: str, *units: dict[str, Any], **values: Any) -> torch.Tensor:
    """What the last step of Euler ends at."""
    scheduler = studio.engine.store.load(studio.catalog.find(model)).pipeline.scheduler
    seen: list[torch.Tensor] = []

    def report(progress: Progress) -> None:
        if progress.step and progress.stage == "sampling":
            seen.append(scheduler.denoised)

    draw(studio, model, *units, report=report, sampler_name="Euler", **values)
    return seen[-1]


def theirs(models: Path, model: str, nets: list[Any], cfg: float = 1.0, **how: Any) -> torch.Tensor:
    base = DiffusionPipeline.from_pretrained(models / "checkpoints" / model)
    latents = torch.randn(1, 16, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(1))
    given: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 3, "width": SIZE, "height": SIZE}
    shown = [made.edges() for _ in nets]
    given["control_image"] = shown if len(nets) > 1 else shown[0]
    if model == "sd3":
        pipeline = StableDiffusion3ControlNetPipeline(**base.components, controlnet=nets[0])
        given |= {"guidance_scale": cfg, "latents": latents}
    else:
        many = FluxMultiControlNetModel(nets) if len(nets) > 1 else nets[0]
        pipeline = FluxControlNetPipeline(**base.components, controlnet=many)
        packed = pipeline._pack_latents(latents, 1, 16, SIZE // 8, SIZE // 8)
        given |= {"guidance_scale": 3.5, "true_cfg_scale": cfg, "latents": packed}
        if cfg > 1:
            given["negative_prompt"] = ""
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(**given, output_type="latent", **how).images
    return found if model == "sd3" else pipeline._unpack_latents(found, SIZE, SIZE, 8)


@pytest.fixture(autouse=True)
def _middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers draws what it encodes from a distribution, we take its middle."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def folder_of(models: Path, name: str) -> Any:
    kind = SD3ControlNetModel if name.startswith("sd3") else FluxControlNetModel
    return kind.from_pretrained(models / "controlnet" / name)


@pytest.mark.parametrize(
    ("model", "net", "cfg"),
    [
        ("flux", "flux_plain", 1.0),
        ("flux", "flux_plain", 3.0),
        ("schnell", "flux_plain", 1.0),  # the net wants to be told what the model is not
        ("flux", "flux_xlabs", 1.0),
        ("sd3", "sd3_plain", 1.0),
        ("sd3", "sd3_plain", 4.0),
        ("sd3", "sd3_large", 4.0),
    ],
)
def test_a_unit_is_diffusers_pipeline(studio: Studio, models: Path, model: str, net: str, cfg: float) -> None:
    found = ours(studio, model, {"model": net, "weight": 0.7}, cfg_scale=cfg)
    expected = theirs(models, model, [folder_of(models, net)], cfg, controlnet_conditioning_scale=0.7)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - ours(studio, model, cfg_scale=cfg)).abs().max() > 1e-3


def test_a_union_model_is_told_what_the_map_shows(studio: Studio, models: Path) -> None:
    unit = {"model": "flux_union", "union_control_type": "Depth"}
    expected = theirs(models, "flux", [folder_of(models, "flux_union")], control_mode=2)
    torch.testing.assert_close(ours(studio, "flux", unit, cfg_scale=1), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(
        InvalidRequest, match=r"units\.0\.union_control_type: union models for Flux know .*not Segmentation"
    ):
        draw(studio, "flux", {**unit, "union_control_type": "Segmentation"})


def test_two_units_are_added_up(studio: Studio, models: Path) -> None:
    units = (
        {"model": "flux_union", "weight": 0.5, "union_control_type": "Tile"},
        {"model": "flux_union", "weight": 0.4},
    )
    found = ours(studio, "flux", units[0], {**units[1], "union_control_type": "OpenPose"}, cfg_scale=1)
    net = folder_of(models, "flux_union")
    how: dict[str, Any] = {"control_mode": [1, 4], "controlnet_conditioning_scale": [0.5, 0.4]}
    expected = theirs(models, "flux", [net, folder_of(models, "flux_union")], **how)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    mixed = draw(studio, "flux", {"model": "flux_plain"}, {"model": "flux_xlabs"})  # one has no single blocks
    assert mixed.picture.tobytes() != draw(studio, "flux", {"model": "flux_plain"}).picture.tobytes()


def test_single_files_are_read_by_their_shapes(studio: Studio, models: Path) -> None:
    for name, model in (("flux_file", "flux"), ("flux_xlabs_file", "flux"), ("sd3_file", "sd3")):
        plain, guided = (draw(studio, model, *units).picture.tobytes() for units in ((), ({"model": name},)))
        assert plain != guided, name
    kept = studio.engine.store._beside[str(models / "controlnet" / "flux_file.safetensors")].module
    assert dict(kept.config).items() >= {"guidance_embeds": True, "num_layers": 1, "num_single_layers": 1}.items()


def test_weight_start_end_and_modes(studio: Studio) -> None:
    def drawn(model: str, **unit: Any) -> bytes:
        return draw(studio, model, {"model": f"{model}_plain", **unit}, cfg_scale=3.0).picture.tobytes()

    for model in ("flux", "sd3"):
        without = draw(studio, model, cfg_scale=3.0).picture.tobytes()
        pictures = [drawn(model)]
        pictures += [drawn(model, guidance_end=0.5), drawn(model, guidance_start=0.5)]
        pictures += [drawn(model, control_mode=mode) for mode in ("ControlNet is more important",)]
        assert len({without, *pictures}) == 5
        assert drawn(model, weight=0) == without
        assert draw(studio, model, cfg_scale=3.0).picture.tobytes() == without  # no trace


def test_a_region_and_a_second_pass(studio: Studio) -> None:
    from PIL import Image

    half = Image.new("L", (SIZE, SIZE))
    half.paste(255, (0, 0, SIZE // 2, SIZE))
    unit = {"model": "sd3_plain"}
    whole = draw(studio, "sd3", unit).picture.tobytes()
    assert draw(studio, "sd3", {**unit, "effective_region_mask": studio.image(half)}).picture.tobytes() != whole
    larger = draw(studio, "sd3", unit, extensions={"hires": {"scale": 2}})
    assert larger.picture.size == (2 * SIZE, 2 * SIZE)


def test_residuals_are_spread_as_the_transformers_would() -> None:
    three: list[Any] = ["a", "b", "c"]
    assert "".join(tokens._over(three, 7)) == "aaabbbc"
    assert "".join(tokens._over(three, 7, repeats=True)) == "abcabca"
    assert "".join(tokens._evenly(three, 7)) == "aaabbcc"


def test_prompts_importance_falls_from_block_to_block() -> None:
    from extensions.controlnet import Unit

    soft = Unit(control_mode="My prompt is more important", weight=2)
    factors = strength.spread(soft, 19, False)
    assert factors[0] == pytest.approx(2 * 0.825**12)
    assert factors[-1] == 2
    assert list(factors) == sorted(factors)
    assert strength.spread(Unit(weight=0.5), 3, False) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("model", "unit", "said"),
    [
        ("flux", {"model": "one"}, r"one is for Stable Diffusion with text of width 16, the model flux is Flux"),
        ("sd15", {"model": "flux_plain"}, r"flux_plain is for Flux, the model sd15 is Stable Diffusion"),
        ("sd3", {"model": "flux_file"}, r"flux_file is for Flux, the model sd3 is Stable Diffusion 3"),
        ("flux", {"model": "sd3_file"}, r"sd3_file is for Stable Diffusion 3, the model flux is Flux"),
        ("flux", {"model": "flux_narrow"}, r"for a transformer of 16 channels, that of flux has 32"),
        ("sd3", {"model": "sd3_inpaint"}, r"sd3_inpaint wants to be shown a mask too"),
        (
            "flux",
            {"model": "flux_plain", "advanced_weighting": [1.0]},
            r"advanced_weighting: there should be 2 factors",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_names(
    studio: Studio, model: str, unit: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        draw(studio, model, unit)


@pytest.mark.parametrize("net", ["flux_plain", "flux_file"])
def test_a_model_that_is_shown_a_mask_is_guided_too(studio: Studio, net: str) -> None:
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(255, (0, 0, SIZE // 2, SIZE))
    given = {"extensions": {"inpaint": {"mask": studio.image(mask)}}, "init_image": studio.image(made.edges())}
    plain, guided = (ours(studio, "fill", {"model": net, "weight": weight}, **given) for weight in (0, 2))
    assert (plain - guided).abs().max() > 1e-3
