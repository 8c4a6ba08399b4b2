"""A component out of a safetensors file in which it may be one of several, under whichever names its authors chose."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import Tensor
from transformers.initialization import no_init_weights

from backend.diffusion.reading import autoencoders, denoisers, layouts, shapes
from backend.diffusion.reading.errors import Unreadable
from backend.diffusion.reading.layouts import Layout
from backend.diffusion.reading.sources import Gguf, Source, Tensors
from backend.errors import gist
from backend.packed import Blocks, Packed

AT_ONCE = 256 << 20
"""Bytes of a file that are in memory while numbers are made wider or narrower."""
EMBEDDINGS = ("shared.weight", "embed_tokens.weight", "token_embedding.weight", "position_embedding.weight")
"""Matrices that are looked up in, not multiplied with."""
SCALES = (".scale_weight", ".weight_scale")
"""What ComfyUI calls the factor of a weight that was squeezed into eight bits."""
BESIDE_WEIGHTS = (*SCALES, ".input_scale", ".scale_input", ".comfy_quant")
"""Ends of names that such a weight has beside it."""


class Kind(NamedTuple):
    """How to read what a class of diffusers or transformers is made of."""

    layouts: Mapping[str, Callable[[Collection[str]], Layout]]
    """By the end of a name that only this layout has."""
    shapes: Callable[[shapes.Shapes], dict[str, Any]]
    unused: str = ""
    """A module that a file may lack as a whole."""


CLIP = Kind(
    {
        "text_model.embeddings.token_embedding.weight": layouts.clip,
        "embeddings.token_embedding.weight": layouts.clip,
        "token_embedding.weight": layouts.open_clip,
    },
    shapes.clip,
)
KINDS: Mapping[str, Kind] = {
    "UNet2DConditionModel": Kind(
        {"input_blocks.0.0.weight": layouts.unet_of_original, "down_blocks.0.resnets.0.conv1.weight": layouts.same},
        shapes.unet,
    ),
    "AutoencoderKL": Kind(
        {
            "decoder.up.0.block.0.conv1.weight": layouts.vae_of_original,
            "decoder.up_blocks.0.resnets.0.conv1.weight": layouts.vae_of_early_diffusers,
        },
        shapes.vae,
    ),
    "AutoencoderKLFlux2": Kind(
        {
            "decoder.up.0.block.0.conv1.weight": layouts.flux2_vae,
            "decoder.up_blocks.0.resnets.0.conv1.weight": layouts.same,
        },
        shapes.vae,
    ),
    "AutoencoderDC": Kind(
        {
            "encoder.project_in.conv.weight": autoencoders.dc,
            "encoder.down_blocks.0.0.conv1.weight": layouts.same,
        },
        shapes.dc_vae,
    ),
    "AutoencoderKLQwenImage": Kind(
        {
            "decoder.upsamples.0.residual.0.gamma": autoencoders.wan,
            "decoder.up_blocks.0.resnets.0.norm1.gamma": layouts.same,
        },
        shapes.wan_vae,
    ),
    "CLIPTextModel": CLIP,
    "CLIPTextModelWithProjection": CLIP,
    "T5EncoderModel": Kind(
        {
            "encoder.block.0.layer.0.SelfAttention.q.weight": layouts.t5,
            "enc.blk.0.attn_q.weight": layouts.t5_of_llama_cpp,
        },
        shapes.t5,
    ),
    "Gemma2Model": Kind({"layers.0.pre_feedforward_layernorm.weight": layouts.same}, shapes.gemma2),
    "Qwen2_5_VLForConditionalGeneration": Kind(
        {
            "model.layers.0.self_attn.q_proj.bias": layouts.qwen25_vl,
            "model.language_model.layers.0.self_attn.q_proj.bias": layouts.qwen25_vl,
            "blk.0.attn_q.bias": layouts.qwen25_vl_of_llama_cpp,
        },
        shapes.qwen25_vl,
        unused="model.visual",
    ),
    "Qwen3Model": Kind(
        {
            "layers.0.self_attn.q_norm.weight": layouts.same,
            "blk.0.attn_q_norm.weight": layouts.qwen3_of_llama_cpp,
        },
        shapes.qwen3,
    ),
    "SD3Transformer2DModel": Kind(
        {
            "joint_blocks.0.x_block.attn.qkv.weight": denoisers.sd3,
            "transformer_blocks.0.attn.add_q_proj.weight": layouts.same,
        },
        shapes.sd3,
    ),
    "FluxTransformer2DModel": Kind(
        {
            "double_blocks.0.img_attn.qkv.weight": denoisers.flux,
            "single_transformer_blocks.0.attn.to_q.weight": layouts.same,
        },
        shapes.flux,
    ),
    "ChromaTransformer2DModel": Kind(
        {
            "double_blocks.0.img_attn.qkv.weight": denoisers.chroma,
            "single_transformer_blocks.0.attn.to_q.weight": layouts.same,
        },
        shapes.chroma,
    ),
    "Flux2Transformer2DModel": Kind(
        {
            "double_blocks.0.img_attn.qkv.weight": denoisers.flux2,
            "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight": layouts.same,
        },
        shapes.flux2,
    ),
    "QwenImageTransformer2DModel": Kind(
        {"transformer_blocks.0.img_mod.1.weight": layouts.same},
        shapes.qwen_image,
    ),
    "PixArtTransformer2DModel": Kind(
        {
            "blocks.0.cross_attn.kv_linear.weight": denoisers.pixart,
            "adaln_single.linear.weight": layouts.same,
        },
        shapes.pixart,
    ),
    "SanaTransformer2DModel": Kind(
        {
            "blocks.0.mlp.inverted_conv.conv.weight": denoisers.sana,
            "transformer_blocks.0.ff.conv_inverted.weight": layouts.same,
        },
        shapes.sana,
    ),
    "ZImageTransformer2DModel": Kind(
        {
            "layers.0.attention.qkv.weight": denoisers.z_image,
            "layers.0.attention.to_q.weight": layouts.same,
        },
        shapes.z_image,
    ),
}


class Component(NamedTuple):
    """Where a component lies in a file."""

    source: Source
    prefix: str
    layout: Layout
    kind: Kind
    shapes: Mapping[str, tuple[int, ...]]
    """Of its tensors, by the names in the file without the prefix."""

    def size(self, dtype: torch.dtype, packed: bool) -> int:
        """Bytes of its weights; `packed`: what can stay in the blocks of its file stays there."""
        blocks = self.packed if packed else {}
        return sum(blocks.get(name) or prod(self.shapes[name]) * dtype.itemsize for name in self.names)

    @property
    def names(self) -> list[str]:
        """Of the tensors that diffusers has a use for."""
        return [n for n in self.shapes if self.layout.names(n) and not n.endswith(BESIDE_WEIGHTS)]

    @property
    def packed(self) -> Mapping[str, int]:
        """The weights of its linear layers that can stay in the blocks of its file, and their bytes."""
        if not isinstance(self.source, Gguf):
            return {}
        blocks = {name.removeprefix(self.prefix): size for name, size in self.source.packed.items()}
        return {name: size for name, size in blocks.items() if name in self.shapes and self._is_linear(name)}

    def _is_linear(self, name: str) -> bool:
        names = self.layout.names(name)
        is_weight = all(name.endswith(".weight") and not name.endswith(EMBEDDINGS) for name in names)
        return bool(names) and is_weight and self.layout.keeps_numbers(name)

    def config(self) -> dict[str, Any]:
        """What the shapes of its weights tell of it. Raises Unreadable."""
        known = {}
        for name in self.names:
            if len(names := self.layout.names(name)) == 1:
                known[names[0]] = self.layout.shape(name, self.shapes[name])
        try:
            return self.kind.shapes(known)
        except (KeyError, ValueError, IndexError) as error:
            raise Unreadable(f"lacks weights or has wrong ones ({gist(error)})") from error


def find(source: Source, kind: Kind, prefixes: Sequence[str] | None = None) -> Component | None:
    """The first component of a kind in a file, under one of the prefixes; None stands for any."""
    tensors = source.shapes
    for mark, layout in kind.layouts.items():
        for prefix in _before(tensors, mark) if prefixes is None else prefixes:
            if prefix + mark in tensors:
                own = {name.removeprefix(prefix): s for name, s in tensors.items() if name.startswith(prefix)}
                return Component(source, prefix, layout(own), kind, own)
    return None


def load(
    component: Component,
    cls: Any,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    identity: str | None = None,
    packed: bool = False,
) -> Any:
    """An instance of `cls` with the component's numbers: those that the file has as `dtype` stay where they are in it.

    `identity` is a matrix that changes nothing, whatever the file has. `packed`: so do those of linear layers that are
    quantised. Raises Unreadable.
    """
    with init_empty_weights(), no_init_weights():
        module = _empty(cls, config)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    head = "text_model." if any(name.startswith("text_model.") for name in wanted) else ""  # transformers has both
    rows = {name.removeprefix(head): shape[0] for name, shape in wanted.items() if shape}
    exact = tuple(getattr(cls, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    state: dict[str, Tensor] = {}
    packed_layers: set[str] = set()
    for original, numbers in _read(component, dtype, exact, component.packed if packed else ()):
        for name, tensor in component.layout.to_diffusers(original, numbers, rows):
            name = name if name in wanted else head + name
            if name not in wanted:
                continue
            shape = tensor.quant_shape if isinstance(tensor, Blocks) else tensor.shape
            if tuple(shape) != wanted[name]:
                raise Unreadable(f"has {name} of {list(shape)}, not {list(wanted[name])}")
            if not isinstance(tensor, Blocks):
                state[name] = tensor
                continue
            stem = name.removesuffix(".weight")
            layer, works_in = module.get_submodule(stem), torch.float32 if _is_exact(name, exact) else dtype
            if isinstance(layer, torch.nn.Linear):
                module.set_submodule(stem, Packed(layer, tensor, works_in))
                packed_layers.add(name)
            else:
                state[name] = tensor.whole(works_in)
    if identity:
        state[identity] = torch.eye(wanted[identity][0], dtype=dtype)
    for name, source in (getattr(module, "_tied_weights_keys", None) or {}).items():  # the file has them once
        if name in wanted and name not in packed_layers and source in state:
            state.setdefault(name, state[source])
    if (unused := component.kind.unused) and not any(name.startswith(f"{unused}.") for name in state):
        module.set_submodule(unused, torch.nn.Identity())
    if missing := sorted(_own(module) - state.keys() - packed_layers):
        raise Unreadable(f"lacks weights: {missing[0]} and {len(missing) - 1} more")
    module.load_state_dict(state, strict=False, assign=True)
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    return module.requires_grad_(False).eval()


def _read(
    component: Component, dtype: torch.dtype, exact: Collection[str], packed: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """Name and numbers of the component's tensors, some in their blocks.

    The file is let go of now and then where numbers are changed.
    """
    source = component.source
    names = component.names
    try:
        while names:
            taken = 0
            with source.open() as tensors:
                while names and taken < AT_ONCE:
                    name = names.pop(0)
                    if name in packed and isinstance(source, Gguf):
                        yield name, source.get_blocks(component.prefix + name)
                        continue
                    tensor = tensors.get_tensor(component.prefix + name)
                    scale = _scale(component, tensors, name)
                    ours = component.layout.names(name)
                    wanted = torch.float32 if any(_is_exact(each, exact) for each in ours) else dtype
                    if scale is not None:
                        tensor = tensor.to(torch.float32) * scale
                    if tensor.is_floating_point() and tensor.dtype != wanted:
                        taken += tensor.nbytes
                        tensor = tensor.to(wanted)
                    yield name, tensor
    except (SafetensorError, OSError) as error:
        raise Unreadable(f"cannot be read ({gist(error)})") from error


def _is_exact(name: str, exact: Collection[str]) -> bool:
    return not set(exact).isdisjoint(name.split("."))


def _scale(component: Component, tensors: Tensors, name: str) -> Tensor | None:
    stem = name.removesuffix(".weight")
    for ending in SCALES if name != stem else ():
        if stem + ending in component.shapes:
            return tensors.get_tensor(component.prefix + stem + ending).to(torch.float32)
    return None


def _empty(cls: Any, config: Mapping[str, Any]) -> Any:
    if hasattr(cls, "config_class") and cls.config_class is not None:  # transformers
        return cls(cls.config_class(**config))
    return cls.from_config(dict(config))


def _own(module: torch.nn.Module) -> set[str]:
    """The names of what has to be in the file: of tied weights one, and no counters of a training."""
    parameters = {name for name, _ in module.named_parameters()}
    buffers = module.state_dict().keys() & {name for name, _ in module.named_buffers()}
    return parameters | {name for name in buffers if not name.endswith("num_batches_tracked")}


def _before(names: Collection[str], mark: str) -> list[str]:
    ends = re.compile(rf"(|.*\.){re.escape(mark)}")
    return sorted({match[1] for name in names if (match := ends.fullmatch(name))}, key=len)
