"""The model card: scores, contact sheet and learning curve beside the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import evaluate, world

# prompts a user may try first; the sheet shows them in this order
SHOWN = (
    "a red circle on a blue background",
    "red circle, blue background",
    "blue square on yellow",
    "a green triangle on a pink background",
    "yellow star, purple backdrop",
    "a pink heart on black",
    "a white house on a green background",
    "a green tree on a white background",
    "a blue person on an orange background",
    "a star",
    "a small red heart on the left on a white background",
    "a small blue square at the top on a yellow background",
    "a medium green circle on the right on a black background",
    "a small white star at the bottom on a purple background",
    "a person waving, pink background",
    "a red person with raised arms on a cyan background",
    "a black person walking on a yellow background",
    "an orange person with arms spread on a blue background",
    "a house",
    "purple tree on cyan",
    "a house at night",
    "a red house by the sea",
    "a tree in the mountains",
    "a yellow star at night",
    "a red circle at sunset",
    "a pink person on a sunny day",
    "a purple triangle on a meadow",
    "an orange house in the mountains",
    "a cyan heart at sunset",
    "a red person by the sea",
    "a red circle and a blue square on a white background",
    "a yellow star to the left of a green tree on a blue background",
    "a black square above a red heart on a pink background",
    "a white circle below a yellow triangle on a purple background",
    "a blue person next to a red house on a white background",
    "a green tree and a red house on a sunny day",
    "a red heart to the right of a white star on a black background",
    "an orange circle and a purple person at the sea",
    "a pink triangle above a green square on a white background",
    "a cyan star beside a red triangle at night",
)

TEXT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# Starter model

A complete Stable Diffusion in {megabytes:.0f} MB that knows one drawn world: eight shapes, ten colours, five
landscapes. It is there so that everything can be tried at once, without a download and without a GPU. It is a
toy by intent: it draws nothing else.

![contact sheet](contact-sheet.png)

The sheet, row by row: {shown}.

## What it understands

- shapes: {shapes}
- colours of shape and background: {colours}
- landscapes: at night, on a sunny day, at sunset, by the sea, in the mountains
- sizes small, medium (large is the default) and places left, right, top, bottom (centre is the default)
- people waving, with raised arms, walking, with arms spread
- two objects: "A and B", "A to the left of B", "A above B"

Wordings may be short ("red circle, blue background"). What is not said has a default: a white background, one
large object in the centre. Best at 128x128, 20 steps of DPM++ 2M, CFG 3 to 4.

## Scores

Measured by a detector that looks at pixels only (`tools/starter/detect.py`, 100 % right on true drawings on
plain grounds), 20 steps, CFG {guidance}, on prompts whose (shape, colour, background) was never trained on.
`all` means everything right in the same picture.

{table}

![learning curve](learning-curve.png)

## How it was made

Everything is in `tools/starter/`; the data is drawn by `world.py`, so there is no one else's picture or text
in it. Tokenizer, text encoder (taught to state the attributes of a caption, then frozen), autoencoder, then
the UNet: v-prediction, {samples:,} samples on CPU, with an auxiliary loss from the known label map that is
dropped here.

| part | class | parameters |
|---|---|---|
{parts}

Noise schedule: scaled linear, 0.00085 to 0.012, 1000 steps, v-prediction (`scheduler/scheduler_config.json`).
`scaling_factor` is 0.18215; the normalisation of the latents is folded into `quant_conv` and
`post_quant_conv`.

## Limits

It knows no word outside the list above, and no style. Objects that hardly differ from their ground (a black
star at night) are hard to see for it as for anyone. Free noise at other sizes than 128x128 gives shapes of
the trained size, or several of them.

Licence: Apache-2.0.
"""


def write(
    folder: Path,
    parts: evaluate.Components,
    results: dict[str, tuple[int, dict[str, float]]],
    samples: int,
    curve: Path,
) -> None:
    """Write README.md, contact-sheet.png and learning-curve.png into the model folder."""
    pictures = evaluate.sample(parts, list(SHOWN), seed=100)
    evaluate.write_picture(folder / "contact-sheet.png", evaluate.sheet(pictures))
    rows = evaluate.read_rows(curve)
    if rows:
        evaluate.write_picture(folder / "learning-curve.png", evaluate.curve(rows))
    names = {
        "plain": "one object, plain background",
        "placed": "size and position named",
        "place": "one object in a landscape",
        "pair": "two objects",
    }
    table = ["| prompts | n | " + " | ".join(evaluate.FIELDS) + " |", "|---|---|" + "---|" * len(evaluate.FIELDS)]
    for kind, (count, scores) in results.items():
        table.append(
            f"| {names[kind]} | {count} | " + " | ".join(f"{scores[field]:.2f}" for field in evaluate.FIELDS) + " |"
        )
    modules = {"text_encoder": parts.text_encoder, "vae": parts.vae, "unet": parts.unet}
    sizes = [
        f"| {name} | {type(module).__name__} | {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M |"
        for name, module in modules.items()
    ]
    (folder / "README.md").write_text(
        TEXT.format(
            megabytes=sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6,
            shown="; ".join(SHOWN),
            shapes=", ".join(world.SHAPES),
            colours=", ".join(world.COLOURS),
            guidance=evaluate.GUIDANCE,
            table="\n".join(table),
            samples=samples,
            parts="\n".join(sizes),
        )
    )


def all_results(parts: evaluate.Components, count: int) -> dict[str, tuple[int, dict[str, float]]]:
    """Scores of `count` plain and a quarter as many of every other kind of held-out prompts."""
    results = {}
    for kind in ("plain", "placed", "place", "pair"):
        trials = evaluate.held_out_trials(kind, count if kind == "plain" else count // 4)
        pictures = evaluate.sample(parts, [trial.prompt for trial in trials])
        results[kind] = (len(trials), {k: float(np.round(v, 3)) for k, v in evaluate.scores(pictures, trials).items()})
        print(kind, results[kind], flush=True)
    return results
