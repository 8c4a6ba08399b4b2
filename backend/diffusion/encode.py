"""Prompt -> embeddings: chunks of 75 tokens, each encoded between BOS and EOS and put end to end, as in A1111."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backend.errors import InvalidRequest, Problem
from backend.prompt import Prompt

KEPT_CHUNKS = 256
"""How many encoded chunks are kept: 60 MB for Stable Diffusion 1.x in fp32."""
AT_ONCE = 16
"""Chunks that go through the text encoder together."""


class Embeddings:
    """The embeddings of one model's prompts, the latest kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, str], Tensor] = OrderedDict()

    def of(self, pipeline: Any, prompts: Sequence[Prompt], clip_skip: int = 1, variant: str = "") -> list[Tensor]:
        """(1, 77 n, width) for each, all of one length: the shorter ones are filled up with empty chunks.

        `variant` tells apart what the text encoder gives while something has changed it, such as a LoRA.
        """
        embedded = [self._get(pipeline, prompt.text, clip_skip, variant) for prompt in prompts]
        length = max(e.shape[1] for e in embedded)
        if any(e.shape[1] < length for e in embedded):
            empty = self._get(pipeline, "", clip_skip, variant)
            embedded = [torch.cat([e, *[empty] * ((length - e.shape[1]) // empty.shape[1])], dim=1) for e in embedded]
        return embedded

    def _get(self, pipeline: Any, text: str, clip_skip: int, variant: str) -> Tensor:
        key = text, clip_skip, variant
        if key not in self._kept:
            self._kept[key] = encode(pipeline.tokenizer, pipeline.text_encoder, text, clip_skip)
        self._kept.move_to_end(key)
        kept = self._kept[key]
        while sum(e.shape[1] for e in self._kept.values()) > KEPT_CHUNKS * 77 and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return kept


def encode(tokenizer: Any, text_encoder: Any, text: str, clip_skip: int = 1) -> Tensor:
    """(1, 77 n, width) for n chunks; each text by itself, so that its embedding never depends on another's."""
    rows = torch.tensor(chunks(tokenizer, text, text_encoder.config.max_position_embeddings))
    with torch.inference_mode():
        states = [
            _states(text_encoder, part.to(text_encoder.device), clip_skip) for part in torch.split(rows, AT_ONCE)
        ]
        return torch.cat(states).flatten(0, 1).unsqueeze(0)


def chunks(tokenizer: Any, text: str, length: int = 77) -> list[list[int]]:
    """Token ids in rows of `length`: BOS, up to 75 of them, EOS, padding. An empty text is one row."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
    room = length - 2
    parts = [ids[i : i + room] for i in range(0, len(ids), room)] or [[]]
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return [[bos, *part, eos] + [pad] * (room - len(part)) for part in parts]


def _states(text_encoder: Any, ids: Tensor, clip_skip: int) -> Tensor:
    """What the UNet is shown, (n, 77, width): the state `clip_skip` layers from the end, then the final layer norm."""
    if clip_skip == 1:
        last: Tensor = text_encoder(ids).last_hidden_state
        return last
    states = text_encoder(ids, output_hidden_states=True).hidden_states
    if clip_skip > len(states):
        raise InvalidRequest(Problem("clip_skip", f"this model's text encoder has {len(states) - 1} layers"))
    inner = getattr(text_encoder, "text_model", text_encoder)  # one object since transformers 5
    skipped: Tensor = inner.final_layer_norm(states[-clip_skip])
    return skipped
