"""Prompt -> embeddings: chunks of 75 tokens, each encoded between BOS and EOS and put end to end, as in A1111."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import ProcessorMixin

from backend.errors import InvalidRequest, Problem

KEPT = 128 << 20
"""Bytes of encoded prompts that are kept: in half precision 1100 of Stable Diffusion 1.x, eight of Flux 2 dev."""
AT_ONCE = 16
"""Chunks that go through the text encoder together."""


class Sentence(NamedTuple):
    """An encoder that reads a prompt in one piece, such as T5, filled up with padding that the model sees too."""

    encoder: str
    tokenizer: str
    length: int
    """Tokens that a prompt is filled up to; a longer one, to the next multiple of it."""


class Reading(NamedTuple):
    """How a family of models reads prompts."""

    encoders: Mapping[str, str] = MappingProxyType({})
    """The pipeline's CLIPs, whose states are put side by side, and the tokenizer of each."""
    layer: int = 0
    """Which state is shown, from the end, without the final layer norm; 0: that of `clip_skip`, through the norm."""
    pooled: Literal["", "last", "all"] = ""
    """Whose summary of the first chunk is shown too: the last encoder's, or all of them side by side."""
    empty_negative_is_zero: bool = False
    """Whether an empty negative prompt is all zeros instead of what the encoders make of it."""
    sentence: Sentence | None = None
    """Its states are shown behind those of the CLIPs."""
    states: bool = True
    """Whether the CLIPs' states are shown at all, or their summary alone."""
    own: "Callable[[Any, str, int, bool], Embedded] | None" = None
    """How the pipeline itself reads a prompt: its text, room for so many tokens of `sentence`, if it is negative."""


class Embedded(NamedTuple):
    """What a model is told of a prompt; the names are those of the pipelines' arguments."""

    prompt_embeds: Tensor
    """(1, tokens, width)"""
    pooled_prompt_embeds: Tensor | None = None
    """(1, width of the projection)"""
    prompt_attention_mask: Tensor | None = None
    """(1, tokens)"""
    prompt_embeds_mask: Tensor | None = None
    """The same by another name."""
    listed: bool = False
    """Whether the pipeline takes a list, one for each image."""

    def zeroed(self) -> "Embedded":
        pooled = self.pooled_prompt_embeds
        return Embedded(torch.zeros_like(self.prompt_embeds), None if pooled is None else torch.zeros_like(pooled))

    def arguments(self, images: int, prefix: str = "") -> dict[str, Any]:
        """For so many images of a batch."""
        given = {prefix + name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
        if self.listed:
            return {name: [tensor[0]] * images for name, tensor in given.items()}
        return {name: tensor.expand(images, *tensor.shape[1:]) for name, tensor in given.items()}


class Length(NamedTuple):
    """How much room prompts are given that must be equally long."""

    chunks: int
    tokens: int
    """Of the sentence."""


class Embeddings:
    """The embeddings of one model's prompts, the latest kept."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._kept: OrderedDict[object, Embedded] = OrderedDict()

    def of(self, pipeline: Any, prompt: str, negative: str, clip_skip: int = 1, variant: str = "") -> list[Embedded]:
        """Both prompts' embeddings, of one length: the shorter one is filled up.

        `variant` tells apart what the text encoders give while something has changed them, such as a LoRA.
        """
        if not negative and self._reading.empty_negative_is_zero:
            shown = self.alone(pipeline, prompt, clip_skip, variant)
            return [shown, shown.zeroed()]
        lengths = [length_of(pipeline, self._reading, text) for text in (prompt, negative)]
        longest = Length(*(max(each) for each in zip(*lengths, strict=True)))
        return [
            self._made(pipeline, text, longest, clip_skip, variant, as_negative)
            for text, as_negative in ((prompt, False), (negative, True))
        ]

    def alone(self, pipeline: Any, text: str, clip_skip: int = 1, variant: str = "") -> Embedded:
        """The embeddings of one prompt, for where there is no guidance."""
        return self._made(pipeline, text, length_of(pipeline, self._reading, text), clip_skip, variant)

    def _made(
        self, pipeline: Any, text: str, length: Length, clip_skip: int, variant: str, negative: bool = False
    ) -> Embedded:
        key = text, length, clip_skip, variant, negative and self._reading.own
        if key not in self._kept:
            self._kept[key] = encode(pipeline, self._reading, text, clip_skip, length, negative)
        self._kept.move_to_end(key)
        kept = self._kept[key]
        while sum(e.prompt_embeds.nbytes for e in self._kept.values()) > KEPT and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return kept


def length_of(pipeline: Any, reading: Reading, text: str) -> Length:
    """The room that a prompt needs by itself."""
    encoders = [(getattr(pipeline, encoder), getattr(pipeline, name)) for encoder, name in reading.encoders.items()]
    rows = max((len(chunks(tokenizer, text, _room(encoder))) for encoder, tokenizer in encoders), default=0)
    sentence = reading.sentence
    if sentence is None:
        return Length(rows, 0)
    tokenizer = words_of(getattr(pipeline, sentence.tokenizer))
    tokens = len(tokenizer(text, truncation=False, verbose=False).input_ids) if tokenizer else 0
    return Length(rows, max(-(-tokens // sentence.length), 1) * sentence.length)


def words_of(tokenizer: Any) -> Any:
    """The tokenizer of one that reads pictures too; any other is its own."""
    return tokenizer.tokenizer if isinstance(tokenizer, ProcessorMixin) else tokenizer


def encode(
    pipeline: Any,
    reading: Reading,
    text: str,
    clip_skip: int = 1,
    length: Length | None = None,
    negative: bool = False,
) -> Embedded:
    """Each text by itself, so that its embedding never depends on another's."""
    length = length or length_of(pipeline, reading, text)
    if reading.own:
        with torch.inference_mode():
            return reading.own(pipeline, text, length.tokens, negative)
    with torch.inference_mode():
        read = [
            _encode(getattr(pipeline, tokenizer), getattr(pipeline, encoder), text, reading.layer, clip_skip, length)
            for encoder, tokenizer in reading.encoders.items()
        ]
        summaries = [summary for _, summary in read]
        pooled = {"": None, "last": summaries[-1], "all": torch.cat(summaries, dim=-1)}[reading.pooled]
        shown = [torch.cat([states for states, _ in read], dim=-1)] if reading.states else []
        if reading.sentence:
            shown.append(_sentence(pipeline, reading.sentence, text, length.tokens, like=shown))
        width = shown[-1].shape[-1]
        return Embedded(torch.cat([pad(states, (0, width - states.shape[-1])) for states in shown], dim=1), pooled)


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


def _encode(
    tokenizer: Any, text_encoder: Any, text: str, layer: int, clip_skip: int, length: Length
) -> tuple[Tensor, Tensor]:
    """One CLIP's states, (1, 77 n, width) for n chunks, and its summary of the first one."""
    own = chunks(tokenizer, text, _room(text_encoder))
    empty = chunks(tokenizer, "", _room(text_encoder))
    given = [_run(text_encoder, rows) for rows in (own[i : i + AT_ONCE] for i in range(0, len(own), AT_ONCE))]
    states = [_states(text_encoder, each, layer, clip_skip) for each in given]
    if lacking := length.chunks - len(own):
        states += [_states(text_encoder, _run(text_encoder, empty), layer, clip_skip)] * lacking
    summary: Tensor = given[0].get("text_embeds", given[0].get("pooler_output"))
    return torch.cat(states).flatten(0, 1).unsqueeze(0), summary[:1]


def _run(text_encoder: Any, rows: Sequence[Sequence[int]]) -> Any:
    return text_encoder(torch.tensor(rows, device=text_encoder.device), output_hidden_states=True)


def _room(text_encoder: Any) -> int:
    return int(text_encoder.config.max_position_embeddings)


def _sentence(pipeline: Any, sentence: Sentence, text: str, length: int, like: Sequence[Tensor]) -> Tensor:
    """The states of the whole text, (1, length, width); zeros if the model came without its encoder."""
    encoder, tokenizer = getattr(pipeline, sentence.encoder), getattr(pipeline, sentence.tokenizer)
    if encoder is None:
        return torch.zeros(1, length, pipeline.transformer.config.joint_attention_dim).to(like[0])
    ids = tokenizer(text, padding="max_length", max_length=length, return_tensors="pt", verbose=False).input_ids
    states: Tensor = encoder(ids.to(encoder.device)).last_hidden_state
    return states


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
