"""Layers whose weights stay as a GGUF file has them: in blocks of small numbers, made whole while the layer works."""

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, GGUFLinear, GGUFParameter, dequantize_functions
from gguf import GGMLQuantizationType
from torch import Tensor

KINDS = frozenset(kind.name for kind in dequantize_functions) - {"BF16"}
"""The quantisations that can stay; numbers of any other are made whole when they are read."""


class Blocks(GGUFParameter):  # type: ignore[misc]
    """A weight in blocks, (rows, bytes); `quant_shape` is that of its numbers."""

    change: Callable[[Tensor], Tensor] | None = None
    """What is made of the numbers each time: a LoRA cannot be merged into blocks."""

    def whole(self, dtype: torch.dtype) -> Tensor:
        """Its numbers, to the bit those that reading the file as a whole gives."""
        elements, size = GGML_QUANT_SIZES[self.quant_type]
        blocks = self.as_tensor().view(torch.uint8).reshape(-1, size)
        numbers = dequantize_functions[self.quant_type](blocks, elements, size, torch.float32)
        numbers = cast(Tensor, numbers).reshape(self.quant_shape).to(dtype)
        return self.change(numbers) if self.change else numbers


class Packed(GGUFLinear):  # type: ignore[misc]
    def __init__(self, layer: torch.nn.Linear, weight: Blocks, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, dtype)
        self.weight = weight

    def forward(self, inputs: Tensor) -> Tensor:
        dtype = cast(torch.dtype, self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return torch.nn.functional.linear(inputs.to(dtype), self.weight.whole(dtype), bias)


def blocks(data: Any, kind: GGMLQuantizationType) -> Blocks:
    """From an array of bytes, which is not copied."""
    # as int8: transformers brings what T5 computes to the type of its weights unless it is that
    return Blocks(torch.from_numpy(data).view(torch.int8), quant_type=kind)
