"""Control models of every layout that people have, and in which words the others are refused."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLControlNetPipeline, UNet2DConditionModel
from gguf import GGMLQuantizationType, quantize
from safetensors.torch import load_file, save_file

from backend.catalog.roots import Roots
from backend.errors import InvalidRequest
from backend.packed import Packed, blocks
from backend.result import Progress
from backend.testing import PROMPT, Drawn, Studio
from extensions.controlnet import nets, shelf
from extensions.controlnet.tests import made
from tests.tiny import tiny_model, tiny_model_xl

FOLDER = Path(__file__).parents[1]
MODELS = ("tiny", "tiny-xl")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    tiny_model(folder / "checkpoints" / "tiny")
    tiny_model_xl(folder / "checkpoints" / "tiny-xl")
    for model, kind in (("tiny", "sd15"), ("tiny-xl", "xl")):
        unet = UNet2DConditionModel.from_pretrained(folder / "checkpoints" / model / "unet")
        net = made.control(unet, 4)
        home = folder / "controlnet" / kind
        made.save(made.lllyasviel(net), home / f"control_{kind}_canny.safetensors")
        half = {key.removeprefix("control_model."): value.half() for key, value in made.lllyasviel(net).items()}
        made.save(half, home / f"control_{kind}_depth_fp16.safetensors")
        made.save(net.state_dict(), home / f"{kind}_in_diffusers_layout.safetensors")
        net.save_pretrained(home / f"{kind}_folder")
        net.save_pretrained(home / f"{kind}_folder_fp16", variant="fp16")
        made.save(difference(net, unet), home / f"diff_control_{kind}_canny.safetensors")
    return folder


@pytest.fixture(scope="module")
def studio(models: Path) -> Iterator[Studio]:
    with Studio(FOLDER, models=models, model="tiny") as studio:
        yield studio


def difference(net: Any, unet: Any) -> dict[str, torch.Tensor]:
    trunk = dict(unet.named_parameters())
    changed = copy.deepcopy(net)
    with torch.no_grad():
        for name, value in changed.named_parameters():
            if name.split(".")[0] in nets.TRUNK:
                value.mul_(1.25).sub_(trunk[name])
    return made.lllyasviel(changed) | {"difference": torch.zeros(1)}


def unet_of(studio: Studio, model: str) -> Any:
    return studio.engine.store.load(studio.catalog.find(model)).pipeline.unet


def called(net: Any) -> list[torch.Tensor]:
    """What it answers to some call."""
    torch.manual_seed(0)
    is_xl = net.config.addition_embed_type is not None
    width = net.config.cross_attention_dim
    added = {"text_embeds": torch.randn(2, 12), "time_ids": torch.arange(12.0).reshape(2, 6)} if is_xl else None
    with torch.inference_mode():
        down, middle = net(
            torch.randn(2, 4, 8, 8),
            torch.tensor(400.5),
            encoder_hidden_states=torch.randn(2, 77, width),
            controlnet_cond=torch.rand(2, 3, 64, 64),
            added_cond_kwargs=added,
            return_dict=False,
        )
    return [*down, middle]


def guided(studio: Studio, *units: dict[str, Any], **values: Any) -> Drawn:
    image = studio.image(made.edges())
    return studio.draw(extensions={"controlnet": {"units": [{"image": image, **unit} for unit in units]}}, **values)


def refused(studio: Studio, field: str = "model", **values: Any) -> str:
    unit = {"model": values.pop("name"), **values.pop("unit", {})}
    with pytest.raises(InvalidRequest) as error:
        guided(studio, unit, **values)
    (problem,) = error.value.problems
    assert problem.field == f"extensions.controlnet.units.0.{field}"
    return problem.message


# --- layouts


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("stem", "exact"),
    [
        ("control_{}_canny.safetensors", True),
        ("control_{}_depth_fp16.safetensors", False),
        ("{}_in_diffusers_layout.safetensors", True),
        ("{}_folder", True),
        ("{}_folder_fp16", True),
    ],
)
def test_every_layout_is_the_same_model(studio: Studio, models: Path, model: str, stem: str, exact: bool) -> None:
    kind = "xl" if model.endswith("xl") else "sd15"
    unet = unet_of(studio, model)
    read = nets.read(models / "controlnet" / kind / stem.format(kind), unet.config)
    expected = called(made.control(UNet2DConditionModel.from_pretrained(models / "checkpoints" / model / "unet"), 4))
    assert expected[0].abs().max() > 0
    for a, b in zip(called(read.float()), expected, strict=True):
        torch.testing.assert_close(a, b, atol=0 if exact else 2e-2, rtol=0)


@pytest.mark.parametrize("model", MODELS)
def test_every_layout_draws(studio: Studio, model: str) -> None:
    """Of Stable Diffusion 1.x and of SDXL, from lllyasviel's single file on."""
    kind = "xl" if model.endswith("xl") else "sd15"
    plain = studio.draw(model=model).picture.tobytes()
    drawn = {
        stem: guided(studio, {"model": f"{stem}"}, model=model).picture.tobytes()
        for stem in (f"control_{kind}_canny", f"{kind}_in_diffusers_layout", f"{kind}_folder")
    }
    assert len({plain, *drawn.values()}) == 2
    assert plain not in drawn.values()
    assert studio.draw(model=model).picture.tobytes() == plain


def test_sdxl_is_diffusers_pipeline(studio: Studio, models: Path) -> None:
    from backend.diffusion import noise

    base = studio.engine.store.load(studio.catalog.find("tiny-xl"))
    seen: list[torch.Tensor] = []

    def report(progress: Progress) -> None:
        if progress.step and progress.stage == "sampling":
            seen.append(base.pipeline.scheduler.denoised)

    guided(
        studio,
        {"model": "control_xl_canny", "weight": 0.6},
        model="tiny-xl",
        report=report,
        sampler_name="Euler",
        scheduler="Uniform",
        negative_prompt="blue",
    )
    file = models / "controlnet" / "xl" / "control_xl_canny.safetensors"
    pipeline = StableDiffusionXLControlNetPipeline(
        **{name: part for name, part in base.pipeline.components.items() if name not in ("image_encoder",)},
        controlnet=studio.engine.store._beside[str(file)].module,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.plan("Euler", "Uniform")
    prompt, negative = base.embeddings.of(base.pipeline, PROMPT, "blue")
    with torch.inference_mode():
        raw = pipeline(
            image=torch.from_numpy(np.array(made.edges())).permute(2, 0, 1)[None] / 255,
            **prompt.arguments(1),
            **negative.arguments(1, "negative_"),
            latents=noise.draw(noise.generators([1]), (1, 4, 8, 8), torch.device("cpu")),
            num_inference_steps=3,
            guidance_scale=studio.request().cfg_scale,
            controlnet_conditioning_scale=0.6,
            width=64,
            height=64,
            output_type="latent",
            return_dict=False,
        )[0]
    torch.testing.assert_close(seen[-1], raw, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS)
def test_a_difference_is_completed_by_the_checkpoint(studio: Studio, models: Path, model: str) -> None:
    kind = "xl" if model.endswith("xl") else "sd15"
    unet = unet_of(studio, model)
    before = {name: value.clone() for name, value in unet.named_parameters()}
    expected = made.control(unet, 4)
    with torch.no_grad():
        for name, value in expected.named_parameters():
            if name.split(".")[0] in nets.TRUNK:
                value.mul_(1.25)
    read = nets.read(models / "controlnet" / kind / f"diff_control_{kind}_canny.safetensors", unet.config)
    for a, b in zip(called(nets.completed(read, unet)), called(expected), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    plain = studio.draw(model=model).picture.tobytes()
    assert guided(studio, {"model": f"diff_control_{kind}_canny"}, model=model).picture.tobytes() != plain
    assert all(torch.equal(value, before[name]) for name, value in unet.named_parameters())


def test_a_difference_to_an_inpainting_checkpoint_takes_the_picture_channels() -> None:
    torch.manual_seed(0)
    nine, four = torch.nn.Conv2d(9, 4, 3), torch.nn.Conv2d(4, 4, 3)
    unet, net = torch.nn.ModuleDict({"conv_in": nine}), torch.nn.ModuleDict({"conv_in": four})
    whole = nets.completed(net, unet)
    torch.testing.assert_close(whole["conv_in"].weight, four.weight + nine.weight[:, :4])


def test_a_difference_is_to_a_checkpoint_that_is_quantised() -> None:
    net, unet = (torch.nn.ModuleDict({"time_embedding": torch.nn.Linear(32, 4)}) for _ in range(2))
    kind = GGMLQuantizationType.Q8_0
    weight = blocks(quantize(unet["time_embedding"].weight.detach().numpy(), kind), kind)
    small = Packed(unet["time_embedding"], weight, torch.float32)
    small.bias = unet["time_embedding"].bias
    whole = nets.completed(net, torch.nn.ModuleDict({"time_embedding": small}))["time_embedding"]
    assert torch.equal(whole.weight, net["time_embedding"].weight + weight.whole(torch.float32))
    assert torch.equal(whole.bias, net["time_embedding"].bias + small.bias)


def test_a_difference_is_to_the_checkpoint_without_a_lora() -> None:
    torch.manual_seed(0)
    inner, low, net = torch.nn.Conv2d(4, 4, 3), torch.nn.Conv2d(4, 1, 3), torch.nn.Conv2d(4, 4, 3)
    adapted = torch.nn.ModuleDict({"base_layer": inner, "lora_A": torch.nn.ModuleDict({"cat": low})})
    whole = nets.completed(torch.nn.ModuleDict({"conv_in": net}), torch.nn.ModuleDict({"conv_in": adapted}))
    torch.testing.assert_close(whole["conv_in"].weight, net.weight + inner.weight)


def test_shuffle_is_pooled(studio: Studio, models: Path, tmp_path: Path) -> None:
    weights = load_file(models / "controlnet" / "sd15" / "control_sd15_canny.safetensors")
    read = nets.read(
        made.save(weights, tmp_path / "control_v11e_sd15_shuffle.safetensors"), unet_of(studio, "tiny").config
    )
    assert [tuple(one.shape[-2:]) for one in called(read)] == [(1, 1)] * len(called(read))


# --- union models and adapters


@pytest.fixture(scope="module")
def with_union(studio: Studio, models: Path) -> str:
    net = made.union(unet_of(studio, "tiny-xl"))
    net.save_pretrained(models / "controlnet" / "union_folder")
    made.save(net.state_dict(), models / "controlnet" / "union_file.safetensors")
    return "union_folder"


def test_a_union_model_is_told_what_the_map_shows(studio: Studio, with_union: str) -> None:
    def drawn(name: str = with_union, **unit: Any) -> bytes:
        return guided(studio, {"model": name, **unit}, model="tiny-xl").picture.tobytes()

    edges, depth = drawn(union_control_type="Hard Edge"), drawn(union_control_type="Depth")
    assert edges != depth != studio.draw(model="tiny-xl").picture.tobytes()
    assert drawn("union_file", union_control_type="Depth") == depth


def test_the_preprocessor_tells_it_too(studio: Studio, with_union: str) -> None:
    from extensions.controlnet import Unit
    from extensions.controlnet.preprocessors import TABLE
    from extensions.controlnet.strength import union_type

    canny, told = Unit(module="canny"), Unit(module="canny", union_control_type="Depth")
    assert (union_type(canny, 8), union_type(told, 8)) == (3, 1)
    expected = {"openpose": 0, "depth": 1, "hed": 2, "canny": 3, "normal_bae": 4, "segmentation": 5}
    expected |= {"tile_resample": 6, "inpaint_only": 7}
    assert {name: union_type(Unit(module=name), 8) for name in expected if name in TABLE} == expected
    said = refused(studio, "union_control_type", name=with_union, model="tiny-xl")
    assert said == "this model takes maps of several types: say which one this map is of"


def test_a_union_model_of_fewer_types_refuses_the_others(studio: Studio, models: Path) -> None:
    """The first ones for SDXL know neither tile nor inpaint."""
    made.union(unet_of(studio, "tiny-xl"), 6).save_pretrained(models / "controlnet" / "first_union")
    tile = {"union_control_type": "Tile"}
    said = refused(studio, "union_control_type", name="first_union", unit=tile, model="tiny-xl")
    assert said.startswith("this model knows OpenPose, Depth, ")
    assert said.endswith("Segmentation, not Tile")


def as_its_authors_write_it(adapter: Any) -> dict[str, torch.Tensor]:
    weights = {}
    for key, value in adapter.state_dict().items():
        key = key.removeprefix("adapter.")
        parts = key.split(".")
        if parts[0] == "body" and adapter.config.adapter_type == "light_adapter":
            key = key.replace(".resnets.", ".body.")
        elif parts[0] == "body":
            first = 2 * int(parts[1])
            key = (
                f"body.{first + int(parts[3])}.{'.'.join(parts[4:])}"
                if parts[2] == "resnets"
                else f"body.{first}.{parts[2]}.{parts[3]}"
            )
        weights[key] = value
    return weights


@pytest.mark.parametrize("kind", ["full_adapter", "light_adapter", "full_adapter_xl"])
@pytest.mark.parametrize("shown", [1, 3])
def test_an_adapter_of_its_authors_layout(tmp_path: Path, kind: str, shown: int) -> None:
    net = made.adapter((8, 16, 16, 16), kind, shown)
    read = nets.read(made.save(as_its_authors_write_it(net), tmp_path / "sketch.safetensors"), {})
    assert dict(read.config)["adapter_type"] == kind
    picture = torch.rand(1, shown, 64, 64)
    for a, b in zip(read(picture), net(picture), strict=True):
        torch.testing.assert_close(a, b)
    again = nets.read(made.save(net.state_dict(), tmp_path / "again.safetensors"), {})
    for a, b in zip(again(picture), net(picture), strict=True):
        torch.testing.assert_close(a, b)


def test_adapters_draw_at_any_size(studio: Studio, models: Path) -> None:
    made.sd15(models / "checkpoints" / "sd15")
    made.adapter((8, 8, 16, 16)).save_pretrained(models / "controlnet" / "t2i")
    made.adapter((8, 8, 16), "light_adapter", 1).save_pretrained(models / "controlnet" / "t2i_light")
    made.adapter((8, 16), "full_adapter_xl").save_pretrained(models / "controlnet" / "t2i_xl")
    for width in (64, 72):
        size: dict[str, Any] = {"width": width, "model": "sd15"}
        plain = studio.draw(**size).picture.tobytes()
        both = guided(studio, {"model": "t2i"}, {"model": "t2i_light"}, **size).picture.tobytes()
        assert plain != guided(studio, {"model": "t2i"}, **size).picture.tobytes() != both
        xl = guided(studio, {"model": "t2i_xl"}, width=width, model="tiny-xl").picture.tobytes()
        assert xl != studio.draw(width=width, model="tiny-xl").picture.tobytes()


def test_an_adapter_for_another_unet_is_refused(studio: Studio, models: Path) -> None:
    made.adapter((8, 16), "full_adapter_xl").save_pretrained(models / "controlnet" / "t2i_xl")
    said = refused(studio, name="t2i_xl")
    assert said == "t2i_xl is for Stable Diffusion XL, the model tiny is Stable Diffusion with text of width 16"
    made.adapter((8, 8)).save_pretrained(models / "controlnet" / "t2i_narrow")
    said = refused(studio, name="t2i_narrow")
    assert said == "t2i_narrow is for a UNet of 8, 8 channels, that of tiny has 8, 16"


# --- refused


def test_a_model_of_another_family_is_refused_by_both_names(studio: Studio) -> None:
    sd, xl = "Stable Diffusion with text of width 16", "Stable Diffusion XL with text of width 40"
    assert refused(studio, name="xl_folder") == f"xl_folder is for {xl}, the model tiny is {sd}"
    said = refused(studio, name="control_sd15_canny", model="tiny-xl")
    assert said == f"control_sd15_canny is for {sd}, the model tiny-xl is {xl}"
    assert refused(studio, name="control_xl_canny") == f"control_xl_canny is for {xl}, the model tiny is {sd}"


def test_a_model_that_was_refused_is_the_same_for_its_own_checkpoint(studio: Studio, models: Path) -> None:
    """A file does not tell how many heads its attention has: those of a checkpoint it is not for are forgotten."""
    other = shutil.copytree(models / "checkpoints" / "tiny-xl", models / "checkpoints" / "xl-of-other-heads")
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(config | {"attention_head_dim": 4}))
    before = guided(studio, {"model": "control_sd15_canny"}).picture.tobytes()
    studio.engine.store.free()
    refused(studio, name="control_sd15_canny", model="xl-of-other-heads")
    assert guided(studio, {"model": "control_sd15_canny"}).picture.tobytes() == before


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"cross_attention_dim": 768}, "Stable Diffusion 1.x"),
        ({"cross_attention_dim": 1024, "addition_embed_type": None}, "Stable Diffusion 2.x"),
        ({"cross_attention_dim": 2048, "addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        (
            {"cross_attention_dim": 1280, "addition_embed_type": "text_time"},
            "Stable Diffusion XL with text of width 1280",
        ),
    ],
)
def test_families_are_called_as_people_call_them(config: dict[str, Any], name: str) -> None:
    assert nets.family(config) == name


def test_after_a_refusal_the_next_picture_is_drawn_and_nothing_is_read_anew(studio: Studio) -> None:
    plain = studio.draw().picture.tobytes()
    unet = unet_of(studio, "tiny")
    refused(studio, name="xl_folder")
    assert unet_of(studio, "tiny") is unet
    assert studio.draw().picture.tobytes() == plain


def test_a_file_that_is_cut_short_is_refused_in_a_sentence(studio: Studio, models: Path) -> None:
    whole = (models / "controlnet" / "sd15" / "control_sd15_canny.safetensors").read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("headless", whole[:20]), ("nothing", b"")):
        (models / "controlnet" / f"{name}.safetensors").write_bytes(data)
        said = refused(studio, name=name)
        assert said.startswith(f"{name}.safetensors is damaged or cut short (")
        assert "\n" not in said
    folder = models / "controlnet" / "cut_folder"
    folder.mkdir()
    source = models / "controlnet" / "sd15" / "sd15_folder"
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = source / "diffusion_pytorch_model.safetensors"
    (folder / weights.name).write_bytes(weights.read_bytes()[:-1000])
    assert refused(studio, name="cut_folder").startswith("cut_folder ")


def test_what_cannot_be_run_is_said(studio: Studio, models: Path) -> None:
    home = models / "controlnet"
    save_file(
        {"lora_controlnet": torch.zeros(1), "input_blocks.0.0.up": torch.zeros(1)}, home / "control-lora.safetensors"
    )
    save_file({"image_proj.proj.weight": torch.zeros(2, 2)}, home / "ip-adapter.safetensors")
    flux = home / "flux_union"
    flux.mkdir()
    (flux / "config.json").write_text(json.dumps({"_class_name": "FluxControlNetModel"}))
    save_file({"a": torch.zeros(1)}, flux / "diffusion_pytorch_model.safetensors")
    assert refused(studio, name="control-lora").startswith(
        "control-lora.safetensors is a Control-LoRA, which cannot be"
    )
    assert refused(studio, name="ip-adapter").startswith("ip-adapter.safetensors is no ControlNet of Stable Diffusion")
    assert refused(studio, name="flux_union").startswith("flux_union is for Flux, the model ")
    (flux / "config.json").write_text(json.dumps({"_class_name": "SparseControlNetModel"}))
    assert refused(studio, name="flux_union").startswith("flux_union is a SparseControlNetModel; what can be run is ")


def test_missing_weights_are_named(studio: Studio, models: Path) -> None:
    weights = load_file(models / "controlnet" / "sd15" / "control_sd15_canny.safetensors")
    del weights["control_model.zero_convs.1.0.weight"]
    made.save(weights, models / "controlnet" / "lacking.safetensors")
    assert "controlnet_down_blocks.1.weight" in refused(studio, name="lacking")


def test_a_model_is_read_again_when_its_file_has_changed(studio: Studio, models: Path) -> None:
    path = models / "controlnet" / "replaced.safetensors"
    weights = load_file(models / "controlnet" / "sd15" / "control_sd15_canny.safetensors")
    made.save(weights, path)
    first = guided(studio, {"model": "replaced"}).picture.tobytes()
    other = {key: value * 1.5 if "zero_convs" in key else value for key, value in weights.items()}
    path.write_bytes(b"")
    assert "damaged or cut short" in refused(studio, name="replaced")
    made.save(other, path)
    assert guided(studio, {"model": "replaced"}).picture.tobytes() != first


# --- the shelf


@pytest.fixture
def stand(tmp_path: Path) -> Path:
    for name in ("control_v11p_sd15_canny", "control_sd15_canny_small", "sub/Depth", "t2i"):
        made.save({name: torch.zeros(3)}, tmp_path / "controlnet" / f"{name}.safetensors")
    folder = tmp_path / "starter" / "controlnet" / "canny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, folder / "diffusion_pytorch_model.safetensors")
    return tmp_path


def test_names_are_a1111s(stand: Path) -> None:
    names = [net.name for net in shelf.nets(Roots(stand))]
    assert [name[: name.index(" [")] for name in names] == [
        *("control_sd15_canny_small", "control_v11p_sd15_canny", "Depth", "t2i", "starter_canny"),
    ]
    assert names[0].endswith(" [e3b0c442]")  # of nothing: these files are shorter than where A1111 looks
    large = stand / "controlnet" / "large.safetensors"
    large.write_bytes(b"\0" * 0x100000 + b"a" * 0x20000)
    import hashlib

    digest = hashlib.sha256(b"a" * 0x10000).hexdigest()[:8]
    assert shelf.find(Roots(stand), "large").name == f"large [{digest}]"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("control_v11p_sd15_canny [e3b0c442]", "control_v11p_sd15_canny"),
        ("control_v11p_sd15_canny [d14c016b]", "control_v11p_sd15_canny"),
        ("Depth [e3b0c442]", "Depth"),  # the name decides where several have the same digits
        ("starter_canny [e3b0c442]", "starter_canny"),
        ("CONTROL_V11P_sd15_canny", "control_v11p_sd15_canny"),
        ("sd15_canny", "control_v11p_sd15_canny"),
        ("canny", "control_v11p_sd15_canny"),
        ("depth", "Depth"),
        ("starter_canny", "starter_canny"),
        ("starter", "starter_canny"),
    ],
)
def test_a_model_is_found_as_upstream_finds_it(stand: Path, wanted: str, found: str) -> None:
    assert shelf.find(Roots(stand), wanted).stem == found


def test_for_the_starter_model_its_own_come_first(stand: Path) -> None:
    assert shelf.find(Roots(stand), "canny", "starter").stem == "starter_canny"
    assert shelf.find(Roots(stand), "depth", "starter").stem == "Depth"


def test_a_missing_model_is_told_with_the_nearest(stand: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(
        ValueError, match=r"^'control_v11p_sd15_cany' is not a control model here; near are control_v11p"
    ):
        shelf.find(Roots(stand), "control_v11p_sd15_cany")
    (stand / "controlnet" / "control_sd15_openpose.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^control_sd15_openpose\.pth is a pickle, .* convert it to \.safetensors$"):
        shelf.find(Roots(stand), "openpose")
    assert "control_sd15_openpose" not in str(shelf.nets(Roots(stand)))
    with pytest.raises(ValueError, match="there is no control model here: put"):
        shelf.find(Roots(tmp_path_factory.mktemp("empty")), "canny")


def test_the_page_can_choose_from_those_that_are_there(studio: Studio) -> None:
    offered = studio.registry.choices()["controlnet"]["nets"]
    assert offered[0] == ("None", "None")
    assert any(value.startswith("control_sd15_canny [") and value == label for value, label in offered)
