"""What a model is, by the names and shapes of its tensors.

A family's tensors have names of their own, in the layouts of its authors, of diffusers and of whoever trains LoRAs for
it (`double_blocks.0.img_attn.qkv`, `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`). So all names are looked
at with `_` for `.`, and one table serves them all. Shapes tell only what names cannot: models of tests are narrow.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from backend.weights import SIZES, Header

Kind = Literal[
    "checkpoint",  # denoiser, text encoders and VAE, or the denoiser and one of them
    "diffusion_model",  # the denoiser alone
    "vae",
    "tiny_vae",
    "text_encoder",
    "image_encoder",
    "lora",
    "controlnet",  # also T2I-Adapters and IP-Adapters
    "embedding",
    "upscaler",
    "annotator",  # told by its folder alone
    "",  # unknown
]
FAMILIES = {
    "sd1": "SD 1.x",
    "sd2": "SD 2.x",
    "sdxl": "SDXL",
    "sdxl-refiner": "SDXL refiner",
    "sd3": "SD 3",
    "flux": "Flux.1",
    "flux2": "Flux.2",
    "flux3": "Flux.3",
    "z-image": "Z-Image",
    "qwen-image": "Qwen-Image",
    "chroma": "Chroma",
    "kandinsky": "Kandinsky",
    "unclip": "unCLIP",
    "pixart": "PixArt",
    "sana": "Sana",
    "auraflow": "AuraFlow",
    "lumina2": "Lumina 2",
    "hidream": "HiDream",
    "krea2": "Krea 2",
    "cascade": "Stable Cascade",
    "wan": "Wan",
    "ltx-video": "LTX-Video",
    "hunyuan-video": "HunyuanVideo",
    "cosmos": "Cosmos",
}
"""What people call them. Which of them can be run, `backend.diffusion.families` says."""


@dataclass(frozen=True)
class Detected:
    """What a file's header tells, or a folder's small files."""

    kind: Kind = ""
    family: str = ""
    """A key of FAMILIES: which ControlNets, LoRAs and sizes suit it; empty: unknown, or of no family."""
    variant: str = ""
    """"inpaint" or "edit" for a denoiser that is shown an image beside the latents; empty: a plain one."""
    prediction: str = ""
    """"epsilon", "v_prediction", "flow_prediction" or "edm"; empty: the header does not tell."""
    edition: str = ""
    """What the family does not say: "schnell", "3.5 large", "unclip"; of a text encoder which one: "clip_l", "t5"."""
    zero_snr: bool = False
    """Trained with a noise schedule that ends in pure noise."""
    parts: tuple[str, ...] = ()
    """What the file holds: "unet" or "transformer", "vae", and text encoders by name: "clip_l", "clip_g", "t5" ..."""
    channels: int = 0
    """Of the latents that a denoiser is handed or a VAE makes; 0: unknown."""
    width: int = 0
    """Of the text that a transformer is shown or a language model makes; 0: unknown."""
    precision: str = ""
    """Of most weights: "fp32", "fp16", "bf16", "fp8", "int8", "nf4", "Q4_K" ..."""
    parameters: int = 0
    problem: str | None = None
    """Why it cannot be used, or why it is not known what this is, in a sentence that follows its name."""


def detect(header: Header, name: str = "") -> Detected:
    """What a file holds; `name` is its own, and only tells what no header does."""
    names = _Names(header)
    found = _detect(names, name)
    return Detected(**{**vars(found), **_numbers(header)})


def as_said(found: Detected, variant: str) -> Detected:
    """What was found, with what a person says where no header tells: "edit", or "plain"."""
    if found.family == "flux" and variant == "edit" and not found.variant:
        return replace(found, variant="edit", edition="kontext")
    if found.edition == "kontext" and variant == "plain":
        return replace(found, variant="", edition="dev")
    return found


class Denoiser(NamedTuple):
    """How a family is recognised."""

    family: str
    part: str
    prediction: str
    pattern: str
    """A regular expression that is found in the names of its tensors, written with `_` for `.`."""


DENOISERS = (
    Denoiser("flux3", "transformer", "flow_prediction", r"early_stream_modulations_"),
    Denoiser(
        "flux2",
        "transformer",
        "flow_prediction",
        r"(single|double)_stream_modulation_(\w+_)?lin|_attn_to_qkv_mlp_proj|ff_(context_)?linear_(in|out)_",
    ),
    Denoiser("chroma", "transformer", "flow_prediction", r"distilled_guidance_layer_"),
    Denoiser(
        "hunyuan-video", "transformer", "flow_prediction", r"individual_token_refiner|token_refiner_refiner_blocks"
    ),
    Denoiser(
        "auraflow", "transformer", "flow_prediction", r"joint_transformer_blocks_\d|double_layers_\d+_(attn|mlp)"
    ),
    Denoiser("hidream", "transformer", "flow_prediction", r"double_stream_blocks_\d"),
    Denoiser("krea2", "transformer", "flow_prediction", r"txtfusion_projector"),
    Denoiser("kandinsky", "transformer", "flow_prediction", r"visual_transformer_blocks_\d"),
    Denoiser(
        "flux",
        "transformer",
        "flow_prediction",
        r"double_blocks_\d+_(img_(attn|mlp|mod)|processor)|single_blocks_\d+_(linear|modulation|processor)"
        r"|single_transformer_blocks_\d",
    ),
    Denoiser("sd3", "transformer", "flow_prediction", r"joint_blocks_\d+_(context_block|x_block)"),
    Denoiser(
        "qwen-image", "transformer", "flow_prediction", r"transformer_blocks_\d+_(img|txt)_(mod|mlp)|txt_in_text_norm"
    ),
    Denoiser("sd3", "transformer", "flow_prediction", r"transformer_blocks_\d+_(attn_add_[qkv]_proj|ff_context)"),
    Denoiser("lumina2", "transformer", "flow_prediction", r"_layers_\d+_(adaLN_modulation_1_|norm1_linear)"),
    Denoiser(
        "z-image",
        "transformer",
        "flow_prediction",
        r"_layers_\d+_(adaLN_modulation_0_|attention_(qkv|to_|out)|feed_forward_w\d)|all_x_embedder|cap_pad_token",
    ),
    Denoiser(
        "sana", "transformer", "flow_prediction", r"_(conv_inverted|conv_point|mlp_inverted_conv|mlp_depth_conv)_"
    ),
    Denoiser(
        "ltx-video", "transformer", "flow_prediction", r"patchify_proj|transformer_blocks_\d+_attn1_(q_norm|norm_q)"
    ),
    Denoiser("pixart", "transformer", "epsilon", r"adaln_single_(linear|emb)|blocks_\d+_cross_attn_(q|kv)_linear"),
    Denoiser("cosmos", "transformer", "flow_prediction", r"_t_embedding_norm_|_extra_pos_embedder_|_affline_norm_"),
    Denoiser("wan", "transformer", "flow_prediction", r"_head_modulation\n|_blocks_\d+_(self|cross)_attn_[qkvo]_"),
    Denoiser("cascade", "unet", "epsilon", r"clip_txt_mapper|down_blocks_\d+_\d+_channelwise"),
    Denoiser("kandinsky", "unet", "epsilon", r"add_embedding_image_(norm|proj)|encoder_hid_proj_image_embeds"),
    Denoiser("kandinsky", "unet", "epsilon", r"_add_time_condition_|_resnets_in_\d|_proj_to_clip_embeddings_"),
    # which Stable Diffusion it is, `_unet_family` says
    Denoiser(
        "",
        "unet",
        "",
        r"(input|output)_blocks_\d+_\d|((down|up)_blocks_\d+|mid_block)_(resnets|attentions)|lora_unet_mid_",
    ),
)


_NUMBER = re.compile(r"[._]\d+(?=[._])")


class _Names:
    """The names of a file's tensors as one text that is searched quickly: of those that differ in numbers, two."""

    def __init__(self, header: Header) -> None:
        self.header = header
        keys = [*header.entries]
        alike = _NUMBER.sub("", "\n".join(keys)).split("\n")
        first, last = dict(zip(alike[::-1], keys[::-1], strict=False)), dict(zip(alike, keys, strict=False))
        self.dotted = "\n" + "\n".join(dict.fromkeys([*first.values(), *last.values()])) + "\n"
        # an underscore in front, so that a pattern may begin with one
        self.text = self.dotted.replace(".", "_").replace("\n", "\n_")

    def hold(self, pattern: str) -> bool:
        return re.search(pattern, self.text) is not None

    def begin(self, *starts: str) -> bool:
        return any(f"\n{start}" in self.dotted for start in starts)

    def shape(self, pattern: str) -> tuple[int, ...]:
        """Of a tensor whose name, with its dots, ends so; empty: there is none."""
        found = re.search(rf"\n(.*(?:{pattern}))(?=\n)", self.dotted)
        return self.shape_of(found[1]) if found else ()

    def shape_of(self, key: str) -> tuple[int, ...]:
        entry = self.header.entries.get(key)
        return entry.shape if entry else ()


def _detect(names: _Names, name: str) -> Detected:
    if not names.header.entries:
        return Detected(problem="holds no tensors")
    for look in (_lora, _control, _embedding, _denoiser, _tiny_vae, _vae, _text_encoder, _upscaler):
        if found := look(names, name):
            return found
    return Detected(problem=_unknown(names))


def _unknown(names: _Names) -> str:
    first = ", ".join(list(names.header.entries)[:3])[:200]
    return (
        f"is of a kind that is not known here: its tensors ({first} ...) are none of"
        " model.diffusion_model, input_blocks, down_blocks, double_blocks, joint_blocks, transformer_blocks"
        " (checkpoints),"
        " first_stage_model, decoder.conv_out (VAEs), lora_up, lora_A, lokr_w1, hada_w1_a (LoRAs),"
        " control_model, controlnet_cond_embedding, controlnet_blocks (ControlNets), text_model, encoder.block (text)"
    )


# --- beside the checkpoint


LORA = (
    r"_lora[12]?_(up|down|A|B|a|b|linear_layer)_|_(hada|lokr)_w[12]|_oft_(blocks|diag)|_dora_scale\n|_ia3_|"
    r"\n_lora_(unet|te\d?|transformer|prior)_|\n_lycoris_"
)


def _lora(names: _Names, name: str) -> Detected | None:
    if not names.hold(LORA):
        return None
    if names.hold(r"\n_lora_controlnet\n"):
        return Detected("controlnet", _family(names), edition="control-lora")
    return Detected("lora", _lora_family(names))


ALIKE: Mapping[str, tuple[str, ...]] = {"flux": ("flux2", "chroma", "qwen-image"), "sd3": ("qwen-image",)}
"""Families whose modules a LoRA may call as those of another: its own words tell, or sizes, once it is read."""
_FLUX_WIDTH = 3072
"""Of its tokens; those of Stable Diffusion 3 are narrower."""


def _lora_family(names: _Names) -> str:
    """By its modules, which cannot err; where they leave it open, by its own words."""
    family, said = _family(names), _family_said(names.header.metadata)
    if family == "sd3" and names.shape(r"add_k_proj\.lora_(?:down|A)(?:\.\w+)?\.weight")[1:] == (_FLUX_WIDTH,):
        family = "flux"
    return said if not family or said in ALIKE.get(family, ()) else family


def _control(names: _Names, _: str) -> Detected | None:
    if names.hold(r"controlnet_cond_embedding_|_controlnet_(down_blocks|blocks|x_embedder|mid_block)|_control_model_"):
        edition = "union" if names.hold(r"task_embedding|controlnet_mode_embedder") else ""
        return Detected("controlnet", _family(names), edition=edition)
    if names.hold(r"_input_hint_block_\d|_control_(all_x_embedder|layers_\d)"):
        return Detected("controlnet", _family(names) or ("z-image" if names.hold("_control_") else ""))
    if names.hold(r"\n_(adapter_)?body_\d+_(resnets|in_conv|block1|out_conv)"):
        return Detected("controlnet", edition="t2i-adapter")
    if names.hold(r"\n_(ip_adapter|image_proj(_model)?)_"):
        width = names.shape(r"to_k_ip\.weight")
        return Detected("controlnet", _SD_WIDTHS.get(width[-1] if width else 0, ""), edition="ip-adapter")
    return None


def _embedding(names: _Names, _: str) -> Detected | None:
    tensors = names.header.entries
    if set(tensors) >= {"clip_l", "clip_g"}:
        return Detected("embedding", "sdxl")
    vectors = next((key for key in ("emb_params", "string_to_param.*") if key in tensors), None)
    if vectors is None and len(tensors) == 1:  # diffusers: one tensor under the word that calls it
        vectors = next((key for key in tensors if names.shape_of(key)[-1:] in [(w,) for w in _SD_WIDTHS]), None)
    if vectors is None:
        return None
    shape = names.shape_of(vectors)
    return Detected("embedding", _SD_WIDTHS.get(shape[-1], "") if shape else "")


# --- checkpoints


def _denoiser(names: _Names, name: str) -> Detected | None:
    rule = _rule(names)
    if rule is None or not (names.begin(*DENOISER_PREFIXES) or _is_bare(names)):
        return None
    texts = tuple(label for label, pattern in TEXT_PARTS.items() if names.hold(pattern))
    vae = ("vae",) if names.begin("first_stage_model.", "vae.") else ()
    family = rule.family or _unet_family(names)
    channels = _channels(names, rule.part, family)
    variant, edition = _variant(names, name.lower(), rule.part, family, channels)
    prediction = rule.prediction or _unet_prediction(names, name, family, variant, edition)
    kind: Kind = "checkpoint" if texts or vae else "diffusion_model"
    zero_snr, parts = names.hold(r"_ztsnr\n"), (rule.part, *vae, *texts)
    width = _width(names, family)
    return Detected(kind, family, variant, prediction, edition, zero_snr, parts, channels, width)


DENOISER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "net.", "transformer.", "unet.")
TEXT_PARTS = {
    "clip_l": r"\n_(cond_stage_model_transformer|conditioner_embedders_0_transformer|text_encoders_clip_l)_",
    "clip_g": r"\n_(conditioner_embedders_1_model|conditioner_embedders_0_model|text_encoders_clip_g)_",
    "clip_h": r"\n_cond_stage_model_model_",
    "t5": r"\n_text_encoders_(t5xxl|t5|pile_t5xl|umt5xxl|mt5xl)_",
    "gemma2": r"\n_text_encoders_gemma2_\d",
    "qwen2.5-vl": r"\n_text_encoders_qwen25_\d",
    "qwen3": r"\n_text_encoders_qwen3_\d",
    "llama": r"\n_text_encoders_llama\w*_",
    "mistral": r"\n_text_encoders_mistral\w*_",
}
"""Text encoders in a checkpoint; OpenCLIP's H is that of Stable Diffusion 2, G is SDXL's second and its refiner's."""


def _is_bare(names: _Names) -> bool:
    """Whether the denoiser's tensors are not under a prefix. A VAE has down_blocks too, but in an encoder."""
    return not names.begin("encoder.", "decoder.", "first_stage_model.", "quant_conv.")


def _rule(names: _Names) -> Denoiser | None:
    return next((rule for rule in DENOISERS if names.hold(rule.pattern)), None)


def _family(names: _Names) -> str:
    """Also that of a LoRA or ControlNet, by the modules that it is for."""
    rule = _rule(names)
    if rule is None:
        return "sdxl" if names.hold(r"\n_lora_te2_|_text_encoder_2_") else ""
    return rule.family or _unet_family(names)


_SD_WIDTHS = {768: "sd1", 1024: "sd2", 1280: "sdxl-refiner", 2048: "sdxl"}
"""How wide the text is that the UNet reads."""


def _unet_family(names: _Names) -> str:
    if names.hold(r"\n_conditioner_embedders_1_|\n_lora_te2_|_text_encoder_2_"):
        return "sdxl"
    if names.hold(r"\n_conditioner_embedders_0_model_"):
        return "sdxl-refiner"
    if names.hold(r"\n_cond_stage_model_model_"):
        return "sd2"
    if names.hold(r"\n_cond_stage_model_transformer_"):
        return "sd1"
    family = _SD_WIDTHS.get(_text_width(names), "")
    if family in ("sd1", "sd2") or not names.hold(r"_label_emb_0_0_weight|_add_embedding_linear_1_"):
        return family
    return family or "sdxl"  # a narrow one: only the XL ones are told the size


def _text_width(names: _Names) -> int:
    """What goes into the keys of the UNet's cross attention, of a LoRA too."""
    pattern = r"attn2[._](?:processor[._])?to_[kv](?:_lora)?"
    plain = names.shape(rf"{pattern}(?:\.lora_(?:down|A)(?:\.\w+)?|\.down)?\.weight|{pattern}\.(?:hada_w1_b|diff)")
    if len(plain) > 1:
        return plain[1]
    left = re.search(rf"\n(.*{pattern}\.lokr_w)1(?:_b)?\n", names.dotted)
    first, second = (_side(names, f"{left[1]}{number}") if left else 0 for number in (1, 2))
    return first * second


def _side(names: _Names, factor: str) -> int:
    """Columns of a factor of a LoKr, which may be the product of two."""
    shape = names.shape_of(factor) or names.shape_of(f"{factor}_b")
    return shape[1] if len(shape) > 1 else 0


def _channels(names: _Names, part: str, family: str) -> int:
    if part == "unet":
        shape = names.shape(r"input_blocks\.0\.0\.weight") or names.shape(r"conv_in\.weight")
        return shape[1] if len(shape) > 1 else 0
    packed = names.shape(r"img_in\.weight|x_embedder\.weight")  # 2 x 2 latents each
    if family in ("flux", "flux2", "chroma", "qwen-image", "z-image") and len(packed) == 2:
        return packed[1] // 4
    shape = names.shape(r"(?:x_embedder|pos_embed|patch_embed)\.proj\.weight")
    return shape[1] if len(shape) == 4 else 0


_TITLES = ("modelspec.architecture", "modelspec.title", "general.name")
"""What a file calls itself."""
WIDTHS = {
    "chroma": r"(?:txt_in|context_embedder)\.weight",
    "flux2": r"(?:txt_in|context_embedder)\.weight",
    "qwen-image": r"txt_in\.weight",
    **dict.fromkeys(("pixart", "sana"), r"(?:y_embedder\.y_proj\.fc1|caption_projection\.linear_1)\.weight"),
    "z-image": r"cap_embedder\.1\.weight",
}
"""Ends of the names of what reads the text, of families with several encoders of a kind."""


def _width(names: _Names, family: str) -> int:
    shape = names.shape(WIDTHS[family]) if family in WIDTHS else ()
    # of Flux 2's text, three layers lie side by side
    return shape[1] // (3 if family == "flux2" else 1) if len(shape) == 2 else 0


def _variant(names: _Names, name: str, part: str, family: str, channels: int) -> tuple[str, str]:
    """Variant and edition."""
    if family == "kandinsky":
        first = "3" if names.hold(r"_add_time_condition_") else ""
        return "", "5" if part == "transformer" else "prior" if names.hold("_proj_to_clip_embeddings_") else first
    if part == "unet":
        variant = {9: "inpaint", 8: "edit"}.get(channels, "")
        if names.hold(r"_edm_mean\n"):
            return variant, "playground-v2.5"
        if channels == 5:
            return variant, "depth"
        if channels == 7:
            return variant, "upscaler"
        return variant, "unclip" if names.hold(r"_(embedder_model_visual|noise_augmentor)_") else ""
    if family == "flux":
        if channels == 96:  # latents, latents of the masked image, the mask's pixels
            return "inpaint", "fill"
        if channels == 32:
            return "edit", "control"
        said = (names.header.metadata.get(key, "").lower() for key in _TITLES)
        if any("kontext" in words for words in (name, *said)):
            return "edit", "kontext"  # its tensors are those of dev
        return "", "dev" if names.hold(r"_guidance_in_|_guidance_embedder_") else "schnell"
    if family == "flux2":
        klein = "base" if "base" in name else "klein"
        return "", "dev" if names.hold(r"_guidance_in_|_guidance_embedder_") else klein
    if family == "z-image":
        return "", "turbo" if "turbo" in name else ""
    if family == "sd3":
        if names.hold(r"_x_block_attn2_|_attn2_add|transformer_blocks_\d+_attn2_"):
            return "", "3.5 medium"
        return "", "3.5 large" if names.hold(r"_attn_ln_q_|_attn_norm_q_") else "3 medium"
    if family == "qwen-image":
        if names.hold("txt_in_text_norm"):
            return "", "2.1"
        return ("edit" if names.hold(r"__index_timestep_zero__") or "edit" in name else ""), ""
    if family == "pixart":
        is_told_size = names.hold("_csize_embedder_|_resolution_embedder_")
        tokens = names.shape(r"y_embedder\.y_embedding")[:1]
        is_called_so = "alpha" in name and "sigma" not in name
        return "", "alpha" if is_told_size or is_called_so or tokens == (120,) else "sigma"
    if family == "sana":
        large = re.search(r"[24]k(?=px)", name)
        return "", "sprint" if names.hold("_cfg_embedder_|_guidance_embedder_") else large[0] if large else ""
    return "", ""


def _unet_prediction(names: _Names, name: str, family: str, variant: str, edition: str) -> str:
    if edition == "playground-v2.5" or names.hold(r"_edm_vpred_"):
        return "edm"
    if names.hold(r"_v_pred\n"):
        return "v_prediction"
    said = names.header.metadata
    word = said.get("modelspec.prediction_type", "").lower()
    if word.startswith("v") or said.get("ss_v_parameterization") == "True":
        return "v_prediction"
    if word.startswith("eps"):
        return "epsilon"
    architecture = said.get("modelspec.architecture", "").lower()
    if "768-v" in architecture or re.search(r"v[-_ ]?pred|768[-_ ]?v|v2-1[-_]768|768nonema", name.lower()):
        return "v_prediction"
    if family == "sd2" and not variant:
        # nothing in the tensors tells the two: A1111 draws once and looks
        known = "512" in architecture or re.search(r"512|base", name.lower())
        return "epsilon" if known else "v_prediction" if edition == "unclip" else ""
    return "epsilon" if family else ""


def _family_said(metadata: Mapping[str, str]) -> str:
    """The family that a file's own words name."""
    for key in ("modelspec.architecture", "ss_base_model_version", "sd version", "general.architecture"):
        word = metadata.get(key, "").lower()
        for family, pattern in _WORDS:
            if word and re.search(pattern, word):
                return family
    return ""


_WORDS = (
    ("flux2", r"flux[._ -]?2"),
    ("chroma", r"chroma"),
    ("flux", r"flux"),
    ("sd3", r"sd_?3|stable-diffusion-(v)?3"),
    ("sdxl-refiner", r"xl.*refiner"),
    ("sdxl", r"sdxl|stable-diffusion-xl|sd_xl|\bxl\b|pony|illustrious|noobai"),
    ("sd2", r"sd_?v?2|stable-diffusion-v2|sd 2"),
    ("sd1", r"sd_?v?1|stable-diffusion-v1|sd 1"),
    ("z-image", r"z[-_ ]?image|lumina2"),
    ("qwen-image", r"qwen[-_ ]?image"),
    ("sana", r"sana"),
    ("pixart", r"pixart"),
    ("kandinsky", r"kandinsky"),
    ("wan", r"\bwan"),
)


# --- VAEs, text encoders, upscalers


def _tiny_vae(names: _Names, _: str) -> Detected | None:
    if names.hold(r"\n_(encoder|decoder)_layers_\d+_(conv_\d+_)?weight\n"):
        channels = names.shape(r"decoder\.layers\.0\.weight") or names.shape(r"encoder\.layers\.1[0-9]\.weight")
    elif names.hold(r"\n_(taesd_(encoder|decoder)_)?\d+_conv_0_weight\n") and len(names.header.entries) < 400:
        # the encoder's last convolution makes the latents, the decoder's first one reads them
        channels = names.shape(r"(?<=\n)(?:taesd_decoder\.)?1\.weight") or _last_shape(names)
    else:
        return None
    wide = min(channels[:2]) if len(channels) > 1 else 0
    return Detected("tiny_vae", parts=("vae",), channels=wide if wide in (4, 16, 32) else 0)


def _last_shape(names: _Names) -> tuple[int, ...]:
    numbered = {int(m[1]): m[0] for key in names.header.entries if (m := re.fullmatch(r"(?:.*\.)?(\d+)\.weight", key))}
    return names.shape_of(numbered[max(numbered)]) if numbered else ()


def _vae(names: _Names, _: str) -> Detected | None:
    if not names.hold(r"_(encoder|decoder)_(conv_in|conv_out|mid_block|mid_block_1|conv1|middle|project_in|stages)_"):
        return None
    if names.hold(
        r"_decoder_(middle_\d+_residual|up_blocks_\d+_resnets_\d+_norm\d_gamma|mid_block_resnets_\d+_norm\d_gamma)"
    ):
        return Detected("vae", "qwen-image", parts=("vae",), channels=16)
    if names.hold(r"_(project_in_conv|op_list_\d|conv_inverted|depth_conv)_|_encoder_down_blocks_\d+_\d+_conv"):
        made = names.shape(r"encoder\.(?:project_out\.main\.op_list\.0\.conv|conv_out)\.weight")
        return Detected("vae", "sana", parts=("vae",), channels=made[0] if made else 32)
    shape = names.shape(r"decoder\.conv_in\.weight")
    channels = shape[1] if len(shape) > 1 else 0
    return Detected("vae", "flux2" if names.hold(r"\n_bn_running_mean\n") else "", parts=("vae",), channels=channels)


def _text_encoder(names: _Names, name: str) -> Detected | None:
    sees = names.hold(r"_vision_model_encoder_layers_\d|\n_visual_transformer_resblocks")
    if sees and not names.hold(r"_text_model_encoder_layers_\d|\n_(language_)?model_layers_\d"):
        return Detected("image_encoder", parts=("image_encoder",))
    if names.hold(r"_text_model_encoder_layers_\d|\n_transformer_resblocks_\d"):
        width = names.shape(r"token_embedding\.weight")
        label = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}.get(width[-1] if width else 0, "clip")
    elif names.hold(r"_block_\d+_layer_\d+_SelfAttention_q|\n_enc_blk_\d+_attn_q"):
        words = names.shape(r"shared\.weight|token_embd\.weight")
        label = "umt5" if words and max(words) > 200_000 else "t5"
        return Detected("text_encoder", edition=label, parts=(label,), width=words[-1] if words else 0)
    elif names.hold(r"_layers_\d+_self_attn_q_proj_|\n_blk_\d+_attn_q(kv)?_"):
        label = _language_model(names, name)
        width = names.shape(r"embed_tokens\.weight|token_embd\.weight")[-1:]
        return Detected("text_encoder", edition=label, parts=(label,), width=width[0] if width else 0)
    else:
        return None
    return Detected("text_encoder", edition=label, parts=(label,))


def _language_model(names: _Names, name: str) -> str:
    said = f"{names.header.metadata.get('general.architecture', '')} {name}".lower()
    is_gemma = names.hold(r"_pre_feedforward_layernorm_|_post_ffw_norm_")
    is_normed = names.hold(r"_attn_q_norm_")
    if is_gemma:
        return "gemma3" if is_normed else "gemma2"
    if is_normed and not names.hold(r"_visual_"):
        return "qwen3"
    if "qwen2vl" in said:  # 2.5 has no word of its own there
        called = f"{names.header.metadata.get('general.name', '')} {name}"
        return "qwen2.5-vl" if re.search(r"(?i)qwen2[._]5", called.replace(" ", "")) else "qwen"
    if names.hold(r"_self_attn_q_proj_bias"):  # the only one of them with a bias there
        return "qwen2.5-vl" if names.hold(r"_visual_") else "qwen"
    return next((word for word in ("qwen", "gemma", "llama", "mistral", "glm") if word in said), "language_model")


UPSCALERS = {
    "ESRGAN": r"\n_(params_(ema_)?)?(body_\d+_(rdb\d_conv\d|weight\n)|RRDB_trunk_\d|model_1_sub_\d+_RDB\d)",
    "HAT": r"residual_group_blocks_\d+_conv_block_cab|overlap_attn",
    "DAT": r"layers_\d+_blocks_\d+_attn_attns_\d",
    "SwinIR": r"layers_\d+_residual_group_blocks_\d+_attn",
    "OmniSR": r"residual_layer_\d+_residual_layer_\d",
    "SPAN": r"\n_block_\d_c1_r_",
    "ScuNET": r"m_(head|down1|body)_\d+_(conv1_1|trans_block)",
    "RealPLKSR": r"feats_\d+_(channe_mixer|channel_mixer|lk_conv)",
}
"""By architecture."""


def _upscaler(names: _Names, _: str) -> Detected | None:
    found = next((label for label, pattern in UPSCALERS.items() if names.hold(pattern)), None)
    return Detected("upscaler", edition=found) if found else None


# --- numbers


PRECISIONS = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
    "I8": "int8",
    "U8": "int8",
    "F4": "fp4",
}


def _numbers(header: Header) -> dict[str, Any]:
    """Precision, that of most bytes, and parameters; two to a byte where bitsandbytes packs them."""
    taken: Counter[str] = Counter()
    count = 0
    for dtype, shape, begin, end in header.entries.values():
        taken[dtype] += end - begin
        if dtype not in SIZES:  # quantised in blocks
            count += math.prod(shape)
    packed = re.search(r"bitsandbytes__(nf4|fp4)", "\n".join(header.entries)) if taken["U8"] else None
    count += sum(
        size // SIZES[dtype] * (2 if packed and dtype == "U8" else 1)
        for dtype, size in taken.items()
        if dtype in SIZES
    )
    most = max(taken, key=taken.__getitem__, default="")
    return {"precision": packed[1] if packed and most == "U8" else PRECISIONS.get(most, most), "parameters": count}
