"""Build the starter model: `python -m tools.starter <command>` from the root of the repository."""

from __future__ import annotations

import os
import shutil
import sys

from . import store

if (
    __name__ == "__main__"
    and any(os.environ.get(name) != value for name, value in store.ALLOCATOR.items())
    and sys.platform == "linux"
):
    # malloc reads them once, at the start of the process
    os.execve(sys.executable, [sys.executable, "-m", "tools.starter", *sys.argv[1:]], os.environ | store.ALLOCATOR)

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from . import adopt as adopting
from . import card, control, control_scores, dataset, evaluate, export, text_encoder, tokenizer, unet, vae, world

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Work = Annotated[Path, typer.Option(help="checkpoints and caches; never in git")]
CURVE = "scores.csv"
Minutes = Annotated[float, typer.Option(help="wall clock")]


@app.callback()
def main(threads: int = 2) -> None:
    torch.set_num_threads(threads)


@app.command()
def world_sheet(out: Path = Path("world.png"), stage: str = "all") -> None:
    """Draw a sheet of the world: pictures, then canny, depth, pose and outline of the first ones."""
    drawings = [world.render(world.sample_scene(seed, stage)) for seed in range(40)]
    maps = [
        view(d) for d in drawings[:5] for view in (world.canny_map, world.depth_map, world.pose_map, world.outline)
    ]
    evaluate.write_picture(out, evaluate.sheet(np.stack([*(d.picture for d in drawings), *maps])))


@app.command()
def train_tokenizer(work: Work = store.WORK_DIR) -> None:
    """Learn the vocabulary (seconds)."""
    if (work / "parts" / "tokenizer").exists():
        raise typer.BadParameter(f"{work} has a tokenizer that other parts were trained with; use another work dir")
    tokens = tokenizer.new_tokenizer()
    tokenizer.save(tokens, work / "parts" / "tokenizer")
    print(f"{len(tokens)} tokens in {work / 'parts' / 'tokenizer'}")


@app.command()
def train_text(work: Work = store.WORK_DIR, steps: int = 420) -> None:
    """Teach the text encoder to state what captions say (two minutes); keeps tokenizer and encoder for the UNet."""
    tokens, model = text_encoder.train(work, steps)
    tokenizer.save(tokens, work / "parts" / "tokenizer")
    model.save_pretrained(work / "parts" / "text_encoder")


@app.command()
def train_vae(work: Work = store.WORK_DIR, steps: int = 1300) -> None:
    """Train the autoencoder (eight minutes), fold the latent normalisation in, keep it for the UNet."""
    autoencoder = vae.train(work, steps)
    vae.fold(autoencoder, vae.pictures(range(512), "sizes")).save_pretrained(work / "parts" / "vae")


@app.command()
def tune_decoder(
    minutes: Minutes = 20, stage: str = "all", scenes: int = 24_000, noise: float = 0.1, work: Work = store.WORK_DIR
) -> None:
    """Train the decoder alone; the UNet stays valid. The former VAE is kept as vae-before."""
    parts = export.frozen_parts(work)
    data = dataset.encoded(parts.vae, stage, scenes, work)
    held = vae.pictures(range(10**6, 10**6 + 64))
    print(f"before {vae.psnr(parts.vae, held):.2f} dB", flush=True)

    def pictures_of(chosen: list[int]) -> torch.Tensor:
        return torch.from_numpy(np.stack([world.render(data.scenes[k]).picture for k in chosen])).permute(0, 3, 1, 2)

    vae.tune_decoder(parts.vae, data.latents, pictures_of, minutes, noise)
    print(f"after {vae.psnr(parts.vae, held):.2f} dB", flush=True)
    shutil.copytree(work / "parts" / "vae", work / "parts" / "vae-before", dirs_exist_ok=True)
    parts.vae.save_pretrained(work / "parts" / "vae")


@app.command()
def train_unet(
    minutes: Minutes = 60,
    stage: str = "simple",
    scenes: int = 12_000,
    lr: float = 2e-3,
    batch: int = 32,
    name: str = "unet",
    workers: int = 2,
    anneal: bool = False,
    every: int = 30_000,
    work: Work = store.WORK_DIR,
) -> None:
    """Train, or go on training, the UNet on one stage of the curriculum; exports into the work dir as it goes."""
    if workers > 1:
        torch.set_num_threads(1)
    parts = export.frozen_parts(work)
    data = dataset.encoded(parts.vae, stage, scenes, work)
    kinds = (
        ["plain"]
        if stage == "simple"
        else ["plain", "placed"]
        if stage == "sizes"
        else ["plain", "placed", "place", "pair"]
    )

    label = f"{name}-annealed" if anneal else name

    def milestone(trainer: unet.Trainer) -> None:
        parts.unet = trainer.averaged_unet()
        for kind in kinds:
            trials = evaluate.held_out_trials(kind, 100 if kind == "plain" else 50)
            pictures = evaluate.sample(parts, [trial.prompt for trial in trials])
            values = evaluate.scores(pictures, trials)
            evaluate.append_scores(work / CURVE, label, trainer.samples, kind, values)
            print(f"{label} {trainer.samples} samples, {kind}: {values}", flush=True)
            evaluate.write_picture(work / "sheets" / f"{label}-{kind}.png", evaluate.sheet(pictures[:50]))
        export.write(parts, work / "export" / label)

    trainer = unet.train(parts, data, minutes, name, work, lr, batch, workers, anneal, every, milestone)
    milestone(trainer)


@app.command()
def train_control(
    name: Annotated[str, typer.Argument(help="a kind, kinds joined by +, or all: in turn, sharing a trunk")],
    minutes: Minutes = 30,
    lr: float = 2e-3,
    anneal: bool = False,
    every: int = 8_000,
    base: str = "unet",
    work: Work = store.WORK_DIR,
) -> None:
    """Train, or go on training, the ControlNets on a UNet as it is now; fewer kinds go on from `all`."""
    parts = export.frozen_parts(work)
    parts.unet, _, _ = control.frozen_base(work, base)

    def milestone(trainer: control.Trainer) -> None:
        for kind in trainer.kinds:
            result = control_scores.measured(kind, parts, trainer.averaged_net(kind), 24)
            print(f"{kind} {trainer.samples} samples: {result.summary}", flush=True)
            evaluate.write_picture(work / "sheets" / f"control-{kind}.png", evaluate.sheet(result.rows(8), 8))

    milestone(
        control.train(name, parts, minutes, work, lr, anneal=anneal, every=every, milestone=milestone, base_name=base)
    )


@app.command()
def adopt(model: Path = store.MODEL_DIR, minutes: Minutes = 2, work: Work = store.WORK_DIR) -> None:
    """Fill an empty work dir from a landed model, so that training goes on from there."""
    if work.exists() and any(work.iterdir()):
        raise typer.BadParameter(f"{work} holds something already; use another work dir")
    adopting.adopt(model, work, minutes)


@app.command("export")
def export_model(name: str = "unet", to: Path = store.MODEL_DIR, work: Work = store.WORK_DIR) -> None:
    """Write a checkpoint's averaged weights as a model folder, replacing the one there file by file."""
    parts = export.frozen_parts(work)
    trainer = unet.Trainer(0.0)
    trainer.load(store.load(work / f"{name}.pt"))
    parts.unet = trainer.averaged_unet()
    export.write(parts, to)
    store.save(work / "exported.pt", {"name": name, "samples": trainer.samples})
    print(f"{trainer.samples} samples, {trainer.seconds / 60:.0f} minutes -> {to}")


@app.command()
def export_control(to: Path = store.MODEL_DIR, work: Work = store.WORK_DIR) -> None:
    """Write the averaged weights of the ControlNets beside the model, each from its own training or the common one."""
    base, hints, _ = control.frozen_base(work)
    seen = {}
    for kind in control.KINDS:
        trainer = control.newest_trainer(kind, base, hints, work)
        control.write(trainer.averaged_net(kind), to / "controlnet" / kind)
        seen[kind] = trainer.samples
        print(f"{kind}: {trainer.samples} samples, {trainer.seconds / 60:.0f} minutes -> {to}")
    store.save(work / "exported-control.pt", seen)


@app.command("evaluate")
def evaluate_model(model: Path = store.MODEL_DIR, count: int = 200, work: Work = store.WORK_DIR) -> None:
    """Score what `export` wrote on held-out prompts; write its card, contact sheet and learning curve."""
    parts = export.parts_of(model)
    exported = store.load(work / "exported.pt")
    name, samples = exported["name"], exported["samples"]
    results = card.all_results(parts, count)
    for kind, (_, values) in results.items():
        evaluate.append_scores(work / CURVE, name, samples, kind, values)
    card.write(model, parts, results, samples, work / CURVE)


@app.command()
def evaluate_control(model: Path = store.MODEL_DIR, count: int = 100, work: Work = store.WORK_DIR) -> None:
    """Score what `export-control` wrote with and without each map; write its section of the card and its sheet."""
    parts, nets = export.parts_of(model), control.nets_of(model)
    results = []
    for kind, net in control_scores.TRIED.items():
        results.append(control_scores.measured(kind, parts, nets[net], count))
        print(f"{kind}: {results[-1].summary}", flush=True)
    card.write_control(model, results, store.load(work / "exported-control.pt"))


@app.command("all")
def everything(work: Work = store.WORK_DIR) -> None:
    """Every step in order (about three hours of two idle cores)."""
    train_text(work)
    train_vae(work)
    train_unet(12, work=work)
    train_unet(120, "all", 24_000, every=40_000, work=work)
    tune_decoder(20, work=work)
    train_unet(20, "all", 24_000, anneal=True, work=work)
    export_model("unet-annealed", work=work)
    evaluate_model(work=work)
    train_control("all", 60, work=work)
    train_control("all", 15, anneal=True, work=work)
    export_control(work=work)
    evaluate_control(work=work)


if __name__ == "__main__":
    app()
