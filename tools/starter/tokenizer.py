"""The tokenizer: a CLIPTokenizer over a byte-pair vocabulary learnt from the world's captions."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from . import world

MERGES = 700
LENGTH = 77
# words of everyday prompts that the captions lack, so that they cost few tokens
EXTRA_WORDS = [
    "the",
    "photo",
    "style",
    "colorful",
    "bright",
    "dark",
    "small",
    "very",
    "with",
    "and",
    "without",
    "of",
    "at",
    "in",
    "on",
    "under",
    "over",
    "blurry",
    "low",
    "quality",
    "worst",
    "bad",
    "text",
    "watermark",
    "signature",
    "cropped",
    "jpeg",
    "artifacts",
    "painting",
    "sketch",
    "outline",
    "line",
    "art",
    "watercolor",
    "pixel",
    "cartoon",
    "anime",
    "cat",
    "dog",
    "car",
    "flower",
    "boat",
    "bird",
    "fish",
    "moon",
    "sun",
    "sky",
    "cloud",
    "water",
    "forest",
    "city",
    "river",
    "brown",
    "gray",
    "grey",
    "gold",
    "silver",
    "light",
    "two",
    "three",
    "many",
    "no",
]


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {b: chr(b) for b in printable}
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + len(table) - len(printable))
    return table


def learn() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges; BOS and EOS come last, so that both pooling rules of CLIPTextModel find the EOS."""
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    for seed in range(6000):
        counts.update(re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", world.caption(world.sample_scene(seed), rng).lower()))
    counts.update(dict.fromkeys(EXTRA_WORDS, 20))
    words = {tuple(word[:-1]) + (word[-1] + "</w>",): n for word, n in counts.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, n in words.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += n
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {_merged(symbols, best): n for symbols, n in words.items()}
    alphabet = list(bytes_to_unicode().values())
    tokens = [
        *alphabet,
        *(a + "</w>" for a in alphabet),
        *(a + b for a, b in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def _merged(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def new_tokenizer() -> CLIPTokenizer:
    """The starter tokenizer, learnt in seconds; always the same."""
    vocabulary, merges = learn()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save with vocab.json and merges.txt, which transformers 5 leaves out and others still read."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n", encoding="utf-8"
    )


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids (N, 77) as StableDiffusionPipeline makes them."""
    ids: torch.Tensor = tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
