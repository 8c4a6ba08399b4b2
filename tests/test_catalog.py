"""The catalogue: what there is, what it is called, and what stays known."""

import hashlib
import json
import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backend import weights
from backend.catalog import Catalog, Roots, fingerprint, hashing
from backend.catalog.catalog import QUICK
from backend.catalog.watch import Watch
from backend.errors import NotFound
from tests.waiting import wait_for

SD1 = {
    "model.diffusion_model.input_blocks.0.0.weight": (2, 4, 3, 3),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (2,),
    "first_stage_model.decoder.conv_in.weight": (2, 4, 3, 3),
}
LORA = {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (1, 768)}
VAE = {"decoder.conv_in.weight": (2, 4, 3, 3), "encoder.conv_in.weight": (2, 3, 3, 3)}
FLUX = {"double_blocks.0.img_attn.qkv.weight": (2, 2), "img_in.weight": (2, 64)}


def made(path: Path, shapes: Mapping[str, tuple[int, ...]], fill: int = 0, **metadata: str) -> Path:
    """A model file of zeros, or of another byte."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for key, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        entries[key] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes([fill]) * at)
    return path


def pipeline(folder: Path, name: str = "StableDiffusionPipeline") -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return folder


def test_models_of_each_kind_and_what_they_are(tmp_path: Path) -> None:
    made(tmp_path / "checkpoints/anime/one.safetensors", SD1)
    made(tmp_path / "diffusion_models/two.safetensors", FLUX)
    made(tmp_path / "loras/cat.safetensors", LORA, ss_output_name="kitty")
    made(tmp_path / "vae/soft.safetensors", VAE)
    (tmp_path / "upscalers").mkdir()
    (tmp_path / "upscalers/4x.pth").write_bytes(b"x")
    catalog = Catalog(tmp_path)
    assert [(m.name, m.kind, m.family, m.problem) for m in catalog.models()] == [
        ("one", "checkpoint", "sd1", None),
        ("two", "diffusion_model", "flux", None),
    ]
    assert catalog.files("lora")[0].metadata == {"ss_output_name": "kitty"}
    assert catalog.files("vae")[0].channels == 4
    assert [(m.name, m.problem) for m in catalog.files("upscaler")] == [("4x", None)]


def test_a_lora_among_the_checkpoints_is_told(tmp_path: Path) -> None:
    made(tmp_path / "checkpoints/cat.safetensors", LORA)
    problem = Catalog(tmp_path).models()[0].problem
    assert problem == "is a LoRA, not a checkpoint: it belongs into the folder loras"


def test_a_vae_beside_the_checkpoints_is_a_vae(tmp_path: Path) -> None:
    made(tmp_path / "Stable-diffusion/one.vae.safetensors", VAE)
    (tmp_path / "Stable-diffusion/two.vae.pt").write_bytes(b"x")
    assert [model.name for model in Catalog(tmp_path).files("vae")] == ["one.vae", "two.vae"]
    assert not Catalog(tmp_path).models()


def test_a_pickle_is_told_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/old.ckpt").write_bytes(b"\x80\x02cos\nsystem\n")
    monkeypatch.setattr(weights, "read", lambda path: pytest.fail("it was opened"))
    (model,) = Catalog(tmp_path).models()
    assert "pickle" in str(model.problem)


def test_whatever_is_wrong_with_a_file_it_is_listed_and_the_others_too(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    made(folder / "good.safetensors", SD1)
    whole = made(folder / "cut.safetensors", SD1).read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-1])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "huge.safetensors").write_bytes(struct.pack("<Q", 100 * 2**30))
    (folder / "deep.safetensors").write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000)
    (folder / "nowhere.safetensors").symlink_to(tmp_path / "gone.safetensors")
    (folder / "torn").mkdir()
    (folder / "torn/model_index.json").write_text("[" * 100_000)
    (folder / "other.safetensors").symlink_to(folder / "good.safetensors")
    (folder / "loop").symlink_to(folder)
    made(folder / "strange.safetensors", {"frobnicator.weight": (1,)})
    with open(os.fsencode(str(folder)) + b"/\xff\xfe.safetensors", "wb") as file:
        file.write(b"x")
    made(folder / '"<b>\n&.safetensors', SD1)
    found = {model.name: model.problem for model in Catalog(tmp_path).models()}
    fine = {"good", "other", '"<b>\n&'}
    assert {name for name, problem in found.items() if not problem} == fine
    assert set(found) - fine == {"cut", "empty", "huge", "deep", "nowhere", "torn", "strange", "\ufffd\ufffd"}
    assert "cut short" in str(found["cut"])
    assert found["nowhere"] == "is a link that leads nowhere"
    assert "double_blocks" in str(found["strange"])
    json.dumps([*found]).encode()


def test_what_is_no_file_and_no_folder_keeps_nobody_waiting(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    made(folder / "good.safetensors", SD1)
    (folder / "good.json").symlink_to("gone.json")
    (folder / "self.safetensors").symlink_to("self.safetensors")
    (folder / "round").symlink_to("round")
    (tmp_path / "round").symlink_to("round")
    made(tmp_path / "Lora/cat.safetensors", LORA)
    os.mkfifo(folder / "pipe.safetensors")
    catalog = Catalog(tmp_path)
    found = {model.name: model.problem for model in catalog.models()}
    assert found.keys() == {"good", "self", "pipe"}
    assert not found["good"]
    assert "symbolic links" in str(found["self"])
    assert found["pipe"] == "is no file"
    assert [model.name for model in catalog.files("lora")] == ["cat"]


def test_folders_without_end_are_left_at_some_depth(tmp_path: Path) -> None:
    made(tmp_path / "loras" / "/".join("a" * 50) / "cat.safetensors", LORA)
    made(tmp_path / "loras" / "/".join("a" * 60) / "dog.safetensors", LORA)
    assert [model.name for model in Catalog(tmp_path).files("lora")] == ["cat"]


def test_a_folder_without_rights_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "loras/one.safetensors", LORA)
    made(tmp_path / "loras/secret/two.safetensors", LORA)
    listed = os.scandir

    def refused(path: Any) -> Any:  # tests may run as somebody who may do everything
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert [(m.name, m.problem) for m in Catalog(tmp_path).files("lora")] == [
        ("one", None),
        ("secret", "cannot be read: Permission denied"),
    ]


def test_a_file_that_goes_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "loras/one.safetensors", LORA)
    read = weights.read

    def gone(path: Path) -> weights.Header:
        path.unlink()
        return read(path)

    monkeypatch.setattr(weights, "read", gone)
    assert Catalog(tmp_path).files("lora")[0].problem == "is not there any more"
    made(path, LORA)
    monkeypatch.setattr(weights, "read", read)
    assert not Catalog(tmp_path).files("lora")[0].problem


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "loras/one.safetensors", LORA)

    def refused(path: Path) -> weights.Header:
        raise weights.BrokenFile("cannot be read: Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "read", refused)
        assert Catalog(Roots(tmp_path, index=tmp_path / "models.db")).files("lora")[0].problem
    assert not Catalog(Roots(tmp_path, index=tmp_path / "models.db")).files("lora")[0].problem


# --- names


def test_all_names_that_a1111_takes(tmp_path: Path) -> None:
    path = made(tmp_path / "checkpoints/anime/one v2.safetensors", SD1)
    pipeline(tmp_path / "checkpoints/two")
    catalog = Catalog(tmp_path)
    sha256 = catalog.fingerprint(path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with open(path, "rb") as file:
        file.seek(0x100000)
        old = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    for name in (
        *("one v2", "one v2.safetensors", "anime/one v2.safetensors", "anime/one v2", "anime\\one v2", "anime_one v2"),
        *(f"anime/one v2.safetensors [{sha256[:10]}]", f"gone.safetensors [{sha256[:10]}]", "one v2 [0123456789]"),
        *(sha256, sha256[:10], old, "ONE V2"),
    ):
        assert catalog.find(name).path == path, name
    assert catalog.find("two").path.name == "two"
    assert catalog.models()[0].a1111_title == f"anime/one v2.safetensors [{sha256[:10]}]"


def test_an_unknown_name_is_answered_with_what_is_near(tmp_path: Path) -> None:
    for name in ("dreamlike", "realistic-vision", "anything"):
        made(tmp_path / f"checkpoints/{name}.safetensors", SD1)
    with pytest.raises(NotFound, match="'dreamlke' is not a model here; near to it: dreamlike"):
        Catalog(tmp_path).find("dreamlke")
    with pytest.raises(NotFound, match="vision"):
        Catalog(tmp_path).find("vision")
    with pytest.raises(NotFound, match=r"there is no vae 'x'; put it into .*vae"):
        Catalog(tmp_path).find_file("vae", "x")


def test_names_that_differ_in_case_only_are_two(tmp_path: Path) -> None:
    if (made(tmp_path / "checkpoints/Cat.safetensors", SD1).parent / "cat.safetensors").exists():
        pytest.skip("this disk takes them for the same")
    made(tmp_path / "checkpoints/cat.safetensors", SD1, fill=1)
    catalog = Catalog(tmp_path)
    for name in ("cat", "Cat", "cat.safetensors", "Cat.safetensors"):
        assert catalog.find(name).path.stem == name[:3]
    assert catalog.find("CAT")


def test_those_of_one_name_can_be_told_apart(tmp_path: Path) -> None:
    own, other = tmp_path / "models", tmp_path / "disk"
    made(own / "checkpoints/one.safetensors", SD1)
    made(own / "checkpoints/sub/one.safetensors", SD1)
    made(own / "checkpoints/sub/one.gguf", SD1)
    made(other / "checkpoints/one.safetensors", SD1)
    made(own / "vae/one.safetensors", VAE)
    catalog = Catalog(Roots(own, (other,)))
    assert sorted(model.name for model in catalog.models()) == [
        "disk/one",
        "one",
        "sub/one",
        "sub/one.gguf",
    ]
    assert catalog.find("one").path == own / "checkpoints/one.safetensors"
    assert catalog.find("disk/one").path == other / "checkpoints/one.safetensors"
    assert catalog.find_file("vae", "one").path == own / "vae/one.safetensors"


def test_a_root_without_folders_of_kinds_holds_what_its_files_say(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    made(disk / "stuff/cat.safetensors", LORA)
    made(disk / "one.safetensors", SD1)
    made(disk / "loras/sorted.safetensors", LORA)
    (disk / "readme.bin").write_bytes(b"x")
    catalog = Catalog(Roots(tmp_path / "models", (disk,)))
    assert [model.name for model in catalog.files("lora")] == ["cat", "sorted"]
    assert [model.name for model in catalog.models()] == ["one"]
    assert len(catalog.all()) == 3


# --- folders


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
VELOCITY = {"prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    ("name", "width", "channels", "scheduler", "told"),
    [
        ("StableDiffusionPipeline", 768, 4, {"x": 1}, ("sd1", "", "epsilon")),
        ("StableDiffusionPipeline", 1024, 4, VELOCITY, ("sd2", "", "v_prediction")),
        ("StableDiffusionInpaintPipeline", 768, 9, {"x": 1}, ("sd1", "inpaint", "epsilon")),
        ("StableDiffusionInstructPix2PixPipeline", 768, 8, {"x": 1}, ("sd1", "edit", "epsilon")),
        ("StableDiffusionXLPipeline", 2048, 4, {"x": 1}, ("sdxl", "", "epsilon")),
        ("StableDiffusionInpaintPipeline", 768, 4, {"x": 1}, ("sd1", "", "epsilon")),
        ("StableDiffusionXLImg2ImgPipeline", 1280, 4, {"x": 1}, ("sdxl-refiner", "", "epsilon")),
        ("StableDiffusionXLImg2ImgPipeline", 2048, 4, {"x": 1}, ("sdxl", "", "epsilon")),
        ("StableDiffusion3Pipeline", None, 16, FLOW, ("sd3", "", "flow_prediction")),
        ("FluxFillPipeline", None, 384, FLOW, ("flux", "inpaint", "flow_prediction")),
        ("Flux2Pipeline", None, 128, FLOW, ("flux2", "", "flow_prediction")),
        ("QwenImageEditPipeline", None, 64, FLOW, ("qwen-image", "edit", "flow_prediction")),
        ("CosmosTextToWorldPipeline", None, 16, {}, ("cosmos", "", "")),
    ],
)
def test_what_a_folder_is(
    tmp_path: Path, name: str, width: int | None, channels: int, scheduler: dict[str, Any], told: tuple[str, ...]
) -> None:
    folder = pipeline(tmp_path / "checkpoints/mine", name)
    denoiser = {"cross_attention_dim": width, "in_channels": channels}
    for file, config in (("unet/config.json", denoiser), ("scheduler/scheduler_config.json", scheduler)):
        (folder / file).parent.mkdir()
        (folder / file).write_text(json.dumps(config))
    (model,) = Catalog(tmp_path).models()
    assert (model.family, model.variant, model.prediction) == told


def test_a_folder_is_the_edition_that_it_is_by_any_pipeline(tmp_path: Path) -> None:
    for name in ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxKontextInpaintPipeline"):
        pipeline(tmp_path / "checkpoints" / name, name)
    told = {model.name: (model.edition, model.variant, model.problem) for model in Catalog(tmp_path).models()}
    assert told.pop("FluxKontextInpaintPipeline") == ("kontext", "edit", None)
    assert set(told.values()) == {("schnell", "", None)}


def test_parts_in_folders_of_their_own(tmp_path: Path) -> None:
    for kind, name in (
        ("vae", "AutoencoderKL"),
        ("controlnet", "ControlNetModel"),
        ("diffusers", "UNet2DConditionModel"),
    ):
        made(tmp_path / kind / "sub/mine/diffusion_pytorch_model.safetensors", VAE)
        config = {"_class_name": name, "cross_attention_dim": 2048}
        (tmp_path / kind / "sub/mine/config.json").write_text(json.dumps(config))
    catalog = Catalog(tmp_path)
    assert [model.name for model in catalog.files("vae")] == ["mine"]
    assert [(model.name, model.family) for model in catalog.files("controlnet")] == [("mine", "sdxl")]
    assert [model.kind for model in catalog.models()] == ["diffusion_model"]


# --- sidecars


def test_what_is_said_beside_a_file(tmp_path: Path) -> None:
    path = made(tmp_path / "loras/cat.safetensors", LORA)
    claimed = "ab" * 32
    (tmp_path / "loras/cat.json").write_text(json.dumps({"activation text": "kitty", "notes": "soft", "vae": "x.pt"}))
    (tmp_path / "loras/cat.civitai.info").write_text(
        json.dumps(
            {"trainedWords": ["a", "b"], "description": "<p>A cat</p>", "files": [{"hashes": {"SHA256": claimed}}]}
        )
    )
    (tmp_path / "loras/cat.preview.png").write_bytes(b"x")
    (model,) = Catalog(tmp_path).files("lora")
    assert (model.trigger, model.notes, model.vae) == ("kitty", "soft", "x.pt")
    assert (model.description, model.claimed) == ("A cat", claimed)
    assert model.preview == path.with_name("cat.preview.png")


@pytest.mark.parametrize(
    "card",
    [
        r'{"title": "a cat \ud83d", "examples": ["half \ud83d"]}',  # cut through an emoji
        '{"defaults": {"cfg_scale": NaN, "steps": 1e999}}',
        '{"examples": 5, "title": ["a"], "defaults": 1}',
        '\ufeff{"title": "a cat"}',
        "[" * 100_000,
    ],
)
def test_whatever_a_card_says_all_models_are_listed(tmp_path: Path, card: str) -> None:
    made(tmp_path / "checkpoints/one.safetensors", SD1)
    pipeline(tmp_path / "checkpoints/two")
    part = made(tmp_path / "checkpoints/three/model.safetensors", VAE).with_name("config.json")
    part.write_text('{"architectures": 7}')
    for file in ("one.atelier.json", "one.json", "one.civitai.info", "two/atelier.json"):
        (tmp_path / "checkpoints" / file).write_text(card, "utf-8")
    roots = Roots(tmp_path, index=tmp_path / "models.db")
    for _ in range(2):  # the second one by the index
        found = Catalog(roots).all()
        assert {model.name for model in found} == {"one", "two", "three"}
        for model in found:
            json.dumps([model.title, *model.examples, model.defaults], ensure_ascii=False, allow_nan=False).encode()


def test_defaults_beside_a_checkpoint_and_a_changed_one_is_seen(tmp_path: Path) -> None:
    made(tmp_path / "checkpoints/one.safetensors", SD1)
    card = tmp_path / "checkpoints/one.atelier.json"
    catalog = Catalog(Roots(tmp_path, index=tmp_path / "models.db"))
    assert catalog.models()[0].title == "one"
    card.write_text(json.dumps({"title": "The one", "defaults": {"steps": 7}, "examples": ["a cat"]}))
    (model,) = catalog.models()
    assert (model.title, model.defaults, model.examples) == ("The one", {"steps": 7}, ("a cat",))
    card.write_text("[")
    os.utime(card, ns=(1, 1))
    assert catalog.models()[0].title == "one"


def test_a_default_that_cannot_be_is_not_heeded_and_said(tmp_path: Path) -> None:
    made(tmp_path / "checkpoints/one.safetensors", FLUX)
    pipeline(tmp_path / "checkpoints/two")
    part = made(tmp_path / "controlnet/three/model.safetensors", VAE).with_name("config.json")
    part.write_text('{"_class_name": "ControlNetModel"}')
    said = {
        "title": "Mine",
        "defaults": {"steps": 0, "width": 520, "sampler_name": "DPM++ 2M Karras", "prompt": "a cat"},
    }
    cards = "checkpoints/one.atelier.json", "checkpoints/two/atelier.json", "controlnet/three/atelier.json"
    for card in cards:
        (tmp_path / card).write_text(json.dumps(said))
    flux, folder, part_of = (model for model in Catalog(tmp_path).all())
    sampler = {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}
    assert (flux.title, flux.problem, flux.defaults) == ("Mine", None, sampler)
    assert all(
        words in flux.card_problem for words in ("steps: ", "prompt: ", "width: this model draws in steps of 16")
    )
    assert (folder.title, folder.problem, folder.defaults) == ("Mine", None, {**sampler, "width": 520})
    assert part_of.title == "Mine"
    for card in cards:
        (tmp_path / card).write_text("[")
    assert [model.card_problem.partition(":")[0] for model in Catalog(tmp_path).all()] == [
        f"its card, {Path(card).name}, is no JSON" for card in cards
    ]
    assert not any(model.problem for model in Catalog(tmp_path).models())


def test_a_configuration_beside_it_tells_of_velocity(tmp_path: Path) -> None:
    path = made(tmp_path / "checkpoints/two.safetensors", {**SD1, "cond_stage_model.model.ln_final.weight": (1,)})
    path.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert Catalog(tmp_path).models()[0].prediction == "v_prediction"


# --- what stays known


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    read = weights.read

    def counting(path: Path) -> weights.Header:
        reads.append(path.name)
        return read(path)

    monkeypatch.setattr(weights, "read", counting)
    return reads


def test_a_header_is_read_once_also_by_the_next_process(tmp_path: Path, counted: list[str]) -> None:
    path = made(tmp_path / "m/checkpoints/one.safetensors", SD1)
    made(tmp_path / "m/loras/cat.safetensors", LORA)
    index = tmp_path / "models.db"
    first = Catalog(Roots(tmp_path / "m", index=index)).all()
    assert sorted(counted) == ["cat.safetensors", "one.safetensors"]
    assert Catalog(Roots(tmp_path / "m", index=index)).all() == first
    assert len(counted) == 2
    made(path, FLUX)
    assert Catalog(Roots(tmp_path / "m", index=index)).models()[0].family == "flux"
    assert counted[2:] == ["one.safetensors"]


def test_a_hash_is_worked_out_once_by_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = made(tmp_path / "m/checkpoints/one.safetensors", SD1)
    folder = pipeline(tmp_path / "m/checkpoints/two")
    made(folder / "unet/diffusion_pytorch_model.safetensors", FLUX)
    index = tmp_path / "models.db"
    known = [Catalog(Roots(tmp_path / "m", index=index)).fingerprint(path) for path in (file, folder)]
    assert known == [fingerprint(file), fingerprint(folder)]
    with monkeypatch.context() as patch:
        patch.setattr("backend.catalog.hashes._digest", lambda *_: pytest.fail("it is known"))
        again = Catalog(Roots(tmp_path / "m", index=index))
        assert [again.fingerprint(path) for path in (file, folder)] == known
        assert sorted(model.sha256 for model in again.models()) == sorted(known)
    made(file, FLUX)
    assert Catalog(Roots(tmp_path / "m", index=index)).fingerprint(file) != known[0]
    assert Catalog(Roots(tmp_path / "m", index=index)).find("one").sha256 == fingerprint(file)


def test_weights_that_have_gone_from_a_folder_hide_no_others(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "m/checkpoints/two")
    blob = made(tmp_path / "blobs/c0ffee.safetensors", FLUX)  # as Hugging Face's cache has it
    (folder / "unet").mkdir()
    (folder / "unet/diffusion_pytorch_model.safetensors").symlink_to(blob)
    catalog = Catalog(Roots(tmp_path / "m", index=tmp_path / "models.db"))
    catalog.fingerprint(folder)
    assert catalog.find("two").sha256
    blob.unlink()
    made(tmp_path / "m/checkpoints/one.safetensors", SD1)
    assert [model.name for model in catalog.models()] == ["one", "two"]


def test_a_damaged_index_is_begun_anew(tmp_path: Path) -> None:
    made(tmp_path / "m/loras/cat.safetensors", LORA)
    index = tmp_path / "models.db"
    index.write_bytes(b"SQLite format 3\0" + os.urandom(4096))
    assert Catalog(Roots(tmp_path / "m", index=index)).files("lora")
    assert Catalog(Roots(tmp_path / "m", index=index)).files("lora")


def test_an_index_that_cannot_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path / "m/loras/cat.safetensors", LORA)
    (tmp_path / "file").write_bytes(b"")
    assert Catalog(Roots(tmp_path / "m", index=tmp_path / "file/models.db")).files("lora")
    assert "not kept" in caplog.text


def test_several_at_once_use_one_index(tmp_path: Path) -> None:
    for number in range(30):
        made(tmp_path / f"m/loras/cat{number}.safetensors", LORA, fill=number)
    found: list[int] = []

    def look() -> None:
        catalog = Catalog(Roots(tmp_path / "m", index=tmp_path / "models.db"))
        for model in catalog.all():
            catalog.fingerprint(model.path)
        found.append(sum(bool(model.sha256) for model in catalog.all()))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [30] * 4


# --- watching


def test_what_comes_and_goes_is_told_and_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.catalog.catalog.QUICK", 0)  # as if looking took long
    monkeypatch.setattr("backend.catalog.watch.HASHES_AFTER", 0.5)
    made(tmp_path / "m/loras/cat.safetensors", LORA)
    catalog = Catalog(Roots(tmp_path / "m", index=tmp_path / "models.db"))
    told: list[int] = []
    watch = Watch(catalog, lambda: told.append(len(catalog.all())))
    watch.start()
    try:
        wait_for(lambda: catalog.files("lora")[0].sha256)
        path = made(tmp_path / "m/loras/dog.safetensors", LORA, fill=1)
        wait_for(lambda: 2 in told)
        wait_for(lambda: all(model.sha256 for model in catalog.all()))
        path.unlink()
        wait_for(lambda: len(catalog.all()) == 1)
    finally:
        watch.stop()


def test_small_folders_are_looked_at_for_each_request_even_if_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert QUICK > 0
    monkeypatch.setattr("backend.catalog.catalog.QUICK", 100)
    catalog = Catalog(tmp_path)
    catalog.trust(True)
    assert not catalog.models()
    made(tmp_path / "checkpoints/one.safetensors", SD1)
    assert catalog.models()


def test_what_is_asked_for_by_name_or_hash_is_there_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.catalog.catalog.QUICK", 0)  # as if looking took long
    catalog = Catalog(tmp_path)
    catalog.trust(True)
    assert not catalog.all()
    cat, dog = (made(tmp_path / f"checkpoints/{name}.safetensors", SD1) for name in ("cat", "dog"))
    assert catalog.find("cat").path == cat
    assert catalog.find(catalog.fingerprint(dog)[:10]).path == dog
    lora = made(tmp_path / "loras/cat.safetensors", LORA)
    assert catalog.find_file("lora", "cat").path == lora
    with pytest.raises(NotFound):
        catalog.find("mouse")


def test_news_are_told_even_if_somebody_else_has_looked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.catalog.catalog.QUICK", 100)
    monkeypatch.setattr("backend.catalog.watch.SETTLES", 1500)
    made(tmp_path / "loras/cat.safetensors", LORA)
    catalog = Catalog(tmp_path)
    told: list[int] = []
    watch = Watch(catalog, lambda: told.append(len(catalog.known())))
    watch.start()
    try:
        wait_for(lambda: told)
        made(tmp_path / "loras/dog.safetensors", LORA, fill=1)
        assert len(catalog.all()) == 2
        wait_for(lambda: 2 in told)
    finally:
        watch.stop()


def test_the_process_that_hashes_ends_in_peace(tmp_path: Path) -> None:
    model = made(tmp_path / "models" / "checkpoints" / "cat.safetensors", SD1)
    roots = Roots(tmp_path / "models", index=tmp_path / "models.db")
    process = hashing.start(roots)  # its input stays open, as long as the server lives
    assert process.wait(60) == 0
    assert Catalog(roots).find("cat").sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    hashing.stop(process)
