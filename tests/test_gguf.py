"""Quantised weights stay in their blocks where the whole ones would not fit, and give the same pictures."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import Qwen2Tokenizer

from backend import catalog, packed
from backend import gguf as headers
from backend.catalog import Model
from backend.diffusion import placement, reading
from backend.diffusion.engine import Engine
from backend.diffusion.reading import tokenizers
from backend.errors import Conflict, ModelBroken
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.merging import recipe, work
from backend.registry import Registry
from tests.pixels import difference
from tests.single_files import Listed, quantised, write_both
from tests.tiny import draw
from tests.tiny_families import qwen_tokenizer

NO_ROOM = Hardware(ram_budget=0.0001)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def flux(shelf: Path) -> Model:
    return quantised(write_both("flux-dev", shelf)[1], "Q8_0", shelf / "flux.gguf")


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


@pytest.fixture(scope="module")
def wide(flux: Model) -> Iterator[Engine]:
    engine = Engine(Listed(flux), Registry(), "cpu")
    yield engine
    engine.close()


def drawn(engine: Engine, images: ImageStore, model: Model, **values: Any) -> Any:
    return draw(engine, images, model=model.name, steps=2, **values).pictures[0]


@pytest.mark.parametrize(("name", "kind"), [("flux-dev", "Q5_1"), ("sd3.5", "Q8_0")])
def test_a_model_that_would_not_fit_stays_as_small_as_its_file(
    name: str, kind: str, shelf: Path, images: ImageStore
) -> None:
    model = quantised(write_both(name, shelf)[1], kind, shelf / f"{name}-{kind}.gguf")
    whole, sparing = Engine(Listed(model), Registry(), "cpu"), Engine(Listed(model), Registry(), "cpu", NO_ROOM)
    try:
        assert drawn(sparing, images, model).data == drawn(whole, images, model).data
        size = sparing.store.load(model).sizes["transformer"]
        assert size == bytes_of(sparing.store.load(model).denoiser)
        assert size == pytest.approx(model.path.stat().st_size, rel=0.15)  # that has a header, and what is no weight
        assert size < whole.store.load(model).sizes["transformer"]
    finally:
        whole.close()
        sparing.close()


def test_what_it_takes_is_known_from_the_header(flux: Model) -> None:
    family = reading.family_of(flux)
    dtypes = reading.dtypes(flux, family, torch.float16)
    for stays in (False, True):
        parts = reading.parts(flux, family, dtypes, stays)
        assert reading.sizes(flux, family, dtypes, stays)["transformer"] == bytes_of(parts["transformer"])


def test_blocks_stay_where_they_are_in_the_file(flux: Model) -> None:
    family = reading.family_of(flux)
    transformer = reading.parts(flux, family, reading.dtypes(flux, family, torch.float32), packed=True)["transformer"]
    places = [p.data_ptr() for p in transformer.parameters() if isinstance(p, packed.Blocks)]
    assert len(places) > 40
    assert max(places) - min(places) < flux.path.stat().st_size


def test_a_quantised_file_gives_about_what_the_whole_one_gives(flux: Model, shelf: Path) -> None:
    exact, given = (transformer(model).state_dict() for model in (write_both("flux-dev", shelf)[1], flux))
    for name, numbers in exact.items():
        assert torch.allclose(given[name], numbers, atol=float(numbers.abs().max()) / 100), name


@pytest.mark.parametrize("placed", ["model", "group", "sequential"])
def test_the_hooks_of_each_placement_leave_blocks_alone(
    flux: Model, wide: Engine, images: ImageStore, monkeypatch: pytest.MonkeyPatch, placed: str
) -> None:
    hooked = Engine(Listed(flux), Registry(), "cpu", NO_ROOM)
    monkeypatch.setattr(hooked.store, "_placed", lambda model, sizes: placed)
    try:
        assert drawn(hooked, images, flux).data == drawn(wide, images, flux).data
    finally:
        hooked.close()


@pytest.mark.parametrize("stage", ["loading", "sampling"])
def test_a_job_that_runs_out_of_memory_is_drawn_with_weights_that_stay_quantised(
    flux: Model, wide: Engine, images: ImageStore, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    put = placement.put

    def no_room(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def put_what_fits(pipeline: Any, *how: Any) -> None:
        if not any(isinstance(module, packed.Packed) for module in pipeline.transformer.modules()):
            no_room() if stage == "loading" else pipeline.transformer.register_forward_pre_hook(no_room)
        put(pipeline, *how)

    monkeypatch.setattr(placement, "put", put_what_fits)
    engine = Engine(Listed(flux), Registry(), "cpu")
    try:
        drawing = draw(engine, images, model=flux.name, steps=2)
        assert drawing.pictures[0].data == drawn(wide, images, flux).data
        notices = drawing.told[-1].notices
        assert notices[-1] == f"there was not enough memory ({stage}): the weights of the model stay quantised"
        assert engine.store.load(flux).packed
        assert engine.store.lower(flux) is None
    finally:
        engine.close()


def test_eight_bits_leave_blocks_alone(flux: Model, wide: Engine, images: ImageStore) -> None:
    eight = Engine(Listed(flux), Registry(), "cpu", NO_ROOM.model_copy(update={"precision": "fp8"}))
    try:
        assert 0 < difference(drawn(eight, images, flux), drawn(wide, images, flux)) < 60
        assert eight.store.load(flux).sizes["transformer"] < flux.path.stat().st_size * 1.02
    finally:
        eight.close()


@pytest.mark.parametrize("kind", sorted(packed.KINDS))
def test_blocks_are_made_whole_to_the_bit(kind: str) -> None:
    data, type_ = blocks(kind, 3, 512), gguf.GGMLQuantizationType[kind]
    expected = torch.from_numpy(gguf.dequantize(data, type_).copy())
    assert expected.abs().max() > 0
    assert torch.equal(packed.blocks(data, type_).whole(torch.float32), expected)
    assert torch.equal(packed.blocks(data, type_).whole(torch.bfloat16), expected.bfloat16())


def blocks(kind: str, rows: int, columns: int) -> Any:
    """Random blocks; the bytes that are floating-point factors of theirs stay small."""
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    at = {"Q6_K": (208,), "Q3_K": (108,), "Q2_K": (80, 82)}.get(kind, (0, 2) if kind[-1] in "1K" else (0,))
    data = np.random.default_rng(1).integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    for begin in at:
        data[:, begin : begin + 2] = np.array([0.01], np.float16).view(np.uint8)
    return data.reshape(rows, -1)


def test_a_conversion_makes_it_whole(flux: Model, tmp_path: Path) -> None:
    given = recipe.Model(name="flux", path=flux.path, family="flux")
    work.run(recipe.Convert(a=given), tmp_path / "whole.safetensors", lambda stage, share: None)
    converted = replace(flux, path=tmp_path / "whole.safetensors")
    exact = transformer(flux).state_dict()
    for name, numbers in transformer(converted).state_dict().items():
        assert torch.allclose(numbers, exact[name], rtol=1e-3, atol=1e-7), name
    work.run(recipe.Convert(a=given, precision="fp8"), tmp_path / "small.safetensors", lambda stage, share: None)
    assert (tmp_path / "small.safetensors").stat().st_size < flux.path.stat().st_size
    with pytest.raises(Conflict, match="flux is a GGUF file: make a safetensors file of it first"):
        work.run(recipe.Convert(a=given, layout="folder"), tmp_path / "folder", lambda stage, share: None)
    with pytest.raises(ModelBroken, match="flux is a GGUF file: make a safetensors file of it first"):
        work.run(recipe.WeightedSum(a=given, b=given), tmp_path / "sum.safetensors", lambda stage, share: None)


# --- text encoders by llama.cpp's names


def llama_cpp(encoder: Any, tokenizer: Any, file: Path) -> Path:
    """As llama.cpp converts it: its names, quantised, with the words; numbers that stand for none are filled up."""
    arch, front = {
        "T5EncoderModel": (gguf.MODEL_ARCH.T5ENCODER, ""),
        "Qwen3Model": (gguf.MODEL_ARCH.QWEN3, "model."),
        "Qwen2_5_VLForConditionalGeneration": (gguf.MODEL_ARCH.QWEN2VL, ""),
    }[type(encoder).__name__]
    is_t5 = arch is gguf.MODEL_ARCH.T5ENCODER
    called = gguf.get_tensor_name_map(arch, 8)
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    for name, tensor in encoder.state_dict().items():
        if name != "encoder.embed_tokens.weight" and not name.startswith("model.visual."):  # it is "shared"; elsewhere
            full = front + name.replace("model.language_model.", "model.")
            kind = gguf.GGMLQuantizationType["Q8_0" if tensor.dim() == 2 and tensor.shape[1] % 32 == 0 else "F32"]
            numbers = gguf.quantize(tensor.numpy(), kind)
            writer.add_tensor(called.get_name(full, (".weight", ".bias")), numbers, raw_dtype=kind)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = [word for word, _ in model["vocab"]] if is_t5 else sorted(model["vocab"], key=model["vocab"].__getitem__)
    control = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("t5" if is_t5 else "gpt2")
    writer.add_token_list([*words, "[PAD1]", "[PAD2]"])
    writer.add_token_types([*(3 if word in control else 1 for word in words), 5, 5])
    if is_t5:
        writer.add_token_scores([*(score for _, score in model["vocab"]), -10000.0, -10000.0])
    else:
        writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("name", "part", "words"), [("flux-dev", "t5", "_2"), ("z-image", "qwen3", ""), ("qwen-image", "qwen2.5-vl", "")]
)
def test_a_text_encoder_by_llama_cpps_names_brings_its_words(name: str, part: str, words: str, shelf: Path) -> None:
    file = write_both(name, shelf)[1]
    expected = parts_of(file)
    encoder, tokenizer = expected[f"text_encoder{words}"], expected[f"tokenizer{words}"]
    path = llama_cpp(encoder, tokenizer, shelf / f"{part}.gguf")
    assert catalog.detect(headers.read(path), path.name).parts == (part,)
    alone = quantised(file, "Q8_0", shelf / f"{name}-alone.gguf")
    beside = {"clip_l": alone.beside.get("clip_l", path), "vae": file.path, part: path}
    for stays in (False, True):
        given = parts_of(replace(alone, beside=beside), packed=stays)
        inputs = tokenizer("a red circle, [PAD1] naïve", return_tensors="pt")
        assert given[f"tokenizer{words}"]("a red circle, [PAD1] naïve").input_ids == inputs.input_ids[0].tolist()
        with torch.inference_mode():
            both = (given[f"text_encoder{words}"], encoder)
            states, exact = (e(inputs.input_ids, output_hidden_states=True).hidden_states[-1] for e in both)
        assert torch.allclose(states, exact, atol=float(exact.abs().max()) / 20)
    assert any(isinstance(p, packed.Blocks) for p in given[f"text_encoder{words}"].parameters())


def test_t5_stays_exact_where_half_precision_overflows(shelf: Path) -> None:
    """Its last layers are kept in full precision, quantised or not."""
    file = write_both("flux-dev", shelf)[1]
    parts = parts_of(file)
    path = llama_cpp(parts["text_encoder_2"], parts["tokenizer_2"], shelf / "t5-half.gguf")
    beside = {**quantised(file, "Q8_0", shelf / "half.gguf").beside, "t5": path}
    encoder = parts_of(replace(file, path=shelf / "half.gguf", beside=beside), torch.float16, True)["text_encoder_2"]
    dense = encoder.encoder.block[0].layer[1].DenseReluDense
    assert dense.wo.compute_dtype == torch.float32
    assert dense.wi_0.compute_dtype == torch.float16
    with torch.inference_mode():
        assert encoder(torch.tensor([[3, 4, 5]])).last_hidden_state.isfinite().all()


def test_the_words_of_a_byte_level_vocabulary_are_joined_and_kept_whole(tmp_path: Path) -> None:
    usual = qwen_tokenizer()
    vocab = {word: number for number, word in enumerate([*usual.get_vocab(), "ab", "abc"])}
    special = [word for word in usual.get_vocab() if word.startswith("<|")]
    made = Qwen2Tokenizer(vocab=vocab, merges=[("a", "b"), ("ab", "c")], extra_special_tokens=special)
    made.add_tokens(["<think>", "</think>"])
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen3")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*vocab, "[PAD1]"])
    kinds = {**dict.fromkeys(special, 3), "<think>": 4, "</think>": 4}
    writer.add_token_types([*(kinds.get(word, 1) for word in vocab), 5])
    writer.add_token_merges(["a b", "ab c"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    given = tokenizers.from_gguf(Qwen2Tokenizer, tmp_path / "a.gguf")
    text = "<|im_start|>abc abca <think>naïve [PAD1]</think><|im_end|>"
    assert given(text).input_ids == made(text).input_ids
    assert given.convert_ids_to_tokens(given("abc<think>").input_ids) == ["abc", "<think>"]
    assert given.decode(given(text).input_ids, skip_special_tokens=True) == "abc abca <think>naïve [PAD1]</think>"


def transformer(model: Model) -> Any:
    return parts_of(model)["transformer"]


def parts_of(model: Model, dtype: torch.dtype = torch.float32, packed: bool = False) -> dict[str, Any]:
    family = reading.family_of(model)
    return reading.parts(model, family, reading.dtypes(model, family, dtype), packed)


def bytes_of(module: torch.nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())
