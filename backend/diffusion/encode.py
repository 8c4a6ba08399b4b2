"""Prompt -> embeddings: chunks of 75 tokens, each encoded between BOS and EOS and put end to end, as in A1111."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backend.errors import InvalidRequest, Problem

KEPT_CHUNKS = 256
"""How many encoded chunks are kept: in fp32 60 MB for Stable Diffusion 1.x, 160 MB for SDXL."""
AT_ONCE = 16
"""Chunks that go through the text encoder together."""


class Reading(NamedTuple):
    """How a family of models reads prompts."""

    encoders: Mapping[str, str]
    """The pipeline's text encoders, whose states are put side by side, and the tokenizer of each."""
    layer: int = 0
    """Which state is shown, from the end, without the final layer norm; 0: that of `clip_skip`, through the norm."""
    pooled: bool = False
    """Whether the last encoder's summary of the first chunk is shown too."""
    empty_negative_is_zero: bool = False
    """Whether an empty negative prompt is all zeros instead of what the encoders make of it."""


class Embedded(NamedTuple):
    """What a model is told of a prompt; the names are those of the pipelines' arguments."""

    prompt_embeds: Tensor
    """(1, 77 n, width)"""
    pooled_prompt_embeds: Tensor | None = None
    """(1, width of the projection)"""

    def zeroed(self) -> "Embedded":
        pooled = self.pooled_prompt_embeds
        return Embedded(torch.zeros_like(self.prompt_embeds), None if pooled is None else torch.zeros_like(pooled))

    def arguments(self, images: int, prefix: str = "") -> dict[str, Tensor]:
        """For so many images of a batch."""
        given = {prefix + name: tensor for name, tensor in self._asdict().items() if tensor is not None}
        return {name: tensor.expand(images, *tensor.shape[1:]) for name, tensor in given.items()}


class Embeddings:
    """The embeddings of one model's prompts, the latest kept."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._kept: OrderedDict[tuple[str, int, str], Embedded] = OrderedDict()

    def of(self, pipeline: Any, prompt: str, negative: str, clip_skip: int = 1, variant: str = "") -> list[Embedded]:
        """Both prompts' embeddings, of one length: the shorter one is filled up with empty chunks.

        `variant` tells apart what the text encoders give while something has changed them, such as a LoRA.
        """
        if not negative and self._reading.empty_negative_is_zero:
            shown = self.alone(pipeline, prompt, clip_skip, variant)
            return [shown, shown.zeroed()]
        both = [self.alone(pipeline, text, clip_skip, variant) for text in (prompt, negative)]
        length = max(e.prompt_embeds.shape[1] for e in both)
        if any(e.prompt_embeds.shape[1] < length for e in both):
            empty = self.alone(pipeline, "", clip_skip, variant).prompt_embeds
            both = [e._replace(prompt_embeds=_filled(e.prompt_embeds, empty, length)) for e in both]
        return both

    def alone(self, pipeline: Any, text: str, clip_skip: int = 1, variant: str = "") -> Embedded:
        """The embeddings of one prompt, for where there is no guidance."""
        key = text, clip_skip, variant
        if key not in self._kept:
            self._kept[key] = encode(pipeline, self._reading, text, clip_skip)
        self._kept.move_to_end(key)
        kept = self._kept[key]
        while sum(e.prompt_embeds.shape[1] for e in self._kept.values()) > KEPT_CHUNKS * 77 and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return kept


def encode(pipeline: Any, reading: Reading, text: str, clip_skip: int = 1) -> Embedded:
    """Each text by itself, so that its embedding never depends on another's."""
    shown = [
        _encode(getattr(pipeline, tokenizer), getattr(pipeline, encoder), text, reading.layer, clip_skip)
        for encoder, tokenizer in reading.encoders.items()
    ]
    states = torch.cat([states for states, _ in shown], dim=-1)
    return Embedded(states, shown[-1][1] if reading.pooled else None)


def chunks(tokenizer: Any, text: str, length: int = 77) -> list[list[int]]:
    """Token ids in rows of `length`: BOS, up to 75 of them, EOS, padding. An empty text is one row.

    Words are words: "!", with which SDXL's second encoder is padded, is the same to it as to the first one.
    """
    how = {"add_special_tokens": False, "split_special_tokens": True, "truncation": False, "verbose": False}
    ids: list[int] = tokenizer(text, **how).input_ids
    room = length - 2
    parts = [ids[i : i + room] for i in range(0, len(ids), room)] or [[]]
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return [[bos, *part, eos] + [pad] * (room - len(part)) for part in parts]


def _encode(tokenizer: Any, text_encoder: Any, text: str, layer: int, clip_skip: int) -> tuple[Tensor, Tensor | None]:
    """One encoder's states, (1, 77 n, width) for n chunks, and its summary of the first one, if it makes any."""
    rows = torch.tensor(chunks(tokenizer, text, text_encoder.config.max_position_embeddings))
    states, pooled = [], []
    with torch.inference_mode():
        for part in torch.split(rows, AT_ONCE):
            given = text_encoder(part.to(text_encoder.device), output_hidden_states=True)
            states.append(_states(text_encoder, given, layer, clip_skip))
            pooled.append(given.get("text_embeds"))
        first = pooled[0]
        return torch.cat(states).flatten(0, 1).unsqueeze(0), None if first is None else first[:1]


def _states(text_encoder: Any, given: Any, layer: int, clip_skip: int) -> Tensor:
    """What of an encoder's output the UNet is shown, (n, 77, width)."""
    states = given.hidden_states
    if layer:
        bare: Tensor = states[-layer]
        return bare
    if clip_skip == 1:
        last: Tensor = given.last_hidden_state
        return last
    if clip_skip > len(states):
        raise InvalidRequest(Problem("clip_skip", f"this model's text encoder has {len(states) - 1} layers"))
    inner = getattr(text_encoder, "text_model", text_encoder)  # one object since transformers 5
    skipped: Tensor = inner.final_layer_norm(states[-clip_skip])
    return skipped


def _filled(states: Tensor, empty: Tensor, length: int) -> Tensor:
    return torch.cat([states, *[empty] * ((length - states.shape[1]) // empty.shape[1])], dim=1)
