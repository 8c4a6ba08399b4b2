"""LoRAs in pictures, on a tiny model: `python app.py test extensions/lora`."""

import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from backend.errors import InvalidRequest
from backend.lora import network
from backend.result import JobCancelled, Progress
from backend.testing import Drawn, Studio
from extensions.lora.tests import making
from tests.tiny import tiny_model, tiny_model_xl

FOLDER = Path(__file__).parents[1]
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # the same bits whoever else uses the processor
    folder = tmp_path_factory.mktemp("models")
    tiny_model(folder / "checkpoints" / "tiny")
    tiny_model_xl(folder / "checkpoints" / "tiny-xl")
    return folder


@pytest.fixture(scope="module")
def studio(models: Path) -> Iterator[Studio]:
    with Studio(FOLDER, also=["hires", "wildcards"], models=models, model="tiny") as studio:
        yield studio


@pytest.fixture(scope="module")
def pipeline(studio: Studio) -> Any:
    return studio.engine.store.load(studio.catalog.find("tiny")).pipeline


@pytest.fixture(scope="module", autouse=True)
def loras(models: Path, studio: Studio, pipeline: Any) -> Path:
    """Four files; `style` is called `drawn` inside, `deep/other` lies in a folder."""
    folder = models / "loras"
    tensors, _ = making.make(pipeline, "locon", seed=1)
    making.save(folder / "style.safetensors", tensors, ss_output_name="drawn", sshs_model_hash="ab" * 32)
    making.save(folder / "deep" / "other.safetensors", making.make(pipeline, "loha", seed=2)[0])
    making.save(folder / "attention.safetensors", making.make(pipeline, "lora", seed=4)[0])
    making.save(folder / "kron.safetensors", making.make(pipeline, "lokr", seed=3)[0])
    unet_only = {key: tensor for key, tensor in tensors.items() if key.startswith("lora_unet")}
    making.save(folder / "unet.safetensors", unet_only)
    xl = studio.engine.store.load(studio.catalog.find("tiny-xl")).pipeline
    making.save(folder / "large.safetensors", making.make(xl, "lora")[0], ss_base_model_version="sdxl_base_v1-0")
    (folder / "old.pt").write_bytes(b"pickle")
    return folder


@pytest.fixture
def draw(studio: Studio) -> Callable[..., Drawn]:
    def with_tags(tags: str = "", **values: Any) -> Drawn:
        return studio.draw(f"{PROMPT} {tags}" if tags else PROMPT, **{"steps": 4, **values})

    return with_tags


@pytest.fixture
def pixels(draw: Any) -> Callable[..., bytes]:
    return lambda tags="", **values: draw(tags, **values).picture.tobytes()


def inside(studio: Studio, name: str) -> Any:
    """A module of the extension as the engine has it."""
    return sys.modules[f"{type(studio.extension).__module__}.{name}"]


def state(pipeline: Any) -> dict[str, tuple[int, bytes]]:
    """Where each parameter's numbers lie, and what they are."""
    return {
        f"{component}.{name}": (p.data_ptr(), p.detach().numpy().tobytes())
        for component, whole in making.components(pipeline).items()
        for name, p in whole.named_parameters()
    }


def test_it_is_undone_to_the_bit(pixels: Any, pipeline: Any) -> None:
    before, own = pixels(), state(pipeline)
    seen = [pixels(f"<lora:{name}:{weight}>") for name in ("style", "other", "kron") for weight in (1, -0.5)]
    assert len({before, *seen}) == 7
    assert state(pipeline) == own
    assert pixels() == before


def test_a_cancel_in_mid_step_undoes_it_too(pixels: Any, draw: Any, pipeline: Any) -> None:
    before, own = pixels(), state(pipeline)

    def cancel(progress: Progress) -> None:
        if progress.stage == "sampling" and progress.step == 2:
            assert state(pipeline) != own
            raise JobCancelled("enough")

    with pytest.raises(JobCancelled):
        draw("<lora:style:1><lora:kron:1:start=1>", report=cancel)
    assert state(pipeline) == own
    assert pixels() == before


def test_weight_0_is_none(pixels: Any) -> None:
    assert pixels("<lora:style:0>") == pixels("<lora:attention:1:lbw=NONE>") == pixels()


def test_text_encoder_and_unet_have_weights_of_their_own(pixels: Any) -> None:
    both, text, unet = pixels("<lora:style:1>"), pixels("<lora:style:1:0>"), pixels("<lora:style:te=0:unet=1>")
    assert len({both, text, unet, pixels()}) == 4
    assert unet == pixels("<lora:unet:1>")
    assert pixels("<lora:style:0.5:0.8>") == pixels("<lora:style:te=0.5:unet=0.8>")
    assert text == pixels("<lora:style:1:0>")  # from the kept embeddings


def test_kept_embeddings_are_those_of_the_same_weights(pixels: Any, studio: Studio) -> None:
    """The text encoder's part by weight, by block list and without: none takes another's embedding."""
    tags = ["", "<lora:style:1:0>", "<lora:style:0.5:0>", "<lora:style:1:0:lbw=OUTALL>", "<lora:style:1:0:lbw=ALL0.5>"]
    first = [pixels(tag) for tag in tags]
    studio.engine.store.load(studio.catalog.find("tiny")).embeddings._kept.clear()
    assert [pixels(tag) for tag in reversed(tags)] == first[::-1]
    assert len(set(first)) == 3
    assert (first[1], first[2]) == (first[3], first[4])  # OUTALL keeps all of the text encoder's part, the other half


def test_names_are_stems_aliases_and_paths(pixels: Any) -> None:
    assert pixels("<lora:style:1>") == pixels("<lora:drawn>") == pixels("<lyco:STYLE:1>")
    assert pixels("<lora:other:1>") == pixels("<lora:deep/other:1>") == pixels('<lora:"other":1>')


def test_repeated_tags_stack(pixels: Any) -> None:
    once, twice = (
        np.frombuffer(pixels(tag), np.uint8).astype(int) for tag in ("<lora:unet:1>", "<lora:unet:0.5><lora:unet:0.5>")
    )
    assert np.abs(once - twice).max() <= 1


def test_it_acts_between_its_steps_and_nowhere_else(draw: Any, pixels: Any, pipeline: Any) -> None:
    own = state(pipeline)
    seen: list[bool] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "sampling" and progress.step < progress.steps:
            seen.append(state(pipeline) != own)

    for tag, wanted in {
        "<lora:unet:1:start=2>": [False, False, True, True],
        "<lora:unet:1:stop=1>": [True, False, False, False],
        "<lora:unet:1:step=1-3>": [False, True, True, False],
        "<lora:unet:1:start=0.5>": [False, False, True, True],
        "<lora:unet:1:start=0:stop=4>": [True] * 4,
    }.items():
        seen.clear()
        draw(tag, report=watch)
        assert seen == wanted, tag
    assert pixels("<lora:unet:1:start=0:stop=4>") == pixels("<lora:unet:1>")
    assert pixels("<lora:unet:1:start=4>") == pixels()
    assert len({pixels(f"<lora:unet:1:start={n}>") for n in range(5)}) == 5
    assert state(pipeline) == own


def test_images_with_different_loras_do_not_mix(draw: Any, studio: Studio) -> None:
    prompts = tuple(f"{PROMPT} {tag}" for tag in ("", "<lora:style:1>", "<lora:kron:1>", "", "<lora:kron:1>"))
    many = studio.draw(prompts[0], prompts=prompts, n_iter=5, steps=4, seed=1)
    alone = [studio.draw(prompt, steps=4, seed=1 + n).picture.tobytes() for n, prompt in enumerate(prompts)]
    assert [picture.tobytes() for picture in many.pictures] == alone


def test_a_batch_after_another_is_merged_only_once(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = inside(studio, "merge")
    counted: list[int] = []
    usual = merge.merged

    def counting(*given: Any) -> Any:
        counted.append(1)
        return usual(*given)

    monkeypatch.setattr(merge, "merged", counting)
    studio.draw(f"{PROMPT} <lora:style:1>", n_iter=3)
    thrice = len(counted)
    counted.clear()
    studio.draw(f"{PROMPT} <lora:style:1>")
    assert thrice == len(counted) > 0


def test_hires_draws_its_second_pass_with_it(pixels: Any, pipeline: Any) -> None:
    own = state(pipeline)
    extensions = {"hires": {"denoising_strength": 0.7, "scale": 1.5}}
    assert pixels("<lora:style:1>", extensions=extensions) != pixels(extensions=extensions)
    alone = {"hires": {**extensions["hires"], "prompt": f"{PROMPT} <lora:style:1>"}}
    assert pixels(extensions=alone) != pixels(extensions=extensions)
    assert state(pipeline) == own


def test_a_picture_is_recreated_from_its_text(draw: Any, studio: Studio) -> None:
    drawn = draw("<lora:style:0.7><lora:deep/other:-0.3:lbw=ALL:stop=3>")
    assert 'Lora hashes: "style: abababababab, deep/other: ' in drawn.text
    again = studio.read(drawn.text)
    assert again == drawn.request
    assert studio.draw(**again.model_dump()).picture.tobytes() == drawn.picture.tobytes()


def test_a_missing_name_is_found_by_its_hash(draw: Any, studio: Studio, loras: Path) -> None:
    drawn = draw("<lora:other:0.7>")
    shutil.move(loras / "deep" / "other.safetensors", loras / "renamed.safetensors")
    try:
        with pytest.raises(InvalidRequest, match="no LoRA 'other'"):
            draw("<lora:other:0.7>")
        again = studio.draw(**studio.read(drawn.text).model_dump())
        assert again.picture.tobytes() == drawn.picture.tobytes()
        assert again.request.prompt == f"{PROMPT} <lora:renamed:0.7>"
        assert studio.read(again.text) == again.request
    finally:
        shutil.move(loras / "renamed.safetensors", loras / "deep" / "other.safetensors")


def test_the_prompt_of_the_second_pass_finds_its_own_too(draw: Any, studio: Studio, loras: Path) -> None:
    second = f"{PROMPT} <lora:other:0.2> <lora:kron:1>"
    extensions = {"hires": {"denoising_strength": 0.7, "scale": 1.5, "prompt": second}}
    drawn = draw("<lora:other:0.7>", extensions=extensions)
    assert drawn.request.extensions["hires"].prompt == second
    names = {"deep/other": "renamed", "kron": "crown"}
    for old, new in names.items():
        shutil.move(loras / f"{old}.safetensors", loras / f"{new}.safetensors")
    try:
        again = studio.draw(**studio.read(drawn.text).model_dump())
        assert again.picture.tobytes() == drawn.picture.tobytes()
        assert again.request.extensions["hires"].prompt == f"{PROMPT} <lora:renamed:0.2> <lora:crown:1>"
    finally:
        for old, new in names.items():
            shutil.move(loras / f"{new}.safetensors", loras / f"{old}.safetensors")


def test_the_picture_keeps_the_hashes_of_the_files(studio: Studio) -> None:
    told: list[Progress] = []
    studio.draw(f"{PROMPT} <lora:style:1> <lora:kron:0>", report=told.append)
    (picture,) = [progress.picture for progress in told if progress.picture]
    assert picture.models.keys() == {"tiny", "loras/style"}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("<lora:stile:1>", "there is no LoRA 'stile'; near to it: style"),
        ("<lora:nothing like it:1>", "there are"),
        ("<lora:../style:1>", "there is no LoRA '../style'"),
        ("<lora:/etc/passwd:1>", "there is no LoRA"),
        ("<lora:style:strong>", "<lora:style:strong>: the weight 'strong' is not a number"),
        ("<lora:style:nan>", "not between"),
        ("<lora:style:1e9>", "not between"),
        ("<lora:style:1:lbw=1,2>", "lbw has 2 numbers"),
        ("<lora:style:1:lbw=NOWHERE>", "no preset 'NOWHERE'"),
        ("<lora:style:1:speed=3>", "speed= is not known"),
        ("<lora:old:1>", "old.pt is not taken"),
        ("<lora:large:1>", "large.safetensors is made for SDXL (tiny is SD 1.x)"),
    ],
)
def test_what_is_wrong_is_said_in_words(draw: Any, studio: Studio, tags: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        draw(tags)
    assert words in str(error.value)
    assert str(error.value).startswith("prompt: ")
    assert studio.engine.store.is_loaded(studio.catalog.find("tiny"))  # it was not thrown away for that


def spoilt(data: bytes, how: str) -> bytes:
    return {
        "cut short": data[: len(data) // 2],
        "cut in the header": data[:100],
        "empty": b"",
        "no JSON": data[:8] + b"x" * (len(data) - 8),
        "huge header": (2**62).to_bytes(8, "little") + data[8:],
        "a list": (2).to_bytes(8, "little") + b"[]",
        "nonsense": (24).to_bytes(8, "little") + b'{"a.alpha": {"dtype": 1}}'[:24],
        "no tensors": (2).to_bytes(8, "little") + b"{}",
    }[how]


@pytest.mark.parametrize(
    "how", ["cut short", "cut in the header", "empty", "no JSON", "huge header", "a list", "nonsense", "no tensors"]
)
def test_a_damaged_file_is_refused_and_harms_nothing(pixels: Any, loras: Path, how: str) -> None:
    before = pixels()
    path = loras / "torn.safetensors"
    path.write_bytes(spoilt((loras / "kron.safetensors").read_bytes(), how))
    try:
        with pytest.raises(InvalidRequest, match=r"torn\.safetensors (is|has)"):
            pixels("<lora:torn:1>")
    finally:
        path.unlink()
    assert pixels() == before


def test_a_header_larger_than_any_is_not_read(pixels: Any, loras: Path) -> None:
    path = loras / "vast.safetensors"
    with open(path, "wb") as file:
        file.write((2**30).to_bytes(8, "little"))
        file.truncate(2**30 + 8)
    try:
        with pytest.raises(InvalidRequest, match="has a header of 1024 MB; at most 32"):
            pixels("<lora:vast:1>")
    finally:
        path.unlink()


def test_a_missing_one_may_be_left_out(draw: Any, studio: Studio) -> None:
    extensions = {"lora": {"missing": "skip"}}
    drawn = draw("<lora:gone:1><lora:style:1>", extensions=extensions)
    assert drawn.picture.tobytes() == draw("<lora:style:1>").picture.tobytes()
    assert "Lora missing: gone" in drawn.text
    assert studio.read(drawn.text) == drawn.request


def test_sdxl_takes_its_own(studio: Studio, draw: Any) -> None:
    pipeline = studio.engine.store.load(studio.catalog.find("tiny-xl")).pipeline
    own = state(pipeline)
    before = draw(model="tiny-xl").picture.tobytes()
    assert draw("<lora:large:1>", model="tiny-xl").picture.tobytes() != before
    with pytest.raises(InvalidRequest, match=r"style\.safetensors .*tiny-xl is SDXL"):
        draw("<lora:style:1>", model="tiny-xl")
    assert state(pipeline) == own
    assert draw(model="tiny-xl").picture.tobytes() == before


def test_the_second_use_reads_no_disk(pixels: Any, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pixels("<lora:style:0.9>")
    monkeypatch.setattr(network, "safe_open", lambda *_: pytest.fail("it is read again"))
    assert pixels("<lora:style:0.9>") == before


def test_a_changed_file_is_read_anew(pixels: Any, pipeline: Any, loras: Path) -> None:
    path = loras / "changing.safetensors"
    seen = set()
    for seed in (5, 6):
        tensors, _ = making.make(pipeline, "lora", seed=seed)
        tensors = {key: t for key, t in tensors.items() if key.startswith("lora_te")}  # only embeddings change
        making.save(path, tensors)
        seen.add(pixels("<lora:changing:1>"))
    path.unlink()
    assert len(seen | {pixels()}) == 3


def test_fifty_switches_do_not_grow_memory(pixels: Any, capsys: pytest.CaptureFixture[str]) -> None:
    process, taken = psutil.Process(), []
    before = pixels()
    names = ("style", "other", "kron", "unet")
    gc.freeze()  # what other tests have left would be walked through sixty times
    try:
        for n in range(60):
            pixels(f"<lora:{names[n % 4]}:{1 + n / 100}>", steps=1)
            gc.collect()
            taken.append(process.memory_info().rss / 2**20)
    finally:
        gc.unfreeze()
    slope = float(np.polyfit(range(50), taken[10:], 1)[0])
    with capsys.disabled():
        sys.stdout.write(
            f"\n50 switches between LoRAs: {slope:+.3f} MB each, {taken[-1] - taken[10]:+.1f} MB in all\n"
        )
    assert abs(slope) < 0.2
    assert pixels() == before
