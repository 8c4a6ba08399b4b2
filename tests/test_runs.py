"""Models that are recognised and not run: what the list, the page and the engine say of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from backend import services
from backend.catalog import Catalog, runs
from backend.diffusion.families import FAMILIES
from backend.diffusion.models import ModelStore
from backend.errors import InvalidRequest, ModelBroken
from backend.library import id_of
from backend.settings import Settings
from tests.web import visit

FOLDERS = {
    "KandinskyV22Pipeline": ("kandinsky", "it draws from embeddings, which another model, the prior, makes"),
    "KandinskyV22CombinedPipeline": ("kandinsky", "the prior"),
    "KandinskyV22PriorPipeline": ("kandinsky", "it makes embeddings for another model, and no pictures"),
    "Kandinsky3Pipeline": ("kandinsky", "are of kinds that no other model has"),
    "Kandinsky5T2VPipeline": ("kandinsky", "it makes films"),
    "StableUnCLIPImg2ImgPipeline": ("sd2", "it draws from the embedding of a picture"),
    "UnCLIPPipeline": ("unclip", "it draws from the embedding of a picture"),
    "FluxControlPipeline": ("flux", "use Flux dev with a ControlNet"),
    "StableCascadeCombinedPipeline": ("cascade", "it is three models"),
    "AuraFlowPipeline": ("auraflow", "there is no pipeline for it here"),
}
UNET = "model.diffusion_model.input_blocks.0.0.weight"
CROSS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FILES: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "unclip": (
        {UNET: (1, 4, 3, 3), CROSS: (1, 1024), "noise_augmentor.data_mean": (1, 768)},
        r"is SD 2.x unclip, which is recognised, but not run: it draws from the embedding",
    ),
    "kandinsky2": (
        {"conv_in.weight": (1, 4, 3, 3), "encoder_hid_proj.image_embeds.weight": (1, 1)},
        "is Kandinsky, which is recognised, but not run: it draws from embeddings",
    ),
    "kandinsky3": (
        {"conv_in.weight": (1, 4, 3, 3), "add_time_condition.attention.to_q.weight": (1, 1)},
        "is Kandinsky 3, which is recognised, but not run: its UNet",
    ),
    "control": (
        {"double_blocks.0.img_attn.qkv.weight": (1, 1), "img_in.weight": (1, 128)},
        "is Flux.1 control, .*use Flux dev with a ControlNet",
    ),
    "depth": ({UNET: (1, 5, 3, 3), CROSS: (1, 1024)}, "is SD 2.x depth, .*it is shown a depth map"),
    "edit": ({UNET: (1, 8, 3, 3), CROSS: (1, 2048)}, "is SDXL, .*of models that edit, those of SD 1.x and Flux"),
    "flux2": (
        {"double_stream_modulation_img.lin.weight": (1, 1), "guidance_in.in_layer.weight": (1, 1)},
        "is Flux.2 dev, .*only a diffusers folder of it is",
    ),
    "sprint": (
        {"blocks.0.mlp.inverted_conv.conv.weight": (1, 1), "cfg_embedder.mlp.0.weight": (1, 1)},
        "is Sana sprint, .*there is no pipeline for it here",
    ),
    "qwen": (
        {"transformer_blocks.0.img_mod.1.weight": (1, 1), "txt_in.text_norm.weight": (1,)},
        r"is Qwen-Image 2\.1, .*there is no pipeline for it here",
    ),
    "playground": ({UNET: (1, 4, 3, 3), CROSS: (1, 2048), "edm_mean": (4,)}, "its noise schedule, EDM"),
    "film": ({"patchify_proj.weight": (1, 1)}, "is LTX-Video, .*it makes films"),
}


def test_the_catalogue_knows_what_can_be_run() -> None:
    assert set(FAMILIES) == runs.PIPELINES


def folder(checkpoints: Path, pipeline: str) -> None:
    path = checkpoints / pipeline
    (path / "unet").mkdir(parents=True)
    index: dict[str, Any] = {"_class_name": pipeline, "unet": ["diffusers", "UNet2DConditionModel"]}
    (path / "model_index.json").write_text(json.dumps(index))
    width = 1024 if "UnCLIP" in pipeline else 768
    (path / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": width, "in_channels": 4}))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> services.Services:
    place = tmp_path_factory.mktemp("recognised")
    checkpoints = place / "models" / "checkpoints"
    for pipeline in FOLDERS:
        folder(checkpoints, pipeline)
    for name, (shapes, _) in FILES.items():
        tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
        save_file(tensors, checkpoints / f"{name}.safetensors")
    where = {"data_dir": place / "data", "models_dir": place / "models", "outputs_dir": place / "outputs"}
    return services.build(Settings(**where, extensions_dir=place / "none"))


@pytest.mark.parametrize("pipeline", FOLDERS)
def test_a_folder_is_recognised_and_says_why_it_is_not_run(built: services.Services, pipeline: str) -> None:
    family, words = FOLDERS[pipeline]
    model = built.catalog.find(pipeline)
    assert model.family == family
    assert model.problem
    assert f"asks for {pipeline!r}, which is recognised, but not run: " in model.problem
    assert words in model.problem


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_recognised_and_says_why_it_is_not_run(built: services.Services, name: str) -> None:
    with pytest.raises(ModelBroken, match=FILES[name][1]):
        ModelStore(torch.device("cpu")).load(built.catalog.find(name))


def test_list_page_and_job_say_the_same(built: services.Services) -> None:
    model = built.catalog.find("KandinskyV22Pipeline")
    with visit(built) as browser:
        asked = {"problems": True, "q": "KandinskyV22Pipeline"}
        listed = browser.get("/api/models/search", params=asked).json()["models"]
        details = browser.get(f"/api/models/{id_of(model)}").json()
        refused = browser.post("/api/jobs", json={"model": model.name})
    assert [one["problem"] for one in listed] == [details["problem"]] == [model.problem]
    assert refused.status_code == 422
    assert model.problem
    assert model.problem in refused.json()["problems"][0]["message"]
    with pytest.raises(InvalidRequest, match=r"cannot be used: model_index.json asks for 'UnCLIPPipeline'"):
        built.complete({"model": "UnCLIPPipeline"})


def test_none_of_them_is_taken_where_none_is_named(tmp_path: Path) -> None:
    folder(tmp_path / "checkpoints", "AuraFlowPipeline")
    folder(tmp_path / "checkpoints", "StableDiffusionPipeline")
    assert Catalog(tmp_path).find().name == "StableDiffusionPipeline"
