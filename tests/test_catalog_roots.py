"""Where models lie: in folders of our own, of A1111 and of ComfyUI, used as they are."""

from pathlib import Path

import pytest

from backend.catalog import Catalog
from backend.catalog.detect import Kind
from backend.catalog.roots import Roots


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
    return folder


def names(roots: Roots, kind: Kind, below: Path) -> list[str]:
    return [place.folder.relative_to(below).as_posix() for place in roots.places(kind)]


def test_the_models_folder_has_a_place_for_each_kind_that_may_not_be_there_yet(tmp_path: Path) -> None:
    assert names(Roots(tmp_path), "lora", tmp_path) == ["loras"]
    assert names(Roots(tmp_path), "checkpoint", tmp_path) == ["checkpoints"]


def test_names_of_other_programs_are_known_in_the_models_folder(tmp_path: Path) -> None:
    made(tmp_path, "Stable-diffusion", "Lora", "ESRGAN", "VAE", "insightface")
    assert names(Roots(tmp_path), "checkpoint", tmp_path) == ["checkpoints", "Stable-diffusion"]
    assert names(Roots(tmp_path), "lora", tmp_path) == ["loras", "Lora"]
    assert "insightface" not in str(Roots(tmp_path).places())


def test_a1111_as_it_is(tmp_path: Path) -> None:
    web = made(
        tmp_path / "webui",
        *("models/Stable-diffusion", "models/VAE", "models/Lora", "models/VAE-approx", "models/ESRGAN", "embeddings"),
        *("models/ControlNet", "extensions/sd-webui-controlnet/models"),
    )
    roots = Roots(tmp_path / "models", a1111=web)
    assert names(roots, "checkpoint", tmp_path)[1:] == ["webui/models/Stable-diffusion"]
    assert names(roots, "vae", tmp_path)[1:] == ["webui/models/VAE"]
    assert names(roots, "tiny_vae", tmp_path)[1:] == ["webui/models/VAE-approx"]
    assert names(roots, "embedding", tmp_path)[1:] == ["webui/embeddings"]
    assert names(roots, "controlnet", tmp_path)[1:] == [
        "webui/models/ControlNet",
        "webui/extensions/sd-webui-controlnet/models",
    ]
    assert {place.root for place in roots.places("upscaler")[1:]} == {"A1111"}


def test_comfyui_as_it_is_with_its_further_paths(tmp_path: Path) -> None:
    comfy = made(tmp_path / "comfy", "models/checkpoints", "models/unet", "models/diffusion_models", "models/clip")
    made(tmp_path / "big", "sd/checkpoints", "sd/one", "sd/two")
    (comfy / "extra_model_paths.yaml").write_text(
        f"big:\n  base_path: {tmp_path / 'big'}\n  is_default: true\n  checkpoints: sd/checkpoints\n"
        "  loras: |\n    sd/one\n    sd/two\n  vae: sd/nowhere\n  custom_nodes: sd\nnothing:\n"
    )
    roots = Roots(tmp_path / "models", comfyui=comfy)
    assert names(roots, "checkpoint", tmp_path)[1:] == ["comfy/models/checkpoints", "big/sd/checkpoints"]
    assert names(roots, "diffusion_model", tmp_path)[1:] == ["comfy/models/diffusion_models", "comfy/models/unet"]
    assert names(roots, "lora", tmp_path)[1:] == ["big/sd/one", "big/sd/two"]
    assert names(roots, "vae", tmp_path)[1:] == []
    assert roots.places("lora")[1].root == "big"


def test_a_broken_file_of_paths_does_no_harm(tmp_path: Path) -> None:
    comfy = made(tmp_path / "comfy", "models/checkpoints")
    for text in ("a: [", "- 1\n- 2", "a: 7", "a:\n  checkpoints: [1]", "!!python/object/apply:os.system ['true']"):
        (comfy / "extra_model_paths.yaml").write_text(text)
        assert names(Roots(tmp_path / "models", comfyui=comfy), "checkpoint", tmp_path)[1:] == [
            "comfy/models/checkpoints"
        ]


def test_a_further_root_may_hold_anything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path / "disk", "loras")
    roots = Roots(tmp_path / "models", (tmp_path / "disk", tmp_path / "unplugged"))
    places = roots.places()
    assert roots.places() == places
    assert [record.message.partition(": ")[0] for record in caplog.records] == [  # once
        f"the models in {tmp_path / 'unplugged'} are not seen"
    ]
    assert [(place.kind, place.folder.name) for place in places if place.root == "disk"] == [
        ("lora", "loras"),
        ("", "disk"),
    ]


def test_a_folder_that_is_reached_twice_counts_once(tmp_path: Path) -> None:
    made(tmp_path / "models", "loras")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "Lora").symlink_to(tmp_path / "models" / "loras")
    assert len(Roots(tmp_path / "models", (tmp_path / "again",)).places("lora")) == 1


def test_another_process_sees_the_same(tmp_path: Path) -> None:
    roots = Roots(tmp_path, (tmp_path / "a",), a1111=tmp_path / "b", folders=(("lora", tmp_path / "c"),))
    assert Roots.of(roots.described()) == roots


def test_a_folder_of_one_kind_says_what_its_pickles_are(tmp_path: Path) -> None:
    made(tmp_path, "mine")
    (tmp_path / "mine" / "old.pt").write_bytes(b"x")
    catalog = Catalog(Roots(tmp_path / "models", folders=(("vae", tmp_path / "mine"), ("lora", tmp_path / "none"))))
    assert [(model.name, model.root) for model in catalog.files("vae")] == [("old", "mine")]


def test_the_models_of_a_whole_drive_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made(tmp_path, "models", "drive/loras") / "drive")
    drive = Path(".")  # has no name, as D:\\ has none
    places = Roots(tmp_path / "models", (drive,)).places()
    assert [(place.folder, place.root) for place in places if place.root] == [(Path("loras"), "."), (drive, ".")]
