"""The model card: scores, contact sheet and learning curve beside the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import control_scores, evaluate, world

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

{control}## How it was made

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
    readme = folder / "README.md"
    section = _control_section(readme.read_text() if readme.exists() else "")
    readme.write_text(
        TEXT.format(
            megabytes=sum(p.stat().st_size for p in folder.glob("*/*.safetensors")) / 1e6,
            shown="; ".join(SHOWN),
            shapes=", ".join(world.SHAPES),
            colours=", ".join(world.COLOURS),
            guidance=evaluate.GUIDANCE,
            table="\n".join(table),
            samples=samples,
            control=section,
            parts="\n".join(sizes),
        )
    )


CONTROL_COLUMNS = 7
CONTROL_HEADING, NEXT_HEADING = "## ControlNets", "## How it was made"
CONTROL = """{heading}

`controlnet/canny`, `controlnet/depth` and `controlnet/openpose` (OpenPose, 18 joints) are ControlNets for this model,
{megabytes:.1f} MB each: white edges on black; white = near; coloured skeletons on black. They take maps of 128x128.

![maps, pictures with and without them](controlnet/contact-sheet.png)

Three rows each for canny, depth, openpose in the world's poses and openpose in free poses: the map; the picture with
the ControlNet at weight 1; the picture of the same prompt and seed without it. The prompts name colours only, those
for depth also the objects, so that each has a colour to be known by: {shown}.

Measured on freely arranged scenes whose (shape, colour, background) was never trained on, 20 steps, CFG {guidance};
seeds: {count}. `drawn` is the same measure on the true drawing, the best that can be reached.

| map | measure | drawn | with | without |
|---|---|---|---|---|
{table}

- edge recall: share of the map's edge pixels with an edge of the picture (Canny 60, 140) within {tolerance} pixels, on
  plain grounds
- order right: near and far object, two in five of them overlapping, show a colour of their own each in 75 % of their
  pixels
- line error, line right: the strongest change from above to below against the map's ground line, which lies up to a
  quarter of the height above or a tenth below the usual one; in heights of the picture; right = within {line} pixels
- joint error, joints right: distance of the 18 joints of the best covering figure of the world from the map's, in
  heights of the figure; right = within {joint:.0%} of it
- figure overlap: intersection over union of the figure with the drawn one, in poses that no caption can name

They were trained on the frozen UNet, 15 % of the captions empty and 45 % reduced to colours
(`tools/starter/control.py`), at first in turn on a common trunk with a map reader for each kind, so that they share
samples. Samples behind each: {samples}.

"""


def _control_section(text: str) -> str:
    """The section on ControlNets of a card, if it has one."""
    start = text.find(CONTROL_HEADING)
    return "" if start < 0 else text[start : text.index(NEXT_HEADING)]


def write_control(folder: Path, results: list[control_scores.Result], samples: dict[str, int]) -> None:
    """Write the section on ControlNets into README.md, and controlnet/contact-sheet.png."""
    rows = np.concatenate([result.rows(CONTROL_COLUMNS) for result in results])
    evaluate.write_picture(folder / "controlnet" / "contact-sheet.png", evaluate.sheet(rows, CONTROL_COLUMNS))
    table = [
        f"| {result.kind} | {measure} | "
        + " | ".join(f"{result.scores[condition][measure]:.3f}" for condition in ("drawn", "with", "without"))
        + " |"
        for result in results
        for measure in result.scores["with"]
    ]
    section = CONTROL.format(
        heading=CONTROL_HEADING,
        megabytes=max(p.stat().st_size for p in folder.glob("controlnet/*/*.safetensors")) / 1e6,
        shown="; ".join(trial.prompt for result in results for trial in result.trials[:CONTROL_COLUMNS]),
        count=", ".join(f"{len(result.trials)} ({result.kind})" for result in results),
        guidance=evaluate.GUIDANCE,
        table="\n".join(table),
        tolerance=control_scores.TOLERANCE,
        line=control_scores.RIGHT_LINE,
        joint=control_scores.RIGHT_JOINT,
        samples=", ".join(f"{count:,} ({kind})" for kind, count in samples.items()),
    )
    text = (folder / "README.md").read_text()
    start = text.index(CONTROL_HEADING if CONTROL_HEADING in text else NEXT_HEADING)
    (folder / "README.md").write_text(text[:start] + section + text[text.index(NEXT_HEADING) :])


def all_results(parts: evaluate.Components, count: int) -> dict[str, tuple[int, dict[str, float]]]:
    """Scores of `count` plain and a quarter as many of every other kind of held-out prompts."""
    results = {}
    for kind in ("plain", "placed", "place", "pair"):
        trials = evaluate.held_out_trials(kind, count if kind == "plain" else count // 4)
        pictures = evaluate.sample(parts, [trial.prompt for trial in trials])
        results[kind] = (len(trials), {k: float(np.round(v, 3)) for k, v in evaluate.scores(pictures, trials).items()})
        print(kind, results[kind], flush=True)
    return results
