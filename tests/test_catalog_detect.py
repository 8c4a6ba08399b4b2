"""What a file is, from names and shapes of tensors that are made here."""

import math
from collections.abc import Mapping

import pytest

from backend import weights
from backend.catalog.detect import FAMILIES, Detected, detect
from backend.weights import Entry, Header

Shapes = Mapping[str, tuple[int, ...]]
UNET = "model.diffusion_model."
SD1_TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
SD2_TEXT = "cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.weight"
XL_TEXT = "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
XL_TEXT_2 = "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.weight"
REFINER_TEXT = "conditioner.embedders.0.model.transformer.resblocks.0.mlp.c_fc.weight"
VAE = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3), "first_stage_model.encoder.conv_in.weight": (9, 3)}
CROSS = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


def header(shapes: Shapes, dtype: str = "F16", metadata: Mapping[str, str] | None = None) -> Header:
    entries: dict[str, Entry] = {}
    at = 0
    for key, shape in shapes.items():
        size = math.prod(shape) * weights.SIZES.get(dtype, 1)
        entries[key] = Entry(dtype, shape, at, at := at + size)
    return Header(entries, metadata or {}, 0)


def told(shapes: Shapes, name: str = "", **metadata: str) -> Detected:
    said = {key.replace("__", "."): value for key, value in metadata.items()}
    return detect(header(shapes, metadata=said), name)


def unet(channels: int, width: int, prefix: str = UNET, **others: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}input_blocks.0.0.weight": (320, channels, 3, 3), prefix + CROSS: (640, width), **others}


XL_LABEL = {f"{UNET}label_emb.0.0.weight": (1280, 2816)}
SD1 = {**unet(4, 768), SD1_TEXT: (1,), **VAE}
SD2 = {**unet(4, 1024), SD2_TEXT: (1,), **VAE}
SDXL = {**unet(4, 2048), **XL_LABEL, XL_TEXT: (1,), XL_TEXT_2: (1,), **VAE}


@pytest.mark.parametrize(
    ("shapes", "family", "variant", "prediction"),
    [
        (SD1, "sd1", "", "epsilon"),
        ({**SD1, **unet(9, 768)}, "sd1", "inpaint", "epsilon"),
        ({**SD1, **unet(8, 768)}, "sd1", "edit", "epsilon"),
        (SD2, "sd2", "", ""),
        ({**SD2, **unet(9, 1024)}, "sd2", "inpaint", "epsilon"),
        (SDXL, "sdxl", "", "epsilon"),
        ({**SDXL, **unet(9, 2048)}, "sdxl", "inpaint", "epsilon"),
        ({**SDXL, **unet(8, 2048)}, "sdxl", "edit", "epsilon"),
        ({**SDXL, "v_pred": (), "ztsnr": ()}, "sdxl", "", "v_prediction"),
        ({**SDXL, "edm_mean": (4,)}, "sdxl", "", "edm"),
        ({**unet(4, 1280), **XL_LABEL, REFINER_TEXT: (1,), **VAE}, "sdxl-refiner", "", "epsilon"),
    ],
)
def test_checkpoints_with_a_unet(shapes: Shapes, family: str, variant: str, prediction: str) -> None:
    found = told(shapes)
    assert (found.kind, found.family, found.variant, found.prediction) == ("checkpoint", family, variant, prediction)
    assert {"unet", "vae"} < set(found.parts)


def test_a_narrow_checkpoint_is_known_by_the_names_of_its_parts() -> None:
    narrow = {f"{UNET}{CROSS}": (32, 40), f"{UNET}input_blocks.0.0.weight": (32, 4, 3, 3)}
    assert told({**narrow, SD1_TEXT: (1,), **VAE}).family == "sd1"
    assert told({**narrow, SD2_TEXT: (1,), **VAE}).family == "sd2"
    assert told({**narrow, XL_TEXT: (1,), XL_TEXT_2: (1,), **VAE}).family == "sdxl"


@pytest.mark.parametrize(
    ("name", "metadata", "prediction"),
    [
        ("v2-1_768-ema-pruned.safetensors", {}, "v_prediction"),
        ("768-v-ema.safetensors", {}, "v_prediction"),
        ("512-base-ema.safetensors", {}, "epsilon"),
        ("mine.safetensors", {"modelspec__prediction_type": "v"}, "v_prediction"),
        ("mine.safetensors", {"modelspec__prediction_type": "epsilon"}, "epsilon"),
        ("mine.safetensors", {"modelspec__architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ("mine.safetensors", {"modelspec__architecture": "stable-diffusion-v2-512"}, "epsilon"),
        ("mine.safetensors", {}, ""),
    ],
)
def test_what_stable_diffusion_2_predicts(name: str, metadata: dict[str, str], prediction: str) -> None:
    assert told(SD2, name, **metadata).prediction == prediction


def test_xl_that_predicts_velocity_by_its_key_or_name() -> None:
    assert told({**SDXL, "v_pred": ()}).prediction == "v_prediction"
    assert told(SDXL, "noob-vpred.safetensors").prediction == "v_prediction"
    assert told({**SDXL, "ztsnr": ()}).zero_snr
    assert not told(SDXL).zero_snr


FLUX = {"double_blocks.0.img_attn.qkv.weight": (9216, 3072), "img_in.weight": (3072, 64)}
SD3 = {"joint_blocks.0.context_block.attn.qkv.weight": (1, 1), "x_embedder.proj.weight": (1536, 16, 2, 2)}
TRANSFORMERS = {
    "flux": FLUX,
    "sd3": SD3,
    "flux2": {**FLUX, "single_stream_modulation.lin.weight": (1, 1)},
    "chroma": {**FLUX, "distilled_guidance_layer.in_proj.bias": (1,)},
    "hunyuan-video": {**FLUX, "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias": (1,)},
    "z-image": {"layers.0.adaLN_modulation.0.weight": (1, 1), "cap_embedder.0.weight": (1,)},
    "lumina2": {"layers.0.adaLN_modulation.1.weight": (1, 1), "cap_embedder.0.weight": (1,)},
    "qwen-image": {
        "transformer_blocks.0.img_mod.1.weight": (1, 1),
        "transformer_blocks.0.attn.add_k_proj.weight": (1,),
    },
    "pixart": {"blocks.0.cross_attn.q_linear.weight": (1, 1), "t_block.1.weight": (1, 1)},
    "sana": {"blocks.0.cross_attn.q_linear.weight": (1, 1), "blocks.0.mlp.inverted_conv.conv.weight": (1,)},
    "auraflow": {"double_layers.0.attn.w2q.weight": (1, 1)},
    "hidream": {"double_stream_blocks.0.block.adaLN_modulation.1.bias": (1,)},
    "kandinsky": {"visual_transformer_blocks.0.self_attention.to_key.weight": (1, 1)},
    "krea2": {"txtfusion.projector.weight": (1, 1)},
    "flux3": {"early_stream_modulations.image.lin.weight": (1, 1)},
    "wan": {"head.modulation": (1, 1), "blocks.0.self_attn.q.weight": (1, 1)},
    "cosmos": {"blocks.0.self_attn.q_proj.weight": (1, 1), "t_embedding_norm.weight": (1,)},
    "ltx-video": {"patchify_proj.weight": (1, 1), "adaln_single.linear.weight": (1, 1)},
}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_transformers_alone_and_in_a_checkpoint(family: str) -> None:
    shapes = TRANSFORMERS[family]
    alone = told(shapes)
    assert (alone.kind, alone.family, alone.parts) == ("diffusion_model", family, ("transformer",))
    assert alone.prediction == ("epsilon" if family == "pixart" else "flow_prediction")
    text = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"
    whole = told(
        {**{UNET + key: shape for key, shape in shapes.items()}, text: (1, 1), "vae.decoder.conv_in.weight": ()}
    )
    assert (whole.kind, whole.family, whole.parts) == ("checkpoint", family, ("transformer", "vae", "t5"))


DIFFUSERS = {
    "FluxTransformer2DModel": ("flux", {"num_layers": 1, "num_single_layers": 1}),
    "Flux2Transformer2DModel": ("flux2", {"num_layers": 1, "num_single_layers": 1}),
    "SD3Transformer2DModel": ("sd3", {"num_layers": 1}),
    "QwenImageTransformer2DModel": ("qwen-image", {"num_layers": 1}),
    "ZImageTransformer2DModel": ("z-image", {"n_layers": 1, "n_refiner_layers": 1}),
    "PixArtTransformer2DModel": ("pixart", {"num_layers": 1}),
    "SanaTransformer2DModel": ("sana", {"num_layers": 1}),
    "ChromaTransformer2DModel": ("chroma", {"num_layers": 1, "num_single_layers": 1}),
    "Lumina2Transformer2DModel": ("lumina2", {"num_layers": 1}),
    "AuraFlowTransformer2DModel": ("auraflow", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}),
    "Kandinsky5Transformer3DModel": ("kandinsky", {"num_text_blocks": 1, "num_visual_blocks": 1}),
    "UNet2DConditionModel": ("sd1", {"cross_attention_dim": 768}),
    "AutoencoderKL": ("", {}),
    "AutoencoderKLQwenImage": ("qwen-image", {}),
    "AutoencoderKLFlux2": ("flux2", {}),
    "AutoencoderDC": ("sana", {}),
    "AutoencoderTiny": ("", {}),
    "ControlNetModel": ("sd1", {"cross_attention_dim": 768}),
    "FluxControlNetModel": ("flux", {"num_layers": 1, "num_single_layers": 1}),
    "SD3ControlNetModel": ("sd3", {"num_layers": 1}),
}
KINDS = {"AutoencoderTiny": "tiny_vae", "Autoencoder": "vae", "ControlNet": "controlnet"}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_what_diffusers_saves(name: str) -> None:
    import diffusers
    import torch

    family, arguments = DIFFUSERS[name]
    with torch.device("meta"):
        model = getattr(diffusers, name)(**arguments)
    found = told({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    kind = next((kind for word, kind in KINDS.items() if word in name), "diffusion_model")
    assert (found.kind, found.family) == (kind, family)
    if name.startswith("AutoencoderT") or name == "AutoencoderKL":
        assert found.channels == 4


def test_editions_and_variants_of_flux() -> None:
    dev = {**FLUX, "guidance_in.in_layer.weight": (1, 1)}
    assert told(FLUX).edition == "schnell"
    assert told(dev).edition == "dev"
    fill = told({**dev, "img_in.weight": (3072, 384)})
    assert (fill.variant, fill.edition) == ("inpaint", "fill")
    kontext = told(dev, "flux1-dev-kontext_fp8.safetensors")
    assert (kontext.variant, kontext.edition) == ("edit", "kontext")
    titled = told(dev, "mine.safetensors", modelspec__architecture="Flux.1-Kontext-dev")
    assert (titled.variant, titled.edition) == ("edit", "kontext")


def test_editions_of_stable_diffusion_3() -> None:
    assert told(SD3).edition == "3 medium"
    assert told({**SD3, "joint_blocks.0.x_block.attn.ln_q.weight": (1,)}).edition == "3.5 large"
    assert told({**SD3, "joint_blocks.0.x_block.attn2.ln_q.weight": (1,)}).edition == "3.5 medium"


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        ({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 768)}, "sd1"),
        ({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 1024)}, "sd2"),
        ({"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 2048)}, "sdxl"),
        ({"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (8, 2048)}, "sdxl"),
        (
            {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 768)},
            "sd1",
        ),
        ({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_b": (8, 768)}, "sd1"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (8, 1280)}, "sdxl"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (16, 3072)}, "flux"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (16, 3072)}, "flux"),
        ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (16, 1536)}, "sd3"),
        ({"diffusion_model.layers.0.attention.qkv.lora_A.weight": (16, 3840)}, "z-image"),
        ({"transformer_blocks.0.img_mlp.net.0.proj.lora_A.default.weight": (16, 3072)}, "qwen-image"),
        ({"diffusion_model.blocks.0.self_attn.q.lora_down.weight": (16, 5120)}, "wan"),
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (8, 768)}, ""),
    ],
)
def test_loras_and_what_they_are_for(shapes: Shapes, family: str) -> None:
    found = told(shapes)
    assert (found.kind, found.family) == ("lora", family)


def test_a_lora_of_a_lokr_tells_its_family_by_the_product_of_its_sides() -> None:
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k."
    assert told({f"{module}lokr_w1": (4, 8), f"{module}lokr_w2": (80, 96)}).family == "sd1"


def test_a_lora_that_its_tensors_leave_open_is_believed() -> None:
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (8, 768)}
    assert told(text, ss_base_model_version="sd_v1").family == "sd1"
    attention = {"transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": (16, 3072)}
    assert told(attention, ss_base_model_version="qwen_image").family == "qwen-image"
    unet = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 2048)}
    assert told(unet, ss_base_model_version="sd_v1").family == "sdxl"  # a width cannot lie


@pytest.mark.parametrize(
    ("shapes", "kind", "family", "edition"),
    [
        ({"control_model.zero_convs.0.0.weight": (1,), f"control_model.{CROSS}": (1, 768)}, "controlnet", "sd1", ""),
        ({"input_hint_block.0.weight": (16, 3, 3, 3), CROSS: (640, 1024)}, "controlnet", "sd2", ""),
        ({"lora_controlnet": (), f"{CROSS[:-7]}.lora_down.weight": (8, 768)}, "controlnet", "sd1", "control-lora"),
        ({"body.0.in_conv.weight": (1,), "conv_in.weight": (1,)}, "controlnet", "", "t2i-adapter"),
        ({"image_proj.proj.weight": (1,), "ip_adapter.1.to_k_ip.weight": (9, 768)}, "controlnet", "sd1", "ip-adapter"),
        ({"controlnet_blocks.0.weight": (1,), "double_blocks.0.img_mod.lin.weight": (1, 1)}, "controlnet", "flux", ""),
        ({"emb_params": (4, 768)}, "embedding", "sd1", ""),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "embedding", "sdxl", ""),
        ({"<cat>": (768,)}, "embedding", "sd1", ""),
        ({"decoder.conv_in.weight": (512, 4, 3, 3), "encoder.conv_in.weight": (128, 3, 3, 3)}, "vae", "", ""),
        (VAE, "vae", "", ""),
        ({"1.weight": (64, 16, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}, "tiny_vae", "", ""),
        ({"text_model.encoder.layers.0.fc1": (1,), "token_embedding.weight": (9, 768)}, "text_encoder", "", "clip_l"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": (1,), "shared.weight": (9, 9)}, "text_encoder", "", "t5"),
        ({"model.layers.0.self_attn.q_proj.weight": (1, 1), "model.layers.0.self_attn.q_proj.bias": (1,)},
         "text_encoder", "", "qwen"),
        ({"vision_model.encoder.layers.0.mlp.fc1.weight": (1, 1)}, "image_encoder", "", ""),
        ({"model.1.sub.0.RDB1.conv1.0.weight": (1,)}, "upscaler", "", "ESRGAN"),
        ({"params_ema.body.0.rdb1.conv1.weight": (1,)}, "upscaler", "", "ESRGAN"),
        ({"layers.0.residual_group.blocks.0.attn.qkv.weight": (1, 1)}, "upscaler", "", "SwinIR"),
    ],
)  # fmt: skip
def test_what_lies_beside_checkpoints(shapes: Shapes, kind: str, family: str, edition: str) -> None:
    found = told(shapes)
    assert (found.kind, found.family, found.edition) == (kind, family, edition)


def test_the_latents_of_a_tiny_decoder() -> None:
    decoder = told({"1.weight": (64, 16, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)})
    encoder = told({"0.weight": (64, 3, 3, 3), "1.conv.0.weight": (64, 64, 3, 3), "14.weight": (4, 64, 3, 3)})
    assert (decoder.channels, encoder.channels) == (16, 4)


def test_what_is_unknown_says_what_was_looked_for() -> None:
    found = told({"encoder_q.weight": (1,), "frobnicator.0.weight": (1,)})
    assert (found.kind, found.family) == ("", "")
    assert "frobnicator" in found.problem
    assert "double_blocks" in found.problem
    assert told({}).problem == "holds no tensors"


def test_precision_and_number_of_parameters() -> None:
    fp8 = detect(header({"double_blocks.0.img_attn.qkv.weight": (100, 10)}, "F8_E4M3"))
    assert (fp8.precision, fp8.parameters) == ("fp8", 1000)
    q4 = detect(header({"double_blocks.0.img_attn.qkv.weight": (64, 32)}, "Q4_K"))
    assert (q4.precision, q4.parameters) == ("Q4_K", 2048)
    key = "double_blocks.0.img_attn.qkv.weight"
    packed = detect(header({key: (500, 1), f"{key}.quant_state.bitsandbytes__nf4": ()}, "U8"))
    assert packed.precision == "nf4"
    assert packed.parameters == 1002


def test_every_family_has_a_name_for_people() -> None:
    assert set(TRANSFORMERS) <= set(FAMILIES)
