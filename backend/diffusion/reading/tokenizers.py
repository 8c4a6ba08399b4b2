"""Tokenizers without a hub: CLIP's from a dependency's list of merges, others from a tokenizer.json of the user's."""

import gzip
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from transformers import AddedToken, CLIPTokenizer

from backend import gguf

LENGTH = 77
PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
"""Bytes that stand for themselves in the vocabulary; the others are written as characters from 256 on."""
MERGES = 48894
"""How many of the pairs in the list CLIP was trained with."""
_MODEL = "tokenizer.ggml.model"
_CONTROL, _DEFINED, _UNUSED = 3, 4, 5
"""Kinds of words in a GGUF file: those of a template, others that are not divided, and numbers without a word."""


def clip(**special: str) -> Any:
    """The tokenizer of all CLIP text encoders; `special`: tokens that differ, such as `pad_token`."""
    words, merges = _vocabulary()
    numbered = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=numbered, merges=list(merges), model_max_length=LENGTH, **special)


def from_file(cls: Any, file: Path, **told: Any) -> Any:
    """From a tokenizer.json, or a folder with what it is made of; `told` is what a tokenizer.json does not say."""
    if file.is_dir():
        return cls.from_pretrained(file, local_files_only=True, **told)
    return cls(tokenizer_file=str(file), **told)


def are_said(metadata: Mapping[str, str]) -> bool:
    """Whether a GGUF file brings its tokenizer, as llama.cpp's do."""
    return metadata.get(_MODEL) in ("t5", "gpt2")


def from_gguf(cls: Any, file: Path, **told: Any) -> Any:
    """From what llama.cpp has written into a file of weights."""
    said, lists = gguf.read(file).metadata, gguf.lists(file)
    words, kinds = lists["tokenizer.ggml.tokens"], lists["tokenizer.ggml.token_type"]
    end = max(number for number, kind in enumerate(kinds) if kind != _UNUSED) + 1
    if said[_MODEL] == "t5":
        gaps = sum(word.startswith("<extra_id_") for word in words[:end])
        rules = bytes(lists.get("tokenizer.ggml.precompiled_charsmap", ()))
        scored = list(zip(words[:end], lists["tokenizer.ggml.scores"], strict=False))
        return cls(**{**told, "extra_ids": gaps}, vocab=scored, _spm_precompiled_charsmap=rules or None)
    numbered = {word: number for number, word in enumerate(words[:end])}
    merges = [tuple(pair.split(" ", 1)) for pair in lists.get("tokenizer.ggml.merges", ())]  # an empty one is left out
    special = [word for word, number in numbered.items() if kinds[number] == _CONTROL]
    made = cls(vocab=numbered, merges=merges, extra_special_tokens=special, **told)
    whole = [word for word, number in numbered.items() if kinds[number] == _DEFINED]
    made.add_tokens([AddedToken(word, normalized=False) for word in whole])
    return made


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Words in the order of their numbers, and which pairs are merged into one, first what comes first."""
    file = Path(str(distribution("clip-anytorch").locate_file("clip/bpe_simple_vocab_16e6.txt.gz")))
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()[1 : MERGES + 1]  # the first line is a heading
    merges = tuple((first, second) for first, second in (line.split() for line in lines))
    letters = [chr(byte) for byte in PRINTABLE] + [chr(256 + n) for n in range(256 - len(PRINTABLE))]
    joined = [first + second for first, second in merges]
    ends = [f"{letter}</w>" for letter in letters]
    return (*letters, *ends, *joined, "<|startoftext|>", "<|endoftext|>"), merges
